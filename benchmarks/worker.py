"""One process of one side of one stage: ``python -m benchmarks.worker job.json``; its last line is its seconds.

job.json: {"stage", "side", "folder", "changes", and what the stage reads: "part", "adapters", "images", "classifier";
"shard": a part of the work; "inspect": true for ``limits.inspect`` instead}.
"""

import importlib
import json
import sys
from pathlib import Path

import torch

from benchmarks.limits import inspect
from benchmarks.worlds import make_run
from datadream_utils.params import make_params
from datadream_utils.runs.device import DTYPES, choose_device, set_threads
from datadream_utils.runs.progress import quiet_libraries
from datadream_utils.runs.stage import Stage

METHOD = {"adapt_dset": "datadream_dset"}  # of a stage; the others are DataDream_cls's


def run(job):
    """Do ``job``; ``{"load": seconds, "work": seconds, "load cpu": ..., "work cpu": ...}``."""
    name, folder, seconds = job["stage"], Path(job["folder"]), {}
    part = "clip" if name in ("train", "evaluate") else "diffusion"
    side = importlib.import_module(f"benchmarks.{job['side']}_{part}")  # a process loads what its own work needs
    kind = "train" if name == "evaluate" else name.split("_")[0]
    p = make_params(kind, job["changes"] | {"method": METHOD.get(name, "datadream_cls")})
    set_threads(p.num_threads)
    source = Stage("adapt", Path(job["adapters"]).parent) if kind == "generate" else None
    opened = make_run(p, folder, source, job.get("shard", ""))
    if kind == "adapt":
        side.adapt(opened, seconds, job.get("part"))
    elif kind == "generate":
        side.generate(opened, seconds)
    elif name == "train":
        side.train(opened, seconds, pictures(job["images"]))
    else:
        predictions = side.evaluate(opened, seconds, job["classifier"])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "predictions.json").write_text(json.dumps([int(x) for x in predictions]), encoding="utf-8")
    return seconds


def pictures(folder):
    """``files[label]`` of a generate stage's ``images`` folder."""
    return [sorted(of_class.glob("*.png")) for of_class in sorted(Path(folder).iterdir()) if of_class.is_dir()]


def main(path):
    job = json.loads(Path(path).read_text(encoding="utf-8"))
    if not job.get("inspect"):
        return run(job)
    p = make_params("train", job["changes"] | {"method": "datadream_cls"})
    dtype = torch.float32 if job["stage"] == "evaluate" else DTYPES[p.mixed_precision]
    return inspect(run, job, choose_device(p.device), dtype)


if __name__ == "__main__":
    quiet_libraries()
    print(json.dumps(main(sys.argv[1])))
