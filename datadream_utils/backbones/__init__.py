"""The pretrained models: Stable Diffusion and CLIP, loaded in ``load.py``; CLIP's features and LoRA in ``clip.py``.

Imports only the ground modules and lower rooms; begin with ``clip.py``.
"""

import datadream_utils.libraries  # noqa: F401  (before diffusers, transformers and peft)
