"""Every Markdown and LaTeX table of the analysis.

A table is a data frame and its name in ``catalogue.TABLES``. Its csv has the code's column names; its Markdown has the
catalogue's title and caption, headings in words with units, and formatted numbers. ↓: lower is nearer to real images;
↑: higher is better.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase

import pandas as pd

from datadream_utils.analysis.ablations import COMPUTE, format_value
from datadream_utils.analysis.alignment import CORRELATIONS
from datadream_utils.analysis.compare import OTHER_SEEDS, Verdict, verdict_matrix
from datadream_utils.analysis.published import AVERAGE, LEAKY, load_published
from datadream_utils.analysis.results import BLOCKS, RESULT_TABLES
from datadream_utils.catalogue import ABLATIONS, TABLES
from datadream_utils.files import atomic_write
from datadream_utils.methods import classifier_name, get_method, short_label

HEADINGS = {
    "method": "Method",
    "setting": "Trained on",
    "n_shot": "Shots per class",
    "seed": "Seed",
    "label": "Label",
    "class_name": "Class",
    "n_real": "Real images per class",
    "n_synthetic": "Images compared per class",
    "frechet": "Fréchet distance ↓",
    "kid": "Kernel distance (KID) ↓",
    "precision": "Precision (fidelity, 0 to 1) ↑",
    "recall": "Recall (diversity, 0 to 1) ↑",
    "density": "Density (fidelity) ↑",
    "coverage": "Coverage (diversity, 0 to 1) ↑",
    "gain": "Gain (points) ↑",
    "n_seeds": "Seeds",
    "gain_S": "Gain of S over zero-shot CLIP (points) ↑",
    "gain_R+S": "Gain of R+S over Real-finetune (points) ↑",
    "accuracy": "Accuracy (%) ↑",
    "error": "Calibration error (points) ↓",
    "certainty": "Mean certainty (%)",
    "kind": "Correlation of",
    "rho": "Spearman's ρ",
    "low": "95 % from",
    "high": "to",
    "p": "p, permuting methods",
    "p_holm": "p (Holm)",
    "verdict": "Verdict",
    "n_points": "Points",
    "n_classes": "Classes",
    "n_methods": "Methods",
    "n": "Generated images",
    "n_draws": "Draws of real images",
    "space": "By",
    "copies": "Near copies (%)",
    "nearer": "Nearer to a shot (%)",
    "difference": "Difference (points)",
    "outcome": "Outcome",
    "feature_nearer": "Nearer to a shot, features (%)",
    "pixel_nearer": "Nearer to a shot, pixels (%)",
    "feature_above_baseline": "That minus FakeIt's, features (points)",
    "pixel_above_baseline": "That minus FakeIt's, pixels (points)",
}
COPIES_HEADINGS = {"n_real": "Held-out real images"}
for _space, _unit in {"feature": "cosine distance", "pixel": "root mean square"}.items():
    COPIES_HEADINGS[f"{_space}_copies"] = f"Near copies, {_space}s (%)"
    COPIES_HEADINGS[f"{_space}_median"] = f"Median distance to a shot, {_space}s ({_unit})"
    COPIES_HEADINGS[f"{_space}_median_real"] = f"The same of held-out real images, {_space}s ({_unit})"
VALUES = {
    "kind": CORRELATIONS,
    "setting": {"none": "nothing (zero-shot)"},
    "space": {"feature": "features", "pixel": "pixels"},
}  # values in words, by column
RESULT_NOTES = {  # of what is not surely below the highest mean of its block: {label: (sign, note)}
    Verdict.WITHIN_NOISE.label: (
        Verdict.WITHIN_NOISE.sign,
        "Within the noise of these test images of the highest mean of its block.",
    ),
    Verdict.UNDECIDED.label: (
        Verdict.UNDECIDED.sign,
        "Below the highest mean of its block by more than the noise of these test images, but the seeds do not decide: "
        "0 lies in the 95 % interval over seeds.",
    ),
    Verdict.ONE_SEED.label: (
        Verdict.ONE_SEED.sign,
        "Below the highest mean of its block by more than the noise of these test images, but with one seed: what "
        "others would bring is not known.",
    ),
    OTHER_SEEDS: (
        "§",
        "Not compared with the highest mean of its block: the two were run with other seeds.",
    ),
}

_TEX = str.maketrans({c: rf"\{c}" for c in "_%&#${}"} | {"\\": r"\textbackslash{}", "^": r"\^{}", "~": r"\~{}"})
# HTML's own codes begin no markup; a dollar in a tag of its own begins no formula.
_MARKDOWN = str.maketrans({c: f"&#{ord(c)};" for c in "&<>|\\`*[]~!"} | {"$": "<span>$</span>"})


def escape_markdown(text):
    """A text as Markdown shows it literally, in one table cell."""
    text = " ".join(text.split()).translate(_MARKDOWN)
    return re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", text)  # within a word it begins no emphasis


def escape_latex(text):
    """A text as LaTeX prints it literally, in one table cell."""
    return " ".join(text.split()).translate(_TEX)


@dataclass(frozen=True)
class Style:
    """How a format writes the parts of a cell: templates, and its own words for some signs."""

    escape: Callable
    bold: str
    deviation: str
    mark: str
    tick: str
    signs: dict


MARKDOWN = Style(escape_markdown, "**{}**", " ± {}", "<sup>{}</sup>", "✓", {})
LATEX = Style(escape_latex, r"\textbf{{{}}}", r"$_{{\pm {}}}$", r"$^{{{}}}$", r"\checkmark",
              {"≈": r"\approx", "◇": r"\diamond", "○": r"\circ", "§": r"\S"})  # fmt: skip


@dataclass
class Layout:
    """A table ready to be printed: headings, one letter of alignment (l, c, r) per column, rows of cells.

    rules: indices of rows that begin a new block; notes: texts below the table, by mark.
    """

    headings: list
    align: str
    rows: list
    rules: tuple = ()
    notes: dict = field(default_factory=dict)


def to_markdown(name, table, caption=True):
    """The table called ``name`` in Markdown, with its title and caption above it and its notes below."""
    layout = _lay_out(name, table, MARKDOWN)
    lines = [f"**{TABLES[name].title}.** {TABLES[name].caption}", ""] if caption else []
    lines += _markdown_lines(layout)
    for mark, text in layout.notes.items():
        lines += ["", f"{MARKDOWN.mark.format(mark)} {escape_markdown(text)}"]
    return "\n".join(lines) + "\n"


def _markdown_lines(layout):
    rule = [{"l": "---", "c": ":-:", "r": "---:"}[letter] for letter in layout.align]
    return [f"| {' | '.join(layout.headings)} |", f"|{'|'.join(rule)}|"] + [
        f"| {' | '.join(row)} |" for row in layout.rows
    ]


def to_latex(name, table):
    """The table called ``name`` as a booktabs tabular, with its title and caption above it and its notes below."""
    layout, entry = _lay_out(name, table, LATEX), TABLES[name]
    lines = [rf"\textbf{{{escape_latex(entry.title)}.}} {escape_latex(entry.caption)}\\[1ex]"]
    lines += [rf"\begin{{tabular}}{{{layout.align}}}", r"\toprule", " & ".join(layout.headings) + r" \\", r"\midrule"]
    for index, row in enumerate(layout.rows):
        lines += [r"\midrule"] if index in layout.rules else []
        lines.append(" & ".join(row) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for mark, text in layout.notes.items():
        lines.append(rf"\\{{\footnotesize {LATEX.mark.format(LATEX.signs.get(mark, mark))} {escape_latex(text)}}}")
    return "\n".join(lines) + "\n"


def to_csv(table):
    """A data frame as csv with the code's names and six significant digits."""
    return table.to_csv(index=False, lineterminator="\n", float_format="%.6g")


