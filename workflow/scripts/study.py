"""A study: one file that lists what is compared, as runs and their stages. Light to import: the workflow reads it.

    parameters: params/tiny.yaml          # one parameter file or several, later ones win
    datasets: [mnist5k]
    methods: [fakeit, datadream_cls]
    n_shots: [16]
    seeds: [0, 1, 2]
    sweep: {guidance_scale: [1.0, 4.0]}   # optional: one parameter moved at a time, beside the runs without a change
    settings: [S]                         # optional: only these classifiers (a swept real_weight needs its R+S)
    resnet: {parameters: params/tiny-resnet.yaml, settings: [R, S]}   # optional: a second classifier
    shards: 4                             # optional: adapters and images of a run in so many jobs
    split_files: {eurosat: split_zhou_EuroSAT.json}   # optional: another split than the data set's own

A swept value makes a run whose ``variant`` says it, "guidance-scale=4.0". The parameters' own value makes none: it is
the run without variant, which is always part of the study. Where the parameter plays no part, there is no such run; a
stage that it does not change is not made again.
"""

import ast
import json
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datadream_utils.errors import InputError, suggest
from datadream_utils.files import read_yaml
from datadream_utils.methods import AXES, METHODS, SETTINGS, for_method, get_method
from datadream_utils.params import (
    NOT_IDENTITY,
    NOTEBOOKS,
    ROOT,
    STAGES,
    Count,
    parameter_names,
    read_params_file,
    resolve,
    run_name,
)

Some = Field(min_length=1)
NAMED = ("dataset", "method", "n_shot", "seed", "variant", "setting")  # lists of their own, or made here
ONLY_WITH = {"start_step": ("start", "shot"), "filter_tries": ("keep", "clip")}
ONLY_WITH |= dict.fromkeys(("filter_model", "filter_revision"), ("keep", "clip"))
ONLY_WITH |= dict.fromkeys(("captioner", "captioner_revision"), ("prompt", "caption"))
FOR_PICTURES = ("guidance_scale", "num_inference_steps")  # stage 1 only shows pictures with these


class Resnet(BaseModel):
    """The second classifier: its parameter file, and what it is trained on."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    parameters: str
    settings: Annotated[list[str], Some]


class Study(BaseModel):
    """A study file, checked for names and types; ``make_study`` checks the values of every run too."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    parameters: str | Annotated[list[str], Some]
    datasets: Annotated[list[str], Some]
    methods: Annotated[list[str], Some]
    n_shots: Annotated[list[Count], Some]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Some]
    sweep: dict[str, Annotated[list[bool | int | float | str], Some]] = {}
    settings: Annotated[list[str], Some] = list(SETTINGS)
    resnet: Resnet | None = None
    shards: Count = 1
    split_files: dict[str, str] = {}

    @property
    def files(self):
        """The parameter files, in order."""
        return [self.parameters] if isinstance(self.parameters, str) else self.parameters

    def value(self, name):
        """A parameter's value in this study, where no run moves it."""
        return _values(*self.files).get(name, _default(name))

    def runs(self):
        """``{folder name: Run}``, data set by data set; zero-shot CLIP, in which nothing is random, with one seed."""
        runs = [
            Run(dataset, method, n_shot, seed, change, self.split_files.get(dataset, ""))
            for dataset in self.datasets
            for method in self.methods
            for n_shot in self.n_shots
            for seed in (self.seeds[:1] if METHODS[method].settings == ("none",) else self.seeds)
            for change in self._changes(method)
        ]
        for name, count in Counter(run.name for run in runs).items():
            if count > 1:
                raise InputError(f"the study has two runs called {name!r}: list each thing once, by its own name.")
        return {run.name: run for run in runs}

    def _changes(self, method):
        """() and what the sweep sets for this method, ``((name, value),)``, without the parameters' own value."""
        changes = [()]
        for name, values in self.sweep.items():
            for value in values if self._plays_a_part(method, name) else ():
                checked = _checked(name, value)
                own = getattr(METHODS[method], name) if name in AXES else None
                if checked != (own or for_method(name, self.value(name), method)):
                    changes.append(((name, checked),))
        return changes

    def _plays_a_part(self, method, name):
        row = METHODS[method]
        stages = (["adapt"] if row.adapts else []) + (["generate"] if row.generates else []) + ["train"]
        if name in AXES or name in ("real_weight", "synthetic_per_class"):
            return row.generates
        if name in ONLY_WITH:
            axis, value = ONLY_WITH[name]
            return getattr(row, axis) == value
        if row.settings == ("none",):
            return name.startswith("clip_model") or name == "clip_revision"
        return any(name in _decides(stage) for stage in stages)

    def classifiers(self, run):
        """The train stages of a run: ``train-S``, ``train-S-resnet``, ... What a swept weight cannot change is left."""
        settings = [s for s in run.system.settings if s in self.settings]
        if "real_weight" in dict(run.change):
            settings = ["R+S"]
        second = [f"train-{s}-resnet" for s in settings if self.resnet and s in self.resnet.settings]
        return [f"train-{s}" for s in settings] + second

    def stages(self, run):
        """Every stage of a run, in order."""
        first = [s for s, wanted in (("adapt", run.system.adapts), ("generate", run.system.generates)) if wanted]
        return first + self.classifiers(run)

    def parts(self, run, stage):
        """In how many jobs a stage is made, before the one that finishes it; 1: that one makes it."""
        return self.shards if stage == "generate" or run.system.adapter in ("class", "image") else 1

    def checked(self, run, stage):
        """A run's checked parameters for one stage ("adapt", "generate", "train-R+S", ...)."""
        kind, _, rest = stage.partition("-")
        setting, _, resnet = rest.partition("-")
        values = _values(*self.files, *([self.resnet.parameters] if resnet else []))
        values = values | run.parameters | ({"setting": setting} if setting else {})
        fields = STAGES[kind].model_fields
        return STAGES[kind].make(**notebook_defaults(kind) | {k: v for k, v in values.items() if k in fields})


