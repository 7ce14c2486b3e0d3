"""Do two classifiers differ? Their paired difference on the same test images, two intervals and one verdict.

Two things are random: the test images and the seeds. A bootstrap over the test images shows how the difference varies
with other images, for the given seeds. Student's t over the seeds' differences shows how it varies with other shots and
other training runs. A difference counts only if it is larger than both kinds of noise (``compare_pairs``).
"""

import math
from enum import Enum
from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binomtest
from scipy.stats import t as student

from datadream_utils.analysis.published import published_order
from datadream_utils.analysis.results import BLOCKS, load_predictions
from datadream_utils.methods import METHODS, classifier_name

RESAMPLES = 10_000  # bootstrap samples
LEVEL = 0.05  # of significance


class Verdict(Enum):
    """The conclusion about a difference (or a correlation): its label in tables, and its sign."""

    ABOVE = "above", "▲"
    BELOW = "below", "▼"
    WITHIN_NOISE = "within noise", "≈"
    UNDECIDED = "seeds do not decide", "◇"  # beyond the noise of test images, not beyond that of seeds
    ONE_SEED = "one seed", "○"  # without a second seed nobody knows how much seeds differ

    def __new__(cls, label, sign):
        member = object.__new__(cls)
        member._value_, member.label, member.sign = label, label, sign  # Verdict("above") is Verdict.ABOVE
        return member

    def reversed(self):
        """The verdict of the same difference with its two sides exchanged."""
        return {Verdict.ABOVE: Verdict.BELOW, Verdict.BELOW: Verdict.ABOVE}.get(self, self)


OTHER_SEEDS = "other seeds"  # instead of a verdict: the two means are of other seeds, and do not say which is higher
OUTCOMES = ("holds", "reversed", "not decided")  # of a published order

# Columns: of both intervals, of ``compare_pairs``, of ``compare_order``.
INTERVALS = ("low", "high", "seeds_low", "seeds_high")
PAIRS = ("first", "second", "difference", *INTERVALS, "per_seed", "n_seeds", "n_test", "better", "worse", "p", "p_holm",
         "verdict")  # fmt: skip
ORDER = ("pair", "source", "published", "published_without", "ours", *INTERVALS, "per_seed", "n_test", "verdict",
         "outcome")  # fmt: skip


def seeds_interval(points, image_variance=0.0):
    """The 95 % interval ``(low, high)`` of the mean of one value per seed (Student's t); NaN for a single seed.

    image_variance: of the mean, from the choice of test images, which the seeds share and therefore do not show.
    """
    points = np.asarray(points, float)
    if len(points) < 2:
        return float("nan"), float("nan")
    error = math.sqrt(points.var(ddof=1) / len(points) + image_variance)
    half = float(student(len(points) - 1).ppf(1 - LEVEL / 2)) * error
    return float(points.mean()) - half, float(points.mean()) + half


def judge_seeds(points, image_variance=0.0):
    """Mean, interval and verdict of one difference per seed: ``{"mean", "low", "high", "verdict"}``.

    low, high: ``seeds_interval``. verdict: a label of ``Verdict``; "above" or "below" if the interval excludes 0.
    """
    points = [round(float(value), 9) for value in points]  # rounding errors of differences must not hide a 0
    low, high = seeds_interval(points, image_variance)
    if len(points) < 2:
        verdict = Verdict.ONE_SEED
    else:
        verdict = Verdict.ABOVE if low > 0 else Verdict.BELOW if high < 0 else Verdict.WITHIN_NOISE
    return {"mean": sum(points) / len(points), "low": low, "high": high, "verdict": verdict.label}


def compare_seeds(first, second):
    """``judge_seeds`` of two ``{seed: value}``, first minus second over their common seeds; None without one."""
    points = [value - second[seed] for seed, value in first.items() if seed in second]
    return judge_seeds(points) if points else None


