"""Intervals, tables, figures."""

import numpy as np
import pandas as pd
import pytest

from datadream_utils import plots
from datadream_utils.errors import InputError
from datadream_utils.results import (
    confusion,
    find_class,
    load_results,
    main_results,
    summary,
    to_latex,
    to_markdown,
    wilson_interval,
    write_results,
    write_tables,
)
from datadream_utils.run import stage as run_stage


@pytest.mark.parametrize("k, n", [(0, 10), (7, 10), (350, 3500), (3500, 3500)])
def test_wilson_interval_is_where_the_score_test_turns(k, n):
    for bound in wilson_interval(k, n):
        if 0 < bound < 1:
            assert abs(k / n - bound) / (bound * (1 - bound) / n) ** 0.5 == pytest.approx(1.959964, abs=1e-5)
        else:
            assert bound == k / n


def _runs():
    rows = []
    for seed, accuracy in enumerate([60.0, 62.0, 64.0]):
        rows.append(("datadream_cls", "S", seed, accuracy))
        rows.append(("fakeit", "S", seed, accuracy - 20))
        rows.append(("real", "R", seed, accuracy + 5))
        rows.append(("datadream_cls", "R+S", seed, accuracy + 8))
    rows.append(("clip_zeroshot", "none", 0, 40.0))
    table = pd.DataFrame(rows, columns=["method", "setting", "seed", "accuracy"])
    return table.assign(dataset="mnist_5k", n_shot=16, variant="", n_test=3500)


def test_main_results_are_means_and_sample_deviations():
    table = main_results(_runs()).set_index(["method", "setting"])
    assert table.loc[("datadream_cls", "S"), ["accuracy_mean", "accuracy_std", "n_seeds"]].tolist() == [62.0, 2.0, 3]
    assert np.isnan(table.loc[("clip_zeroshot", "none"), "accuracy_std"])
    assert table.index[0] == ("clip_zeroshot", "none") and table.index[-1] == ("datadream_cls", "R+S")


def test_variants_stay_out_of_the_main_table():
    runs = _runs()
    odd = runs.assign(variant="rank1", accuracy=0.0)
    assert main_results(pd.concat([runs, odd])).equals(main_results(runs))


def test_tables_mark_the_best_of_each_block():
    markdown, latex = to_markdown(main_results(_runs())), to_latex(main_results(_runs()))
    assert "| CLIP (zero-shot) |  |  | 40.0 |" in markdown
    assert "| DataDream_cls |  | ✓ | **62.0 ± 2.0** |" in markdown
    assert "| Real-finetune | ✓ |  | 67.0 ± 2.0 |" in markdown
    assert "| DataDream_cls | ✓ | ✓ | **70.0 ± 2.0** |" in markdown
    assert r"DataDream\_cls &  & \checkmark & \textbf{62.0$_{\pm 2.0}$} \\" in latex
    assert r"mnist\_5k" in latex and latex.count(r"\midrule") == 3 and r"\bottomrule" in latex


def test_csv_has_the_promised_columns(tmp_path):
    write_tables(main_results(_runs()), tmp_path)
    columns = ["dataset", "method", "setting", "n_shot", "n_seeds", "accuracy_mean", "accuracy_std", "n_test"]
    assert list(pd.read_csv(tmp_path / "main_results.csv").columns) == columns


def test_summary_is_made_from_the_numbers():
    text = summary(main_results(_runs()), "mnist_5k")
    assert "**DataDream_cls** is +20.0 points from FakeIt" in text
    assert "**DataDream_cls** is +3.0 points from Real-finetune" in text
    assert summary(main_results(_runs()), "other") == "There is nothing to compare yet."


def test_confusion_counts_by_hand():
    table = pd.DataFrame({"label": [0, 0, 1, 2], "prediction": [0, 1, 1, 0]})
    assert confusion(table, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_results_come_back_from_disk(make_params, mnist):
    p = make_params("train", method="clip_zeroshot", setting="none")
    labels = np.repeat(np.arange(10), 10)
    predictions = pd.DataFrame({"label": labels, "prediction": np.where(labels < 8, labels, 0)})
    predictions = predictions.assign(correct=predictions["label"] == predictions["prediction"])
    stage = run_stage(p, "train-none")
    with pytest.raises(InputError, match="no finished classifier under"):
        load_results(p.output_root)
    stage.begin()
    metrics = write_results(stage, p, mnist, predictions, [])
    stage.finish()
    assert metrics["accuracy"] == 80.0 and metrics["per_class"]["nine"] == 0.0
    assert load_results(p.output_root)["accuracy"].tolist() == [80.0]


def test_unknown_class_names_the_nearest(mnist):
    assert find_class(mnist, "seven") == 7
    with pytest.raises(InputError, match=r"has no class 'sevn'. Did you mean 'seven'\?"):
        find_class(mnist, "sevn")


def test_figures_have_the_same_bytes_every_time(tmp_path):
    table = main_results(_runs())
    for name in ("a", "b"):
        plots.save_figure(plots.accuracy_bars(table, "mnist_5k"), tmp_path, name)
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_grid_has_a_place_for_every_picture():
    red = np.full((4, 4, 3), [1.0, 0, 0])
    figure = plots.show_grid([[red, red], [red, None]], ["a", "b"], title="t")
    assert sum(len(ax.images) for ax in figure.axes) == 3 and figure._repr_png_().startswith(b"\x89PNG")
    assert len(plots.show_grid([]).axes) == 1