def write_table(folder, name, table):
    """``<name>.csv``, ``.md`` and, where the catalogue lists it, ``.tex`` in ``folder``; returns their paths."""
    texts = {"csv": to_csv(table), "md": to_markdown(name, table)}
    if "tex" in TABLES[name].formats:
        texts["tex"] = to_latex(name, table)
    return [write_text(Path(folder) / f"{name}.{suffix}", text) for suffix, text in texts.items()]


def write_text(path, text):
    """Write a text file whole or not at all; returns its path."""
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def matrix_to_markdown(pairs):
    """``compare.compare_pairs`` as a square of signs in Markdown: the row against the column, under a key."""
    matrix = verdict_matrix(pairs)
    names = list(matrix.index)
    numbers = [str(number) for number in range(1, len(names) + 1)]
    rows = [
        [f"{number} {name}", *("" if label != label else Verdict(label).sign for label in matrix.loc[name])]
        for number, name in zip(numbers, names, strict=True)
    ]
    key = ", ".join(f"{verdict.sign} {verdict.label}" for verdict in Verdict)
    table = _markdown_lines(Layout(["", *numbers], "l" + "c" * len(names), rows))
    return "\n".join([f"The row against the column: {key}.", "", *(table if names else [])]) + "\n"


def _lay_out(name, table, style):
    if name in (*RESULT_TABLES, "published"):
        return lay_out_results(table, style)
    if name == "beside":
        return _lay_out_joined(table, style)
    if name.startswith("ablation_"):
        return _lay_out_ablation(table, name.removeprefix("ablation_"))
    layouts = {
        "answers": _lay_out_answers,
        "baselines": _lay_out_baselines,
        "order": _lay_out_order,
        "pairs": _lay_out_pairs,
        "cost": _lay_out_costs,
    }
    return layouts[name](table) if name in layouts else _lay_out_columns(table, name)


