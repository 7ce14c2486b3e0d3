"""The parameters of the four stages: names, types, ranges, and what each decides.

Each notebook has one cell tagged ``parameters``, with the defaults of the tiny world. papermill inserts a cell after it
with the values of a parameter file. The next cell calls ``start_run(stage, globals())``, which refuses a misspelt name,
a wrong type or an impossible value before any model is loaded. One parameter file serves all notebooks: each ignores
the parameters of other stages.

A value may depend on the method: ``{"default": 2.0, "issynth": 3.0}`` is 3.0 for IsSynth and 2.0 for the others.
"""

import ast
import json
import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Annotated, ClassVar, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from datadream_utils.errors import InputError, suggest
from datadream_utils.files import check_plain, read_yaml
from datadream_utils.methods import AXES, METHODS, SETTINGS, for_method, get_method
from datadream_utils.values import explain, read_value

ROOT = Path(__file__).resolve().parents[1]  # the project's folder: relative paths in parameters start here
if not (ROOT / "notebooks").is_dir() or not (ROOT / "params").is_dir():
    raise InputError(
        f"{ROOT} has the package alone, without notebooks, parameter files and tiny models: clone the repository and "
        "install it from there with: pip install -c constraints.txt -e ."
    )

Value = TypeVar("Value")
PerMethod = Value | dict[str, Value]  # one value, or one per method: {"default": 16, "loft": 2}
FloatOrRank = float | Literal["rank"]  # lora_alpha: a number, or as large as lora_rank
FloatOrShots = float | Literal["n_shot"]  # start_noise: a number, or IsSynth's for this n_shot
ISSYNTH_NOISE = {16: 0.231, 8: 0.308, 4: 0.521, 2: 0.587, 1: 0.706}  # {n_shot: start_noise}, see GenerateParams


class OnlyIf(NamedTuple):
    """Marks a parameter that matters only for methods whose ``attribute`` (of ``Method``) has this ``value``."""

    attribute: str
    value: object


MACHINE = "machine"  # marks a parameter that sets where a run is kept or what computes it: no result depends on it
PICTURES = "pictures"  # marks a parameter that affects only pictures shown in the notebook
LATER = {"sampler": "model"}  # parameters that came when there were runs already, each with what made those


