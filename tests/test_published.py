"""The published numbers against themselves: complete, averages, the paper's own bold print, annotations."""

import pandas as pd
import pytest

from datadream_utils.analysis import published
from datadream_utils.analysis.tables import find_best, to_latex, to_markdown, write_table
from datadream_utils.catalogue import TABLES
from datadream_utils.methods import METHODS

TRAINED = [(m, "S") for m in ("issynth", "disef", "datadream_cls", "datadream_dset")] + [("real", "R")]
TRAINED += [(m, "R+S") for m in ("issynth", "disef", "datadream_cls", "datadream_dset")]
DATASETS = ["imagenet", "caltech101", "dtd", "eurosat", "fgvc_aircraft", "pets", "cars", "sun397", "food101"]
DATASETS += ["flowers102", "average"]

# Which cells the paper prints in bold: read apart from the digits.
BOLD = {
    ("datadream_cls", "S"): {"imagenet", "caltech101", "eurosat", "pets", "food101"},
    ("datadream_dset", "S"): {"dtd", "fgvc_aircraft", "cars", "sun397", "flowers102", "average"},
    ("real", "R"): {"food101"},
    ("issynth", "R+S"): {"dtd", "sun397"},
    ("disef", "R+S"): {"eurosat"},
    ("datadream_cls", "R+S"): {"caltech101", "dtd", "flowers102"},
    ("datadream_dset", "R+S"): set(DATASETS) - {"caltech101", "eurosat", "sun397"},
}


def test_every_cell_is_there_once():
    cells = published.load_published()
    assert list(cells["dataset"].unique()) == DATASETS and len(cells) == 110
    rows = [("clip_zeroshot", "none"), *TRAINED]
    for _, column in cells.groupby("dataset"):
        assert list(zip(column["method"], column["setting"], strict=True)) == rows
    assert all(setting in METHODS[method].settings for method, setting in rows)
    assert cells["std"].isna().equals(cells["method"] == "clip_zeroshot")
    assert cells["mean"].between(20, 100).all()


def test_printed_averages_are_the_means_of_their_rows_but_for_the_one_annotated():
    printed = published.load_published().query("dataset == 'average'").set_index(["method", "setting"])
    off = (published.compute_averages().set_index(["method", "setting"])["mean"] - printed["mean"]).abs()
    assert (off.drop(("clip_zeroshot", "none")) <= 0.05 + 1e-9).all()
    assert off["clip_zeroshot", "none"] == pytest.approx(0.81)
    note = printed.loc[("clip_zeroshot", "none"), "note"]
    assert "64.1" in note and "64.9" in note
    every = set(printed["note"].drop(("clip_zeroshot", "none")))  # three of the ten are on training images, in each
    assert len(every) == 1 and note.endswith(every.pop())


def test_the_best_of_each_block_is_what_the_paper_prints_in_bold():
    table = published.published_table()
    best = table[find_best(table)].groupby(["method", "setting"])["dataset"].agg(set).to_dict()
    expected = BOLD | {("datadream_cls", "S"): BOLD["datadream_cls", "S"] | {"sun397"}}  # a tie, printed once
    assert best == expected and list(table["dataset"].unique()) == DATASETS
    notes = published.load_published().set_index(["dataset", "method", "setting"])["note"]
    assert "bold" in notes["sun397", "datadream_dset", "S"]


def test_every_cell_tested_on_training_images_says_so_and_no_other():
    cells = published.load_published()
    told = cells[cells["note"].str.contains("training split")]
    affected = cells["dataset"].isin([*published.LEAKY, "average"])
    assert set(told.index) == set(cells[affected].index) and list(published.LEAKY) == ["dtd", "eurosat", "flowers102"]
    shots = told["note"].str.contains("of its images are the shots")  # which zero-shot CLIP has not seen
    assert (shots == ((told["setting"] != "none") & (told["dataset"] != "average"))).all()
    corrected = told[told["note"].str.contains("others report")].set_index(["dataset", "method", "setting"])["note"]
    assert set(corrected.index) == {("dtd", "real", "R"), ("dtd", "datadream_dset", "R+S")}
    assert "73.9" in corrected["dtd", "real", "R"] and "74.5" in corrected["dtd", "real", "R"]
    assert "74.1" in corrected["dtd", "datadream_dset", "R+S"]


def test_the_table_says_whose_numbers_it_holds(tmp_path):
    write_table(tmp_path, "published", published.published_table())
    for suffix in ("md", "tex"):
        first = (tmp_path / f"published.{suffix}").read_text().splitlines()[0]
        assert "by the authors" in first and "Kim et al., ECCV 2024" in first and "not results of this project" in first
    assert set(pd.read_csv(tmp_path / "published.csv")["source"]) == {published.SOURCE}
    table = to_markdown("published", published.published_table())
    assert "\n| CLIP (zero-shot) |  |  | 70.2 | 96.1 | 46.1<sup>a</sup> | 38.1<sup>a</sup> | 23.8 |" in table
    assert "| 64.9<sup>" in table


