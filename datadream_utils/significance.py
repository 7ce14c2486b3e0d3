"""Which differences are more than noise: pairs of classifiers on the same test images, corrected for their number."""

from itertools import combinations

import numpy as np
import pandas as pd
from scipy.stats import binomtest

from datadream_utils.compare import paired, row_name

LEVEL = 0.05
NOISE = "within noise"
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


def markdown(table):
    """The pairs as Markdown: ▲ the first is above, ▼ below, ≈ within noise."""
    signs = {"above": "▲", "below": "▼", NOISE: "≈"}
    count = table["verdict"].value_counts()
    lines = [
        f"{len(table)} pairs: {len(table) - count.get(NOISE, 0)} differ (Holm-corrected p < {LEVEL}, and 0 outside the "
        f"95 % interval), {count.get(NOISE, 0)} are within noise.",
        "",
        "| First | Second | Difference | 95 % interval | p (Holm) | |",
        "|---|---|---:|:-:|---:|:-:|",
    ]
    for row in table.itertuples():
        p = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        interval = f"{row.low:+.1f} to {row.high:+.1f}"
        lines.append(
            f"| {row.first} | {row.second} | {row.difference:+.1f} | {interval} | {p} | {signs[row.verdict]} |"
        )
    return "\n".join(lines) + "\n"