Count = Annotated[int, Field(ge=1, le=10**9)]
Side = Annotated[int, Field(ge=1, le=4096)]  # pixels; 80000 would fill any memory, and the system kills then
Rank = Annotated[int, Field(ge=1, le=4096)]
Images = Annotated[int, Field(ge=1, le=10**6)]  # of a class
Epochs = Annotated[int, Field(ge=1, le=10**5)]
Passes = Annotated[int, Field(ge=1, le=1000)]  # Stable Diffusion is trained with 1000 timesteps
Threads = Annotated[int, Field(ge=0, le=1024)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Guidance = Annotated[float, Field(ge=1)]  # diffusers takes less for 1
Fraction = Annotated[float, Field(ge=0, le=1)]
Folder = Annotated[str, Field(min_length=1)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Steps = Annotated[int, Field(ge=0)]
Precision = Literal["no", "fp16", "bf16"]
Sampler = Literal["model", "dpmsolver++"]
Compile = Annotated[Literal["auto", "yes", "no"], MACHINE]  # the same results, up to rounding: ``runs.compiling``


def resolve(path):
    """An absolute path: as given, below "~" or "$HOME" or another variable, or relative to the project's folder.

    InputError for text that would become another folder than it says: a Windows path on another system, a variable or
    user that there is not, spaces or quotes around it.
    """
    text = os.path.expandvars(os.path.expanduser(path))
    place = ROOT / text  # ``text`` alone if it is absolute
    inner = text.strip().strip("'\"").strip()
    if os.path.lexists(place):
        return place
    if inner != text and inner:
        raise InputError(f"path {text!r} has spaces or quotes around it: write {inner!r}.")
    if os.name != "nt" and (windows := re.match(r"([A-Za-z]):[\\/]", text)):
        there = f"/mnt/{windows[1].lower()}/{text[3:]}".replace("\\", "/")
        raise InputError(f"path {text!r} is one of Windows: write it as this system does, in WSL {there!r}.")
    if missing := re.match(r"~[^/]*", text) or re.search(r"\$(\w+|\{\w+\})", text):
        raise InputError(f"path {text!r}: there is no {missing[0]!r} on this machine: write the whole path.")
    return place


def run_name(dataset, method, n_shot, seed, variant=""):
    """``mnist5k_datadream_cls_16shot_seed0``, and ``_<variant>`` when there is one. Never a path."""
    dataset = re.sub(r"[^A-Za-z0-9-]+", "-", Path(dataset).name)[:80].strip("-") or "dataset"
    return f"{dataset}_{method}_{n_shot}shot_seed{seed}" + (f"_{variant}" if variant else "")


class Parameters(BaseModel):
    """Checked parameters of one stage: every field is set, of its type and in its range."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, namespace):
        """Check a notebook's parameters; ``namespace`` is its ``globals()``.

        Names with a type annotation (as in the parameters cell) and names that papermill has set must be parameters.
        A reader's other variables are ignored. InputError for an unknown or missing name, and as in ``make``.
        """
        known = sorted({*parameter_names(), *cls.model_fields})
        for name in _parameters_set_in(namespace):
            if name not in known:
                raise InputError(f"parameter {name!r} is not known.{suggest(name, known)}")
        missing = [name for name in cls.model_fields if name not in namespace]
        if missing:
            raise InputError(f"parameter {missing[0]!r} is not set: restore its line in the parameters cell.")
        return cls.make(**{name: namespace[name] for name in cls.model_fields})

    @classmethod
    def make(cls, **values):
        """Check ``values``; of a ``PerMethod`` mapping the entry for ``method`` counts.

        Each is kept in the form of its type (see ``values.read_value``), so that "1e-4" and 0.0001 make the same run.
        InputError with every problem that pydantic finds.
        """
        values = {name: for_method(name, value, values.get("method")) for name, value in values.items()}
        values = {name: as_parameter(name, value, cls) for name, value in values.items()}
        for name, value in values.items():
            if isinstance(value, str):
                check_plain(value, f"parameter {name!r}", limit=4000)
        try:
            return cls(**values)
        except ValidationError as error:
            raise InputError("; ".join(_sentence(e) for e in error.errors())) from None

    @classmethod
    def decisive(cls):
        """The names of the parameters that decide this stage's result, in order."""
        marks = {name: field.metadata for name, field in cls.model_fields.items()}
        return [name for name in marks if MACHINE not in marks[name] and PICTURES not in marks[name]]

    def identity(self):
        """What decides the result: ``{name: value}`` of the ``decisive`` parameters.

        Those of ``LATER`` are left out where they change nothing, so that earlier runs stay the same runs.
        """
        values = {name: getattr(self, name) for name in self.decisive()}
        return {name: value for name, value in values.items() if name not in LATER or value != LATER[name]}


class RunParams(Parameters):
    """The parameters of every run (stages 1 to 3): its name, its data, and where it is kept."""

    dataset: str
    method: str
    n_shot: Count
    seed: Seed
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9._=-]*$", max_length=60)]
    split_file: str
    shots_file: str
    output_root: Annotated[Folder, MACHINE]
    data_root: Annotated[Folder, MACHINE]
    device: Annotated[str, MACHINE]
    num_threads: Annotated[Threads, MACHINE]

    @field_validator("dataset")
    @classmethod
    def _slash_at_the_end_says_nothing(cls, dataset):
        return dataset.rstrip("/") or dataset

    @field_validator("device")
    @classmethod
    def _device_is_one(cls, device):
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d{1,3})?", device):
            raise ValueError(f"device {device!r} is none: write auto, cpu, cuda, cuda:1 (the second GPU) or mps")
        return device

    @model_validator(mode="after")
    def _changed_method_has_a_name(self):
        if self.system != METHODS[self.method] and not self.variant:
            axis, value = next((axis, getattr(self, axis)) for axis in AXES if getattr(self, axis, ""))
            name = f"name the run with 'variant', for instance {axis}-{value}"
            raise ValueError(f"{axis}={value!r} makes {self.method!r} another method: {name}")
        return self

    @property
    def system(self):
        """The row of ``METHODS``, with the axes that this run replaces."""
        return get_method(self.method, **{axis: getattr(self, axis, "") for axis in AXES})

    @property
    def run_name(self):
        """The run's folder name."""
        return run_name(self.dataset, self.method, self.n_shot, self.seed, self.variant)

    @property
    def run_folder(self):
        """The run's folder."""
        return resolve(self.output_root) / self.run_name


