"""The short path: somebody's own folder of images through stages 1 to 3, and a look at it before hours are spent."""

import shutil

import pandas as pd
import papermill

from datadream_utils.analysis.compare import paired_difference
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.images import read_image
from datadream_utils.files import atomic_write, sha256
from datadream_utils.params import NOTEBOOKS, ROOT, Count, RunParams, read_params_file, resolve

EXAMPLE = "outputs/example-folder"
EXAMPLE_CLASSES = ("three", "five", "eight")


class OwnImagesParams(RunParams):
    """What the three stages share, and a file for everything else."""

    images_per_class: Count
    params_file: str

    def values(self):
        """Every parameter that is set: those of the file, and these before them."""
        file = read_params_file(resolve(self.params_file)) if self.params_file else {}
        return file | {k: v for k, v in self.model_dump().items() if k != "params_file"}


def write_example(folder, data_root):
    """A folder as a user would have it, unless it is there: three classes of handwritten digits, 100 pictures each."""
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

    Reads every picture; InputError for one that cannot be read. "not read": files beside them in other formats.
    """
    rows = []
    for label, name in enumerate(data.class_names):
        files = {split: classes[label] for split, classes in data.files.items()}
        sides = [min(read_image(path).size) for paths in files.values() for path in paths]
        counts = {split: len(paths) for split, paths in files.items()}
        folders = {path.parent for paths in files.values() for path in paths}
        beside = sum(not f.name.startswith(".") and f.is_file() for folder in folders for f in folder.iterdir())
        others = {"not read": beside - sum(counts.values())}
        rows.append({"class": name} | counts | {"smallest side": min(sides)} | others)
    return pd.DataFrame(rows)


def doubled(data):
    """Pairs (train, other) of test and val pictures that are, byte for byte, also in train."""
    seen = {sha256(path): path for paths in data.files["train"] for path in paths}
    others = [path for split in ("val", "test") for paths in data.files.get(split, ()) for path in paths]
    return [(seen[key], path) for path in others if (key := sha256(path)) in seen]


def run_notebook(stage, values):
    """Run the notebook of ``stage`` with its checked parameters; returns the run's folder, where its copy is kept."""
    folder, name = resolve(values.output_root) / values.run_name, f"{NOTEBOOKS[stage]}.ipynb"
    folder.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(ROOT / "notebooks" / name),
        str(folder / name),
        values.model_dump(),
        kernel_name="python3",
        progress_bar=False,
        cwd=str(ROOT),
        extra_arguments=["--IPKernelApp.log_level=CRITICAL"],
    )
    return folder


def gain(generated, alone):
    """What generated images bring, in a sentence; both: a column with True for every test image that was recognised."""
    found = paired_difference(*(pd.DataFrame({0: correct.to_numpy()}) for correct in (generated, alone)))
    low, high = found["low"], found["high"]
    unclear = "no difference, or too few test images to tell"
    helped = "they have helped" if low > 0 else "they have done harm" if high < 0 else unclear
    interval = f"95 % interval over test images {low:+.1f} to {high:+.1f}"
    once = "It is one run: other shots or another seed may bring otherwise."
    return f"The generated images bring {found['difference']:+.1f} points ({interval}): {helped}. {once}"
