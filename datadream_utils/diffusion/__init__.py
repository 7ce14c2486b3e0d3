"""Stages 1 and 2: Stable Diffusion adapted to the few shots, and the images drawn with it (paper, 3.2 and 3.3).

Begin with ``denoising.py`` (the loss), ``lora.py`` (which layers), ``adapt.py`` (one adapter per class, data set or
image), ``recipe.py`` (what decides an image) and ``generate.py`` (drawing them). ``stacked.py`` trains and draws with
many adapters at once, ``captions.py`` serves DISEF, ``probe.py`` looks inside.
Imports the ground modules, ``data``, ``runs`` and ``backbones``.
"""

import datadream_utils.libraries  # noqa: F401  (before diffusers, transformers and peft)
