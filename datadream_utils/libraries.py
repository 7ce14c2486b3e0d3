"""Imports diffusers, transformers and peft without the optional packages that this project does without.

They use what is installed: in Colab, Kaggle or a conda base a torchvision that was built for another torch. Its import
fails, or its resizing gives other bytes. So they decide here, while Python says of each such package that there is
none; afterwards it is there again for whoever imports it. Rooms that use the libraries import this module first.
"""

import sys
from importlib import import_module

OPTIONAL = ("torchvision", "torchao", "bitsandbytes", "xformers")
DECISIONS = {  # functions that keep their answer; diffusers decides when it is imported
    "transformers.utils.import_utils": ("is_torchvision_available",),
    "peft.import_utils": ("is_bnb_available", "is_bnb_4bit_available", "is_torchao_available"),
}


def _decide_without(names):
    """Import the libraries while ``names`` cannot be found."""
    imported = {name: sys.modules.get(name) for name in names}
    sys.modules.update(dict.fromkeys(names))  # None: there is no such module
    try:
        import_module("diffusers")
        for module, functions in DECISIONS.items():
            for function in functions:
                getattr(import_module(module), function)()
    finally:
        for name, module in imported.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


if "transformers" not in sys.modules:  # else somebody has decided before
    _decide_without(OPTIONAL)

import diffusers  # noqa: E402
import transformers  # noqa: E402

__all__ = ["diffusers", "transformers"]