def _check_resolution(params):
    """ValueError for a ``resolution`` that ``sd_model`` cannot halve as often as it must, with the nearest ones.

    The VAE of Stable Diffusion 1 and 2 halves three times, and diffusers asks for multiples of 8 of any other too. That
    of a folder may halve more often; a hub page is not read for it.
    """
    step, config = 8, resolve(params.sd_model) / "vae" / "config.json"
    with suppress(OSError, ValueError, KeyError, TypeError):  # what is wrong with the folder is said when it is loaded
        step = max(step, 2 ** (len(json.loads(config.read_text(encoding="utf-8"))["block_out_channels"]) - 1))
    if params.resolution % step:
        lower = params.resolution // step * step
        nearest = f"{lower} or {lower + step}" if lower else step
        raise ValueError(
            f"resolution={params.resolution} is no multiple of {step}, as sd_model needs it: use {nearest}"
        )
    return params


class AdaptParams(RunParams):
    """Stage 1: few-shot adaptation of Stable Diffusion (paper, section 3.2)."""

    stage: ClassVar[str] = "adapt"

    adapter: Annotated[str, OnlyIf("generates", True)]
    sd_model: str
    sd_revision: str
    resolution: Side
    lora_rank: Rank
    lora_alpha: Positive
    train_text_encoder: bool
    adapt_epochs: Epochs
    adapt_batch_size: Count
    adapters_together: Count
    crops_per_shot: Annotated[int, Field(ge=0, le=10**4)]
    adapt_lr: Positive
    adapt_warmup_steps: Steps
    adapt_weight_decay: NonNegative
    max_grad_norm: Positive
    mixed_precision: Precision
    gradient_checkpointing: Annotated[bool, MACHINE]  # the same gradients, up to rounding
    checkpoint_every: Annotated[int, Field(ge=0), MACHINE]
    guidance_scale: Annotated[Guidance, PICTURES]
    num_inference_steps: Annotated[Passes, PICTURES]
    sampler: Annotated[Sampler, PICTURES]
    pictures_shown: Annotated[Count, PICTURES]

    _resolution = model_validator(mode="after")(_check_resolution)

    @model_validator(mode="before")
    @classmethod
    def _alpha_may_follow_the_rank(cls, values):
        """lora_alpha "rank" becomes the rank, as in the authors' code: the scale alpha / rank is 1 for every rank."""
        alpha, rank = values.get("lora_alpha"), values.get("lora_rank")
        return values | {"lora_alpha": float(rank)} if alpha == "rank" and type(rank) is int else values


class GenerateParams(RunParams):
    """Stage 2: sampling a labelled data set (paper, section 3.3).

    start_noise is the noise amplitude sqrt(1 - abar_t) that a shot is given before the model draws on: a step's number
    means other noise on another model's schedule. "n_shot" becomes IsSynth's (``ISSYNTH_NOISE``; for other numbers of
    shots, that of the next smaller one). IsSynth's code (He et al. 2023) begins at step 15, 20, 35, 40, 50 from the end
    of 100 for 16, 8, 4, 2, 1 shots; the amplitudes are those of these steps on GLIDE's cosine schedule.

    sampler: the solver of the denoising steps, "model" for the one that is published with sd_model, "dpmsolver++" for
    DPM-Solver++ (Lu et al. 2022), which needs fewer steps (``num_inference_steps``).
    """

    stage: ClassVar[str] = "generate"

    adapter: Annotated[str, OnlyIf("generates", True)]
    start: Annotated[str, OnlyIf("generates", True)]
    prompt: Annotated[str, OnlyIf("generates", True)]
    keep: Annotated[str, OnlyIf("generates", True)]
    sd_model: str
    sd_revision: str
    resolution: Side
    images_per_class: Images
    guidance_scale: Guidance
    num_inference_steps: Passes
    sampler: Sampler
    start_noise: Annotated[float, Field(gt=0, le=1), OnlyIf("start", "shot")]
    captioner: Annotated[str, OnlyIf("prompt", "caption")]
    captioner_revision: Annotated[str, OnlyIf("prompt", "caption")]
    filter_model: Annotated[str, OnlyIf("keep", "clip")]
    filter_revision: Annotated[str, OnlyIf("keep", "clip")]
    filter_tries: Annotated[Count, OnlyIf("keep", "clip")]
    generate_batch_size: Count
    mixed_precision: Precision
    compile: Compile
    pictures_shown: Annotated[Count, PICTURES]

    _resolution = model_validator(mode="after")(_check_resolution)

    @model_validator(mode="before")
    @classmethod
    def _noise_may_follow_the_shots(cls, values):
        n_shot = values.get("n_shot")
        if values.get("start_noise") != "n_shot" or type(n_shot) is not int or n_shot < 1:
            return values
        return values | {"start_noise": ISSYNTH_NOISE[max(n for n in ISSYNTH_NOISE if n <= n_shot)]}


