"""Make a run again elsewhere and compare it with the files on disk: ``python -m workflow.scripts.verify outputs``.

First the checksums of every finished stage are verified. Then one run, drawn at random or named, is made again: its
notebooks run through papermill with the parameters in its manifests, and the files are compared byte by byte. On a GPU,
or on another device or CPU than the first time, rounding differs, and accuracies are compared within a tolerance. The
exit status is 1 if anything differs.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml

from datadream_utils.errors import InputError, suggest
from datadream_utils.files import atomic_write, read_json, sha256s
from datadream_utils.params import ROOT
from datadream_utils.runs.checksums import made_files
from datadream_utils.runs.stage import Stage

STAGES = ("adapt", "generate", "train-*")  # folder patterns, in the order of the notebooks
MACHINE_FILES = {"classifier/README.md"}  # PEFT's card, which names the folder of the base model on this machine


def finished_stages(run):
    """The finished stages of a run's folder, in the order of the notebooks."""
    folders = [folder for pattern in STAGES for folder in sorted(run.glob(pattern))]
    stages = [Stage(folder.name, folder) for folder in folders]
    return [stage for stage in stages if stage.finished]


def find_runs(output_root):
    """``{name: folder}`` of the runs that have a finished stage; InputError if there is none."""
    runs = {run.name: run for run in sorted(Path(output_root).glob("*")) if run.is_dir() and finished_stages(run)}
    if not runs:
        raise InputError(f"{output_root} holds no finished run: name the output_root that a study was run with.")
    return runs


def verify_checksums(runs):
    """A data frame with a row for each finished stage: run, stage, number of files, and damaged files if any."""
    rows = []
    for name, run in runs.items():
        for stage in finished_stages(run):
            damaged = stage.damaged_files()
            verdict = f"changed or missing: {', '.join(damaged)}" if damaged else "intact"
            rows.append((name, stage.name, len(made_files(stage.folder)), verdict))
    return pd.DataFrame(rows, columns=["run", "stage", "files", "checksums"])


def make_again(stage, output_root):
    """Run a stage's notebook again with the parameters of its manifest, into another ``output_root``.

    Returns the new ``Stage``. InputError with the end of the log if the notebook fails.
    """
    manifest = stage.manifest()
    noted = manifest["machine"]
    machine = {name: noted[name] for name in ("data_root", "num_workers", "compile") if name in noted}
    machine |= {"num_threads": manifest["num_threads"], "output_root": str(output_root)}
    file, executed = output_root / f"{stage.name}.yaml", output_root / f"{stage.name}.ipynb"
    values = manifest["parameters"] | machine
    values |= {"compare_settings": False} if stage.name.startswith("train-") else {}  # this stage and no other
    with atomic_write(file) as temporary:
        temporary.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    source = ROOT / "notebooks" / f"{stage.notebook}.ipynb"
    execute = ROOT / "workflow" / "scripts" / "execute.py"
    command = [sys.executable, execute, "-k", "python3", "--no-progress-bar", "-f", file, source, executed]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", cwd=ROOT)
    if done.returncode:
        raise InputError(f"{stage.notebook} failed with the parameters of {stage.folder}:\n{done.stderr[-2000:]}")
    (folder,) = {path.resolve() for path in output_root.glob(f"*/{stage.name}")}
    link = output_root / stage.folder.parent.name / stage.name
    if folder != link.resolve():  # the stage belongs to another run of the study, to which this run has a link
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(folder)
    return Stage(stage.name, folder)


def compare_stages(first, second, tolerance):
    """Compare two makings of a stage; returns ``(file names, names of files that differ, note)``.

    A file that only one of them has differs. If bytes cannot be expected to agree, the note says so, and only the
    accuracies of classifiers are compared; they may differ by ``tolerance`` points.
    """
    names = sorted({*made_files(first.folder), *made_files(second.folder)} - MACHINE_FILES)
    devices = [stage.manifest()["device"] for stage in (first, second)]
    sums = [sha256s([stage.folder / name for name in names]) for stage in (first, second)]
    differing = [name for name, one, other in zip(names, *sums, strict=True) if one != other]
    if devices[0] == devices[1] and devices[0].startswith("cpu"):
        return names, differing, ""
    note = f"bytes not compared (first on {devices[0]}, now on {devices[1]}; {len(differing)} files differ)"
    if not first.name.startswith("train-"):
        return names, [], note
    metrics = [read_json(stage.folder / "metrics.json", "run 03_train_clip again") for stage in (first, second)]
    difference = abs(metrics[0]["accuracy"] - metrics[1]["accuracy"])
    differing = ["metrics.json"] if difference > tolerance else []
    return names, differing, f"{note}; accuracies differ by {difference:.2f} points (tolerance {tolerance:g})"


def verify_run(run, output_root, tolerance):
    """Make a run's folder again under ``output_root`` and compare; a data frame with a row for each stage."""
    rows = []
    for stage in finished_stages(run):
        again = make_again(stage, output_root)
        names, differing, note = compare_stages(stage, again, tolerance)
        seconds = [made.manifest()["seconds"] for made in (stage, again)]
        judged = not note or stage.name.startswith("train-")
        verdict = f"DIFFERENT: {', '.join(differing[:3])}" if differing else "the same" if judged else "not judged"
        rows.append((stage.name, len(names), len(differing), *seconds, "; ".join(filter(None, (verdict, note)))))
    return pd.DataFrame(rows, columns=["stage", "files", "different", "seconds then", "seconds now", "verdict"])


def main(arguments=None):
    """Run the command; exits with status 1 if a file is damaged or differs, and with a sentence for wrong input."""
    parser = argparse.ArgumentParser(prog="python -m workflow.scripts.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("output_root", help="the folder that holds the runs")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--run", help="the run to make again, by its folder's name")
    choice.add_argument("--seed", type=int, default=0, help="draws the run to make again (default: 0)")
    parser.add_argument("--tolerance", type=float, default=2.0, help="in points, on another device (default: 2)")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.output_root)
        if options.run and options.run not in runs:
            raise InputError(f"{options.output_root} has no finished run {options.run!r}.{suggest(options.run, runs)}")
        checksums = verify_checksums(runs)
        print(checksums.to_markdown(index=False))
        name = options.run or random.Random(options.seed).choice(sorted(runs))
        print(f"\n{name}, made again from its parameters:\n", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            comparison = verify_run(runs[name], Path(scratch), options.tolerance)
        print(comparison.to_markdown(index=False))
    except InputError as error:
        sys.exit(str(error))
    sys.exit(int((checksums["checksums"] != "intact").any() or comparison["different"].any()))


if __name__ == "__main__":
    main()
