"""Write the overview of a study as one static page: which stages are finished, their seconds, errors and accuracies.

    python -m workflow.scripts.report params/studies/tiny.yaml

The workflow writes the page whenever it ends, with or without an error. The page is made from the files on disk, so it
is right for a killed study too. It loads nothing from elsewhere, and every name in it is escaped.
"""

import argparse
import json
import os
import re
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from urllib.parse import quote

import jinja2

from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write
from datadream_utils.params import NOTEBOOKS, resolve
from datadream_utils.runs.locks import is_locked
from workflow.scripts.study import read_study

TEMPLATES = Path(__file__).parent / "templates"
LOG_LINES = 12  # the page shows the last lines of a failed stage's log
THUMBNAILS = 10  # the page shows one picture for each of a run's first classes


def write_report(study):
    """Write ``report.html`` beside the study's runs; returns its path."""
    output_root = resolve(study.value("output_root"))
    rows = [describe_stage(output_root, run, stage) for run in study.runs().values() for stage in study.stages(run)]
    own = [row for row in rows if not row["borrowed"]]  # several runs may share a stage, which was made once
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.get_template("report.html").render(
        title=f"Study of {', '.join(study.datasets)}",
        now=time.strftime("%Y-%m-%d %H:%M:%S"),
        count=Counter(row["state"] for row in rows),
        hours=sum(row["seconds"] or 0 for row in own) / 3600,
        summary=summarise(own),
        stages=rows,
    )
    with atomic_write(output_root / "report.html") as temporary:
        temporary.write_text(page, encoding="utf-8")
    return output_root / "report.html"


def describe_stage(output_root, run, stage):
    """One row of the page: a dict with the state, seconds, accuracy, links, pictures and log of one stage of a run.

    The state is "finished", "running" (a process holds the folder's lock), "failed" (there is a log) or "waiting".
    """
    owner = run.owner(stage)
    folder = output_root / owner.name / stage
    manifest = _read_json(folder / "manifest.json")
    kind, _, setting = stage.partition("-")
    notebook = f"{owner.name}/{NOTEBOOKS[kind]}" + (f"-{setting}" if setting else "")
    logs = [*output_root.glob(f"{notebook}-*-of-*.log"), *output_root.glob(f"{notebook}.log")]
    state = "finished" if manifest else "running" if is_locked(folder) else "failed" if logs else "waiting"
    files = {
        "notebook": f"{notebook}.ipynb",
        "log": f"{notebook}.log",
        "manifest": f"{owner.name}/{stage}/manifest.json",
    }
    megabytes = manifest.get("peak_gpu_memory_mb") or manifest.get("peak_memory_mb")
    return {
        "run": run.name,
        "stage": stage,
        "kind": kind,
        "state": state,
        "borrowed": owner != run,
        "seconds": manifest.get("seconds"),
        "gigabytes": megabytes / 1000 if megabytes else None,
        "accuracy": _read_json(folder / "metrics.json").get("accuracy") if manifest else None,
        "links": [(name, quote(path)) for name, path in files.items() if (output_root / path).exists()],
        "pictures": _find_pictures(output_root, folder) if manifest and kind == "generate" else [],
        "log": _read_last_lines(max(logs, key=lambda path: path.stat().st_mtime)) if state == "failed" else "",
    }


def summarise(rows):
    """A row for each kind of stage: how many there are, how many are finished, mean seconds, peak memory (GB)."""
    summary = []
    for kind in dict.fromkeys(row["kind"] for row in rows):
        of_kind = [row for row in rows if row["kind"] == kind]
        seconds = [row["seconds"] for row in of_kind if row["seconds"] is not None]
        summary.append(
            {
                "kind": kind,
                "count": len(of_kind),
                "finished": sum(row["state"] == "finished" for row in of_kind),
                "seconds": mean(seconds) if seconds else None,
                "gigabytes": max((row["gigabytes"] for row in of_kind if row["gigabytes"]), default=None),
            }
        )
    return summary


def _find_pictures(output_root, folder):
    """``(class folder, address)`` of the first picture of each of the first classes."""
    classes = sorted(path for path in (folder / "images").glob("*") if path.is_dir())[:THUMBNAILS]
    pictures = [next(iter(sorted(path.glob("*.png"))), None) for path in classes]
    return [(path.parent.name, quote(os.path.relpath(path, output_root))) for path in pictures if path]


def _read_last_lines(log):
    """The end of a log, without a terminal's colours and control characters."""
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", log.read_text(encoding="utf-8", errors="replace"))
    lines = [re.sub(r"[\x00-\x08\x0b-\x1f\x7f]", "", line) for line in text.splitlines() if line.strip()]
    return "\n".join(lines[-LOG_LINES:])


def _read_json(path):
    """The dict in a JSON file; {} for a missing or damaged file, so that the page can always be written."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m workflow.scripts.report", description="Write a study's overview, report.html, beside its runs."
    )
    parser.add_argument("study", help="a study file, such as params/studies/tiny.yaml")
    try:
        print(write_report(read_study(parser.parse_args().study)))
    except InputError as error:
        raise SystemExit(str(error)) from None