def find_best(table):
    """Which rows of ``results.compute_main_results`` have the highest mean of their block and data set, zero-shot none.

    A boolean series; both rows of a tie.
    """
    blocks = table["setting"].map(BLOCKS)
    highest = table.groupby([blocks, "dataset"])["accuracy_mean"].transform("max")
    return (table["accuracy_mean"] == highest) & (blocks != BLOCKS["none"])


def lay_out_results(table, style=MARKDOWN):
    """``results.compute_main_results`` as the paper prints it: R and S ticks, a column per data set, best in bold.

    Each cell has the mark of its "verdict" (``compare.add_verdicts``), or of its "note" (letters), where it has one.
    """
    marks, notes = _find_marks(table)
    table = table.assign(best=find_best(table), mark=marks)
    table["cell"] = [_results_cell(row, style) for row in table.itertuples()]
    known = [name for name in load_published()["dataset"].unique() if name != AVERAGE]
    rank = {name: place for place, name in enumerate(known)} | {AVERAGE: len(known) + 1}
    datasets = sorted(table["dataset"].unique(), key=lambda name: (rank.get(name, len(known)), name))
    rows, blocks = [], []
    for (method, setting), group in table.groupby(["method", "setting"], sort=False):
        cells = dict(zip(group["dataset"], group["cell"], strict=True))
        rows.append([*_system(method, setting, style), *(cells.get(name, "–") for name in datasets)])
        blocks.append(BLOCKS[setting])
    rules = tuple(i for i in range(1, len(blocks)) if blocks[i] != blocks[i - 1])
    headings = ["Method", "R", "S", *map(style.escape, datasets)]
    return Layout(headings, "lcc" + "r" * len(datasets), rows, rules, notes)


def _find_marks(table):
    """``(mark of each row, {mark: note})``: signs of verdicts other than "below", letters of notes."""
    if "verdict" in table:
        present = set(table["verdict"])
        notes = dict(note for label, note in RESULT_NOTES.items() if label in present)
        return table["verdict"].map(lambda label: RESULT_NOTES.get(label, ("", ""))[0]), notes
    texts = table.get("note", pd.Series("", table.index)).fillna("")
    letters = dict(zip([text for text in texts.unique() if text], ascii_lowercase, strict=False))
    return texts.map(lambda text: letters.get(text, "")), {letter: text for text, letter in letters.items()}


