"""Which differences are more than noise, in words and tables: pairs of classifiers (``compare.pairs``)."""

import pandas as pd

from datadream_utils.compare import LEVEL, NOISE, PAIRS, RULE, row_name
from datadream_utils.results import BLOCKS

SIGNS = {"above": "▲", "below": "▼", NOISE: "≈"}
NOTE = (
    "Within noise of the best of its block: 0 lies in the 95 % interval of the paired difference, Holm's p-value of "
    f"McNemar's test is {LEVEL} or more, or not every seed is on one side."
)

NO_PAIRS = pd.DataFrame(columns=list(PAIRS))


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

    by_dataset: ``{dataset: pairs}``; "average" has none.
    """
    names = {row.Index: row_name(row.method, row.setting) for row in table.itertuples()}
    notes = pd.Series("", table.index, dtype=object)
    for (dataset, _), rows in table.groupby(["dataset", table["setting"].map(BLOCKS)]):
        best = rows["accuracy_mean"].idxmax()
        verdicts = marks(by_dataset.get(dataset, NO_PAIRS)).get(names[best], {})
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
    several, words = rows.groupby(rows["setting"].map(BLOCKS)).size() > 1, []
    claim = {block: "is best, with" if many else "has" for block, many in several.items()}
    if "synthetic" in best:
        row, text = best["synthetic"], "On synthetic images alone {} {} {:.1f} %"
        words.append(text.format(row_name(row.method, row.setting), claim["synthetic"], row.accuracy_mean))
        if "zero-shot" in best:
            words[-1] += f" (zero-shot CLIP: {best['zero-shot'].accuracy_mean:.1f} %)"
        words[-1] += beside.get("synthetic", "")
    if "real" in best:
        row, real = best["real"], rows[rows["setting"] == "R"]
        name = row_name(row.method, row.setting)
        words.append(f"With real images {name} {claim['real']} {row.accuracy_mean:.1f} %")
        words[-1] += beside.get("real", "")
        if len(real) and row.setting != "R":
            names = row_name(real.iloc[0].method, "R"), name
            verdict = {"below": "less, and more than noise", NOISE: NOISE}.get(
                marks(found).get(names[0], {}).get(names[1]), "less"
            )
            words[-1] += f"; {names[0]} has {real['accuracy_mean'].iloc[0]:.1f} %, {verdict}"
    return ". ".join([*words, ""]).rstrip() or f"No CLIP was trained on {dataset}: 03_train_clip does that."


def sentence(table):
    """How many pairs differ, and by what rule."""
    noise = int((table["verdict"] == NOISE).sum())
    return f"{len(table)} pairs: {len(table) - noise} differ ({RULE}), {noise} are within noise."


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
        "| First | Second | Difference | 95 % interval | Per seed | p (Holm) | |",
        "|---|---|---:|:-:|:-:|---:|:-:|",
    ]
    for row in table.itertuples():
        p = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        interval = f"{row.low:+.1f} to {row.high:+.1f}"
        seeds = ", ".join(f"{points:+.1f}" for points in row.per_seed.values())
        cells = [row.first, row.second, f"{row.difference:+.1f}", interval, seeds, p, SIGNS[row.verdict]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
