"""Tables: the catalogue's title and caption, headings in words, numbers as printed, csv with the code's names."""

import numpy as np
import pandas as pd
import pytest

from datadream_utils.analysis import ablations, per_class, tables
from datadream_utils.analysis.alignment import MEASURES
from datadream_utils.catalogue import TABLES


def _cells(text, row):
    """The cells of a row of a Markdown table (-1: the last; 0: the headings)."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    del lines[1]
    return [cell.strip() for cell in lines[row].strip("|").split("|")]


def _ablation():
    names = ["setting", "method", "value", "seed", "accuracy", "default", "reference", "adapted"]
    rows = [("S", "loft", value, seed, accuracy + seed * spread, value == 16, value == 16, 24.0)
            for value, accuracy, spread in ((1, 60.0, 2.5), (16, 75.0, 0.5)) for seed in (0, 1, 2)]  # fmt: skip
    return ablations.summarise_ablation(pd.DataFrame(rows, columns=names))


def test_an_ablation_compares_with_its_reference():
    text = tables.to_markdown("ablation_lora_rank", _ablation())
    assert _cells(text, 0)[3:] == ["Rank of the adapters", "Accuracy (%)", "Seeds", "Difference", "95 % over seeds",
                                   "Verdict"]  # fmt: skip
    first, last = _cells(text, 1), _cells(text, 2)
    assert first[:7] == ["LoFT", "", "✓", "1", "62.5 ± 2.5", "3", "-13.0"] and first[-1] == "below"
    low, high = map(float, first[7].split(" to "))
    assert (low + high) / 2 == pytest.approx(-13.0, abs=0.1) and high < 0
    assert last[3:] == ["16", "75.5 ± 0.5", "3", "reference", "", ""]
    shots = tables.to_markdown("ablation_n_shot", _ablation())
    assert _cells(shots, 0)[3:5] == ["Real images per class", "Images adapted on"] and _cells(shots, 1)[3:5] == [
        "1",
        "24",
    ]
    words = _ablation().replace({"value": {1: False, 16: True}})
    assert _cells(tables.to_markdown("ablation_train_text_encoder", words), 1)[3] == "not adapted"


def test_costs_are_printed_in_whole_seconds_and_empty_where_unknown():
    row = dict(method="fakeit", setting="S", accuracy_mean=50.04, seconds=1234.5, peak_memory_mb=np.nan, flops=1.24e12)
    table = pd.DataFrame([row | dict(steps_adapt=0, steps_generate=1000, steps_train=2000)])
    assert _cells(tables.to_markdown("cost", table), 1) == ["FakeIt (S)", "50.0", "1,234", "3,000", "1.2e+12", ""]


def test_other_tables_have_headings_in_words_and_their_csv_the_codes_names(tmp_path):
    measures = {name: 0.12345 for name in MEASURES} | {"n_real": 350.0, "n_synthetic": 12.5, "frechet": np.nan}
    table = pd.DataFrame([{"method": "fakeit", "n_shot": 16} | measures])
    paths = tables.write_table(tmp_path, "measures", table)
    assert [path.name for path in paths] == ["measures.csv", "measures.md"]
    csv, text = (path.read_text(encoding="utf-8") for path in paths)
    assert csv.splitlines()[0].split(",") == list(table.columns)
    cells = dict(zip(_cells(text, 0), _cells(text, 1), strict=True))
    assert cells["Method"] == "FakeIt" and cells["Images compared per class"] == "12.5"
    assert cells["Real images per class"] == "350" and cells["Fréchet distance ↓"] == ""
    assert cells["Coverage (diversity, 0 to 1) ↑"] == "0.123" and not set(MEASURES) & set(cells)
    copies = tables.to_markdown(
        "copies", pd.DataFrame([{"n_real": 9, "feature_copies": 1.0, "pixel_median_real": 0.5}])
    )
    assert _cells(copies, 0)[:2] == ["Held-out real images", "Near copies, features (%)"]


def test_gains_of_classes_have_a_verdict():
    gains = pd.DataFrame({"gain": [5.0, 6.0, 5.5, 1.0, -1.0, 0.0], "label": [0, 0, 0, 1, 1, 1], "seed": [0, 1, 2] * 2})
    gains = gains.assign(
        image_variance=0.25, method="loft", setting="S", class_name=gains["label"].map(str), accuracy=50.0
    )
    judged = per_class.judge_gains(gains)
    assert judged["verdict"].tolist() == ["above", "within noise"] and judged["n_seeds"].tolist() == [3, 3]
    assert judged["gain"].tolist() == [5.5, 0.0]
    text = tables.to_markdown("class_gains", judged)
    assert dict(zip(_cells(text, 0), _cells(text, 1), strict=True))["Verdict"] == "above"
    low = 5.5 - 4.302653 * (0.25 / 3 + 0.25) ** 0.5  # the spread of the seeds, and the noise of the test images
    assert judged["low"][0] == pytest.approx(low)
    alike = per_class.judge_gains(gains.assign(gain=2.0, image_variance=0.25))  # seeds that agree prove nothing
    assert set(alike["verdict"]) == {"within noise"}
    one = per_class.judge_gains(gains[gains["seed"] == 0])
    assert set(one["verdict"]) == {"one seed"} and one["low"].isna().all()
    assert per_class.judge_gains(gains[:0]).empty


def test_a_name_cannot_break_a_cell():
    assert tables.escape_markdown("a|b\n<i> $x$ _c_ d_e") == (
        "a&#124;b &#60;i&#62; <span>$</span>x<span>$</span> &#95;c&#95; d_e"
    )
    assert tables.escape_latex("5% of a_b & {c} \\ ~^") == r"5\% of a\_b \& \{c\} \textbackslash{} \~{}\^{}"
    hostile = pd.DataFrame([{"class_name": "<b>|", "gain": 1.0}])
    assert _cells(tables.to_markdown("class_gains", hostile), 1) == ["&#60;b&#62;&#124;", "1"]


@pytest.mark.parametrize("name", [name for name in TABLES if not name.startswith("gallery")])
def test_every_table_of_the_catalogue_has_title_and_caption_when_it_is_empty(name):
    columns = ["dataset", "method", "setting", "accuracy_mean", "accuracy_std", "note", "n_shot", "per_dataset"]
    columns += ["baseline"]
    text = tables.to_markdown(name, pd.DataFrame(columns=columns))
    assert text.startswith(f"**{TABLES[name].title}.** {TABLES[name].caption}\n\n|")
