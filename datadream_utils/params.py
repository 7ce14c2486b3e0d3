"""The parameters of the four stages: names, types and ranges. The tiny world's defaults stand in the notebooks.

A notebook has one cell tagged ``parameters``; papermill adds a cell with what a parameter file changes; the next cell
calls ``AdaptParams.read(globals())``, which refuses a misspelt name, a wrong type or an impossible value before any
model is loaded. One file serves all four notebooks, so a name that belongs to another stage is accepted.

A value may depend on the method: ``{"default": 2.0, "issynth": 3.0}`` is 3.0 for IsSynth and 2.0 for the others.
"""

import ast
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from datadream_utils.errors import InputError, nearest, suggest
from datadream_utils.files import plain, read_yaml
from datadream_utils.methods import AXES, METHODS, SETTINGS, for_method, get_method

ROOT = Path(__file__).resolve().parents[1]  # the project's folder: relative paths in parameters start here


def check_shard(shard):
    """``shard`` itself; ValueError unless it is "" or k/n with 1 <= k <= n."""
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", shard)
    if shard and not (found and 1 <= int(found[1]) <= int(found[2])):
        raise ValueError(f"shard {shard!r} is no part of the work: write '2/4' for the second of four, '' for all")
    return shard


Count = Annotated[int, Field(ge=1, le=10**9)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Shard = Annotated[str, AfterValidator(check_shard)]

# Where a run is kept and what computes it does not change what it computes.
NOT_IDENTITY = ("output_root", "data_root", "device", "num_threads", "num_workers", "checkpoint_every", "shard")


def resolve(path):
    """An absolute path: as given, or relative to the project's folder."""
    return Path(path) if Path(path).is_absolute() else ROOT / path


def run_name(dataset, method, n_shot, seed, variant=""):
    """``mnist5k_datadream_cls_16shot_seed0``, and ``_<variant>`` when there is one. Never a path."""
    dataset = re.sub(r"[^A-Za-z0-9-]+", "-", Path(dataset).name)[:80].strip("-") or "dataset"
    return f"{dataset}_{method}_{n_shot}shot_seed{seed}" + (f"_{variant}" if variant else "")


class Parameters(BaseModel):
    """Checked parameters of one stage: every field set, of its type and in its range."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    @classmethod
    def read(cls, namespace):
        """Check the notebook's parameters.

        ``namespace`` is the notebook's ``globals()``; its ``In`` history tells which names the parameter cells set,
        so that an unknown one is found. Raises InputError with every problem and its fix.
        """
        known = sorted({*parameter_names(), *cls.model_fields})
        for name in _assigned_parameters(namespace.get("In", ())):
            if name not in known:
                raise InputError(f"parameter {name!r} is not known.{suggest(name, known)}")
        missing = [name for name in cls.model_fields if name not in namespace]
        if missing:
            raise InputError(f"parameter {missing[0]!r} is not set: restore its line in the parameters cell.")
        return cls.make(**{name: namespace[name] for name in cls.model_fields})

    @classmethod
    def make(cls, **values):
        """Build from values, each one's entry for the method, with pydantic's findings as one InputError."""
        values = {name: for_method(name, value, values.get("method")) for name, value in values.items()}
        for name, value in values.items():
            if isinstance(value, str):
                plain(value, f"parameter {name!r}", limit=4000)
        try:
            return cls(**values)
        except ValidationError as error:
            raise InputError("; ".join(_sentence(e) for e in error.errors())) from None


class RunParams(Parameters):
    """What names a run and where it is kept (all stages)."""

    dataset: str
    split_file: str
    shots_file: str
    method: str
    n_shot: Count
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    variant: Annotated[str, Field(pattern=r"^[A-Za-z0-9.=-]*$", max_length=60)]
    output_root: str
    data_root: str
    device: Literal["auto", "cpu", "cuda", "mps"]
    num_threads: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _changed_method_has_a_name(self):
        if self.system != METHODS[self.method] and not self.variant:
            axis, value = next((axis, getattr(self, axis)) for axis in AXES if getattr(self, axis, ""))
            name = f"name the run with 'variant', for instance {axis}-{value}"
            raise ValueError(f"{axis}={value!r} makes {self.method!r} another method: {name}")
        return self

    @property
    def system(self):
        """The method's row, with the parts that this run replaces."""
        return get_method(self.method, **{axis: getattr(self, axis, "") for axis in AXES})

    @property
    def run_name(self):
        """The run's folder name."""
        return run_name(self.dataset, self.method, self.n_shot, self.seed, self.variant)

    def identity(self):
        """What decides the result: the parameters without ``NOT_IDENTITY``."""
        return {k: v for k, v in self.model_dump().items() if k not in NOT_IDENTITY}


class AdaptParams(RunParams):
    """Stage 1: few-shot adaptation of Stable Diffusion (paper, section 3.2)."""

    adapter: str
    sd_model: str
    sd_revision: str
    resolution: Count
    lora_rank: Count
    lora_alpha: Positive
    train_text_encoder: bool
    adapt_epochs: Count
    adapt_batch_size: Count
    adapters_together: Count
    crops_per_shot: Annotated[int, Field(ge=0, le=10**4)]
    adapt_lr: Positive
    adapt_warmup_steps: Annotated[int, Field(ge=0)]
    adapt_weight_decay: NonNegative
    max_grad_norm: Positive
    mixed_precision: Literal["no", "fp16", "bf16"]
    gradient_checkpointing: bool
    checkpoint_every: Annotated[int, Field(ge=0)]
    guidance_scale: NonNegative
    num_inference_steps: Count
    shard: Shard

    @model_validator(mode="before")
    @classmethod
    def _alpha_may_follow_the_rank(cls, values):
        """lora_alpha "rank" is the rank, as in the authors' code, so that another rank is no other scale."""
        rank = values.get("lora_rank")
        return values | {"lora_alpha": rank / 1} if values.get("lora_alpha") == "rank" and type(rank) is int else values


class GenerateParams(RunParams):
    """Stage 2: sampling a labelled data set (paper, section 3.3)."""

    adapter: str
    start: str
    prompt: str
    keep: str
    sd_model: str
    sd_revision: str
    resolution: Count
    images_per_class: Count
    guidance_scale: NonNegative
    num_inference_steps: Count
    start_step: Annotated[int, Field(ge=0)]
    captioner: str
    captioner_revision: str
    filter_model: str
    filter_revision: str
    filter_tries: Count
    generate_batch_size: Count
    mixed_precision: Literal["no", "fp16", "bf16"]
    shard: Shard

    @model_validator(mode="after")
    def _steps_are_left(self):
        if self.system.start == "shot" and self.start_step >= self.num_inference_steps:
            raise ValueError(
                f"start_step={self.start_step} leaves nothing of {self.num_inference_steps} steps: lower it"
            )
        return self


class TrainParams(RunParams):
    """Stage 3: a classifier on real and synthetic images (paper, section 3.4)."""

    setting: str
    classifier: str
    protocol: Literal["sound", "published"]
    clip_model: str
    clip_revision: str
    images_per_class: Count
    synthetic_per_class: Annotated[int, Field(ge=0)]
    clip_lora_rank: Count
    clip_lora_alpha: Positive
    clip_lora_dropout: Annotated[float, Field(ge=0, lt=1)]
    real_weight: Share
    train_epochs: Count
    train_batch_size: Count
    train_lr: Positive
    train_warmup_epochs: NonNegative
    train_weight_decay: NonNegative
    crop_scale_min: Annotated[float, Field(gt=0, le=1)]
    flip: Share
    rand_augment_ops: Annotated[int, Field(ge=0)]
    rand_augment_magnitude: Annotated[int, Field(ge=0, le=30)]
    color_jitter: Share
    grayscale: Share
    blur: Share
    solarize: Share
    mix_share: Share
    val_every: Count
    eval_batch_size: Count
    num_workers: Annotated[int, Field(ge=0)]
    mixed_precision: Literal["no", "fp16", "bf16"]

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
    output_root: str
    data_root: str
    figures_dir: str


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


def read_params_file(path):
    """A parameter file as a dict; InputError names the file for a bad one or an unknown key."""
    values = read_yaml(path) or {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold 'name: value' lines, not a {type(values).__name__}.")
    for name in values:
        if name not in parameter_names():
            raise InputError(f"{path}: parameter {name!r} is not known.{suggest(name, parameter_names())}")
    return values


def _assigned_parameters(history):
    """Names set by cells that hold nothing but plain constants: the parameters cell and papermill's own."""
    names = []
    for source in history:
        try:
            body = ast.parse(source).body
        except SyntaxError:
            continue
        assignments = [node for node in body if isinstance(node, ast.Assign | ast.AnnAssign)]
        if len(assignments) == len(body) and all(_is_constant(node.value) for node in assignments):
            for node in assignments:
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _is_constant(node):
    try:
        return bool([ast.literal_eval(node)])
    except (ValueError, TypeError):
        return False


def _sentence(error):
    where = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        near = nearest(where, parameter_names())
        return f"parameter {where!r} is not known." + (f" Did you mean {near!r}?" if near else "")
    if error["type"] == "value_error":
        return message
    return f"parameter {where!r} is {error['input']!r}: {message}"
