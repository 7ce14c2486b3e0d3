"""Whether two classifiers differ: their paired difference on the same test images, with an interval and a verdict.

Two intervals, because two things are drawn: test images (bootstrap, for the seeds at hand: what other images of the
same kind might have shown), and seeds (Student's t over the seeds' differences: what other shots and other training
runs might bring). A verdict asks that 0 lies in neither (``RULE``).
"""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binomtest, t

from datadream_utils.analysis.published import LEAKY
from datadream_utils.analysis.published import order as published_order
from datadream_utils.errors import InputError
from datadream_utils.methods import METHODS

RESAMPLES = 10_000
LEVEL = 0.05
NOISE = "within noise"
SEEDS_NOISE = "within the seeds' noise"  # these classifiers differ on these images; their methods need not
ONE_SEED = "one seed"  # these two classifiers differ; of their methods nothing is known
OPEN = (NOISE, SEEDS_NOISE, ONE_SEED)
UNDECIDED = "not decided: "
VERDICTS = {"above": "holds", "below": "reversed"} | {verdict: UNDECIDED + verdict for verdict in OPEN}
SAID = dict.fromkeys(("above", "below"), "more than noise") | {
    NOISE: NOISE,
    SEEDS_NOISE: "more than these images' noise, but these seeds do not decide",
    ONE_SEED: "more than these images' noise, but one seed says nothing of others",
}  # in a sentence
TURNED = {"above": "below", "below": "above"}
RULE = f"0 outside the 95 % intervals over images and over seeds, Holm-corrected p < {LEVEL}, more images on that side"
INTERVALS = ("low", "high", "seeds_low", "seeds_high")
PAIRS = ("first", "second", "difference", *INTERVALS, "per_seed", "n_seeds", "n_test", "better", "worse", "p", "p_holm",
         "verdict")  # fmt: skip
COLUMNS = ("pair", "published", "published_without", "ours", *INTERVALS, "per_seed", "n_test", "verdict")


