"""How the package's cost grows: seconds of work against classes, images and shots: python -m benchmarks.growth

On pictures of noise, with as little training as there is (an epoch, a step): the slope is what is asked for.
Writes ``benchmarks/results/growth.json`` and its table in ``benchmarks/README.md``.
"""

import argparse
import math
import tempfile
from pathlib import Path

from benchmarks.stages import READS, STAGES, machine, start
from benchmarks.tables import write_readme
from benchmarks.worlds import prepare, write_pictures
from datadream_utils.files import write_json
from datadream_utils.params import ROOT, make_params

SMALL = dict(
    n_shot=1,
    adapt_epochs=1,
    adapt_batch_size=8,
    images_per_class=1,
    num_inference_steps=2,
    train_epochs=1,
    train_warmup_epochs=0.0,
    setting="S",
)
# (against, sizes, the parameter that is moved or None for the number of classes, what is measured)
SERIES = (
    ("classes", (10, 100, 1000), None, ("adapt_cls", "adapt_dset", "generate", "train", "evaluate")),
    ("images per class", (5, 50, 500), "images_per_class", ("generate", "train")),
    ("shots", (1, 4, 16), "n_shot", ("adapt_cls", "adapt_dset")),
)
CLASSES = 10  # where something else is moved


def series(against, sizes, parameter, stages, folder, changes):
    """Rows ``{"stage", "against", "points": [(size, seconds), ...], "slope"}``; slope: of log seconds, last two sizes.

    Seconds are the processor's on a CPU.
    """
    points = {stage: [] for stage in stages}
    for size in sizes:
        place = folder / f"{against.replace(' ', '-')}{size}"
        classes = CLASSES if parameter else size
        write_pictures(place / "noise", classes, train=max(1, size if parameter == "n_shot" else 1), test=1, side=32)
        values = changes | {"dataset": str(place / "noise")} | ({parameter: size} if parameter else {})
        unit = "work cpu" if machine(make_params("train", values))["device"].startswith("cpu") else "work"
        for stage in STAGES:
            if stage in stages or stage in ("adapt_cls", "generate", "train")[: _reads(stages)]:
                job = {"stage": stage, "side": "ours", "folder": str(place / stage), "changes": values}
                seconds = start(job | {n: str(place / path) for n, path in READS.items()}, place / stage)[0]
                if stage in stages:
                    points[stage].append((size, seconds[unit]))
                    print(f"{stage} {against} {size}: {seconds[unit]:.2f} s", flush=True)
    return [{"stage": s, "against": against, "points": p, "slope": slope(*p[-2:])} for s, p in points.items()]


def slope(first, second):
    """d log(seconds) / d log(size) between two points: 1 for cost that doubles with the size."""
    return math.log(second[1] / first[1]) / math.log(second[0] / first[0])


def _reads(stages):
    """How many of adapt_cls, generate, train are needed before the last of ``stages``."""
    return {"adapt_cls": 0, "adapt_dset": 0, "generate": 1, "train": 2, "evaluate": 3}[max(stages, key=STAGES.index)]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=1000, help="leave out larger sizes")
    options = parser.parse_args(arguments)
    if options.largest < 100:
        parser.error("--largest: a slope needs two sizes of every series, so 100 at least")
    with tempfile.TemporaryDirectory() as temporary:
        changes = prepare("tiny", Path(temporary)) | SMALL
        rows = []
        for against, sizes, parameter, stages in SERIES:
            sizes = [size for size in sizes if size <= options.largest]
            rows += series(against, sizes, parameter, stages, Path(temporary), changes)
    result = {"machine": machine(make_params("train", changes)), "rows": rows}
    write_json(ROOT / "benchmarks" / "results" / "growth.json", result)
    write_readme()


if __name__ == "__main__":
    main()
