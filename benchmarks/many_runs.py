"""How long it takes to read many finished runs: the table of results, and all of 04_analysis.

    python -m benchmarks.many_runs outputs/tiny --runs 1000

Runs are multiplied: copies of those of a finished study under other seeds, with checksums of their own, in a temporary
folder. Seconds are printed beside processor seconds, which a busy machine changes little.
"""

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from datadream_utils.analysis.results import load_results
from datadream_utils.params import ROOT
from datadream_utils.runs.checksums import write_checksums

SMALL = ("predictions.parquet", "history.csv", "shots.txt")  # of a train stage, copied as they are


def multiply(source, target, count):
    """``count`` runs under ``target``, in turn after those of ``source``: without their adapters and classifiers."""
    runs = sorted(path for path in Path(source).iterdir() if list(path.glob("train-*/manifest.json")))
    for number in range(count):
        run, seed = runs[number % len(runs)], number // len(runs)
        folder = Path(target) / f"{run.name.rsplit('_seed', 1)[0]}_seed{1000 * (number % len(runs)) + seed}"
        for stage in (path.parent for path in run.glob("*/manifest.json")):
            _copy_stage(stage, folder / stage.name, 1000 * (number % len(runs)) + seed)


def _copy_stage(stage, folder, seed):
    folder.mkdir(parents=True)
    for name in SMALL:
        if (stage / name).exists():
            shutil.copyfile(stage / name, folder / name)
    if (stage / "images").is_dir():
        shutil.copytree(stage / "images", folder / "images")
    for name in ("metrics.json", "parameters.json", "manifest.json"):  # the manifest last: it notes the checksums
        if (stage / name).exists():
            values = json.loads((stage / name).read_text(encoding="utf-8"))
            for holder in (values, values.get("parameters", {})):
                if "seed" in holder:
                    holder["seed"] = seed
            if name == "manifest.json":
                values["checksums"] = write_checksums(folder)
            (folder / name).write_text(json.dumps(values, indent=1), encoding="utf-8")


def timed(work):
    """``(seconds, processor seconds)`` of ``work()``, child processes included."""
    whose = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    started, before = time.perf_counter(), sum(sum(resource.getrusage(who)[:2]) for who in whose)
    work()
    return time.perf_counter() - started, sum(sum(resource.getrusage(who)[:2]) for who in whose) - before


def analyse(folder):
    """Run 04_analysis on the runs in ``folder``."""
    values = {"output_root": f"{folder}/runs", "figures_dir": f"{folder}/figures"}
    flags = [word for name, value in values.items() for word in ("-r", name, value)]
    command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", "--log-level", "ERROR"]
    notebooks = ["notebooks/04_analysis.ipynb", f"{folder}/04_analysis.ipynb"]
    subprocess.run([*command, *notebooks, *flags], check=True, cwd=ROOT)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a folder of finished runs, such as outputs/tiny")
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        multiply(options.source, Path(folder) / "runs", options.runs)
        n = len(list(Path(folder).glob("runs/*/train-*/manifest.json")))
        print(f"{options.runs} runs, {n} classifiers")
        works = {"load_results": lambda: load_results(f"{folder}/runs"), "04_analysis": lambda: analyse(folder)}
        for name, work in works.items():
            seconds, processor = timed(work)
            print(f"{name:<14} {seconds:6.1f} s, {processor:.1f} s of processor time")
        cells = json.loads((Path(folder) / "04_analysis.ipynb").read_text(encoding="utf-8"))["cells"]
        took = {c["id"]: c["metadata"]["papermill"]["duration"] for c in cells if c["cell_type"] == "code"}
        print("slowest cells:", sorted(took.items(), key=lambda item: -item[1])[:4])


if __name__ == "__main__":
    main()
