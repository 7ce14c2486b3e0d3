"""Every compared system as one row of one table (paper, section 4.1): systems differ in four things only.

The four are: what an adapter is trained on, where sampling starts, what the prompt is, and which images are kept. A
new method is a new row; no other module needs its name. One run can replace any of the four (parameters ``adapter``,
``start``, ``prompt``, ``keep``). For instance, sampling with DataDream's adapters can start from a few-shot image.
"""

from dataclasses import dataclass, replace

from datadream_utils.errors import InputError, suggest

SETTINGS = {"none": "zero-shot", "S": "synthetic only", "R": "real few-shot only", "R+S": "real and synthetic"}

AXES = {  # the four things in which systems differ, each with its values
    "adapter": ("none", "class", "dataset", "image"),
    "start": ("noise", "shot"),
    "prompt": ("template", "definition", "caption"),
    "keep": ("all", "clip"),
}


@dataclass(frozen=True)
class Method:
    """One system.

    label: its name in tables and figures.
    settings: what its classifiers may be trained on, keys of ``SETTINGS``; a method without S generates nothing.
    adapter: what one LoRA adapter of Stable Diffusion is trained on: the shots of a "class", of the whole "dataset", or
        one "image" (then two adapters of a class are mixed for every sample). "none": the base model draws.
    start: "noise", or "shot": a few-shot image with noise added (image-to-image).
    prompt: "template" (the class name in the data set's template), "definition" (the class name and what it is), or
        "caption" (of another shot of the class).
    keep: "all" images, or those that "clip" assigns to their class.
    """

    label: str
    settings: tuple[str, ...]
    adapter: str = "none"
    start: str = "noise"
    prompt: str = "template"
    keep: str = "all"

    @property
    def generates(self):
        return "S" in self.settings

    @property
    def adapts(self):
        return self.adapter != "none"

    @property
    def uses_shots(self):
        """Whether few-shot images influence what it generates; if not, no generated image can be a copy of one."""
        return self.adapts or self.start == "shot" or self.prompt == "caption"


BOTH = ("S", "R+S")
METHODS = {
    "clip_zeroshot": Method("CLIP (zero-shot)", ("none",)),
    "real": Method("Real-finetune", ("R",)),
    "fakeit": Method("FakeIt (zero-shot generation)", BOTH, prompt="definition"),
    "issynth": Method("IsSynth", BOTH, start="shot"),
    "disef": Method("DISEF", BOTH, start="shot", prompt="caption", keep="clip"),
    "datadream_cls": Method("DataDream_cls", BOTH, adapter="class"),
    "datadream_dset": Method("DataDream_dset", BOTH, adapter="dataset"),
    "loft": Method("LoFT", BOTH, adapter="image"),
}


def get_method(name, **axes):
    """The row called ``name``, with any of its ``AXES`` replaced ("" keeps the method's own).

    InputError for an unknown method or value (it suggests the nearest name), and for replacing an axis of a method
    that generates nothing.
    """
    if name not in METHODS:
        raise InputError(f"method {name!r} is not known.{suggest(name, METHODS)}")
    method = METHODS[name]
    changes = {axis: value for axis, value in axes.items() if value}
    for axis, value in changes.items():
        if value not in AXES[axis]:
            raise InputError(f"{axis} {value!r} is not known.{suggest(value, AXES[axis])}")
        if not method.generates:
            raise InputError(f"method {name!r} generates nothing, so {axis}={value!r} means nothing: set {axis} to ''.")
    return replace(method, **changes)


def short_label(name):
    """A method's label without its brackets, for instance "FakeIt"; a name that is no method stays as it is."""
    return METHODS[name].label.split(" (")[0] if name in METHODS else name


def classifier_name(method, setting):
    """A classifier's name, for instance ``DataDream_dset (R+S)``; without a setting for zero-shot CLIP."""
    return METHODS[method].label if setting == "none" else f"{short_label(method)} ({setting})"


def for_method(name, value, method):
    """The value of parameter ``name`` for ``method``: ``value``, or its entry in ``{"default": ..., method: ...}``.

    InputError for a key that is no method, and for a mapping without an entry for this one.
    """
    if not isinstance(value, dict):
        return value
    for key in value:
        if key not in METHODS and key != "default":
            raise InputError(f"parameter {name!r}: {key!r} is no method.{suggest(key, [*METHODS, 'default'])}")
    if not value.keys() & {str(method), "default"}:
        raise InputError(f"parameter {name!r} has no value for method {method!r}: add it, or a 'default'.")
    return value.get(str(method), value.get("default"))
