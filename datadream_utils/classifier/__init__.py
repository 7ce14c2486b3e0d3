"""Stage 3: a classifier on real and synthetic images, and its one evaluation on the test split (paper, 3.4).

Begin with ``train.py`` (the loss and the schedule). ``build.py`` makes the classifier, ``pictures.py`` its training
sets, ``augment.py`` varies them, ``evaluate.py`` tests it and writes the results. Imports the ground modules, ``data``,
``runs``, ``backbones`` and ``diffusion``.
"""

import datadream_utils.libraries  # noqa: F401  (before diffusers, transformers and peft)
