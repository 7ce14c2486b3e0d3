"""Intervals, the table of all runs, the main table and how it is written."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from conftest import finish_stage

from datadream_utils.analysis.results import (
    PREDICTION_COLUMNS,
    compute_all_results,
    compute_main_results,
    count_confusions,
    example_pictures,
    find_class,
    find_target,
    load_predictions,
    load_results,
    load_stages,
    pictures_of_classes,
    select_n_shot,
)
from datadream_utils.analysis.tables import escape_latex, lay_out_results, to_latex, to_markdown, write_table
from datadream_utils.catalogue import TABLES
from datadream_utils.classifier.evaluate import save_results, wilson_interval
from datadream_utils.classifier.train import fit
from datadream_utils.data.dataset import load_dataset
from datadream_utils.errors import InputError
from datadream_utils.methods import METHODS
from datadream_utils.runs.checksums import write_checksums


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
    return table.assign(dataset="mnist_5k", n_shot=16, variant="", n_test=3500, classifier="clip", protocol="sound")


def test_main_results_are_means_and_sample_deviations():
    table = compute_main_results(_runs()).set_index(["method", "setting"])
    assert table.loc[("datadream_cls", "S"), ["accuracy_mean", "accuracy_std", "n_seeds"]].tolist() == [62.0, 2.0, 3]
    assert np.isnan(table.loc[("clip_zeroshot", "none"), "accuracy_std"])
    assert table.index[0] == ("clip_zeroshot", "none") and table.index[-1] == ("datadream_cls", "R+S")


def test_variants_stay_out_of_the_main_table():
    runs = _runs()
    odd = runs.assign(variant="rank1", accuracy=0.0)
    assert compute_main_results(pd.concat([runs, odd])).equals(compute_main_results(runs))


def test_tables_mark_the_best_of_each_block():
    markdown, latex = (
        to_markdown("main_results", compute_main_results(_runs())),
        to_latex("main_results", compute_main_results(_runs())),
    )
    assert "| CLIP (zero-shot) |  |  | 40.0 |" in markdown
    assert "| DataDream_cls |  | ✓ | **62.0 ± 2.0** |" in markdown
    assert "| Real-finetune | ✓ |  | 67.0 ± 2.0 |" in markdown
    assert "| DataDream_cls | ✓ | ✓ | **70.0 ± 2.0** |" in markdown
    assert r"DataDream\_cls &  & \checkmark & \textbf{62.0$_{\pm 2.0}$} \\" in latex
    assert r"mnist\_5k" in latex and latex.count(r"\midrule") == 3 and r"\bottomrule" in latex


def test_csv_has_the_promised_columns(tmp_path):
    paths = write_table(tmp_path, "main_results", compute_main_results(_runs()))
    assert [path.name for path in paths] == [f"main_results.{suffix}" for suffix in ("csv", "md", "tex")]
    columns = ["dataset", "method", "setting", "n_shot", "n_seeds", "accuracy_mean", "accuracy_std", "n_test"]
    assert list(pd.read_csv(tmp_path / "main_results.csv").columns) == columns


def test_other_classifiers_and_protocols_have_tables_of_their_own():
    runs = _runs()
    others = [runs.assign(classifier="resnet", accuracy=99.0), runs.assign(protocol="published", accuracy=98.0)]
    made = compute_all_results(pd.concat([runs, *others]))
    assert list(made) == ["main_results", "resnet_results", "published_protocol"]
    assert made["main_results"].equals(compute_main_results(runs)) and list(compute_all_results(runs)) == [
        "main_results"
    ]
    assert set(made["resnet_results"]["accuracy_mean"]) == {99.0}
    assert set(made["published_protocol"]["accuracy_mean"]) == {98.0}
    only_resnet = compute_all_results(others[0])
    assert only_resnet["main_results"].empty and "| Method |" in to_markdown(
        "main_results", only_resnet["main_results"]
    )


def test_several_data_sets_have_the_papers_order_and_an_average_of_whole_rows():
    runs = _runs()
    more = [runs.assign(dataset=name, accuracy=runs["accuracy"] + 10) for name in ("dtd", "imagenet")]
    more[0] = more[0][more[0]["method"] != "fakeit"]
    table = compute_main_results(pd.concat([runs, *more]))
    layout = lay_out_results(table)
    assert layout.headings[3:] == ["imagenet", "dtd", "mnist_5k", "average"]
    cells = {(row[0], row[2]): row[-1] for row in layout.rows}
    assert cells["Real-finetune", ""].startswith(f"{(67 + 77 + 77) / 3:.1f} ± ")
    assert cells[METHODS["fakeit"].label, "✓"] == "–"
    line = next(line for line in to_markdown("main_results", table).splitlines() if line.startswith("| FakeIt"))
    assert line.endswith("|  | ✓ | 52.0 ± 2.0 | – | 42.0 ± 2.0 | – |")
    seeds = (runs.query("method == 'real'").groupby("seed")["accuracy"].mean() + 20 / 3).std()
    of_real = table.query("dataset == 'average' and method == 'real'")
    assert (
        of_real["accuracy_std"].item() == pytest.approx(seeds) and of_real["n_test"].item() == 3 * runs["n_test"].max()
    )


def test_a_number_is_rounded_once():
    runs = _runs().assign(accuracy=67.5524)  # 67.55, and that 67.5, if it were rounded twice
    markdown = to_markdown("main_results", compute_main_results(runs))
    assert "67.6" in markdown and "67.5" not in markdown


def test_notes_stand_below_the_table_once_each():
    table = compute_main_results(_runs())
    table = table.assign(note=["", "odd 5%", "odd 5%", *[""] * (len(table) - 4), "new"])
    markdown, latex = to_markdown("published", table), to_latex("published", table)
    assert markdown.endswith("<sup>a</sup> odd 5%\n\n<sup>b</sup> new\n")
    assert markdown.count("<sup>a</sup>") == 3 and markdown.count("<sup>b</sup>") == 2
    assert latex.count("$^{a}$") == 3 and r"$^{a}$ odd 5\%" in latex and "<sup>" not in latex


@pytest.mark.parametrize("name", ["main_results", "resnet_results", "published_protocol"])
def test_title_and_caption_of_the_catalogue_stand_above_the_table(name):
    table, entry = compute_main_results(_runs()), TABLES[name]
    markdown, latex = to_markdown(name, table), to_latex(name, table)
    assert markdown.startswith(f"**{entry.title}.** {entry.caption}\n\n| Method")
    assert latex.startswith(rf"\textbf{{{escape_latex(entry.title)}.}} {escape_latex(entry.caption)}\\[1ex]")
    assert to_markdown(name, table, caption=False).startswith("| Method")


def test_a_method_that_is_no_more_is_named():
    with pytest.raises(InputError, match="method 'datadream_clz' is not known. Did you mean 'datadream_cls'"):
        compute_main_results(_runs().replace({"method": {"datadream_cls": "datadream_clz"}}))


def test_a_number_of_shots_without_runs_names_those_there_are():
    assert len(select_n_shot(_runs(), "mnist_5k", 16)) == len(_runs())
    with pytest.raises(InputError, match="no classifier of 'mnist_5k' with n_shot=4 .* Found: mnist_5k with n_shot=16"):
        select_n_shot(_runs(), "mnist_5k", 4)


def test_confusion_counts_by_hand():
    table = pd.DataFrame({"label": [0, 0, 1, 2], "prediction": [0, 1, 1, 0]})
    assert count_confusions(table, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_results_come_back_from_disk(make_run):
    run = make_run("train", method="clip_zeroshot", setting="none")
    output_root = run.params.output_root
    labels = np.repeat(np.arange(10), 10)
    predictions = pd.DataFrame({"label": labels, "prediction": np.where(labels < 8, labels, 0)})
    predictions = predictions.assign(correct=predictions["label"] == predictions["prediction"])
    predictions = predictions.assign(file="test/0.png", probability=0.9)
    with pytest.raises(InputError, match="no finished classifier under"):
        load_results(output_root)
    metrics = save_results(run, None, fit(None, {}, run), predictions)
    assert metrics["accuracy"] == 80.0 and metrics["per_class"]["nine"] == 0.0
    runs, stages = load_results(output_root), load_stages(output_root)
    assert runs["accuracy"].tolist() == [80.0] and runs["folder"].tolist() == [run.folder]
    assert (metrics["classifier"], metrics["protocol"]) == ("clip", "sound")
    assert stages["stage"].tolist() == ["train-none"] and stages["folder"].tolist() == [run.folder]
    ((key, tables),) = load_predictions(runs, "mnist5k", 16).items()
    assert key == ("clip_zeroshot", "none") and list(tables[0].columns) == list(PREDICTION_COLUMNS)
    assert tables[0]["label"].tolist() == labels.tolist() and count_confusions(tables[0], 10)[9, 0] == 10


def _write_metrics(folder, **changes):
    metrics = dict(dataset="d", method="real", setting="R", n_shot=1, seed=0, variant="", accuracy=1.0, n_test=9)
    metrics |= dict(classifier="clip", protocol="sound")
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics | changes))
    finish_stage(folder)


def test_every_classifier_of_a_run_is_a_row(tmp_path):
    _write_metrics(tmp_path / "a" / "train-R")
    _write_metrics(tmp_path / "a" / "train-R-resnet", classifier="resnet")
    runs = load_results(tmp_path).set_index("classifier")
    assert list(runs.index) == ["clip", "resnet"] and set(runs["protocol"]) == {"sound"}


def test_results_that_cannot_be_used_are_named(tmp_path):
    _write_metrics(tmp_path / "a" / "train-R")
    _write_metrics(tmp_path / "copy" / "train-R")
    with pytest.raises(InputError, match="a/train-R and .*copy/train-R hold the same run: move one"):
        load_results(tmp_path)
    (tmp_path / "copy" / "train-R" / "metrics.json").write_text('{"dataset": ')
    with pytest.raises(InputError, match="copy/train-R/metrics.json has vanished or changed since 03_train_clip"):
        load_results(tmp_path)
    finish_stage(tmp_path / "copy" / "train-R")
    with pytest.raises(InputError, match="copy/train-R/metrics.json cannot be read .* run 03_train_clip again"):
        load_results(tmp_path)


def _write_pictures(root, method, seed, variant=""):
    """A finished generate stage: three pictures of each of two classes."""
    folder, names = root / f"{method}{seed}" / "generate", [f"{label}/{i}.png" for label in (0, 1) for i in (0, 1, 2)]
    for name in names:
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(b"a picture")
    lines = [json.dumps({"file_name": name, "label": int(name[0])}) for name in names]
    (folder / "images" / "metadata.jsonl").write_text("\n".join(lines))
    parameters = dict(dataset="d", method=method, n_shot=16, seed=seed, variant=variant)
    finish_stage(folder, stage="generate", parameters=parameters, seconds=1.0, passes_per_image=2)
    return folder


def test_example_pictures_come_from_the_lowest_seed_in_the_tables_order(tmp_path):
    _write_pictures(tmp_path, "loft", 0)
    _write_pictures(tmp_path, "issynth", 2)
    _write_pictures(tmp_path, "disef", 0, "odd")
    folder = _write_pictures(tmp_path, "issynth", 1)
    pictures = example_pictures(load_stages(tmp_path), "d", 16, label=1, count=2)
    assert list(pictures) == ["IsSynth", "LoFT"]
    assert pictures["IsSynth"] == [folder / "images" / "1" / "0.png", folder / "images" / "1" / "1.png"]


def test_pictures_of_all_classes_come_from_one_run(tmp_path):
    _write_pictures(tmp_path, "disef", 0)
    folder = _write_pictures(tmp_path, "fakeit", 0)
    stages = load_stages(tmp_path)
    assert pictures_of_classes(stages, "d", 16, 2, 1)[1] == [
        tmp_path / "disef0" / "generate" / "images" / "1" / "0.png"
    ]
    assert pictures_of_classes(stages[stages["method"] == "fakeit"], "d", 16, 2, 9) == [
        [folder / "images" / str(label) / f"{i}.png" for i in range(3)] for label in range(2)]  # fmt: skip
    assert pictures_of_classes(stages, "other", 16, 2, 1) == [[], []]


def _read_models(*models):
    return pd.DataFrame({"parameters": [{"sd_model": model, "sd_revision": ""} if model else {} for model in models]})


def test_what_the_base_model_predicts_is_read_from_its_files(tmp_path):
    assert find_target(_read_models(None, "models/tiny-stable-diffusion")) == "v"
    (tmp_path / "mine" / "scheduler").mkdir(parents=True)
    (tmp_path / "mine" / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    assert find_target(_read_models(str(tmp_path / "mine"))) == "ε"
    assert find_target(_read_models("nobody/nothing-of-this-name", "/folder/of/another/machine")) == "ε or v"
    assert find_target(_read_models()) == find_target(_read_models(None)) == "ε or v"


def test_pictures_that_cannot_be_listed_are_named(tmp_path):
    folder = _write_pictures(tmp_path, "loft", 0)
    (folder / "images" / "1" / "0.png").write_bytes(b"another picture")
    with pytest.raises(InputError, match="images/1/0.png has vanished or changed since 02_generate made it"):
        example_pictures(load_stages(tmp_path), "d", 16, label=1, count=2)
    (folder / "images" / "metadata.jsonl").write_text("[]")
    finish_stage(folder, **json.loads((folder / "manifest.json").read_text()) | {"checksums": write_checksums(folder)})
    with pytest.raises(InputError, match=r"loft0/generate/images/metadata.jsonl cannot be read .* 02_generate"):
        example_pictures(load_stages(tmp_path), "d", 16, label=1, count=2)


def test_unknown_class_names_the_nearest(mnist):
    assert find_class(mnist, "seven") == 7
    with pytest.raises(InputError, match=r"has no class 'sevn'. Did you mean 'seven'\?"):
        find_class(mnist, "sevn")


def test_no_class_means_the_data_sets_example_or_its_first(folder_dataset):
    data = load_dataset(str(folder_dataset))
    assert find_class(data, "") == 0
    assert find_class(replace(data, example="crème brûlée"), "") == 1
