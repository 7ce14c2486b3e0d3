"""A study file lists what is compared; ``read_study`` turns it into runs and their stages, with every value checked.

    parameters: params/tiny.yaml          # one parameter file or several; later ones override earlier ones
    datasets: [mnist5k]
    methods: [fakeit, datadream_cls]
    n_shots: [16]
    seeds: [0, 1, 2]
    sweep: {guidance_scale: [1.0, 4.0]}   # optional: changes one parameter at a time, beside the unchanged runs
    settings: [S]                         # optional: only these classifiers (a swept real_weight needs its R+S)
    resnet: {parameters: params/tiny-resnet.yaml, settings: [R, S]}   # optional: a second classifier
    shards: 4                             # optional: makes the adapters and images of a run in this many jobs
    split_files: {mnist5k: my_split.csv}  # optional: another split than the data set's own

Each value in the sweep adds a run with a ``variant`` such as "guidance-scale=4.0". Two cases add none: a value that is
already that of the parameter files, because the unchanged run is always part of the study, and a parameter that plays
no part in the method. A stage that a change does not affect is made once and shared. Snakemake imports this module, so
this module imports nothing slow.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from datadream_utils.data.digits import WRITERS
from datadream_utils.data.known import known_names
from datadream_utils.errors import InputError, suggest
from datadream_utils.files import read_yaml
from datadream_utils.methods import AXES, METHODS, SETTINGS, for_method, get_method
from datadream_utils.params import (
    STAGES,
    Count,
    as_parameter,
    make_params,
    notebook_defaults,
    parameter_names,
    plays_a_part,
    read_params_file,
    resolve,
    run_name,
)
from datadream_utils.values import explain, read_value

NonEmpty = Field(min_length=1)
LISTED = {"dataset", "method", "n_shot", "seed", "setting", "variant"}  # set by a study's lists, so not by its sweep


class Resnet(BaseModel):
    """The second classifier: its parameter file and the settings in which it is trained."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    parameters: str
    settings: Annotated[list[str], NonEmpty]


class Study(BaseModel):
    """The content of a study file. The class checks names and types; ``make_study`` also checks every run's values."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    parameters: str | Annotated[list[str], NonEmpty]
    datasets: Annotated[list[str], NonEmpty]
    methods: Annotated[list[str], NonEmpty]
    n_shots: Annotated[list[Count], NonEmpty]
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], NonEmpty]
    sweep: dict[str, Annotated[list[bool | int | float | str], NonEmpty]] = {}
    settings: Annotated[list[str], NonEmpty] = list(SETTINGS)
    resnet: Resnet | None = None
    shards: Count = 1
    split_files: dict[str, str] = {}

    @property
    def parameter_files(self):
        """The parameter files, in order."""
        return [self.parameters] if isinstance(self.parameters, str) else self.parameters

    def value(self, name):
        """The value of a parameter in the unchanged runs: that of the parameter files, or else the notebook's."""
        default = next(notebook_defaults(stage)[name] for stage in STAGES if name in STAGES[stage].model_fields)
        return as_parameter(name, _read_values(*self.parameter_files).get(name, default))

    def runs(self):
        """``{folder name: PlannedRun}``. Zero-shot CLIP gets only the first seed, because nothing in it is random."""
        runs = [
            PlannedRun(dataset, method, n_shot, seed, change, self.split_files.get(dataset, ""))
            for dataset in self.datasets
            for method in self.methods
            for n_shot in self.n_shots
            for seed in (self.seeds[:1] if METHODS[method].settings == ("none",) else self.seeds)
            for change in [None, *self._swept(method)]
        ]
        for name, count in Counter(run.name for run in runs).items():
            if count > 1:
                raise InputError(f"the study has two runs called {name!r}: list each value once.")
        return {run.name: run for run in runs}

    def _swept(self, method):
        """The changes ``(parameter, value)`` that the sweep makes to a method, without the unchanged values."""
        changes = []
        for name in (name for name in self.sweep if plays_a_part(name, METHODS[method])):
            unchanged = getattr(METHODS[method], name) if name in AXES else for_method(name, self.value(name), method)
            unchanged = as_parameter(name, unchanged)
            values = [as_parameter(name, value) for value in self.sweep[name]]
            changes += [(name, value) for value in values if value != unchanged]
        return changes

    def stages(self, run):
        """The stages of a run, in order: "adapt" and "generate" if the method has them, and the classifiers."""
        has = {"adapt": run.system.adapts, "generate": run.system.generates}
        return [stage for stage in has if has[stage]] + self.classifiers(run)

    def classifiers(self, run):
        """The train stages of a run: "train-S", "train-S-resnet", ... A swept real_weight affects R+S only."""
        settings = [setting for setting in run.system.settings if setting in self.settings]
        if run.change and run.change[0] == "real_weight":
            settings = ["R+S"]
        resnet = [setting for setting in settings if self.resnet and setting in self.resnet.settings]
        return [f"train-{setting}" for setting in settings] + [f"train-{setting}-resnet" for setting in resnet]

    def count_parts(self, run, stage):
        """The number of jobs that divide a stage's work; if it is more than 1, another job finishes the stage."""
        divides = stage == "generate" or (stage == "adapt" and run.system.adapter in ("class", "image"))
        return self.shards if divides else 1

    def params(self, run, stage):
        """The checked parameters of a stage ("adapt", "generate", "train-R+S", ...) of a run."""
        kind, _, classifier = stage.partition("-")
        setting, _, resnet = classifier.partition("-")
        values = _read_values(*self.parameter_files, *([self.resnet.parameters] if resnet else []))
        return make_params(kind, values | run.values | ({"setting": setting} if setting else {}))