def _results_cell(row, style):
    text = _with_deviation(row.accuracy_mean, row.accuracy_std, style)
    text = style.bold.format(text) if row.best else text
    return text + (style.mark.format(style.signs.get(row.mark, row.mark)) if row.mark else "")


def _with_deviation(mean, deviation, style=MARKDOWN):
    """``74.0 ± 1.0``; one seed has no deviation, a missing mean is a dash."""
    if pd.isna(mean):
        return "–"
    return f"{mean:.1f}" + ("" if pd.isna(deviation) else style.deviation.format(f"{deviation:.1f}"))


def _system(method, setting, style=MARKDOWN):
    """Cells of a method and of the ticks of what it was trained on: R, S."""
    return [style.escape(get_method(method).label), *(style.tick if kind in setting else "" for kind in "RS")]


def _lay_out_joined(table, style):
    """``published.join_published``: ours, the published, ours minus the published; in Markdown the notes, too."""
    rows = [
        [style.escape(row.dataset), *_system(row.method, row.setting, style),
         _with_deviation(row.our_mean, row.our_std, style),
         _with_deviation(row.published_mean, row.published_std, style), _points(row.difference)]
        for row in table.itertuples()
    ]  # fmt: skip
    headings, align = ["Data set", "Method", "R", "S", "Ours", "Published", "Difference"], "llccrrr"
    if style is LATEX:  # a page has no room for the notes
        return Layout(headings, align, rows)
    rows = [[*row, style.escape(note)] for row, note in zip(rows, table["note"], strict=True)]
    return Layout([*headings, "Note"], align + "l", rows)


def _lay_out_order(order):
    """``compare.compare_order``; ⇄ marks an order that is reversed without the data sets in ``LEAKY``."""
    rows = []
    for row in order.itertuples():
        without = _points(row.published_without) + (" ⇄" if row.published_without < 0 else "")
        source = "averages" if row.source == AVERAGE else LEAKY.get(row.source, row.source)
        verdict = Verdict(row.verdict)
        rows.append([row.pair, source, _points(row.published), without, _points(row.ours), *_intervals(row),
                     f"{verdict.sign} {verdict.label}", row.outcome])  # fmt: skip
    headings = ["Pair", "Published in", "Published", f"Without {', '.join(LEAKY.values())}", "Ours", "95 % over images",
                "Per seed", "95 % over seeds", "Verdict", "Order"]  # fmt: skip
    return Layout(headings, "llrrrcccll", rows)


def _lay_out_pairs(pairs):
    """``compare.compare_pairs``."""
    rows = []
    for row in pairs.itertuples():
        p, verdict = "< 0.001" if row.p_holm < 0.001 else f"{row.p_holm:.3f}", Verdict(row.verdict)
        rows.append([row.first, row.second, _points(row.difference), *_intervals(row), p,
                     f"{verdict.sign} {verdict.label}"])  # fmt: skip
    headings = ["First", "Second", "Difference", "95 % over images", "Per seed", "95 % over seeds", "p (Holm)",
                "Verdict"]  # fmt: skip
    return Layout(headings, "llrcccrl", rows)


def _intervals(row):
    """A row's interval over test images, its differences per seed, and their interval."""
    per_seed = ", ".join(f"{points:+z.1f}" for points in row.per_seed.values())
    return [_interval(row.low, row.high), per_seed, _interval(row.seeds_low, row.seeds_high)]


def _interval(low, high):
    return "" if pd.isna(low) else f"{low:+z.1f} to {high:+z.1f}"


def _points(value):
    return "" if pd.isna(value) else f"{value:+z.1f}"


