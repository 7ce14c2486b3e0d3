"""Whether two classifiers differ: their paired difference on the same test images, with an interval.

The intervals are over test images, for the seeds at hand: what other images of the same kind might have shown. What
other seeds might bring is another question; the differences of the single seeds, kept beside them, give an idea of it.
"""

import numpy as np
import pandas as pd

from datadream_utils.errors import InputError
from datadream_utils.methods import METHODS
from datadream_utils.published import order as published_order

RESAMPLES = 10_000
UNDECIDED = "not decided: interval includes 0"
COLUMNS = ("pair", "published", "ours", "low", "high", "per_seed", "n_test", "verdict")


def load_correct(runs, dataset, n_shot, classifier="clip"):
    """``{(method, setting): table}``: a row per test image and a column per seed, True where the image was recognised.

    runs: ``results.load_results``. Variants and other protocols stay out. InputError when a run's predictions
    cannot be read, or two runs were tested on other images or in another order.
    """
    same = (runs["dataset"] == dataset) & (runs["n_shot"] == n_shot) & (runs["classifier"] == classifier)
    rows = runs[same & (runs["protocol"] == "sound") & (runs["variant"] == "")].sort_values("seed")
    found, first = {}, None
    for row in rows.itertuples():
        predictions = _read_predictions(row.folder / "predictions.parquet")
        first = first or (row.folder, predictions["file"])
        if not predictions["file"].equals(first[1]):
            raise InputError(
                f"{row.folder} and {first[0]} were not tested on the same images in the same order: delete the one "
                "that belongs to an older test split and run 03_train_clip again."
            )
        found.setdefault((row.method, row.setting), {})[row.seed] = predictions["correct"].to_numpy()
    return {key: pd.DataFrame(seeds) for key, seeds in found.items()}


def _read_predictions(path):
    try:
        return pd.read_parquet(path, columns=["file", "correct"])
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}): copy it from where the run was made, or delete {path.parent} and"
        raise InputError(f"{message} run 03_train_clip again.") from None


def paired(a, b):
    """How much more often ``a`` is right than ``b``, in points: "ours", "low", "high", "per_seed", "n_test".

    a, b: tables of ``load_correct``. The mean is over images and common seeds; low and high are the 2.5 % and 97.5 %
    points of ``RESAMPLES`` bootstrap samples of the test images. None without a common seed.
    """
    seeds = [seed for seed in a.columns if seed in b.columns]
    if not seeds:
        return None
    wins = a[seeds].to_numpy(int) - b[seeds].to_numpy(int)  # (images, seeds): 1, 0 or -1
    # An image matters only by its sum over seeds, so a sample of images is a draw of how often each sum occurs.
    sums, counts = np.unique(wins.sum(1), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(wins), counts / len(wins), size=RESAMPLES)
    low, high = np.quantile(100 * (drawn @ sums) / wins.size, [0.025, 0.975])
    per_seed = {seed: round(100 * float(mean), 2) for seed, mean in zip(seeds, wins.mean(0), strict=True)}
    ours = 100 * float(wins.mean())
    return {"ours": ours, "low": float(low), "high": float(high), "per_seed": per_seed, "n_test": len(wins)}


def verdict(low, high):
    """Whether an interval lies above 0 ("holds"), below it ("reversed"), or on both sides."""
    return "holds" if low > 0 else "reversed" if high < 0 else UNDECIDED


def order(correct):
    """The published order against ours: a row per pair of ``published.order`` that was run (``COLUMNS``, points).

    correct: ``load_correct``. "published" is the difference of the published averages, "ours" the paired one here.
    """
    rows = []
    for pair in published_order().itertuples(index=False):
        found = _paired(correct, pair.higher, pair.lower)
        if found:
            words = {"pair": f"{row_name(*pair.higher)} − {row_name(*pair.lower)}", "published": pair.published}
            rows.append(words | found | {"verdict": verdict(found["low"], found["high"])})
    return pd.DataFrame(rows, columns=list(COLUMNS)).round(2)


def _paired(correct, first, second):
    return paired(correct[first], correct[second]) if first in correct and second in correct else None


def row_name(method, setting):
    """``DataDream_dset (R+S)``; what was not trained has no setting."""
    if setting == "none":
        return METHODS[method].label
    return f"{METHODS[method].label.split(' (')[0]} ({setting})"


def order_markdown(order):
    """The table of ``order`` in Markdown, under a sentence that counts its verdicts."""
    count = order["verdict"].value_counts()
    lines = [
        f"{len(published_order())} published orders, {len(order)} of them run here: "
        f"**{count.get('holds', 0)}** hold, **{count.get('reversed', 0)}** reversed, "
        f"**{count.get(UNDECIDED, 0)}** not decided.",
        "",
    ]
    lines += ["| Pair | Published | Ours | 95 % interval | Per seed | Verdict |", "|---|---:|---:|:-:|:-:|---|"]
    for row in order.itertuples():
        seeds = ", ".join(f"{points:+.1f}" for points in row.per_seed.values())
        interval = f"{row.low:+.1f} to {row.high:+.1f}"
        lines.append(f"| {row.pair} | {row.published:+.1f} | {row.ours:+.1f} | {interval} | {seeds} | {row.verdict} |")
    return "\n".join(lines) + "\n"


def order_texts(order):
    """The table of ``order`` as csv and Markdown, by kind."""
    return {"csv": order.to_csv(index=False, lineterminator="\n"), "md": order_markdown(order)}


def gains(correct):
    """What generated images bring, as Markdown sentences: S against FakeIt's, R+S against Real-finetune."""
    references = {"S": (("fakeit", "S"), "Synthetic only"), "R+S": (("real", "R"), "With real images too")}
    lines = []
    for setting, (reference, opening) in references.items():
        for name in METHODS:
            key = (name, setting)
            found = _paired(correct, key, reference)
            if found and key != reference:
                side = "above" if found["ours"] >= 0 else "below"
                gain = f"{abs(found['ours']):.1f} points {side} {row_name(*reference)}"
                interval = f"95 % interval of the difference: {found['low']:+.1f} to {found['high']:+.1f}"
                lines.append(f"- {opening}, **{row_name(*key)}** is {gain} ({interval}).")
    return "\n".join(lines) or "There is nothing to compare yet."
