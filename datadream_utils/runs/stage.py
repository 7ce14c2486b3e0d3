"""The folder of one stage of a run, and the records in it: parameters, manifest, checksums.

    outputs/mnist5k_datadream_cls_16shot_seed0/
        adapt/      adapters/<class>/pytorch_lora_weights.safetensors, losses/<class>.csv, shots.txt, ...
        generate/   images/<class>/00000.png, images/metadata.jsonl, ...
        train-S/    classifier/, predictions.parquet, history.csv, metrics.json, ...
        train-R+S/  ...

A stage writes ``parameters.json`` when it starts. When its outputs are complete it writes ``checksums.txt`` and then
``manifest.json``. A stage with a manifest is finished; one without continues where it stopped.
"""

import hashlib
import json
import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path

from datadream_utils.errors import InputError
from datadream_utils.files import digest, read_json
from datadream_utils.params import NOTEBOOKS, ROOT
from datadream_utils.runs.checksums import changed_files

INPUTS = ("shots_sha256", "source_sha256")  # in the records of a stage: what it was made from
FORMAT = 2  # version of the layout of a stage's folder; a folder of another version is refused

NUMBER = (int, float)
KINDS = {  # of values in a record that are used, and of parameters that every run has
    **dict.fromkeys(("parameters", "machine", "versions", "model"), dict),
    **dict.fromkeys(("class_names", "shots", "shards"), list),
    **dict.fromkeys(("device", "finished", "domain", "split"), str),
    **dict.fromkeys(("seconds", "processor_seconds", "num_threads", "resumed"), NUMBER),
    **dict.fromkeys(("dataset", "method", "split_file", "shots_file", "variant", "sd_model", "clip_model"), str),
    **dict.fromkeys(("n_shot", "seed", "images_per_class", "resolution"), int),
}

# Parameters that must be equal in two stages of one run. Of a path only the last part is compared, because the file may
# be in another place on another machine.
SHARED = ("split_file", "shots_file", "sd_model", "sd_revision", "resolution")


class Record(dict):
    """What a file says of a stage. InputError for a value that is of another type than stages write, or not there.

    Files get edited by hand, and lines lost; nobody can tell what else is not as it was.
    """

    def __init__(self, values, path, fix):
        super().__init__(values)
        self.path, self.fix = path, fix
        for name, kind in KINDS.items():
            if name in values and not isinstance(values[name], kind):
                raise InputError(f"{path} cannot be read ({name!r} is {values[name]!r}): {fix}.")

    def __missing__(self, name):
        raise InputError(f"{self.path} cannot be read (it lacks {name!r}): {self.fix}.")


