"""DataDream in notebooks: adapt Stable Diffusion to a few images, generate a training set, train CLIP on it, analyse.

Stages import one way: analysis -> train -> generate -> adapt -> datasets, methods, params.
"""

import os

# transformers 5 advises, at import, to install torchvision, which this project does without.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

__version__ = "0.1.0"