def format_difference(difference):
    """``judge_seeds`` in words: "+3.0 points (-1.0 to +7.0 over seeds: within noise)"."""
    mean, verdict = f"{difference['mean']:+z.1f} points", difference["verdict"]
    if verdict == Verdict.ONE_SEED.label:
        return f"{mean} ({verdict})"
    return f"{mean} ({difference['low']:+z.1f} to {difference['high']:+z.1f} over seeds: {verdict})"


def stack_correct(predictions):
    """``{(method, setting): table}``: a row per test image, a column per seed, True if the prediction is correct.

    predictions: ``results.load_predictions``; the index is theirs, the images' paths. Zero-shot CLIP is not trained:
    its one column stands for every seed.
    """
    all_seeds = sorted({seed for seeds in predictions.values() for seed in seeds})
    tables = {}
    for (method, setting), seeds in predictions.items():
        columns = {seed: table["correct"] for seed, table in seeds.items()}
        if setting == "none":
            columns = dict.fromkeys(all_seeds, next(iter(columns.values())))
        tables[method, setting] = pd.DataFrame(columns)
    return tables


def paired_difference(a, b):
    """The accuracy of ``a`` minus that of ``b`` in points, over images and common seeds; None without a common seed.

    a, b: tables of ``stack_correct``, (n_images, n_seeds). Returns "difference" and ``INTERVALS``: low and high are
    the 2.5 % and 97.5 % points of ``RESAMPLES`` bootstrap samples of the test images, seeds_low and seeds_high are
    ``seeds_interval``; "per_seed": ``{seed: difference}``, "n_seeds", "n_test".
    """
    seeds = [seed for seed in a.columns if seed in b.columns]
    if not seeds:
        return None
    wins = a[seeds].to_numpy(int) - b[seeds].to_numpy(int)  # (n_images, n_seeds): 1, 0 or -1
    # Only an image's sum over seeds matters, so resampling images is a multinomial draw of how often each sum occurs.
    sums, counts = np.unique(wins.sum(1), return_counts=True)
    drawn = np.random.default_rng(0).multinomial(len(wins), counts / len(wins), size=RESAMPLES)
    low, high = np.quantile(100 * (drawn @ sums) / wins.size, [0.025, 0.975])
    per_seed = {seed: round(100 * float(mean), 4) for seed, mean in zip(seeds, wins.mean(0), strict=True)}
    seeds_low, seeds_high = seeds_interval(list(per_seed.values()))
    return dict(difference=100 * float(wins.mean()), low=float(low), high=float(high), seeds_low=seeds_low,
                seeds_high=seeds_high, per_seed=per_seed, n_seeds=len(seeds), n_test=len(wins))  # fmt: skip


def mcnemar(a, b):
    """McNemar's exact test: ``(p, better, worse)``; a, b: tables of ``stack_correct`` with common seeds.

    better, worse: the number of images that ``a`` classifies correctly with more seeds than ``b``, and with fewer. An
    image counts once (a sign test over images), because the seeds of one image are not independent observations. p is
    two-sided, and 1.0 if better and worse are both 0.
    """
    seeds = [seed for seed in a.columns if seed in b.columns]
    wins = (a[seeds].to_numpy(int) - b[seeds].to_numpy(int)).sum(1)
    better, worse = int((wins > 0).sum()), int((wins < 0).sum())
    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0, better, worse