@dataclass(frozen=True)
class Run:
    """One run of a study; change: what it moves, ``((name, value),)`` or (); split_file: "" for the parameters' own."""

    dataset: str
    method: str
    n_shot: int
    seed: int
    change: tuple = field(default=())
    split_file: str = ""

    @property
    def variant(self):
        return "".join(re.sub(r"[^A-Za-z0-9.=-]+", "-", f"{name}={value}") for name, value in self.change)

    @property
    def name(self):
        """The run's folder."""
        return run_name(self.dataset, self.method, self.n_shot, self.seed, self.variant)

    @property
    def system(self):
        """The method's row, with the part that this run replaces."""
        return get_method(self.method, **{k: v for k, v in self.change if k in AXES})

    @property
    def parameters(self):
        """What papermill is to set."""
        named = {"dataset": self.dataset, "method": self.method, "n_shot": self.n_shot, "seed": self.seed}
        named |= {"split_file": self.split_file} if self.split_file else {}
        return named | ({"variant": self.variant} if self.change else {}) | dict(self.change)

    def home(self, stage):
        """The run that makes ``stage``: this one, or the one without change when the change plays no part in it."""
        upstream = ("adapt",) if stage == "adapt" else ("adapt", "generate")
        same = stage in ("adapt", "generate") and not any(
            name in _decides(s) for name, _ in self.change for s in upstream
        )
        return replace(self, change=()) if same else self


def make_study(values, source="the study"):
    """A checked ``Study`` from a study file's values. ``source``: what errors call it.

    InputError, before anything runs, for an unknown key, method, data set or parameter, and for every value that a
    notebook would refuse.
    """
    known = list(Study.model_fields)
    for key in values:
        if key not in known:
            raise InputError(f"{source}: {key!r} is not known.{suggest(key, known)}")
    try:
        study = Study(**values)
    except ValidationError as error:
        e = error.errors()[0]
        where = ".".join(str(part) for part in e["loc"])
        raise InputError(f"{source}: {where!r} is {e['input']!r}: {e['msg']}") from None
    try:
        _check(study)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return study


def read_study(path):
    """The study in a file. InputError names the file."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold 'name: value' lines such as 'methods: [real]'.")
    return make_study(values, str(path))


def _check(study):
    for name in study.sweep:
        if (
            name in NAMED
            or name in NOT_IDENTITY
            or not any(name in _decides(s) for s in ("adapt", "generate", "train"))
        ):
            if name in parameter_names():
                raise InputError(f"sweep cannot move {name!r}: it has a list of its own or does not change a result.")
            raise InputError(f"sweep: parameter {name!r} is not known.{suggest(name, parameter_names())}")
    for method in study.methods:
        get_method(method)
    for setting in [*study.settings, *(study.resnet.settings if study.resnet else ())]:
        if setting not in SETTINGS:
            raise InputError(f"setting {setting!r} is not known.{suggest(setting, SETTINGS)}")
    for dataset in study.datasets:
        _check_dataset(dataset, study.value("data_root"))
    for dataset in study.split_files.keys() - {*study.datasets}:
        raise InputError(f"split_files: {dataset!r} is none of the datasets.{suggest(dataset, study.datasets)}")
    seen = set()
    for run in study.runs().values():
        for stage in study.stages(run):
            kind = (run.method, run.n_shot, run.change, stage)
            if kind not in seen:
                seen.add(kind)
                study.checked(run, stage)


def _check_dataset(dataset, data_root):
    """InputError for a data set that is neither known nor a folder; nothing is read or fetched."""
    known = {"mnist5k", *(path.stem for path in (ROOT / "params" / "datasets").glob("*.yaml"))}
    if dataset not in known and not (resolve(data_root) / dataset).is_dir() and not resolve(dataset).is_dir():
        raise InputError(f"data set {dataset!r} is neither known nor a folder.{suggest(dataset, sorted(known))}")


@lru_cache
def _values(*files):
    """What parameter files set, the last word with the last."""
    values = {}
    for file in files:
        values |= read_params_file(resolve(file))
    return values


@lru_cache
def _decides(stage):
    """The parameters that decide the result of one stage."""
    return STAGES[stage].model_fields.keys() - ({*FOR_PICTURES} if stage == "adapt" else set())


def _checked(name, value):
    """A swept value as its parameter's type has it: 4 is 4.0 where a float is meant. Ranges are checked later."""
    wanted = next(s.model_fields[name].annotation for s in STAGES.values() if name in s.model_fields)
    return float(value) if wanted is float and type(value) is int else value


def _default(name):
    """A parameter's default in the notebooks."""
    return next(notebook_defaults(stage)[name] for stage, model in STAGES.items() if name in model.model_fields)


@lru_cache
def notebook_defaults(stage):
    """The values in the parameters cell of a stage's notebook."""
    notebook = json.loads((ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb").read_text())
    (cell,) = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    return {node.target.id: ast.literal_eval(node.value) for node in ast.parse("".join(cell["source"])).body}
