"""The pictures that a classifier learns from and is tested on (paper, section 3.4).

An epoch shows ``images_per_class`` real and as many synthetic pictures of every class. The shots are repeated to reach
that number. If ``synthetic_per_class`` is set, only so many generated images are used, repeated too. So every setting
takes the same number of optimizer steps.
"""

import torch

from datadream_utils.classifier.augment import Augment
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import centre_square, check_images, read_image, to_tensor
from datadream_utils.diffusion.generate import read_generated
from datadream_utils.errors import InputError
from datadream_utils.runs.plausible import check_pictures
from datadream_utils.seeds import stable_seed

CACHE_BYTES = 4 * 2**30  # decoded pictures are kept in memory up to this size


class Pictures(torch.utils.data.Dataset):
    """Picture files as tensors, by index; ``transform([PIL image, ...]) -> [tensor, ...]`` makes them.

    A file is decoded once and its tensor kept in memory while there is room, even if ``paths`` repeats it. ``kept``:
    ``{path: tensor}``; ``room``: how many may be kept, without a number what ``CACHE_BYTES`` hold.
    """

    def __init__(self, paths, transform, room=None):
        self.paths, self.transform, self.kept, self.room = list(paths), transform, {}, room

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """Several pictures; torch's loader calls this for a batch."""
        paths = [self.paths[index] for index in indices]
        new = [path for path in dict.fromkeys(paths) if path not in self.kept]
        decoded = dict(zip(new, self.transform([read_image(path) for path in new]), strict=True)) if new else {}
        for path, tensor in decoded.items():
            if self.room is None:
                worker = torch.utils.data.get_worker_info()  # every process of a loader keeps its own
                self.room = CACHE_BYTES // tensor.nbytes // (worker.num_workers if worker else 1)
            if len(self.kept) < self.room:
                self.kept[path] = tensor
        return [decoded[path] if path in decoded else self.kept[path] for path in paths]


class CropMargin:
    """Pictures for augmentation: the middle square, its side 8/7 of the classifier's input, uint8 (3, side, side)."""

    def __init__(self, image_size):
        self.side = image_size * 8 // 7

    def __call__(self, images):
        return [to_tensor(centre_square(image, self.side)) for image in images]


class Preprocess:
    """Pictures for evaluation: the processor's own preprocessing (PIL bicubic), float32 (3, h, w)."""

    def __init__(self, processor):
        self.processor = processor

    def __call__(self, images):
        return [torch.from_numpy(pixels) for pixels in self.processor(images=images).pixel_values]


def training_pictures(paths, image_size):
    """``Pictures`` for augmentation."""
    return Pictures(paths, CropMargin(image_size))


def evaluation_pictures(paths, processor):
    """``Pictures`` for evaluation; none is kept, because each is read once."""
    return Pictures(paths, Preprocess(processor), room=0)


def training_sets(run, image_size):
    """``{"real": (pictures, labels), "synthetic": ...}`` of the run's setting; {} without training.

    pictures: ``Pictures``; labels: (n,). Every image that the stage reads is checked first, also the test images.
    InputError for one that cannot be read, for generated images that cannot be right, and for too few of them.
    """
    synthetic = read_generated(run.source, len(run.shots)) if run.source else []
    tested = [run.data.files.get("val", []), run.data.files[evaluation_split(run)]]
    for files in tested:
        check_images(flatten(files)[0])
    for paths, name in zip(synthetic, run.data.class_names if synthetic else (), strict=True):
        check_pictures(paths, name, f"delete {run.source.folder} and run {run.source.notebook} again")
    return make_sets(run.params, run.shots, synthetic, image_size)


def make_sets(params, shots, synthetic, image_size):
    """The sets of ``training_sets``, from the paths ``shots[label]`` and ``synthetic[label]``."""
    files = {}  # {"real" or "synthetic": [[path, ...] per class]}
    if "R" in params.setting:
        files["real"] = [[paths[i % len(paths)] for i in range(params.images_per_class)] for paths in shots]
    if "S" in params.setting:
        fewest = min(len(paths) for paths in synthetic)
        name = "synthetic_per_class" if params.synthetic_per_class else "images_per_class"
        used = getattr(params, name)
        if fewest < used:
            raise InputError(
                f"{name}={used}, but a class has {fewest} generated images: set it to {fewest}, or run 02_generate "
                "with more in another variant."
            )
        files["synthetic"] = [[paths[i % used] for i in range(params.images_per_class)] for paths in synthetic]
    sets = {}
    for kind, of_classes in files.items():
        paths, labels = flatten(of_classes)
        sets[kind] = (training_pictures(paths, image_size), torch.tensor(labels))
    return sets


def augment_examples(sets, classifier, params, count=12):
    """``{title: [array (height, width, 3) in [0, 1], ...]}``: ``count`` pictures of each set, plain and augmented.

    The same parameters give the same pictures.
    """
    device = next(classifier.parameters()).device
    augment = Augment(params, classifier.image_size, [0.0] * 3, [1.0] * 3, device)  # for display: not normalised
    examples = {}
    for kind, (pictures, _) in sets.items():
        chosen = torch.stack([pictures[i * len(pictures) // count] for i in range(count)])
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(stable_seed("examples", params.seed, kind))
            augmented = augment(chosen).clamp(0, 1).cpu()
        for title, pixels in {"as it is": chosen / 255, "augmented": augmented}.items():
            examples[f"{kind}, {title}"] = list(pixels.permute(0, 2, 3, 1).numpy())
    return examples


def evaluation_split(run):
    """The split that accuracy is measured on: "test", or with protocol "published" the one that the authors use."""
    return run.data.published_test if run.params.protocol == "published" else "test"


def load_batches(pictures, params, **options):
    """A DataLoader that leaves torch's global generator alone, so that evaluating while training changes nothing."""
    return torch.utils.data.DataLoader(pictures, num_workers=params.num_workers, generator=torch.Generator(), **options)
