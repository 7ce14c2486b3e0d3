"""Which differences are more than noise, in words and tables: pairs of classifiers (``compare.pairs``)."""

import pandas as pd

from datadream_utils.analysis.compare import (
    LEVEL,
    NOISE,
    ONE_SEED,
    PAIRS,
    RULE,
    SAID,
    SEEDS_NOISE,
    TURNED,
    load_correct,
    pairs,
    row_name,
    spread,
)
from datadream_utils.analysis.results import BLOCKS

SIGNS = {"above": "▲", "below": "▼", NOISE: "≈", SEEDS_NOISE: "◇", ONE_SEED: "○"}
NOTE = (
    "Within noise of the highest mean of its block, over these test images too: 0 lies in the 95 % interval of the "
    f"paired difference over test images, or Holm's p-value of McNemar's test is {LEVEL} or more, or more images are "
    "on the other side."
)
SEEDS = (
    "Below the highest mean of its block by more than these test images' noise, but the seeds do not decide: 0 lies in "
    "the 95 % interval of the paired difference over seeds."
)
ONE = "Below the highest mean of its block by more than these images' noise, but with one seed: others are not known."
NOTES = {NOISE: NOTE, SEEDS_NOISE: SEEDS, ONE_SEED: ONE}
BESIDE = {NOTE: "within noise of it", SEEDS: "below it by more than these images' noise, but not by the seeds'"}
KEY = "▲ the row is above the column, ▼ below, ≈ within noise, ◇ within the seeds' noise alone, ○ one seed"
NO_PAIRS = pd.DataFrame(columns=list(PAIRS))


def of_datasets(runs, table, n_shot, classifier="clip"):
    """``{dataset: compare.pairs}`` of the rows of ``table`` (``results.main_results``), for every data set in ``runs``.

    classifier: as in ``compare.load_correct``.
    """
    rows = list(dict.fromkeys(table[["method", "setting"]].itertuples(index=False, name=None)))
    names = runs["dataset"].unique()
    return {name: pairs(load_correct(runs, name, n_shot, classifier), rows) for name in names}


def marks(table):
    """Pairs as a square, ``{row: {column: verdict}}``: the row against the column."""
    square = {}
    for row in table.itertuples():
        square.setdefault(row.first, {})[row.second] = row.verdict
        square.setdefault(row.second, {})[row.first] = TURNED.get(row.verdict, row.verdict)
    return square


def marked(table, by_dataset):
    """``results.main_results`` with one of ``NOTES`` where a row is not surely below the highest mean of its block.

    by_dataset: ``of_datasets``; "average" has none.
    """
    names = {row.Index: row_name(row.method, row.setting) for row in table.itertuples()}
    notes = pd.Series("", table.index, dtype=object)
    for (dataset, _), rows in table.groupby(["dataset", table["setting"].map(BLOCKS)]):
        best = rows["accuracy_mean"].idxmax()
        verdicts = marks(by_dataset.get(dataset, NO_PAIRS)).get(names[best], {})
        for verdict, note in NOTES.items():
            notes[[i for i in rows.index if i != best and verdicts.get(names[i]) == verdict]] = note
    return table.assign(note=notes)


def headline(table, dataset, found):
    """The main table in two sentences: the highest mean on synthetic images alone; that with real ones, and real alone.

    It "is best" only if it is above all others of its block by more than noise; what it is not surely above is named.

    table: ``results.main_results``; found: ``pairs`` of the data set.
    """
    rows = table[table["dataset"] == dataset]
    best = {block: of.loc[of["accuracy_mean"].idxmax()] for block, of in rows.groupby(rows["setting"].map(BLOCKS))}
    several, words = rows.groupby(rows["setting"].map(BLOCKS)).size() > 1, []
    blocks = marked(rows, {dataset: found}).groupby(rows["setting"].map(BLOCKS))
    claim = {block: _claim(of, marks(found)) for block, of in blocks}
    beside = {block: _beside(of) for block, of in blocks}
    if "synthetic" in best:
        row, text = best["synthetic"], "On synthetic images alone {} {} {:.1f} %"
        words.append(text.format(row_name(row.method, row.setting), claim["synthetic"], row.accuracy_mean))
        if "zero-shot" in best:
            words[-1] += f" (zero-shot CLIP: {best['zero-shot'].accuracy_mean:.1f} %)"
        words[-1] += beside["synthetic"]
    if "real" in best:
        row, real = best["real"], rows[rows["setting"] == "R"]
        name = row_name(row.method, row.setting)
        words.append(f"With real images {name} {claim['real']} {row.accuracy_mean:.1f} %")
        words[-1] += beside["real"]
        if len(real) and row.setting != "R":
            names = row_name(real.iloc[0].method, "R"), name
            verdict = marks(found).get(names[0], {}).get(names[1])
            less = {"below": f"less, and {SAID['below']}", NOISE: NOISE, SEEDS_NOISE: f"less by {SAID[SEEDS_NOISE]}"}
            less = less.get(verdict, "less")
            words[-1] += f"; {names[0]} has {real['accuracy_mean'].iloc[0]:.1f} %, {less}"
    if any(several[block] and row.get("n_seeds") == 1 for block, row in best.items()):
        words.append("With one seed, what others would bring is not known")
    return ". ".join([*words, ""]).rstrip() or f"No CLIP was trained on {dataset}: 03_train_clip does that."


def _claim(rows, square_of):
    """Whether a block's first "is best", "has the highest mean", or, alone, "has" its number; rows: ``marked``."""
    names = [row_name(row.method, row.setting) for row in rows.sort_values("accuracy_mean").itertuples()]
    verdicts = {square_of.get(names[-1], {}).get(other) for other in names[:-1]}
    return "has" if not verdicts else "is best, with" if verdicts == {"above"} else "has the highest mean,"


def _beside(rows):
    """Which of a block's rows are not surely below its first, in words; rows: ``marked``."""
    names = {note: [row_name(row.method, row.setting) for row in of.itertuples()] for note, of in rows.groupby("note")}
    return "".join(f"; {said}: {', '.join(names[note])}" for note, said in BESIDE.items() if note in names)


def sentence(table):
    """How many pairs differ, and by what rule."""
    noise, seeds, single = (int((table["verdict"] == verdict).sum()) for verdict in (NOISE, SEEDS_NOISE, ONE_SEED))
    differ, plural = len(table) - noise - seeds - single, "s" * (len(table) != 1)
    more = f", {seeds} differ on these images but are {SEEDS_NOISE}" if seeds else ""
    more += f", {single} differ on these images but have one seed" if single else ""
    return f"{len(table)} pair{plural}: {differ} differ ({RULE}), {noise} are within noise{more}."


def square(table):
    """The pairs as a square in Markdown, under ``sentence``: the row against the column."""
    found = marks(table)
    names = list(dict.fromkeys([*table["first"], *table["second"]]))
    lines = [f"**{sentence(table)}**", ""]
    if names:
        lines.append(f"| {KEY} | " + " | ".join(_numbers(names)) + " |")
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
    """The pairs as Markdown: ▲ the first is above, ▼ below, others as in ``KEY``."""
    lines = [
        f"{sentence(table)} {KEY.replace('the row', 'the first').replace('the column', 'the second')}.",
        "",
        "| First | Second | Difference | 95 % over images | Per seed | 95 % over seeds | p (Holm) | |",
        "|---|---|---:|:-:|:-:|:-:|---:|:-:|",
    ]
    for row in table.itertuples():
        p = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}"
        cells = [row.first, row.second, f"{row.difference:+.1f}", *spread(row), p, SIGNS[row.verdict]]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