@dataclass(frozen=True)
class PlannedRun:
    """One run of a study.

    change: ``(parameter, value)`` of the sweep, or None. split_file: "" for that of the parameter files.
    """

    dataset: str
    method: str
    n_shot: int
    seed: int
    change: tuple | None = None
    split_file: str = ""

    @property
    def variant(self):
        return re.sub(r"[^A-Za-z0-9.=-]+", "-", "{}={}".format(*self.change)) if self.change else ""

    @property
    def name(self):
        """The name of the run's folder."""
        return run_name(self.dataset, self.method, self.n_shot, self.seed, self.variant)

    @property
    def system(self):
        """The row of the method, with the axis that the sweep changes."""
        axes = dict([self.change]) if self.change and self.change[0] in AXES else {}
        return get_method(self.method, **axes)

    @property
    def values(self):
        """``{parameter: value}``, to be set on top of the parameter files."""
        values = {"dataset": self.dataset, "method": self.method, "n_shot": self.n_shot, "seed": self.seed}
        if self.split_file:
            values["split_file"] = self.split_file
        if self.change:
            values |= {"variant": self.variant, self.change[0]: self.change[1]}
        return values

    def owner(self, stage):
        """The run that makes ``stage``: this one, or the unchanged run if the change does not affect the stage."""
        if self.change is None or stage not in ("adapt", "generate"):
            return self
        made_by = ["adapt"] if stage == "adapt" else ["adapt", "generate"]  # the stages that decide its result
        affected = any(self.change[0] in STAGES[name].decisive() for name in made_by)
        return self if affected else replace(self, change=None)


def make_study(values, source="the study"):
    """A checked ``Study`` from the values of a study file; ``source`` is the file's name in errors.

    InputError, before anything runs, for an unknown key, method, data set or parameter, and for every value that a
    notebook would refuse.
    """
    known = list(Study.model_fields)
    for key in values:
        if key not in known:
            raise InputError(f"{source}: {key!r} is not known.{suggest(key, known)}")
    try:
        study = Study(**{key: read_value(value, Study.model_fields[key].annotation) for key, value in values.items()})
        _check(study)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(f"{source}: {where!r} is {first['input']!r}: {explain(first)}") from None
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    return study


def read_study(path):
    """The ``Study`` in a file; InputError names the file."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold 'name: value' lines such as 'methods: [real]'.")
    return make_study(values, str(path))


def _check(study):
    decisive = {name for stage in ("adapt", "generate", "train") for name in STAGES[stage].decisive()}
    for name in study.sweep:
        if name not in parameter_names():
            raise InputError(f"sweep: parameter {name!r} is not known.{suggest(name, parameter_names())}")
        if name in LISTED or name not in decisive:
            raise InputError(f"sweep cannot change {name!r}: it has a list of its own or does not affect a result.")
    for method in study.methods:
        get_method(method)
    for setting in [*study.settings, *(study.resnet.settings if study.resnet else ())]:
        if setting not in SETTINGS:
            raise InputError(f"setting {setting!r} is not known.{suggest(setting, SETTINGS)}")
    for dataset in study.datasets:
        _check_dataset(dataset, study.value("data_root"))
    for dataset in study.split_files.keys() - {*study.datasets}:
        raise InputError(f"split_files: {dataset!r} is none of the datasets.{suggest(dataset, study.datasets)}")
    checked = set()  # data sets and seeds do not change what is valid
    for run in study.runs().values():
        for stage in study.stages(run):
            if (key := (run.method, run.n_shot, run.change, stage)) not in checked:
                checked.add(key)
                study.params(run, stage)


def _check_dataset(dataset, data_root):
    """InputError for a data set that is neither known nor a folder; nothing is read or downloaded."""
    known = {*WRITERS, *known_names()}
    if dataset not in known and not (resolve(data_root) / dataset).is_dir() and not resolve(dataset).is_dir():
        raise InputError(f"data set {dataset!r} is neither known nor a folder.{suggest(dataset, sorted(known))}")


@lru_cache
def _read_values(*files):
    """The values in parameter files; later files override earlier ones."""
    values = {}
    for file in files:
        values |= read_params_file(resolve(file))
    return values
