"""DataDream in notebooks: adapt Stable Diffusion to a few images, generate a training set, train CLIP on it, analyse.

Begin with ``methods.py`` (every compared system is one row), then follow the four stages:

    data -> diffusion (adapt, generate) -> classifier -> analysis -> plots

``runs`` keeps what a stage has made, ``backbones`` loads the pretrained models, ``interactive`` has the controls of a
live notebook. A room imports from its own modules and from rooms before it: data, runs, backbones, diffusion,
classifier, analysis, plots, interactive.
"""

import os

# transformers 5 advises, at import, to install torchvision, which this project does without.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"