@dataclass(frozen=True)
class Stage:
    """The folder of one stage: ``name`` is "adapt", "generate", "train-S", ..."""

    name: str
    folder: Path

    @property
    def notebook(self):
        """The notebook that makes this stage."""
        return NOTEBOOKS[self.name.partition("-")[0]]

    @property
    def finished(self):
        return (self.folder / "manifest.json").exists()

    def manifest(self):
        """The manifest of the finished stage; InputError if it cannot be read or is of another format."""
        return self._read("manifest.json")

    def parameters(self):
        """The parameters that decide the result, as recorded on disk; None if the stage has not started."""
        record = self._record()
        return record["parameters"] if record else None

    def inputs(self):
        """What the stage was made from, as ``describe_inputs`` gave it; None for what is not recorded."""
        record = self._record() or {}
        return {name: record.get(name) for name in INPUTS}

    def damaged_files(self, names=None):
        """The files of a finished stage (of ``names``, or all) that have vanished or changed, sorted; else []."""
        return changed_files(self.folder, self.manifest().get("checksums"), names) if self.finished else []

    def check_files(self, names=None):
        """InputError when a file (of ``names``, or any) of the finished stage has vanished or changed."""
        damaged = self.damaged_files(names)
        if damaged:
            more = f" (and {len(damaged) - 1} more)" if damaged[1:] else ""
            raise InputError(
                f"{self.folder / damaged[0]}{more} has vanished or changed since {self.notebook} made it: run "
                f"{self.notebook} again, which makes it anew and keeps the rest."
            )

    def check_parameters(self, params):
        """InputError when the folder holds the same stage, finished or started, with other parameters."""
        before, now = self.parameters(), params.identity()
        if before is None:
            return
        changed = [name for name in [*now, *sorted(before.keys() - now.keys())] if now.get(name) != before.get(name)]
        if changed:
            name = changed[0]
            raise InputError(
                f"{self.folder} was made with {name}={before.get(name)!r}, not {now.get(name)!r}: set 'variant' to a "
                "word of your own to keep both, or delete that folder."
            )

    def check_inputs(self, now):
        """InputError when the stage, finished or started, was made from something else than ``now`` describes."""
        again = f"set 'variant' to a word of your own to keep both, or delete {self.folder}"
        before = self.inputs()
        shots, source = (before[name] not in (None, now[name]) for name in INPUTS)
        if shots:
            raise InputError(
                f"{self.folder} was made from other few-shot images: the pictures of the data set, its split or the "
                f"shots_file have changed since. Put them back, or {again}."
            )
        if source:
            raise InputError(
                f"{self.folder} was made from an earlier stage that has been made again since, with other parameters "
                f"or from other images: {again}."
            )

    def _record(self):
        """The manifest, else the note that the stage made when it started; None if it has not started."""
        names = [name for name in ("manifest.json", "parameters.json") if (self.folder / name).exists()]
        return self._read(names[0]) if names else None

    def _read(self, name):
        path, fix = self.folder / name, f"delete it and run {self.notebook} again"
        noted = read_json(path, fix)
        if noted.get("format") != FORMAT:
            raise InputError(
                f"{self.folder} was made by another version of this project (format {noted.get('format', 1)}, not "
                f"{FORMAT}): set output_root to another folder, or delete this one and run {self.notebook} again."
            )
        record = Record(noted, path, fix)
        if "parameters" in record:
            record["parameters"] = Record(record["parameters"], path, fix)
        return record


def stage_of(params):
    """The stage that ``params`` describe; InputError if it was made or started with other parameters."""
    stage = Stage(params.stage, params.run_folder / params.stage)
    stage.check_parameters(params)
    return stage


def finished_stage(params, name, shots=None):
    """The finished stage ``name`` of the run that ``params`` describe, for the next stage to read.

    InputError if it is not finished (with the notebook to run first), a file has vanished or changed, a parameter in
    ``SHARED`` had another value, or it was made from other ``shots`` (paths): those might be test images here, which
    would make the accuracy too high.
    """
    stage = Stage(name, params.run_folder / name)
    if not stage.finished:
        raise InputError(
            f"{stage.folder} is not finished: run {stage.notebook} first with the same dataset, method, n_shot and "
            f"seed, and with variant={params.variant!r}."
        )
    stage.check_files()
    manifest = stage.manifest()
    again = f"set 'variant' to a word of your own and run {stage.notebook} with it first"
    for key in SHARED:
        before = manifest["parameters"].get(key)
        now = getattr(params, key, before)
        if Path(str(before)).name != Path(str(now)).name:
            raise InputError(
                f"{stage.folder} was made with {key}={before!r}, not {now!r}: use the same value here, or {again}."
            )
    if shots is not None and digest(shots) != manifest["shots_sha256"]:
        raise InputError(
            f"{stage.folder} was made from other few-shot images: use the same data, split_file and shots_file here, "
            f"or {again}."
        )
    return stage


def describe_inputs(shots, source):
    """What a stage is made from, besides its parameters: digests of the ``shots`` (paths) and of the stage ``source``.

    Of a source counts what decides its result, not its bytes: a damaged file that is made again, on a GPU with other
    bytes, costs nothing that was made from it.
    """
    decided = json.dumps([source.parameters(), source.inputs()], sort_keys=True) if source else ""
    values = (digest(shots), hashlib.sha256(decided.encode()).hexdigest() if source else None)
    return dict(zip(INPUTS, values, strict=True))


def git_commit():
    """The project's commit, with ``-dirty`` when tracked files differ from it; None without git or a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude", "*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
    except OSError:  # there is no git on this machine
        return None
    return result.stdout.strip() or None


def cpu_name():
    """The processor's model, as far as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
