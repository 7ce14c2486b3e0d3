"""Which differences are more than noise: pairs of classifiers on the same test images, corrected for their number."""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from datadream_utils.compare import paired, row_name
from datadream_utils.results import BLOCKS

LEVEL = 0.05
NOISE = "within noise"
SIGNS = {"above": "▲", "below": "▼", NOISE: "≈"}
NOTE = (
    "Within noise of the best of its block: 0 lies in the 95 % interval of the paired difference, or Holm's p-value of "
    f"McNemar's test is {LEVEL} or more."
)
COLUMNS = ("first", "second", "difference", "low", "high", "n_seeds", "n_test", "p", "p_holm", "verdict")


def mcnemar(a, b):
    """Exact two-sided p-value of McNemar's test; a, b: tables of ``compare.load_correct`` with common seeds.

    With several seeds an image counts once, for the side that is right with more of them (a sign test over images):
    one image's seeds are no independent observations. 1.0 where no image tells them apart.
    """
    seeds = [seed for seed in a.columns if seed in b.columns]
    wins = (a[seeds].to_numpy(int) - b[seeds].to_numpy(int)).sum(1)
    first, second = int((wins > 0).sum()), int((wins < 0).sum())
    return float(binomtest(first, first + second).pvalue) if first + second else 1.0


def holm(p_values):
    """Holm's (1979) adjusted p-values, in the order given: below 0.05, all true at once but in one table of twenty."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.empty(len(p_values))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    return adjusted


def pairs(correct, keys=None):
    """Every pair of ``keys`` (method, setting) that share a seed: a row of ``COLUMNS``, differences in points.

    correct: ``compare.load_correct``; keys: those to compare (None: all, in its order). "verdict" is "above" or "below"
    only where Holm's p-value is under ``LEVEL`` and the bootstrap interval leaves out 0 on the side of the
    difference; else ``NOISE``.
    """
    rows = []
    for first, second in combinations([key for key in keys or correct if key in correct], 2):
        found = paired(correct[first], correct[second])
        if found:
            rows.append(
                dict(first=row_name(*first), second=row_name(*second), difference=found["ours"], low=found["low"],
                     high=found["high"], n_seeds=len(found["per_seed"]), n_test=found["n_test"],
                     p=mcnemar(correct[first], correct[second]))
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=[name for name in COLUMNS if name not in ("p_holm", "verdict")])
    table = table.assign(p_holm=holm(table["p"]))
    return table.assign(verdict=[_verdict(row) for row in table.itertuples()])[list(COLUMNS)]


def _verdict(row):
    if row.p_holm >= LEVEL or row.low <= 0 <= row.high:
        return NOISE
    return "above" if row.low > 0 else "below"


def marks(table):
    """Pairs as a square, ``{row: {column: "above" | "below" | "within noise"}}``: the row against the column."""
    turned = {"above": "below", "below": "above", NOISE: NOISE}
    square = {}
    for row in table.itertuples():
        square.setdefault(row.first, {})[row.second] = row.verdict
        square.setdefault(row.second, {})[row.first] = turned[row.verdict]
    return square


def marked(table, by_dataset):
    """``results.main_results`` with ``NOTE`` where a row is within noise of the best of its block and data set.

    by_dataset: ``{dataset: pairs}``.
    """
    names = {row.Index: row_name(row.method, row.setting) for row in table.itertuples()}
    notes = pd.Series("", table.index, dtype=object)
    for (dataset, _), rows in table.groupby(["dataset", table["setting"].map(BLOCKS)]):
        best = rows["accuracy_mean"].idxmax()
        verdicts = marks(by_dataset[dataset]).get(names[best], {})
        notes[[i for i in rows.index if i != best and verdicts.get(names[i]) == NOISE]] = NOTE
    return table.assign(note=notes)


def headline(table, dataset, found):
    """The main table in two sentences: the best on synthetic images alone; the best with real ones, and real alone.

    What is within noise of the best of its block is named beside it.

    table: ``results.main_results``; found: ``pairs`` of the data set.
    """
    rows = table[table["dataset"] == dataset]
    best = {block: of.loc[of["accuracy_mean"].idxmax()] for block, of in rows.groupby(rows["setting"].map(BLOCKS))}
    same = rows[marked(rows, {dataset: found})["note"] == NOTE]
    beside = {
        block: "; within noise of it: " + ", ".join(row_name(row.method, row.setting) for row in of.itertuples())
        for block, of in same.groupby(same["setting"].map(BLOCKS))
    }
    words = []
    if "synthetic" in best:
        row, text = best["synthetic"], "On synthetic images alone {} is best, with {:.1f} %"
        words.append(text.format(row_name(row.method, row.setting), row.accuracy_mean))
        if "zero-shot" in best:
            words[-1] += f" (zero-shot CLIP: {best['zero-shot'].accuracy_mean:.1f} %)"
        words[-1] += beside.get("synthetic", "")
    if "real" in best:
        row, real = best["real"], rows[rows["setting"] == "R"]
        words.append(f"With real images {row_name(row.method, row.setting)} is best, with {row.accuracy_mean:.1f} %")
        words[-1] += beside.get("real", "")
        if len(real) and row.setting != "R":
            names = row_name(real.iloc[0].method, "R"), row_name(row.method, row.setting)
            verdict = {"below": "clearly less", NOISE: NOISE}.get(marks(found).get(names[0], {}).get(names[1]), "less")
            words[-1] += f"; {names[0]} has {real['accuracy_mean'].iloc[0]:.1f} %, {verdict}"
    return ". ".join([*words, ""]).rstrip() or f"No CLIP was trained on {dataset}: 03_train_clip does that."


def sentence(table):
    """How many pairs differ, and by what rule."""
    noise = int((table["verdict"] == NOISE).sum())
    rule = f"Holm-corrected p < {LEVEL}, and 0 outside the 95 % interval"
    return f"{len(table)} pairs: {len(table) - noise} differ ({rule}), {noise} are within noise."


def square(table):
    """The pairs as a square in Markdown, under ``sentence``: the row against the column."""
    found = marks(table)
    names = list(dict.fromkeys([*table["first"], *table["second"]]))
    lines = [f"**{sentence(table)}**", ""]
    if names:
        lines.append("| ▲ the row is above the column, ▼ below, ≈ within noise | " + " | ".join(_numbers(names)) + " |")
        lines.append("|---|" + ":-:|" * len(names))
    for number, name in zip(_numbers(names), names, strict=True):
        cells = [SIGNS.get(found[name].get(other), "") for other in names]
        lines.append(f"| {number} {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _numbers(names):
    return [str(number) for number in range(1, len(names) + 1)]


def texts(table):
    """The pairs as csv and Markdown, by kind."""
    return {"csv": table.round(5).to_csv(index=False, lineterminator="\n"), "md": markdown(table)}


def markdown(table):
    """The pairs as Markdown: ▲ the first is above, ▼ below, ≈ within noise."""
    lines = [
        sentence(table),
        "",
        "| First | Second | Difference | 95 % interval | p (Holm) | |",
        "|---|---|---:|:-:|---:|:-:|",
    ]
    for row in table.itertuples():
        p = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        interval = f"{row.low:+.1f} to {row.high:+.1f}"
        lines.append(
            f"| {row.first} | {row.second} | {row.difference:+.1f} | {interval} | {p} | {SIGNS[row.verdict]} |"
        )
    return "\n".join(lines) + "\n"
