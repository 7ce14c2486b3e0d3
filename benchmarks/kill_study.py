"""Kill a study at random moments, start it again each time, and compare it with one that was left in peace.

    python -m benchmarks.kill_study --kills 3 --output docs/about/robustness.md

A small study (two methods, classifiers on generated images, tables and figures) runs through papermill, notebook by
notebook, undisturbed. Then it runs again: every notebook is killed so many times (SIGKILL, papermill and its kernel
together), each time at a random moment of its work, and started again. In the end every file but the manifests, which
hold times, has to have the same bytes. Exit status 1 when one has not.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil

from datadream_utils.files import sha256s
from datadream_utils.params import NOTEBOOKS, ROOT, run_name

METHODS = ("datadream_cls", "datadream_dset")
VALUES = {  # on top of params/smoke.yaml: long enough that a kill lands inside a stage
    "adapt_epochs": 40,
    "adapters_together": 2,
    "checkpoint_every": 10,
    "images_per_class": 8,
    "num_inference_steps": 4,
    "train_epochs": 40,
    "setting": "S",
}


@dataclass
class Step:
    """One notebook of the study: its stage, its run's method ("" for the analysis), the folder it works in."""

    stage: str
    method: str
    folder: str

    def start(self, root):
        """Papermill on this notebook, writing under ``root``, as a process of its own."""
        logs = root.with_name(f"{root.name}-logs")
        logs.mkdir(exist_ok=True)
        values = VALUES | ({"method": self.method} if self.method else {})
        values |= {"output_root": root / "outputs", "figures_dir": root / "figures"}
        options = [part for name, value in values.items() for part in ("-p", name, str(value))]
        name = f"{self.method}-{self.stage}"
        paths = [ROOT / "notebooks" / f"{NOTEBOOKS[self.stage]}.ipynb", logs / f"{name}.ipynb"]
        command = [sys.executable, "-m", "papermill", "-k", "python3", "--no-progress-bar", *paths]
        with open(logs / f"{name}.log", "a", encoding="utf-8") as log:
            return subprocess.Popen([*command, "-f", ROOT / "params" / "smoke.yaml", *options], stderr=log, cwd=ROOT)

    def begun(self, root, since):
        """Whether the stage has begun: it writes its parameters then. The analysis begins with its process."""
        if not self.method:
            return True
        note = root / self.folder
        return note.exists() and note.stat().st_mtime >= since

    def parts(self, kills):
        """In how many parts the work is done when it is killed so often: what goes on where it was, in all of them."""
        return kills if self.method else 1


def steps():
    """The study's notebooks, in order."""
    made = []
    for method in METHODS:
        run = f"outputs/{run_name('mnist5k', method, 2, 0)}"
        folders = {"adapt": "adapt", "generate": "generate", "train": "train-S"}
        made += [Step(stage, method, f"{run}/{name}/parameters.json") for stage, name in folders.items()]
    return [*made, Step("analysis", "", "figures")]


def run_in_peace(step, root):
    """Run a step to its end: seconds until its stage began, and in all."""
    started, begun = time.time(), None
    process = step.start(root)
    while process.poll() is None:
        if begun is None and step.begun(root, started - 1):
            begun = time.time()
        time.sleep(0.02)
    if process.returncode:
        sys.exit(f"{step.stage} of {step.method} failed: see the logs beside {root}.")
    return (begun or time.time()) - started, time.time() - started


def run_and_kill(step, root, delay, patience):
    """Start a step and kill it ``delay`` seconds after its stage began; the seconds it worked, None if it was done."""
    started = time.time()
    process = step.start(root)
    begun = None
    while process.poll() is None:
        if begun is None and (step.begun(root, started) or time.time() - started > patience):
            begun = time.time()
        if begun is not None and time.time() - begun >= delay:
            kill(process)
            return time.time() - begun
        time.sleep(0.02)
    return None


def kill(process):
    """SIGKILL to papermill and to all that it has started, its kernel first of all."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)


def differences(first, second):
    """``(files compared, those that differ or that one lacks)``; manifests hold times and are left out."""
    names = {str(path.relative_to(root)) for root in (first, second) for path in root.rglob("*") if path.is_file()}
    names = sorted(name for name in names if Path(name).name not in ("manifest.json", ".lock"))
    sums = [sha256s([root / name for name in names]) for root in (first, second)]
    return names, [name for name, one, other in zip(names, *sums, strict=True) if one != other]


def study(folder, kills, seed, report):
    """Run both studies under ``folder``; rows per step, files compared, and those that differ."""
    rng, rows = random.Random(seed), []
    peaceful, disturbed = folder / "undisturbed", folder / "killed"
    for step in steps():
        report(f"{step.method} {step.stage}, undisturbed")
        before, seconds = run_in_peace(step, peaceful)
        moments, work = [], seconds - before
        for _ in range(kills):
            worked = run_and_kill(step, disturbed, rng.uniform(0, 0.8 * work / step.parts(kills)), patience=5 * seconds)
            if worked is None:  # done before it could be killed so often
                break
            moments.append(worked)
            report(f"{step.method} {step.stage}, killed after {worked:.1f} s of about {work:.1f}")
        run_in_peace(step, disturbed)
        landed = ", ".join(f"{moment:.1f}" for moment in moments)
        rows.append((step.method or "all", step.stage, f"{seconds - before:.1f}", len(moments), landed))
    return rows, *differences(peaceful, disturbed)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=3, help="of every notebook (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--output", help="a Markdown file to write the table to")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = lambda line: print(line, file=sys.stderr, flush=True)  # noqa: E731
        rows, names, differing = study(Path(folder), options.kills, options.seed, report)
        torn = [name for name in names if name.endswith(".part")]
    header = ["method", "stage", "seconds of its work", "kills", "seconds into it"]
    verdict = f"differ: {', '.join(differing[:5])}" if differing else "all have the same bytes"
    text = (
        f"{pd.DataFrame(rows, columns=header).to_markdown(index=False)}\n\n{sum(row[3] for row in rows)} kills in all. "
    )
    text += f"{len(names)} files compared, {len(differing)} different: {verdict}; {len(torn)} torn files left.\n"
    print(text)
    if options.output:
        command = f"python -m benchmarks.kill_study --kills {options.kills} --seed {options.seed}"
        Path(options.output).parent.mkdir(exist_ok=True)
        Path(options.output).write_text(
            f"# A study killed at random moments\n\n`{command}` gave\n\n{text}", encoding="utf-8"
        )
    sys.exit(bool(differing))


if __name__ == "__main__":
    main()