def holm(p_values):
    """Holm's (1979) adjusted p-values, in the order given; rejecting below 0.05 keeps the family-wise error at 5 %."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def compare_pairs(correct):
    """Every pair of classifiers that share a seed: a row of ``PAIRS``, differences in points.

    correct: ``stack_correct``. The verdict is "above" or "below" only if four conditions hold: the interval over test
    images excludes 0, the interval over seeds excludes 0, Holm's p of McNemar's test is below ``LEVEL``, and the
    majority of differing images has the sign of the mean. If only the interval over seeds contains 0, the verdict is
    "seeds do not decide"; if only that interval is missing, "one seed"; else "within noise".
    """
    rows = []
    for first, second in combinations(correct, 2):
        if difference := paired_difference(correct[first], correct[second]):
            p, better, worse = mcnemar(correct[first], correct[second])
            names = {"first": classifier_name(*first), "second": classifier_name(*second)}
            rows.append(names | difference | {"better": better, "worse": worse, "p": p})
    table = pd.DataFrame(rows, columns=[name for name in PAIRS if name not in ("p_holm", "verdict")])
    table = table.assign(p_holm=holm(table["p"]))
    return table.assign(verdict=[_judge(row).label for row in table.itertuples()])[list(PAIRS)]


def _judge(row):
    side, sign = (Verdict.ABOVE, 1) if row.difference > 0 else (Verdict.BELOW, -1)
    beyond_images = min(sign * row.low, sign * row.high) > 0
    if not beyond_images or row.p_holm >= LEVEL or sign * (row.better - row.worse) <= 0:
        return Verdict.WITHIN_NOISE
    if row.n_seeds == 1:
        return Verdict.ONE_SEED
    return side if min(sign * row.seeds_low, sign * row.seeds_high) > 0 else Verdict.UNDECIDED


def compare_datasets(runs, n_shot, classifier):
    """``{dataset: compare_pairs}`` for every data set in ``runs`` (``results.load_results``)."""
    predictions = {name: load_predictions(runs, name, n_shot, classifier) for name in runs["dataset"].unique()}
    return {name: compare_pairs(stack_correct(of_dataset)) for name, of_dataset in predictions.items()}


def select_pair(pairs, first, second):
    """The row of ``compare_pairs`` of two ``classifier_name``, as a dict, first minus second; None if it is absent."""
    for row in pairs.to_dict("records"):
        if (row["first"], row["second"]) == (first, second):
            return row
        if (row["first"], row["second"]) == (second, first):
            return _exchange(row)
    return None


def _exchange(row):
    """The same comparison with first and second exchanged."""
    same = {"first": "second", "second": "first", "better": "worse", "worse": "better"}
    negated = {"difference": "difference", "low": "high", "high": "low", "seeds_low": "seeds_high",
               "seeds_high": "seeds_low"}  # fmt: skip
    exchanged = {name: row[other] for name, other in same.items()}
    exchanged |= {name: -row[other] for name, other in negated.items()}
    exchanged["per_seed"] = {seed: -points for seed, points in row["per_seed"].items()}
    return row | exchanged | {"verdict": Verdict(row["verdict"]).reversed().label}


def verdict_matrix(pairs):
    """``compare_pairs`` as a square data frame of verdict labels, row minus column; NaN on the diagonal."""
    exchanged = [_exchange(row) for row in pairs.to_dict("records")]
    both = pd.concat([pairs, pd.DataFrame(exchanged, columns=pairs.columns)], ignore_index=True)
    names = list(dict.fromkeys([*pairs["first"], *pairs["second"]]))
    return both.pivot(index="first", columns="second", values="verdict").reindex(index=names, columns=names)


def select_gains(pairs):
    """The gains from generated images: the rows of S against FakeIt's S, and of R+S against Real-finetune."""
    rows = [
        select_pair(pairs, classifier_name(method, setting), reference)
        for setting, reference in {"S": "FakeIt (S)", "R+S": "Real-finetune (R)"}.items()
        for method in METHODS
    ]
    return pd.DataFrame([row for row in rows if row], columns=list(PAIRS))


