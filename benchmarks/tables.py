"""The tables of ``benchmarks/README.md``, from ``benchmarks/results/*.json``."""

import json
from statistics import mean, median, stdev

from datadream_utils.analysis.compare import format_difference, judge_seeds
from datadream_utils.params import ROOT
from workflow.scripts.reference import fill_marks

FOLDER = ROOT / "benchmarks"
# Ratios that the package should reach: (row of the stages' table, what is compared, on a CPU, on a GPU or None).
TARGETS = (
    ("adapt_cls", "total", 4.0, 2.0),
    ("generate", "total", 1.5, 3.0),
    ("generate images_per_class=500", "total", None, 1.5),
    ("train", "work", 3.0, 3.0),
    ("train classes=100", "work", 3.0, 3.0),
    ("train classes=1000", "work", 3.0, 3.0),
    ("evaluate", "total", 10.0, 10.0),
    ("evaluate classes=100", "total", 10.0, 10.0),
    ("evaluate classes=1000", "total", 10.0, 10.0),
)
STAGES = ("adapt_cls", "adapt_dset", "generate", "train", "evaluate")
SAMPLING = (3.0, 5.0)  # as fast as DDIM's 50 steps, at equal or better Fréchet distance: on a CPU, on a GPU
WORDS = {"total": "start to last file", "work": "work alone"}


def stage_table(result):
    """Medians and ratios, a row per stage; seconds are the wall's, with smallest and largest; load at its start."""
    lines = [
        "| stage | repeats | load | reference, s | package, s | ratio | of processor time | of work | same result? |",
        "|---|--:|--:|--:|--:|--:|--:|--:|---|",
    ]
    for stage, sides in result.items():
        walls = []
        for side in ("reference", "ours"):
            seconds = [run["total"] for run in sides[side]]
            walls.append(f"{median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})")
        ratios = [ratio(sides, "total"), ratio(sides, "total cpu"), ratio(sides, _clock(sides, "work"))]
        load = f"{sides['machine']['load']:.1f}"
        cells = [stage, str(sides["repeats"]), load, *walls, *(f"{r:.1f}" for r in ratios), sides["difference"]]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def ratio(sides, part):
    """The reference's seconds over the package's, medians of the repeats."""
    reference, ours = (median(run[part] for run in sides[side]) for side in ("reference", "ours"))
    return reference / ours


def ratios_of_pairs(sides, part):
    """The smallest and the largest ratio of the repeats, each side's with the other's of the same repeat."""
    pairs = zip(sides["reference"], sides["ours"], strict=True)
    ratios = [reference[part] / ours[part] for reference, ours in pairs]
    return min(ratios), max(ratios)


def _clock(sides, part):
    """``part`` by the processor's clock on a CPU, by the wall's on a GPU."""
    return f"{part} cpu" if sides["machine"]["device"].startswith("cpu") else part


def target_table(results):
    """What was to be reached beside what was measured; ``results[world]`` or none."""
    lines = ["| stage | compared | target CPU | CPU | target GPU | GPU |", "|---|---|--:|--:|--:|--:|"]
    for stage, part, *targets in TARGETS:
        sides = [results.get(world, {}).get(stage) for world in ("tiny", "full")]
        values = [_found(measured, _clock(measured, part)) if measured else None for measured in sides]
        lines.append(_target_row(stage, WORDS[part], targets, values))
    values = [sampling_ratio(results[name]["rows"]) if name in results else None for name in ("frechet", "frechet_gpu")]
    name = "generate, at equal or better Fréchet distance"
    return [*lines, _target_row(name, "sampling, against DDIM's 50 steps", SAMPLING, values)]


def _found(sides, part):
    """(ratio of the medians, what its repeats have)."""
    low, high = ratios_of_pairs(sides, part)
    return ratio(sides, part), f" ({low:.2f} to {high:.2f})" if sides["repeats"] > 1 else ""


def _target_row(stage, compared, targets, values):
    cells = [stage, compared]
    for target, value in zip(targets, values, strict=True):
        if target is None or value is None:
            cells += ["–" if target is None else f"{target:g}", "–" if target is None else "not measured"]
            continue
        number, spread = value
        cells += [f"{target:g}", f"{number:.2f}{spread}, {'reached' if number >= target else 'not reached'}"]
    return f"| {' | '.join(cells)} |"


def sampling_ratio(rows):
    """(seconds of the first sampler over those of the fastest whose Fréchet distance is not larger, which that is)."""
    fastest = min((row for row in rows if row["distance"] <= rows[0]["distance"]), key=lambda row: row["seconds"])
    return rows[0]["seconds"] / fastest["seconds"], f" ({fastest['sampler']})"


def summary(results):
    """How fast each stage is beside the authors' procedure and beside the machine: three lines."""
    lines = []
    for world, where in (("tiny", "in the tiny world"), ("full", "at full size")):
        said, result = [], results.get(world, {})
        for stage in STAGES:
            if sides := result.get(stage):
                limits = sides.get("limits")
                share = f" ({100 * limits['flops_per_second'] / limits['matmul_peak']:.0f} %)" if limits else ""
                said.append(f"{stage} {ratio(sides, _clock(sides, 'total')):.1f}{share}")
            else:
                said.append(f"{stage} not measured")
        where += next((f" on one {sides['machine']['device']}" for sides in result.values()), "")
        lines.append(f"- How many times as fast as the authors' procedure, {where}: {', '.join(said)}.")
    lines[0] += " In brackets: the share of the FLOP/s that a matrix product reaches there."
    best = {}
    for name, row in results.get("gpu", {}).items():
        if "flops" in row:
            part, share = name.split(":")[0], row["flops"] / row["peak"]
            best[part] = max(best.get(part, 0), share)
    shares = ", ".join(f"{part} {100 * share:.0f} %" for part, share in best.items()) or "not measured"
    return [*lines, f"- What the best row of each stage reaches of a matrix product's FLOP/s on a GPU: {shares}."]