def _lay_out_answers(answers):
    """``questions.answer_questions``; a question stands in its first row only."""
    datasets = list(dict.fromkeys(name for values in answers["per_dataset"] for name in values))
    rows, previous = [], None
    for row in answers.itertuples():
        question, previous = "" if row.question == previous else row.question, row.question
        visible = "" if pd.isna(row.visible) else f"{row.visible:.1f}"
        rows.append([escape_markdown(question), row.classifier, row.n_shot, f"{row.first} − {row.second}",
                     *(_points(row.per_dataset.get(name, float("nan"))) for name in datasets), _points(row.difference),
                     _interval(row.low, row.high), visible, row.answer, row.also_by_seed])  # fmt: skip
    headings = ["Question", "Classifier", "Shots", "Comparison", *map(escape_markdown, datasets), "Difference",
                "95 %", "Visible", "Answer", "Also by seed"]  # fmt: skip
    return Layout(headings, "llll" + "r" * (len(datasets) + 1) + "crll", rows)


def _lay_out_baselines(table):
    """``baselines.compare_baselines``, a column per number of shots."""
    shots, rows = sorted(table["n_shot"].unique()), []
    for (dataset, baseline), group in table.groupby(["dataset", "baseline"], sort=False):
        cells = {row.n_shot: _with_deviation(row.accuracy_mean, row.accuracy_std) for row in group.itertuples()}
        rows.append([escape_markdown(dataset), baseline, *(cells.get(n_shot, "–") for n_shot in shots)])
    headings = ["Data set", "Baseline", *("1 shot" if n_shot == 1 else f"{n_shot} shots" for n_shot in shots)]
    return Layout(headings, "ll" + "r" * len(shots), rows)


def _lay_out_costs(costs):
    """``cost.average_costs``."""
    rows = []
    for row in costs.itertuples():
        steps = row.steps_adapt + row.steps_generate + row.steps_train
        flops = "" if pd.isna(row.flops) else f"{row.flops:.1e}"
        memory = "" if pd.isna(row.peak_memory_mb) else f"{row.peak_memory_mb:,.0f}"
        rows.append([classifier_name(row.method, row.setting), f"{row.accuracy_mean:.1f}", f"{row.seconds:,.0f}",
                     f"{steps:,.0f}", flops, memory])  # fmt: skip
    headings = ["Classifier", "Accuracy (%)", "Seconds", "Image-steps", "Operations", "Peak memory (MB)"]
    return Layout(headings, "lrrrrr", rows)


def _lay_out_ablation(summary, parameter):
    """``ablations.summarise_ablation`` of a parameter."""
    adapted, rows = parameter in COMPUTE, []
    for row in summary.itertuples():
        values = [format_value(row.value)] + [f"{row.adapted:,.0f}"] * adapted
        accuracy = _with_deviation(row.accuracy_mean, row.accuracy_std)
        difference = "reference" if row.reference else _points(row.difference)
        rows.append([*_system(row.method, row.setting), *values, accuracy, str(row.n_seeds), difference,
                     _interval(row.low, row.high), row.verdict])  # fmt: skip
    name = ABLATIONS.get(parameter, parameter)
    headings = ["Method", "R", "S", f"{name[0].upper()}{name[1:]}"] + ["Images adapted on"] * adapted
    headings += ["Accuracy (%)", "Seeds", "Difference", "95 % over seeds", "Verdict"]
    return Layout(headings, "lccr" + "r" * adapted + "rrrcl", rows)


def _lay_out_columns(table, name):
    """Any other table: its columns under ``HEADINGS``, numbers to three significant digits, values in words."""
    headings = HEADINGS | (COPIES_HEADINGS if name == "copies" else {})
    columns = []
    for column in table.columns:
        words = VALUES.get(column, {})
        print_value = short_label if column == "method" else lambda value, words=words: words.get(value, value)
        is_float = pd.api.types.is_float_dtype(table[column])
        columns.append([_number(v) if is_float else escape_markdown(str(print_value(v))) for v in table[column]])
    align = "".join("r" if pd.api.types.is_numeric_dtype(table[column]) else "l" for column in table.columns)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return Layout([headings.get(column, column) for column in table.columns], align, rows)


def _number(value):
    """Three significant digits of small numbers, one decimal of those from 10 on, whole ones as such; "" for NaN."""
    if pd.isna(value):
        return ""
    if value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