def _ours(**changes):
    row = {"dataset": "dtd", "method": "real", "setting": "R", "n_shot": 16, "accuracy_mean": 74.0, "accuracy_std": 1.0}
    return row | changes


def test_ours_beside_theirs():
    ours = pd.DataFrame([_ours(), _ours(method="loft", setting="S"), _ours(dataset="mnist5k"), _ours(n_shot=4)])
    both = published.join_published(ours)
    assert both["method"].tolist() == ["real", "loft"] and both["our_mean"].tolist() == [74.0, 74.0]
    real, loft = both.itertuples()
    assert (real.published_mean, real.published_std) == (78.3, 2.8) and "73.9" in real.note
    assert real.difference == pytest.approx(-4.3)
    assert pd.isna(loft.published_mean) and pd.isna(loft.difference) and loft.note == ""
    assert published.join_published(ours[ours["dataset"] == "mnist5k"]).empty


def test_the_joined_table_in_markdown_and_latex(tmp_path):
    joined = published.join_published(pd.DataFrame([_ours(), _ours(method="loft", setting="S")]))
    real, loft = to_markdown("beside", joined).splitlines()[-2:]
    assert "| Real-finetune | ✓ |  | 74.0 ± 1.0 | 78.3 ± 2.8 | -4.3 | " in real and "73.9" in real
    assert loft.endswith("| LoFT |  | ✓ | 74.0 ± 1.0 | – |  |  |")
    tex = to_latex("beside", joined)
    assert tex.count("toprule") == 1 and r"78.3$_{\pm 2.8}$ & -4.3 \\" in tex and "73.9" not in tex
    paths = write_table(tmp_path, "beside", joined)
    assert [path.suffix[1:] for path in paths] == list(TABLES["beside"].formats)
    assert (tmp_path / "beside.csv").read_text().count("\n") == 3


def test_only_a_row_with_all_ten_data_sets_has_an_average_beside_theirs():
    ours = pd.DataFrame([_ours(dataset=name, accuracy_mean=80.0 + i) for i, name in enumerate(DATASETS[:-1])])
    (average,) = published.join_published(ours).query("dataset == 'average'").itertuples()
    assert (average.our_mean, average.published_mean) == (84.5, 84.62) and average.difference == pytest.approx(-0.12)
    assert not (published.join_published(ours[1:])["dataset"] == "average").any()


def test_the_order_is_that_of_the_printed_averages():
    printed = published.load_published().query("dataset == 'average'").set_index(["method", "setting"])["mean"]
    order = published.published_order()
    assert len(order) == 6 + 10 + 4
    for pair in order.itertuples():
        assert pair.published > 0
        assert pair.published == pytest.approx(printed[pair.higher] - printed[pair.lower], abs=0.1 + 1e-9)
    cells = published.load_published().query("dataset not in ['dtd', 'eurosat', 'flowers102', 'average']")
    sound = cells.groupby(["method", "setting"])["mean"].mean()
    for pair in order.itertuples():
        assert pair.without == pytest.approx(sound[pair.higher] - sound[pair.lower], abs=0.005 + 1e-9)
    turned = order[order["without"] < 0]
    assert turned[["higher", "lower"]].to_numpy().tolist() == [[("real", "R"), ("datadream_dset", "S")]]
    pairs = set(zip(order["higher"], order["lower"], strict=True))
    assert (("datadream_dset", "S"), ("datadream_cls", "S")) in pairs
    assert (("real", "R"), ("datadream_dset", "S")) in pairs
    assert not {("clip_zeroshot", "none")} & {row for pair in pairs for row in pair}


@pytest.mark.parametrize("dataset", DATASETS[:-1])
def test_the_order_of_a_published_data_set_is_that_of_its_own_cells(dataset):
    cells = published.load_published().query("dataset == @dataset").set_index(["method", "setting"])["mean"]
    order = published.published_order(dataset)
    assert set(order["source"]) == {dataset} and order["without"].isna().all() and (order["published"] > 0).all()
    for pair in order.itertuples():
        assert pair.published == pytest.approx(cells[pair.higher] - cells[pair.lower])
    pairs = [(a, b) for a in cells.index for b in cells.index if a < b and {a[1], b[1]} in published.COMPARED]
    ties = sum(cells[a] == cells[b] for a, b in pairs)  # equal cells have no order
    assert len(pairs) == 20 and len(order) == 20 - ties
    assert set(published.published_order("another")["source"]) == {"average"}