class TrainParams(RunParams):
    """Stage 3: a classifier on real and synthetic images (paper, section 3.4)."""

    setting: str
    classifier: str
    protocol: Literal["sound", "published"]
    clip_model: str
    clip_revision: str
    images_per_class: Images
    synthetic_per_class: Annotated[int, Field(ge=0), OnlyIf("generates", True)]
    clip_lora_rank: Rank
    clip_lora_alpha: Positive
    clip_lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    real_weight: Annotated[Fraction, OnlyIf("generates", True)]
    train_epochs: Epochs
    train_batch_size: Count
    train_lr: Positive
    train_warmup_epochs: NonNegative
    train_weight_decay: NonNegative
    crop_scale_min: Annotated[float, Field(gt=0, le=1)]
    flip: Fraction
    rand_augment_ops: Annotated[int, Field(ge=0)]
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)]
    color_jitter: Fraction
    grayscale: Fraction
    blur: Fraction
    solarize: Fraction
    mix_share: Fraction
    val_every: Count
    compare_settings: Annotated[bool, PICTURES]
    eval_batch_size: Count
    num_workers: Annotated[Threads, MACHINE]
    mixed_precision: Precision
    gradient_checkpointing: Annotated[bool, MACHINE]  # the same gradients, up to rounding
    checkpoint_every: Annotated[int, Field(ge=0), MACHINE]
    compile: Compile

    @field_validator("clip_model", "classifier")
    @classmethod
    def _model_is_there(cls, model, info):
        """Training comes last, hours after the adapters: what is plainly no model is refused when a study begins."""
        place, words = resolve(model), ("clip", "resnet50")
        if info.field_name == "classifier" and model not in words and not (place / "config.json").is_file():
            raise ValueError(
                f"classifier {model!r} is neither 'clip' nor 'resnet50' nor a folder with the config.json of a ResNet."
                f"{suggest(model.lower(), words)}"
            )
        if place.parent not in (ROOT, ROOT.parent) and place.parent.is_dir() and not place.is_dir():
            hint = suggest(place.name, [path.name for path in place.parent.iterdir() if path.is_dir()])
            raise ValueError(f"{info.field_name} {model!r}: there is no {place.name!r} in {place.parent}.{hint}")
        return model

    @property
    def stage(self):
        """The stage's folder within the run: ``train-R+S``, ``train-S-resnet``, ``train-R-published``."""
        classifier = "" if self.classifier == "clip" else "-resnet"
        return f"train-{self.setting}{classifier}" + ("-published" if self.protocol == "published" else "")

    @model_validator(mode="after")
    def _setting_fits_method(self):
        if self.setting not in SETTINGS:
            raise ValueError(f"setting {self.setting!r} is not known.{suggest(self.setting, SETTINGS)}")
        allowed = METHODS[self.method].settings
        if self.setting not in allowed:
            raise ValueError(f"method {self.method!r} has no setting {self.setting!r}; use {' or '.join(allowed)}")
        if self.setting == "none" and self.classifier != "clip":
            raise ValueError(f"method {self.method!r} is zero-shot CLIP: set classifier to 'clip'")
        if self.setting in ("R", "R+S") and self.n_shot > self.images_per_class:
            raise ValueError(
                f"n_shot={self.n_shot} is more than images_per_class={self.images_per_class}: an epoch shows "
                "images_per_class pictures of a class, so raise images_per_class to n_shot or more"
            )
        if self.synthetic_per_class > self.images_per_class:
            used, shown = self.synthetic_per_class, self.images_per_class
            raise ValueError(f"synthetic_per_class={used} is more than images_per_class={shown}: use {shown} or less")
        return self


