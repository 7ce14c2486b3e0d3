"""The results that the authors published, as they printed them, with what is known to be wrong about them.

``published_results.csv`` holds every cell of the main table of Kim et al. (ECCV 2024): top-1 accuracy in percent, CLIP
ViT-B/16, 16 shots. Its ``note`` says where a cell is in doubt. Nothing in it was computed here.
"""

from itertools import combinations
from pathlib import Path

import pandas as pd

from datadream_utils.files import latex, markdown
from datadream_utils.methods import get_method

FILE = Path(__file__).with_name("published_results.csv")
SOURCE = "Kim et al., ECCV 2024, main table"
TITLE = f"Published by the authors ({SOURCE}: CLIP ViT-B/16, 16 shots), not results of this project"
N_SHOT = 16
LEAKY = {"dtd": "DTD", "eurosat": "EuroSAT", "flowers102": "Flowers102"}  # which they test on the training split

# Blocks of the table, and Real-finetune against synthetic images alone.
COMPARED = ({"S"}, {"R+S"}, {"R", "R+S"}, {"R", "S"})


def load():
    """Every printed cell: dataset (or "average"), method, setting, mean, std (NaN: none printed), note."""
    return pd.read_csv(FILE, comment="#").fillna({"note": ""})


def averages(without=()):
    """The mean of the ten cells of each row, recomputed: method, setting, mean; without some data sets' cells."""
    cells = load().query("dataset != 'average' and dataset not in @without")
    return cells.groupby(["method", "setting"], as_index=False, sort=False)["mean"].mean()


def table():
    """The published cells in the columns of ``results.main_results``; the means of "average" are recomputed."""
    cells = load().rename(columns={"mean": "accuracy_mean", "std": "accuracy_std"})
    cells = cells.assign(n_shot=N_SHOT, source=SOURCE)
    recomputed = averages().set_index(["method", "setting"])["mean"].round(2)
    for row in cells[cells["dataset"] == "average"].itertuples():
        cells.loc[row.Index, "accuracy_mean"] = recomputed[row.method, row.setting]
    return cells


def beside(ours):
    """Our rows of the paper's data sets beside the published ones: means, deviations, our mean minus theirs, note.

    ours: ``results.main_results``. A row with all ten data sets has its average, too. Empty when none of the data sets,
    at the paper's number of shots, is in the paper.
    """
    keys = ["dataset", "method", "setting", "n_shot"]
    theirs = table().rename(columns={"accuracy_mean": "published_mean", "accuracy_std": "published_std"})
    ours = ours[ours["dataset"].isin(set(theirs["dataset"]) - {"average"}) & (ours["n_shot"] == N_SHOT)]
    rows = ours.groupby(["method", "setting"], as_index=False, sort=False)
    means = rows.agg(accuracy_mean=("accuracy_mean", "mean"), n=("dataset", "nunique"))
    whole = means[means.pop("n") == theirs["dataset"].nunique() - 1].assign(dataset="average", n_shot=N_SHOT)
    ours = pd.concat([ours, whole]).rename(columns={"accuracy_mean": "our_mean", "accuracy_std": "our_std"})
    both = ours[[*keys, "our_mean", "our_std"]].merge(theirs, on=keys, how="left").fillna({"note": ""})
    both["difference"] = both["our_mean"] - both["published_mean"]
    columns = [*keys, "our_mean", "our_std", "published_mean", "published_std", "difference", "note"]
    return both[columns]


def beside_texts(both):
    """``beside`` as csv, Markdown and LaTeX (booktabs), by kind: the last number is ours minus theirs."""
    heads = ["Data set", "Method", "R", "S", "Ours", "Published", "Difference"]
    rows = []
    for row in both.itertuples():
        numbers = [_with_deviation(row.our_mean, row.our_std), _with_deviation(row.published_mean, row.published_std)]
        ticks = ["✓" if kind in row.setting else "" for kind in "RS"]
        difference = "" if pd.isna(row.difference) else f"{row.difference:+.1f}"
        rows.append([row.dataset, get_method(row.method).label, *ticks, *numbers, difference])
    said = "Splits, class names and more may differ: README, *Differences*."
    lines = [f"Ours beside what the authors published ({SOURCE}); top-1 accuracy (%). {said}", ""]
    lines += [f"| {' | '.join([*heads, 'Note'])} |", "|---|---|:-:|:-:|---:|---:|---:|---|"]
    lines += [
        f"| {' | '.join([*map(markdown, row), markdown(note)])} |" for row, note in zip(rows, both["note"], strict=True)
    ]
    tex = [r"\begin{tabular}{llccrrr}", r"\toprule", " & ".join(heads) + r" \\", r"\midrule"]
    signs = {"✓": r"\checkmark", " ± ": r" $\pm$ "}
    for row in rows:
        line = " & ".join(map(latex, row))
        for sign, command in signs.items():
            line = line.replace(sign, command)
        tex.append(line + r" \\")
    tex += [r"\bottomrule", r"\end{tabular}"]
    csv = both.round(4).to_csv(index=False, lineterminator="\n")
    return {"csv": csv, "md": "\n".join(lines) + "\n", "tex": "\n".join(tex) + "\n"}


def _with_deviation(mean, deviation):
    if pd.isna(mean):
        return "–"
    return f"{mean:.1f}" + ("" if pd.isna(deviation) else f" ± {deviation:.1f}")


def order():
    """Which row is above which in the published averages: higher, lower (method, setting), points between: published.

    All pairs within a block (S; R and R+S), and Real-finetune with each S row. "without": the points between the same
    rows without the data sets in ``LEAKY``; below 0 the order is turned.
    """
    averaged = averages().assign(sound=averages(tuple(LEAKY))["mean"])
    ranked = averaged.sort_values("mean", ascending=False, kind="stable")
    pairs = [
        {"higher": (a.method, a.setting), "lower": (b.method, b.setting), "published": round(a.mean - b.mean, 2),
         "without": round(a.sound - b.sound, 2)}
        for a, b in combinations(ranked.itertuples(index=False), 2)
        if {a.setting, b.setting} in COMPARED
    ]  # fmt: skip
    return pd.DataFrame(pairs)
