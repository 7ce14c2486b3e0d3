"""Somebody's own folder of images: a look into it, stages 1 to 3 by running their notebooks, and what they bring."""

import shutil

import pandas as pd
import papermill

from datadream_utils.analysis.compare import paired_difference
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.folders import list_pictures
from datadream_utils.data.images import check_images
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, sha256s
from datadream_utils.params import NOTEBOOKS, ROOT, Images, RunParams, read_params_file, resolve

EXAMPLE = "outputs/example-folder"
EXAMPLE_CLASSES = ("three", "five", "eight")


class OwnImagesParams(RunParams):
    """The parameters that the three stages share, and a file for all others."""

    images_per_class: Images
    params_file: str

    def values(self):
        """Every parameter that is set, ``{name: value}``: those of the file, overridden by those of the notebook.

        Notebook 05 compares settings itself; 03 need not.
        """
        file = read_params_file(resolve(self.params_file)) if self.params_file else {}
        own = {name: value for name, value in self.model_dump().items() if name != "params_file"}
        return file | own | {"compare_settings": False}


def write_example(folder, data_root):
    """Write an example of a user's folder, unless it exists: three classes of handwritten digits, 100 pictures each."""
    if resolve(folder).exists():
        return
    digits = load_dataset("mnist5k", data_root)
    with atomic_write(resolve(folder)) as temporary:
        for name in EXAMPLE_CLASSES:
            (temporary / name).mkdir(parents=True)
            for path in digits.files["train"][digits.class_names.index(name)]:
                shutil.copy(path, temporary / name)


def describe_folder(data):
    """A row per class: its name in the prompt, pictures in each split, the smallest side in pixels.

    "not read" counts the class's files that ``load_dataset`` has left out. Reads every picture; InputError for those
    that cannot be read, and for a data set of one class.
    """
    if len(data.class_names) < 2:
        raise InputError(
            f"{data.root} has one class, {data.class_names[0]!r}: a classifier tells classes apart, so add the folder "
            "of another class."
        )
    rows = []
    for label, name in enumerate(data.class_names):
        counts = {split: len(classes[label]) for split, classes in data.files.items()}
        paths = [path for classes in data.files.values() for path in classes[label]]
        smallest = min(min(size) for size in check_images(paths))
        rows.append({"class": name, **counts, "smallest side": smallest, "not read": data.count_unread(label)})
    return pd.DataFrame(rows)


def duplicates(data):
    """``[(train path, other path), ...]``: test and val pictures that are, byte for byte, also in train."""
    train = [path for paths in data.files["train"] for path in paths]
    others = [path for split in ("val", "test") for paths in data.files.get(split, ()) for path in paths]
    train_path = dict(zip(sha256s(train), train, strict=True))
    return [(train_path[key], path) for key, path in zip(sha256s(others), others, strict=True) if key in train_path]


def loose_pictures(data):
    """The pictures beside the class folders, which belong to no class and are not read, sorted."""
    parents = {path.parent.parent for classes in data.files.values() for paths in classes for path in paths}
    return sorted(path for folder in {data.root, *parents} for path in list_pictures(folder))


def run_notebook(params):
    """Run the notebook of a stage with its checked parameters; returns the run's folder, where its copy is kept."""
    folder, name = params.run_folder, f"{NOTEBOOKS[params.stage.partition('-')[0]]}.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(ROOT / "notebooks" / name),
        str(folder / name),
        params.model_dump(),
        kernel_name="python3",
        progress_bar=False,
        start_timeout=600,  # seconds; libraries on a network disk are slow to load
        cwd=str(ROOT),
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
    )
    return folder


def gain(generated, alone):
    """What training on generated images brings, in three sentences.

    generated, alone: a truth value for every test image, in one order, whether the classifier with and without
    generated images recognised it. The interval is that of the difference image by image.
    """
    result = paired_difference(*(pd.DataFrame({0: correct.to_numpy()}) for correct in (generated, alone)))
    low, high = result["low"], result["high"]
    unclear = "no difference, or too few test images to tell"
    verdict = "they have helped" if low > 0 else "they have done harm" if high < 0 else unclear
    interval = f"95 % interval over test images {low:+z.1f} to {high:+z.1f}"
    return (
        f"The generated images bring {result['difference']:+z.1f} points ({interval}): {verdict}. "
        "It is one run: other shots or another seed may bring otherwise."
    )