class BeyondParams(Parameters):
    """Stage 4, beyond the paper: tables and figures from every run under ``output_root``."""

    dataset: str
    split_file: str
    n_shot: Count
    output_root: Folder
    data_root: Folder
    figures_dir: Folder


class AnalysisParams(BeyondParams):
    """Stage 4: the paper's tables and figures from every run under ``output_root``."""

    shots_file: str
    example_class: str


STAGES = {
    "adapt": AdaptParams,
    "generate": GenerateParams,
    "train": TrainParams,
    "analysis": AnalysisParams,
    "beyond": BeyondParams,
}
NOTEBOOKS = {
    "adapt": "01_adapt_sd",
    "generate": "02_generate",
    "train": "03_train_clip",
    "analysis": "04_analysis",
    "beyond": "06_beyond_the_paper",
}


def parameter_names():
    """Every parameter of every stage, sorted."""
    return sorted({name for stage in STAGES.values() for name in stage.model_fields})


def as_parameter(name, value, *stages):
    """``value`` in the form of parameter ``name``'s type in one of the ``stages`` (default: any), if it has one."""
    fields = [stage.model_fields[name] for stage in stages or STAGES.values() if name in stage.model_fields]
    return read_value(value, fields[0].annotation) if fields else value


def read_params_file(path):
    """A parameter file as a dict; InputError names the file for a bad one or an unknown key."""
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold 'name: value' lines, not a {type(values).__name__}.")
    for name in values:
        if name not in parameter_names():
            raise InputError(f"{path}: parameter {name!r} is not known.{suggest(name, parameter_names())}")
    return values


def notebook_defaults(stage):
    """The values in the parameters cell of a stage's notebook, ``{name: value}``."""
    return dict(_read_defaults(stage))


@lru_cache
def _read_defaults(stage):
    path = ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb"
    notebook = json.loads(path.read_text(encoding="utf-8"))
    (cell,) = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    return {line.target.id: ast.literal_eval(line.value) for line in ast.parse("".join(cell["source"])).body}


def make_params(stage, values):
    """The checked parameters of a stage ("adapt", "generate", "train", ...).

    They are the notebook's defaults, replaced by ``values``. Parameters of other stages are ignored. InputError for a
    name that no stage has, and for an impossible value.
    """
    for name in values:
        if name not in parameter_names():
            raise InputError(f"parameter {name!r} is not known.{suggest(name, parameter_names())}")
    fields = STAGES[stage].model_fields
    return STAGES[stage].make(**notebook_defaults(stage) | {k: v for k, v in values.items() if k in fields})


def plays_a_part(name, method):
    """Whether parameter ``name`` can change a result of ``method`` (a row of ``METHODS``)."""
    if method.settings == ("none",):
        return name in ("clip_model", "clip_revision")
    stages = (["adapt"] if method.adapts else []) + (["generate"] if method.generates else []) + ["train"]
    if name in AXES:
        return method.generates
    for stage in stages:
        if name in STAGES[stage].decisive():
            marks = [mark for mark in STAGES[stage].model_fields[name].metadata if isinstance(mark, OnlyIf)]
            if all(getattr(method, mark.attribute) == mark.value for mark in marks):
                return True
    return False


def _parameters_set_in(namespace):
    """Names that the parameters cell has set (each with a type), and those that papermill's own cell has set."""
    names = [*namespace.get("__annotations__", ())]
    for source in namespace.get("In", ()):
        if source.startswith("# Parameters\n"):
            names += [target.id for line in ast.parse(source).body for target in getattr(line, "targets", ())]
    return names


def _sentence(error):
    """One of pydantic's errors as a sentence that names the parameter."""
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"parameter {where!r} is not known.{suggest(where, parameter_names())}"
    if error["type"] == "missing":
        return f"parameter {where!r} is not set"
    if error["type"] == "value_error":
        return message
    return f"parameter {where!r} is {error['input']!r}: {explain(error)}"
