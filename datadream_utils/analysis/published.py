"""The results that the authors published, as they printed them, with what is known to be wrong about them.

``published_results.csv`` holds every cell of the main table of Kim et al. (ECCV 2024): top-1 accuracy in percent, CLIP
ViT-B/16, 16 shots. Its ``note`` says where a cell is in doubt. Nothing in it was computed here.
"""

from itertools import combinations
from pathlib import Path

import pandas as pd

FILE = Path(__file__).with_name("published_results.csv")
SOURCE = "Kim et al., ECCV 2024, main table"
N_SHOT = 16
LEAKY = {"dtd": "DTD", "eurosat": "EuroSAT", "flowers102": "Flowers102"}  # tested on the training split by the authors
AVERAGE = "average"  # the name of the column of averages

# Settings that are compared: the blocks of the table, and Real-finetune with synthetic images alone.
COMPARED = ({"S"}, {"R+S"}, {"R", "R+S"}, {"R", "S"})


def load_published():
    """Every printed cell: dataset (or "average"), method, setting, mean, std (%; NaN: none printed), note."""
    return pd.read_csv(FILE, comment="#").fillna({"note": ""})


def compute_averages(without=()):
    """The mean of the ten data sets' cells for each row, recomputed: method, setting, mean; data sets can be left out.

    Recomputed, because one printed average is not the mean of its row.
    """
    cells = load_published()
    cells = cells[~cells["dataset"].isin([AVERAGE, *without])]
    return cells.groupby(["method", "setting"], as_index=False, sort=False)["mean"].mean()


def published_table():
    """The published cells in the columns of ``results.compute_main_results``, with recomputed averages."""
    cells = load_published().rename(columns={"mean": "accuracy_mean", "std": "accuracy_std"})
    recomputed = compute_averages().set_index(["method", "setting"])["mean"].round(2)
    for row in cells[cells["dataset"] == AVERAGE].itertuples():
        cells.loc[row.Index, "accuracy_mean"] = recomputed[row.method, row.setting]
    return cells.assign(n_shot=N_SHOT, source=SOURCE)


def join_published(ours):
    """Our rows of the paper's data sets with the published ones: means, deviations, our mean minus theirs, note.

    ours: ``results.compute_main_results``. A row with all ten data sets has its average, too. Empty when none of the
    data sets, at the paper's number of shots, is in the paper.
    """
    keys = ["dataset", "method", "setting", "n_shot"]
    theirs = published_table().rename(columns={"accuracy_mean": "published_mean", "accuracy_std": "published_std"})
    ours = ours[ours["dataset"].isin(set(theirs["dataset"]) - {AVERAGE}) & (ours["n_shot"] == N_SHOT)]
    rows = ours.groupby(["method", "setting"], as_index=False, sort=False)
    means = rows.agg(accuracy_mean=("accuracy_mean", "mean"), n=("dataset", "nunique"))
    whole = means[means.pop("n") == theirs["dataset"].nunique() - 1].assign(dataset=AVERAGE, n_shot=N_SHOT)
    ours = pd.concat([ours, whole]).rename(columns={"accuracy_mean": "our_mean", "accuracy_std": "our_std"})
    joined = ours[[*keys, "our_mean", "our_std"]].merge(theirs, on=keys, how="left").fillna({"note": ""})
    joined["difference"] = joined["our_mean"] - joined["published_mean"]
    return joined[[*keys, "our_mean", "our_std", "published_mean", "published_std", "difference", "note"]]


def published_order(dataset=AVERAGE):
    """Which row is above which in the published table: higher, lower (method, setting), points between: "published".

    Of ``dataset``'s own cells where the table has them, else of the averages; "source" names the column. Pairs within a
    block (S; R and R+S), and Real-finetune with each S row; rows with equal cells have no order. "without": of the
    averages, the points between the same two rows without the data sets in ``LEAKY`` (below 0, the order is reversed
    without them); NaN for a data set's own cells.
    """
    cells = load_published()
    source = dataset if dataset in set(cells["dataset"]) else AVERAGE
    if source == AVERAGE:
        rows = compute_averages().assign(without=compute_averages(tuple(LEAKY))["mean"])
    else:
        rows = cells[cells["dataset"] == source].assign(without=float("nan"))
    ranked = rows.sort_values("mean", ascending=False, kind="stable")
    pairs = [
        {"higher": (a.method, a.setting), "lower": (b.method, b.setting), "published": round(a.mean - b.mean, 2),
         "without": round(a.without - b.without, 2), "source": source}
        for a, b in combinations(ranked.itertuples(index=False), 2)
        if {a.setting, b.setting} in COMPARED and a.mean > b.mean
    ]  # fmt: skip
    return pd.DataFrame(pairs, columns=["higher", "lower", "published", "without", "source"])