def load_correct(runs, dataset, n_shot, classifier="clip"):
    """``{(method, setting): table}``: a row per test image and a column per seed, True where the image was recognised.

    runs: ``results.load_results``. Variants and other protocols stay out. What is not trained (zero-shot CLIP) is the
    same with every seed, so its column stands for all. InputError when a run's predictions cannot be read, or two runs
    were tested on other images or in another order.
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
    every = sorted({seed for seeds in found.values() for seed in seeds})
    for (_, setting), seeds in found.items():
        if setting == "none":
            seeds |= dict.fromkeys(every, next(iter(seeds.values())))
    return {key: pd.DataFrame(seeds) for key, seeds in found.items()}


def _read_predictions(path):
    try:
        return pd.read_parquet(path, columns=["file", "correct"])
    except (OSError, ValueError) as error:
        message = f"{path} cannot be read ({error}): copy it from where the run was made, or delete {path.parent} and"
        raise InputError(f"{message} run 03_train_clip again.") from None


def paired(a, b):
    """How much more often ``a`` is right than ``b``, in points: "ours", ``INTERVALS``, "per_seed", "n_test".

    a, b: tables of ``load_correct``. The mean is over images and common seeds; low and high are the 2.5 % and 97.5 %
    points of ``RESAMPLES`` bootstrap samples of the test images; seeds_low and seeds_high ``over_seeds``. None without
    a common seed.
    """
    seeds = [seed for seed in a.columns if seed in b.columns]
    if not seeds:
        return None
    wins = a[seeds].to_numpy(int) - b[seeds].to_numpy(int)  # (images, seeds): 1, 0 or -1
    # An image matters only by its sum over seeds, so a sample of images is a draw of how often each sum occurs.
    sums, counts = np.unique(wins.sum(1), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(wins), counts / len(wins), size=RESAMPLES)
    low, high = np.quantile(100 * (drawn @ sums) / wins.size, [0.025, 0.975])
    per_seed = {seed: round(100 * float(mean), 4) for seed, mean in zip(seeds, wins.mean(0), strict=True)}
    ours = 100 * float(wins.mean())
    found = dict(zip(INTERVALS, (float(low), float(high), *over_seeds(list(per_seed.values()))), strict=True))
    return {"ours": ours} | found | {"per_seed": per_seed, "n_test": len(wins)}


def over_seeds(points):
    """The 95 % interval of the mean of one difference per seed (Student's t); not numbers for a single seed."""
    if len(points) < 2:
        return float("nan"), float("nan")
    reach = t.ppf(0.975, len(points) - 1) * np.std(points, ddof=1) / len(points) ** 0.5
    return float(np.mean(points) - reach), float(np.mean(points) + reach)


def mcnemar(a, b):
    """McNemar's exact test: ``(p, better, worse)``; a, b: tables of ``load_correct`` with common seeds.

    better, worse: how many images ``a`` recognises with more seeds than ``b``, and with fewer. An image counts once (a
    sign test over images): one image's seeds are no independent observations. p, two-sided, is 1.0 where no image tells
    them apart.
    """
    seeds = [seed for seed in a.columns if seed in b.columns]
    wins = (a[seeds].to_numpy(int) - b[seeds].to_numpy(int)).sum(1)
    better, worse = int((wins > 0).sum()), int((wins < 0).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0, better, worse


def holm(p_values):
    """Holm's (1979) adjusted p-values, in the order given: below 0.05, all true at once but in one table of twenty."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def pairs(correct, keys=None):
    """Every pair of ``keys`` (method, setting) that share a seed: a row of ``PAIRS``, differences in points.

    correct: ``load_correct``; keys: those to compare (None: all, in its order). "verdict" is "above" or "below" only
    by ``RULE``; else ``NOISE``, or, where only the interval over seeds is against it, ``SEEDS_NOISE``, or, where only
    that is missing, ``ONE_SEED``.
    """
    rows = []
    for first, second in combinations([key for key in keys or correct if key in correct], 2):
        if found := paired(correct[first], correct[second]):
            names = {"first": row_name(*first), "second": row_name(*second), "difference": found.pop("ours")}
            tested = dict(zip(("p", "better", "worse"), mcnemar(correct[first], correct[second]), strict=True))
            rows.append(names | found | {"n_seeds": len(found["per_seed"])} | tested)
    table = pd.DataFrame(rows, columns=[name for name in PAIRS if name not in ("p_holm", "verdict")])
    table = table.assign(p_holm=holm(table["p"]))
    return table.assign(verdict=[_verdict(row) for row in table.itertuples()])[list(PAIRS)]


def _verdict(row):
    side, sign = ("above", 1) if row.difference > 0 else ("below", -1)
    beyond = [min(sign * low, sign * high) > 0 for low, high in ((row.low, row.high), (row.seeds_low, row.seeds_high))]
    if not beyond[0] or row.p_holm >= LEVEL or sign * (row.better - row.worse) <= 0:
        return NOISE
    return ONE_SEED if row.n_seeds == 1 else side if beyond[1] else SEEDS_NOISE


def between(found, first, second):
    """The row of ``pairs`` that compares two names (``row_name``), as a dict, seen from ``first``; None without one."""
    for row in found.to_dict("records"):
        if (row["first"], row["second"]) == (first, second):
            return row
        if (row["first"], row["second"]) == (second, first):
            turned = {"first": first, "second": second, "difference": -row["difference"]}
            turned |= {"low": -row["high"], "high": -row["low"]}
            turned |= {"seeds_low": -row["seeds_high"], "seeds_high": -row["seeds_low"]}
            turned["per_seed"] = {seed: -points for seed, points in row["per_seed"].items()}
            turned |= {"better": row["worse"], "worse": row["better"]}
            return row | turned | {"verdict": TURNED.get(row["verdict"], row["verdict"])}
    return None


def order(found):
    """The published order against ours: a row per pair of ``published.order`` that was run (``COLUMNS``, points).

    found: ``pairs``, whose verdicts these are. "published" is the difference of the published averages;
    "published_without" that without the data sets that the authors test on training images (``published.LEAKY``).
    """
    rows = []
    for claim in published_order().itertuples(index=False):
        if ours := between(found, row_name(*claim.higher), row_name(*claim.lower)):
            words = {"pair": f"{ours['first']} − {ours['second']}", "verdict": VERDICTS[ours["verdict"]]}
            words |= {"published": claim.published, "published_without": claim.without, "ours": ours["difference"]}
            rows.append(words | {name: ours[name] for name in (*INTERVALS, "per_seed", "n_test")})
    return pd.DataFrame(rows, columns=list(COLUMNS))


def row_name(method, setting):
    """``DataDream_dset (R+S)``; what was not trained has no setting."""
    if setting == "none":
        return METHODS[method].label
    return f"{METHODS[method].label.split(' (')[0]} ({setting})"


def counted(order):
    """How many rows of ``order`` hold, are reversed and are not decided, and why not; in words."""
    count = order["verdict"].value_counts()
    open_ = {verdict: count.get(UNDECIDED + verdict, 0) for verdict in OPEN}
    why = ", ".join(f"{verdict}: {n}" for verdict, n in open_.items() if n)
    words = f"{count.get('holds', 0)} hold here, {count.get('reversed', 0)} reversed, {sum(open_.values())} not decided"
    return words + (f" ({why})" if why else "")


def order_markdown(order):
    """The table of ``order`` in Markdown, under sentences that count its verdicts and what is turned (⇄)."""
    turned = order["pair"][order["published_without"] < 0]
    names, without = f": {'; '.join(turned)}" if len(turned) else "", ", ".join(LEAKY.values())
    verb = "is" if len(turned) == 1 else "are"
    lines = [
        f"{len(published_order())} published orders, {len(order)} of them run here: **{counted(order)}**. Decided: "
        f"{RULE}. {SEEDS_NOISE.capitalize()}: more than these test images' noise, but 0 lies in the interval over "
        f"seeds. Without {without}, which the authors' released code tests on the training split, **{len(turned)}** of "
        f"these published orders {verb} turned (⇄){names}.",
        "",
        f"| Pair | Published | Without {without} | Ours | 95 % over images | Per seed | 95 % over seeds | Verdict |",
        "|---|---:|---:|---:|:-:|:-:|:-:|---|",
    ]
    for row in order.itertuples():
        sound = f"{row.published_without:+.1f}" + (" ⇄" if row.published_without < 0 else "")
        cells = [row.pair, f"{row.published:+.1f}", sound, f"{row.ours:+.1f}", *spread(row), row.verdict]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def spread(row):
    """A row's interval over test images, its differences per seed and their interval, as texts; "" for one seed's."""
    seeds = ", ".join(f"{points:+.1f}" for points in row.per_seed.values())
    over = "" if np.isnan(row.seeds_low) else f"{row.seeds_low:+.1f} to {row.seeds_high:+.1f}"
    return f"{row.low:+.1f} to {row.high:+.1f}", seeds, over


def order_texts(order):
    """The table of ``order`` as csv and Markdown, by kind."""
    return {"csv": order.round(4).to_csv(index=False, lineterminator="\n"), "md": order_markdown(order)}


def gains(found):
    """What generated images bring, as Markdown sentences: S against FakeIt's, R+S against Real-finetune.

    found: ``pairs``, whose verdict every sentence ends with.
    """
    references = {"S": ("FakeIt (S)", "Synthetic only"), "R+S": ("Real-finetune (R)", "With real images too")}
    lines = []
    for setting, (reference, opening) in references.items():
        for name in (row_name(name, setting) for name in METHODS):
            if row := between(found, name, reference):
                side = "above" if row["difference"] >= 0 else "below"
                gain = f"{abs(row['difference']):.1f} points {side} {reference}"
                interval = f"95 % interval over test images {row['low']:+.1f} to {row['high']:+.1f}"
                if row["n_seeds"] > 1:
                    interval += f", over seeds {row['seeds_low']:+.1f} to {row['seeds_high']:+.1f}"
                lines.append(f"- {opening}, **{name}** is {gain} ({interval}; {SAID[row['verdict']]}).")
    return "\n".join(lines) or "There is nothing to compare yet."
