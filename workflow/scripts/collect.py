"""Copy the tables and figures of a study to where results are kept, with a note of how they were made.

    python -m workflow.scripts.collect outputs/tiny figures/tiny

``made.json`` beside them has the state of the code, the dates, the hours, the machine and the library versions.
"""

import argparse
import shutil
import sys
from pathlib import Path

from datadream_utils.analysis.results import load_stages
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, read_json, write_json
from datadream_utils.params import resolve
from datadream_utils.runs.stage import Stage

SUFFIXES = (".csv", ".json", ".md", ".pdf", ".png", ".tex")  # of collected files


def describe_making(output_root):
    """How the finished stages under ``output_root`` were made; lists where they differ.

    notebook_hours: the executed notebooks' clock times, added up; processor_hours: of the stages alone.
    """
    stages = load_stages(output_root)
    if stages.empty:
        raise InputError(f"{resolve(output_root)} has no finished stage: run the study first.")
    manifests = [Stage(folder.name, folder).manifest() for folder in stages["folder"]]
    durations = [_duration(path) for path in sorted(resolve(output_root).rglob("0*.ipynb"))]
    finished = sorted(manifest["finished"] for manifest in manifests)
    return {
        "code": sorted({str(manifest["git"]) for manifest in manifests}),
        "first_stage": finished[0],
        "last_stage": finished[-1],
        "stages": len(manifests),
        "resumed_stages": sum(manifest["resumed"] for manifest in manifests),
        "processor_hours": round(sum(manifest["processor_seconds"] for manifest in manifests) / 3600, 2),
        "notebook_hours": round(sum(durations) / 3600, 2),
        "devices": sorted({manifest["device"] for manifest in manifests}),
        "versions": sorted({f"{name} {v}" for manifest in manifests for name, v in manifest["versions"].items()}),
    }


def _duration(notebook):
    """The clock seconds of an executed notebook, which papermill notes; 0 for one that has not ended."""
    metadata = read_json(notebook, "delete it").get("metadata", {})
    return metadata.get("papermill", {}).get("duration") or 0


def collect(output_root, folder):
    """Copy ``figures/`` of ``output_root`` into ``folder``, and write ``made.json`` there.

    An earlier collection in ``folder`` is replaced, completely or not at all. InputError when ``folder`` holds anything
    else: nothing is deleted then.
    """
    made, figures, folder = describe_making(output_root), resolve(output_root) / "figures", resolve(folder)
    if not (figures / "main_results.csv").is_file():
        raise InputError(f"{figures} has no main_results.csv: run 04_analysis first.")
    if folder.exists() and not _is_collection(folder):
        raise InputError(f"{folder} holds something else than collected results: name a new or empty folder.")
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        for path in sorted(path for path in figures.iterdir() if path.suffix in SUFFIXES):
            shutil.copyfile(path, temporary / path.name)
        write_json(temporary / "made.json", made)
    return made


def _is_collection(folder):
    """Whether a folder is empty, or holds a main table and beside it nothing but files of tables and figures."""
    if not folder.is_dir():
        return False
    paths = [path for path in folder.iterdir() if path.name != ".ipynb_checkpoints"]
    plain = all(path.is_file() and path.suffix in SUFFIXES for path in paths)
    return not paths or (plain and (folder / "main_results.csv").is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_root", type=Path)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    try:
        made = collect(args.output_root, args.folder)
    except InputError as error:
        sys.exit(str(error))
    print(f"{made['stages']} stages, {made['notebook_hours']} notebook hours: {args.folder}")


if __name__ == "__main__":
    main()