def compare_order(pairs, dataset):
    """Whether the published order of systems holds: a row of ``ORDER`` per published pair that was run, in points.

    pairs: ``compare_pairs`` of ``dataset``; the verdicts are taken from it. "source", "published" and
    "published_without" come from ``published.published_order``; "outcome" is one of ``OUTCOMES``.
    """
    rows = []
    for claim in published_order(dataset).itertuples(index=False):
        if ours := select_pair(pairs, classifier_name(*claim.higher), classifier_name(*claim.lower)):
            row = {name: ours[name] for name in (*INTERVALS, "per_seed", "n_test", "verdict")}
            row |= {"pair": f"{ours['first']} − {ours['second']}", "source": claim.source, "ours": ours["difference"]}
            row |= {"published": claim.published, "published_without": claim.without}
            outcome = {Verdict.ABOVE: "holds", Verdict.BELOW: "reversed"}.get(Verdict(ours["verdict"]), "not decided")
            rows.append(row | {"outcome": outcome})
    return pd.DataFrame(rows, columns=list(ORDER))


def add_verdicts(table, comparisons):
    """``results.compute_main_results`` with a column "verdict": each row against the highest mean of its block.

    comparisons: ``compare_datasets``. The verdict is "" for the highest mean itself and for the rows "average". It is
    ``OTHER_SEEDS`` where the two share no seed, or where the row is not the lower one on those that they share.
    """
    verdicts = pd.Series("", table.index, dtype=object)
    for (dataset, _), rows in table.groupby(["dataset", table["setting"].map(BLOCKS)]):
        names = {row.Index: classifier_name(row.method, row.setting) for row in rows.itertuples()}
        best = rows["accuracy_mean"].idxmax()
        for index, name in names.items():
            if index != best and dataset in comparisons:
                row = select_pair(comparisons[dataset], name, names[best])
                lower = row and (row["difference"] < 0 or row["verdict"] == Verdict.WITHIN_NOISE.label)
                verdicts[index] = row["verdict"] if lower else OTHER_SEEDS
    return table.assign(verdict=verdicts)


def write_headline(table, dataset):
    """The main table of ``dataset`` in at most two sentences: the highest mean of each block, and its close followers.

    table: ``add_verdicts``. The followers are the rows whose verdict is not "below".
    """
    sentences = []
    for block, opening in {"synthetic": "On synthetic images alone", "real": "With real images"}.items():
        rows = table[(table["dataset"] == dataset) & (table["setting"].map(BLOCKS) == block)]
        if len(rows):
            best = rows.loc[rows["accuracy_mean"].idxmax()]
            followers = rows[(rows.index != best.name) & (rows["verdict"] != Verdict.BELOW.label)]
            near = [classifier_name(row.method, row.setting) for row in followers.itertuples()]
            name = classifier_name(best["method"], best["setting"])
            what = "the highest mean accuracy, " if len(rows) > 1 else "an accuracy of "
            words = f"{opening}, {name} has {what}{best['accuracy_mean']:.1f} %"
            sentences.append(words + (f"; not surely below it: {', '.join(near)}." if near else "."))
    return " ".join(sentences) or f"No CLIP was trained on {dataset}: 03_train_clip does that."


def write_conclusion(table, pairs, dataset):
    """The results of ``dataset`` in at most four sentences: ``write_headline``, R+S against R, the published order.

    table: ``add_verdicts``; pairs: ``compare_pairs`` of ``dataset``.
    """
    headline = write_headline(table, dataset)
    sentences = [f"For {dataset}: {headline[0].lower()}{headline[1:]}"]
    gains = select_gains(pairs)
    verdicts = list(gains.loc[gains["second"] == "Real-finetune (R)", "verdict"])
    if verdicts:
        above, below = (verdicts.count(side.label) for side in (Verdict.ABOVE, Verdict.BELOW))
        counts = f"surely helps with {above} of {len(verdicts)} methods and surely hurts with {below}"
        sentences.append(f"Adding generated images to the real ones {counts}.")
    order = compare_order(pairs, dataset)
    if len(order):
        holds, reverse, undecided = (int((order["outcome"] == outcome).sum()) for outcome in OUTCOMES)
        counts = f"{holds} hold here, {reverse} are reversed, {undecided} are not decided"
        sentences.append(f"Of {len(order)} published orders of systems {counts}.")
    return " ".join(sentences)
