"""Make a run again, elsewhere, and compare it with what is on disk: ``python -m workflow.scripts.verify outputs``.

Every finished stage is first checked against its checksums. Then one run, drawn at random or named, is made again from
the parameters that it noted, notebook by notebook through papermill, and its files are compared byte by byte. On
a GPU, or another device than the first time, bytes cannot be expected: there only accuracies are judged, within a
tolerance. Exit status 1 tells of a difference.
"""

import argparse
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from datadream_utils.errors import InputError, suggest
from datadream_utils.files import atomic_write, read_json, sha256s
from datadream_utils.params import NOTEBOOKS, ROOT
from datadream_utils.runs.checksums import made_files
from datadream_utils.runs.stage import Stage

STAGES = ("adapt", "generate", "train-*")  # in the order in which they are made
LOCAL = {"classifier/README.md"}  # the library's card of an adapter names the base model's folder on this machine


def finished_stages(run):
    """The finished stages of a run's folder, in order."""
    folders = [folder for pattern in STAGES for folder in sorted(run.glob(pattern))]
    stages = [Stage(folder.name, folder, {}) for folder in folders]
    return [stage for stage in stages if stage.finished]


def find_runs(output_root):
    """The folders that hold a finished stage, by name; InputError when there is none."""
    runs = {run.name: run for run in sorted(Path(output_root).glob("*")) if run.is_dir() and finished_stages(run)}
    if not runs:
        raise InputError(f"{output_root} holds no finished run: name the output_root that a study was run with.")
    return runs


def check_sums(runs):
    """A row per finished stage of every run: (run, stage, files, what is wrong or "as made")."""
    rows = []
    for name, run in runs.items():
        for stage in finished_stages(run):
            bad, known = stage.damage(), "checksums" in stage.manifest()
            good = "as made" if known else "made without checksums"
            verdict = f"changed or missing: {', '.join(bad)}" if bad else good
            rows.append((name, stage.name, len(made_files(stage.folder)), verdict))
    return rows


def make_again(stage, output_root):
    """Run the stage's notebook with the parameters of its manifest into another ``output_root``; the new ``Stage``.

    InputError with the last lines of its log when it fails.
    """
    manifest = stage.manifest()
    how = {name: value for name, value in manifest.get("how", {}).items() if name in ("data_root", "num_workers")}
    how |= {"num_threads": manifest["num_threads"], "output_root": str(output_root)}
    notebook = NOTEBOOKS[stage.name.split("-")[0]]
    file, executed = output_root / f"{stage.name}.yaml", output_root / f"{stage.name}.ipynb"
    with atomic_write(file) as temporary:
        temporary.write_text(yaml.safe_dump(manifest["parameters"] | how, allow_unicode=True))
    source = ROOT / "notebooks" / f"{notebook}.ipynb"
    command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", "-f", file, source, executed]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise InputError(f"{notebook} failed with the parameters of {stage.folder}:\n{done.stderr[-2000:]}")
    (made,) = {path.resolve() for path in output_root.glob(f"*/{stage.name}")}
    link = output_root / stage.folder.parent.name / stage.name
    if made != link.resolve():  # it belongs to another run, of which this one has a link
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(made)
    return Stage(stage.name, made, {})


def compare(stage, again, tolerance):
    """``(files, files that differ, note)``: bytes on the same kind of CPU, else the accuracy's difference in points.

    A file that only one of the two has differs. On a GPU the order of additions may differ from run to run.
    """
    names = sorted({*made_files(stage.folder), *made_files(again.folder)} - LOCAL)
    devices = [made.manifest()["device"] for made in (stage, again)]
    sums = [sha256s([made.folder / name for name in names]) for made in (stage, again)]
    differing = [name for name, one, other in zip(names, *sums, strict=True) if one != other]
    if devices[0] == devices[1] and devices[0].startswith("cpu"):
        return names, differing, ""
    note = f"made on {devices[0]}, again on {devices[1]}: {len(differing)} files differ in bytes, which is not judged"
    if not stage.name.startswith("train-"):
        return names, [], note
    one, other = (read_json(made.folder / "metrics.json", "run 03_train_clip again") for made in (stage, again))
    apart = abs(one["accuracy"] - other["accuracy"])
    too_far = ["metrics.json"] if apart > tolerance else []
    return names, too_far, f"{note}; accuracies are {apart:.2f} points apart (tolerance {tolerance:g})"


def table(header, rows):
    """Rows of text in columns, as Markdown."""
    widths = [max(len(str(row[i])) for row in [header, *rows]) for i in range(len(header))]
    line = lambda row: "| " + " | ".join(str(x).ljust(w) for x, w in zip(row, widths, strict=True)) + " |"  # noqa: E731
    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def verify(runs, name, output_root, tolerance):
    """Make the run ``name`` again under ``output_root``; rows of the comparison, and whether all is the same."""
    rows, same = [], True
    for stage in finished_stages(runs[name]):
        again = make_again(stage, output_root)
        names, differing, note = compare(stage, again, tolerance)
        seconds = [made.manifest()["seconds"] for made in (stage, again)]
        good = "not judged" if note and not stage.name.startswith("train-") else "the same"
        verdict = ("DIFFERENT: " + ", ".join(differing[:3])) if differing else good
        rows.append((stage.name, len(names), len(differing), *seconds, "; ".join(filter(None, (verdict, note)))))
        same &= not differing
    return rows, same


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m workflow.scripts.verify", description=__doc__.split("\n\n")[0])
    parser.add_argument("output_root", help="the folder that holds the runs")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--run", help="the run to make again, by its folder's name")
    which.add_argument("--seed", type=int, default=0, help="draws the run (default: 0)")
    parser.add_argument("--tolerance", type=float, default=2.0, help="points, on another device (default: 2)")
    options = parser.parse_args(arguments)
    try:
        runs = find_runs(options.output_root)
        if options.run and options.run not in runs:
            raise InputError(f"{options.output_root} has no finished run {options.run!r}.{suggest(options.run, runs)}")
        sums = check_sums(runs)
        print(table(("run", "stage", "files", "checksums"), sums))
        damaged = any(verdict.startswith("changed") for *_, verdict in sums)
        name = options.run or random.Random(options.seed).choice(sorted(runs))
        print(f"\n{name}, made again from its parameters:\n", flush=True)
        with tempfile.TemporaryDirectory() as scratch:
            rows, same = verify(runs, name, Path(scratch), options.tolerance)
        print(table(("stage", "files", "different", "seconds then", "seconds now", "verdict"), rows))
    except InputError as error:
        sys.exit(f"{error}")
    sys.exit(int(damaged or not same))


if __name__ == "__main__":
    main()
