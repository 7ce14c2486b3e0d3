"""Every compared system as one row of one table: what it adapts and how it prompts (paper, section 4.1).

A new method is a new row; nothing else has to know its name.
"""

from dataclasses import dataclass

from datadream_utils.errors import InputError, suggest

SETTINGS = {"none": "zero-shot", "S": "synthetic only", "R": "real few-shot only", "R+S": "real and synthetic"}


@dataclass(frozen=True)
class Method:
    """One system.

    adapter: what one LoRA adapter of Stable Diffusion is trained on ("class", "dataset" or None: not adapted).
    prompt: "template" (class name in the data set's template), "definition" (class name and what it is), or None:
        the method generates nothing.
    settings: what its classifiers may be trained on, keys of ``SETTINGS``.
    """

    label: str
    adapter: str | None
    prompt: str | None
    settings: tuple[str, ...]

    @property
    def generates(self):
        return self.prompt is not None


METHODS = {
    "clip_zeroshot": Method("CLIP (zero-shot)", None, None, ("none",)),
    "real": Method("Real-finetune", None, None, ("R",)),
    "fakeit": Method("FakeIt (zero-shot generation)", None, "definition", ("S", "R+S")),
    "datadream_cls": Method("DataDream_cls", "class", "template", ("S", "R+S")),
    "datadream_dset": Method("DataDream_dset", "dataset", "template", ("S", "R+S")),
}


def get_method(name):
    """The row called ``name``; InputError with the nearest name otherwise."""
    if name not in METHODS:
        raise InputError(f"method {name!r} is not known.{suggest(name, METHODS)}")
    return METHODS[name]
