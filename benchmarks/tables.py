"""The tables of ``benchmarks/README.md``, from ``benchmarks/results/*.json``."""

import json
import re
from statistics import median

from datadream_utils.images import written_whole
from datadream_utils.params import ROOT

FOLDER = ROOT / "benchmarks"


def stage_table(result):
    """Medians and ratios, a row per stage; seconds are the wall's, with smallest and largest."""
    lines = [
        "| stage | repeats | reference, s | package, s | ratio | of processor time | of work alone | same result? |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    for stage, sides in result.items():
        of = lambda side, part: [run[part] for run in sides[side]]  # noqa: B023, E731
        walls = [
            f"{median(of(s, 'total')):.1f} ({min(of(s, 'total')):.1f} to {max(of(s, 'total')):.1f})"
            for s in ("reference", "ours")
        ]
        work = "work cpu" if sides["machine"]["device"].startswith("cpu") else "work"
        ratios = [median(of("reference", k)) / median(of("ours", k)) for k in ("total", "total cpu", work)]
        cells = [stage, str(sides["repeats"]), *walls, *(f"{r:.1f}" for r in ratios), sides["difference"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def limit_table(result):
    """Achieved FLOP/s of the package beside the machine's, and where the time goes."""
    lines = ["| stage | GFLOP/s | of matmul's | where the time goes |", "|---|--:|--:|---|"]
    for stage, sides in result.items():
        if limits := sides.get("limits"):
            speed, peak = limits["flops_per_second"], limits["matmul_peak"]
            goes = ", ".join(f"{name} {100 * share:.0f} %" for name, share, _ in limits["operations"] if share > 0.005)
            lines.append(f"| {stage} | {speed / 1e9:.1f} | {100 * speed / peak:.0f} % | {goes} |")
    return lines


def growth_table(result):
    """Seconds at each size, and the slope between the last two."""
    lines = ["| stage | against | seconds | slope |", "|---|---|---|--:|"]
    for row in result["rows"]:
        points = ", ".join(f"{size}: {seconds:.1f}" for size, seconds in row["points"])
        lines.append(f"| {row['stage']} | {row['against']} | {points} | {row['slope']:.2f} |")
    return lines


def frechet_table(result):
    """Solvers by speed and Fréchet distance."""
    lines = ["| sampler | s per 100 images, processor | Fréchet distance |", "|---|--:|--:|"]
    for row in result["rows"]:
        lines.append(f"| {row['sampler']} | {row['seconds']:.2f} | {row['distance']:.4f} |")
    return lines


def _machine(noted):
    m = noted["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    where = f"{m['device']}; {m['cpu']}, {m['cores']} cores, {m['threads']} threads, load {m['load']:.1f} at the start"
    return ["", f"{where}; {versions}."]


def _stages(result):
    return [*stage_table(result), "", *limit_table(result), *_machine(next(iter(result.values())))]


TABLES = {
    "tiny": _stages,
    "full": _stages,
    "growth": lambda r: [*growth_table(r), *_machine(r)],
    "frechet": lambda r: [*frechet_table(r), *_machine(r)],
}


def write_readme():
    """Put every table between its marks; one that has no result says "not measured"."""
    text = (FOLDER / "README.md").read_text()
    for name, table in TABLES.items():
        path = FOLDER / "results" / f"{name}.json"
        lines = table(json.loads(path.read_text())) if path.exists() else ["*not measured*"]
        block = "\n".join([f"<!-- {name} -->", *lines, f"<!-- /{name} -->"])
        text, found = re.subn(rf"<!-- {name} -->.*<!-- /{name} -->", lambda _: block, text, flags=re.DOTALL)  # noqa: B023
        if not found:
            raise ValueError(f"{FOLDER / 'README.md'} has no marks <!-- {name} --> ... <!-- /{name} -->")
    with written_whole(FOLDER / "README.md") as temporary:
        temporary.write_text(text)