def limit_table(result):
    """Achieved FLOP/s of the package beside the machine's, and where the time goes.

    A second is the processor's on a CPU. Shares are of the clock's time, in a short piece of work under the profiler.
    """
    lines = ["| stage | GFLOP/s | of matmul's | where the time of a short, profiled piece goes |", "|---|--:|--:|---|"]
    for stage, sides in result.items():
        if limits := sides.get("limits"):
            speed, peak = limits["flops_per_second"], limits["matmul_peak"]
            goes = ", ".join(f"{name} {100 * share:.0f} %" for name, share, _ in limits["operations"] if share > 0.005)
            lines.append(f"| {stage} | {speed / 1e9:.1f} | {100 * speed / peak:.0f} % | {goes} |")
    return lines if len(lines) > 2 else []


def growth_table(result):
    """Seconds at each size, and the slope between the last two."""
    lines = ["| stage | against | seconds | slope |", "|---|---|---|--:|"]
    for row in result["rows"]:
        points = ", ".join(f"{size}: {seconds:.1f}" for size, seconds in row["points"])
        lines.append(f"| {row['stage']} | {row['against']} | {points} | {row['slope']:.2f} |")
    return lines


def frechet_table(result):
    """Solvers by speed and Fréchet distance."""
    lines = ["| sampler | s per 100 images | Fréchet distance |", "|---|--:|--:|"]
    for row in result["rows"]:
        own = ", the default" if row.get("default") else ""
        lines.append(f"| {row['sampler']}{own} | {row['seconds']:.2f} | {row['distance']:.4f} |")
    return lines


def crops_table(result):
    """Adaptation's seconds and validation accuracy for each number of crops, and its paired difference to new ones."""
    lines = [
        "| crops of a shot | adaptation, processor s of work | validation accuracy | against new crops |",
        "|---|--:|--:|--:|",
    ]
    accuracy = {(run["crops"], run["seed"]): run["accuracy"] for run in result["runs"]}
    for crops in dict.fromkeys(run["crops"] for run in result["runs"]):
        runs = [run for run in result["runs"] if run["crops"] == crops]
        seconds, percent = median(run["adapt"] for run in runs), [run["accuracy"] for run in runs]
        gained = [run["accuracy"] - accuracy[0, run["seed"]] for run in runs]
        cells = [
            str(crops) if crops else "new ones in every step",
            f"{seconds:.1f}",
            f"{mean(percent):.1f} ± {stdev(percent):.1f}",
            format_difference(judge_seeds(gained)) if crops else "–",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    share = f"At full size the VAE's encoder is {100 * result['share']:.0f} % of a step's floating-point operations."
    return [*lines, "", share]


def gpu_table(result):
    """A row per measured unit: seconds, images and FLOP/s beside the machine's own; then what was only tried."""
    lines = [
        "| what | s | images/s | TFLOP/s | of matmul's | memory, GB | compiling, s | pictures classified/s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in result.items():
        if "seconds" in row:
            cells = [f"{name}, a {row['unit']}", f"{row['seconds']:.3f}", f"{row['images'] / row['seconds']:.1f}"]
            cells += [f"{row['flops'] / 1e12:.2f}", f"{100 * row['flops'] / row['peak']:.0f} %"]
            cells += [f"{row['memory'] / 1e9:.1f}", f"{row['compile']:.0f}" if "compile" in row else ""]
            cells += [f"{row['evaluated']:.0f}" if "evaluated" in row else ""]
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {name}: {row['says']}" for name, row in result.items() if "says" in row)]
    machines = {f"{_where(row['machine'])}; commit {_commit(row['machine'])}." for row in result.values()}
    return [*lines, "", *sorted(machines)]


def _machine(noted):
    m = noted["machine"]
    return ["", f"{_where(m)}; commit {_commit(m)}, load {m['load']:.1f}."]


def _where(m):
    versions = ", ".join(f"{name} {version}" for name, version in m["versions"].items())
    return f"{m['device']}; {m['cpu']}, {m['cores']} cores, {m['threads']} threads; {versions}"


def _commit(m):
    return (m["git"] or "unknown")[:7]


def _stages(result):
    """Both tables, and a line for every machine of their rows with the commits that were measured."""
    rows, lines = {}, []
    for stage, sides in result.items():
        rows.setdefault(_where(sides["machine"]), {}).setdefault(_commit(sides["machine"]), []).append(stage)
    for where, commits in rows.items():
        made = "; ".join(f"commit {commit} ({', '.join(names)})" for commit, names in commits.items())
        lines += ["", f"{where}; {made}."]
    return [*stage_table(result), "", *limit_table(result), *lines]


TABLES = {
    "tiny": _stages,
    "full": _stages,
    "growth": lambda r: [*growth_table(r), *_machine(r)],
    "frechet": lambda r: [*frechet_table(r), *_machine(r)],
    "crops": lambda r: [*crops_table(r), *_machine(r)],
    "frechet_gpu": lambda r: [*frechet_table(r), *_machine(r)],
    "gpu": gpu_table,
}


def write_readme():
    """Put every table between its marks; one that has no result says "not measured"."""
    paths = {name: FOLDER / "results" / f"{name}.json" for name in TABLES}
    results = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.exists()}
    made = {name: TABLES[name](results[name]) if name in results else ["*not measured*"] for name in TABLES}
    made |= {"targets": target_table(results), "summary": summary(results)}
    fill_marks(FOLDER / "README.md", {name: "\n".join(lines) for name, lines in made.items()})
