"""Runs that differ in one thing, what they cost, and the figures: the numbers that are drawn, not the pixels."""

import html
import json
import re
from itertools import combinations, pairwise
from types import SimpleNamespace

import matplotlib.colors
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.text import Text
from PIL import Image

from datadream_utils.analysis import ablations, compare, cost, stages
from datadream_utils.analysis import alignment as fidelity
from datadream_utils.analysis import copies as memorisation
from datadream_utils.analysis import per_class as classwise
from datadream_utils.analysis import tables as headings
from datadream_utils.analysis.alignment import MEASURES, REAL
from datadream_utils.errors import InputError
from datadream_utils.files import markdown
from datadream_utils.methods import METHODS
from datadream_utils.plots import ablations as ablation_figures
from datadream_utils.plots import copies as copy_figures
from datadream_utils.plots import diagram
from datadream_utils.plots import per_class as class_figures
from datadream_utils.plots import pictures as picture_figures
from datadream_utils.plots import results as figures
from datadream_utils.plots import style as plots

SAME = {"dataset": "/data/mine", "method": "datadream_cls", "n_shot": 4, "seed": 0, "variant": ""}


def _write(root, run, stage, seconds=1.0, facts=None, **parameters):
    folder = root / run / stage
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {"stage": stage, "parameters": SAME | parameters, "seconds": seconds} | (facts or {})
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def _study(root):
    """Plain runs of two seeds; rank moved alone (seed 0 and 1), with epochs (seed 0), and in a run without a base."""
    rows = []
    for run, seed, variant, changed in (
        ("a0", 0, "", {}),
        ("a1", 1, "", {}),
        ("r0", 0, "lora-rank=2", {"lora_rank": 2, "lora_alpha": 2.0}),  # alpha follows the rank
        ("r1", 1, "lora-rank=2", {"lora_rank": 2, "lora_alpha": 2.0}),
        ("x0", 0, "both", {"lora_rank": 8, "adapt_epochs": 9}),
        ("y7", 7, "lora-rank=4", {"lora_rank": 4}),
    ):
        names = {"seed": seed, "variant": variant}
        values = {"lora_rank": 16, "lora_alpha": 16.0, "adapt_epochs": 3} | changed
        _write(root, run, "adapt", facts={"shots": list("abcdefgh")}, **names, **values)
        folder = _write(root, run, "train-S", setting="S", real_weight=0.8, **names)
        rows.append(dict(dataset="mine", method="datadream_cls", setting="S", n_shot=4, classifier="clip",
                         protocol="sound", folder=folder, accuracy=50.0 + len(rows), **names))  # fmt: skip
    return pd.DataFrame(rows)


def test_a_variant_is_known_by_what_it_changes(tmp_path):
    runs, found = _study(tmp_path), stages.load_stages(tmp_path)
    assert set(found["dataset"]) == {"mine"} and len(found) == 12
    assert {run: change for run, (change, _) in stages.changes(found).items()} == {
        "r0": {"lora_rank": 2}, "r1": {"lora_rank": 2}, "x0": {"lora_rank": 8, "adapt_epochs": 9}}  # fmt: skip
    table = ablations.ablation(runs, found, "mine", 4, "lora_rank")
    assert table[["value", "seed", "accuracy"]].to_numpy().tolist() == [
        [16, 0, 50],
        [16, 1, 51],
        [2, 0, 52],
        [2, 1, 53],
    ]
    summary = ablations.summary(table).set_index("value")
    assert summary.loc[2, ["n_seeds", "accuracy_mean", "accuracy_std"]].tolist() == pytest.approx([2, 52.5, 0.5**0.5])
    (tmp_path / "r0" / "generate").symlink_to("../a0/adapt")  # shared with another run: still the other's
    assert len(stages.load_stages(tmp_path)) == 12
    texts = ablations.texts(ablations.summary(table), "lora_rank")
    assert "| DataDream_cls |  | ✓ | 2 | 52.5 ± 0.7 | 2 |" in texts["md"] and texts["csv"].count("\n") == 3
    assert ablations.ablation(runs, found, "mine", 4, "guidance_scale").empty
    assert ablations.adapted_steps(found, "x0") == 8 * 9 and ablations.adapted_steps(found, "nothing") == 0


def test_all_generated_images_are_a_number_too(tmp_path):
    rows = []
    for run, variant, of_train in (("a", "", 0), ("b", "few", 12)):
        _write(tmp_path, run, "generate", variant=variant, images_per_class=50)
        folder = _write(tmp_path, run, "train-R+S", setting="R+S", variant=variant, images_per_class=50,
                        synthetic_per_class=of_train)  # fmt: skip
        rows.append(SAME | dict(dataset="mine", setting="R+S", classifier="clip", protocol="sound", folder=folder,
                                variant=variant, accuracy=60.0 + len(rows)))  # fmt: skip
    table = ablations.ablation(pd.DataFrame(rows), stages.load_stages(tmp_path), "mine", 4, "synthetic_per_class")
    assert table.set_index("value")["accuracy"].to_dict() == {50: 60.0, 12: 61.0}
    folder = _write(tmp_path, "c", "train-R", method="real", setting="R", images_per_class=50, synthetic_per_class=0)
    real = rows[0] | dict(method="real", setting="R", folder=folder, accuracy=58.0)
    loft = rows[0] | dict(method="loft", folder=_write(tmp_path, "d", "train-R+S", method="loft", setting="R+S",
                                                       images_per_class=50, synthetic_per_class=0))  # fmt: skip
    runs, found = pd.DataFrame([*rows, real, loft]), stages.load_stages(tmp_path)
    table = ablations.ablation(
        runs, found, "mine", 4, "synthetic_per_class"
    )  # LoFT has one value: 0 and all say nothing
    assert table.set_index("value")["accuracy"].to_dict() == {50: 60.0, 12: 61.0, 0: 58.0}
    assert set(table["method"]) == {"datadream_cls"} and table.set_index("value")["default"].to_dict()[0] is False


def test_only_seeds_with_every_value_are_averaged(tmp_path):
    runs = _study(tmp_path)
    runs = runs[~((runs["variant"] == "lora-rank=2") & (runs["seed"] == 1))]
    table = ablations.ablation(runs, stages.load_stages(tmp_path), "mine", 4, "lora_rank")
    assert set(table["seed"]) == {0} and len(table) == 2


def test_shots_are_compared_between_plain_runs(tmp_path):
    runs = _study(tmp_path)
    few = runs[runs["variant"] == ""].assign(n_shot=1, accuracy=30.0)
    runs = pd.concat([runs, few], ignore_index=True)
    table = ablations.ablation(runs, stages.load_stages(tmp_path), "mine", 4, "n_shot")
    assert sorted(set(table["value"])) == [1, 4] and len(table) == 4
    assert set(table["adapted"]) == {8 * 3}  # eight shots, three epochs, whatever the row of runs says
    summary = ablations.summary(table)
    assert "| 4 | 24 |" in ablations.texts(summary, "n_shot")["md"]
    assert summary.set_index("value")["default"].to_dict() == {1: False, 4: True}
    none = ablations.summary(ablations.ablation(runs, stages.load_stages(tmp_path), "mine", 4, "guidance_scale"))
    costs = ablations.compute({"n_shot": summary, "guidance_scale": summary, "adapt_epochs": none})
    assert set(costs["moved"]) == {"n_shot"} and len(costs) == 2
    figure = ablation_figures.compute(costs)
    assert "DataDream_cls, real images per class: " in figure.sentence and "on 24 images adapted on" in figure.sentence
    assert ablation_figures.compute(ablations.compute({"n_shot": none})).empty


def test_images_of_another_split_are_not_measured(tmp_path):
    _write(tmp_path, "run", "generate", split_file="elsewhere/coop.json")
    found = stages.load_stages(tmp_path)
    assert len(stages.measured(found, "mine", "/here/coop.json")) == 1
    with pytest.raises(
        InputError, match="was made with split_file='elsewhere/coop.json', not '': set split_file to that"
    ):
        stages.measured(found, "mine")


def test_a_broken_manifest_is_named(tmp_path):
    folder = _write(tmp_path, "run", "adapt")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(InputError, match="manifest.json cannot be read.*run its notebook again"):
        stages.load_stages(tmp_path)


def test_operations_are_twice_the_multiplications():
    layer, x = torch.nn.Linear(30, 40, bias=False), torch.zeros(7, 30)
    assert cost.count_flops(lambda: layer(x)) == 2 * 7 * 30 * 40
    q = torch.zeros(2, 3, 5, 8)  # attention: q k and its product with v
    attend = torch.nn.functional.scaled_dot_product_attention
    assert cost.count_flops(lambda: attend(q, q, q)) == 2 * 2 * (2 * 3 * 5 * 5 * 8)


def test_counting_changes_no_model(pipe, clip):
    before = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    one = cost.sd_flops(pipe, 32)
    small, large = (cost.adapt_flops(pipe, rank, True, 32) for rank in (2, 16))
    assert one["denoise"] < small < large < 4 * one["denoise"]  # there and back, without gradients of frozen weights
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys() and all((after[name] == before[name]).all() for name in before)
    model, tokenizer, _ = clip
    keys = list(model.state_dict())
    found = cost.clip_flops(model, tokenizer, SimpleNamespace(class_names=("zero", "one"), domain=""), 4)
    assert list(model.state_dict()) == keys and found["texts"] > 0
    pixels = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        forward = cost.count_flops(lambda: model.get_image_features(pixel_values=pixels))
    assert 1.5 * forward < found["image"] < 3.5 * forward


def test_image_steps_by_hand(tmp_path):
    adapted = _write(tmp_path, "run", "adapt", facts={"shots": ["x"] * 8}, adapt_epochs=5).parent
    sampling = {"num_inference_steps": 20, "start_step": 5, "guidance_scale": 2.0}
    images = _write(tmp_path, "run", "generate", **sampling) / "images"
    images.mkdir()
    (images / "metadata.jsonl").write_text('{"tries": 3}\n{}\n')
    training = {"train_epochs": 4, "images_per_class": 10, "train_batch_size": 7, "setting": "R+S"}
    folder = _write(tmp_path, "run", "train-R+S", seconds=3.0, **training)
    found = stages.load_stages(tmp_path).set_index("stage", drop=False)
    assert cost.image_steps(found.loc["adapt"], 2) == 40
    assert cost.image_steps(found.loc["generate"], 2) == (3 + 1) * 20 * 2
    assert cost.image_steps(found.loc["train-R+S"], 2) == 4 * 10 * 2 * 2
    assert cost.unet_passes(sampling, METHODS["issynth"]) == 30
    assert cost.unet_passes(sampling | {"guidance_scale": 1.0}, METHODS["fakeit"]) == 20
    run = dict(method="datadream_cls", setting="R+S", n_shot=4, seed=0, variant="", classifier="clip", accuracy=70.0)
    lora = {"lora_rank": 16, "train_text_encoder": True}
    rows = stages.load_stages(tmp_path)
    rows["parameters"] = [p | lora for p in rows["parameters"]]
    flops = {"adapt": {(16, True): 1e6}, "denoise": 1e3, "decode": 10, "image": 1e4, "texts": 1}
    table = cost.costs(pd.DataFrame([run | {"folder": folder}]), rows, 2, flops)
    assert table["flops"][0] == 40e6 + 160e3 + 4 * 10 + 160e4 + 4 * 3 and table["seconds"][0] == 5.0
    assert adapted.name == "run" and np.isnan(table["peak_memory_mb"][0])


def _costs():
    rows = [
        ("real", "R", 10.0, 70.0),
        ("fakeit", "S", 20.0, 40.0),
        ("fakeit", "R+S", 30.0, 72.0),
        ("loft", "S", 30.0, 71.0),
    ]
    table = pd.DataFrame(rows, columns=["method", "setting", "seconds", "accuracy_mean"])
    return table.assign(accuracy_std=1.0, flops=np.nan)


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"seconds": rng.integers(1, 9, 40), "accuracy_mean": rng.integers(1, 9, 40)})
    beaten = [
        any((o.seconds <= r.seconds and o.accuracy_mean > r.accuracy_mean)
            or (o.seconds < r.seconds and o.accuracy_mean >= r.accuracy_mean) for o in table.itertuples())
        for r in table.itertuples()
    ]  # fmt: skip
    expected = set(map(tuple, table[~np.array(beaten)].to_numpy().tolist()))
    assert set(map(tuple, cost.front(table).to_numpy().tolist())) == expected
    assert list(cost.front(_costs())["method"]) == ["real", "fakeit"]
    assert "Real-finetune (R), FakeIt (R+S)." in figures.pareto(_costs()).sentence
    assert "No run has" in figures.pareto(_costs(), "flops").sentence


def _summary(rows):
    """``ablations.summary`` of (setting, method, value, accuracies of seeds 0, 1, ...; default, reference)."""
    names = ("setting", "method", "value", "default", "reference", "seed", "accuracy")
    named = [(*row[:3], *row[4:], seed, accuracy) for row in rows for seed, accuracy in enumerate(row[3])]
    return ablations.summary(pd.DataFrame(named, columns=names).assign(adapted=0.0))


def _ablation():
    rows = [("S", "fakeit", 1, [37.5, 40, 42.5]), ("S", "fakeit", 16, [46.5, 44, 41.5]),
            ("R+S", "loft", 1, [62.5, 60, 57.5]), ("R+S", "loft", 16, [72.5, 75, 77.5])]  # fmt: skip
    return _summary([(*row, row[2] == 16, row[2] == 16) for row in rows])


def test_ablation_draws_the_table():
    figure = ablation_figures.ablation(_ablation(), "n_shot", baseline=77.0)
    left, right = figure.axes
    assert list(left.lines[0].get_ydata()) == [40, 44] and list(right.lines[0].get_ydata()) == [60, 75]
    whisker = right.collections[0].get_segments()[0]
    assert whisker[:, 1].tolist() == [57.5, 62.5]
    assert any(list(line.get_ydata()) == [77, 77] for line in right.lines)
    assert figure.sentence == (  # 4.303 * 5 / 3**0.5 = 12.4
        "Real images per class, against 16 (default): FakeIt (S) -4.0 points (-16.4 to +8.4 over seeds: within noise) "
        "at 1; LoFT (R+S) -15.0 points (-27.4 to -2.6 over seeds: more than noise) at 1."
    )
    md = ablations.texts(_ablation(), "lora_rank")["md"]
    assert "| 1 | 60.0 ± 2.5 | 3 | -15.0 | -27.4 to -2.6 | more than noise |" in md
    assert "| 16 | 75.0 ± 2.5 | 3 | reference |  |  |" in md
    assert (
        "No runs differ in lora_rank alone: snakemake"
        in ablation_figures.ablation(_ablation().iloc[:0], "lora_rank").sentence
    )


def test_many_values_are_counted_and_one_seed_decides_nothing():
    rows = [("S", m, v, [60 + d, 62 + d, 65 + d], v == 16, v == 16)
            for m, d in (("loft", 0), ("fakeit", 1)) for v in (1, 2, 4, 16)]  # fmt: skip
    rows[0] = (*rows[0][:3], [50, 51, 56], False, False)
    sentence = ablation_figures.ablation(_summary(rows), "n_shot").sentence
    assert sentence == (
        "Real images per class, against 16 (default), 1 of 6 differences of the same seeds are more than noise (about "
        "0.3 by chance): LoFT (S) 1 lower of 3."
    )
    one = _summary([(*row[:3], row[3][:1], *row[4:]) for row in rows])
    assert (
        "of 6 differences none can be told from noise with one seed" in ablation_figures.ablation(one, "rank").sentence
    )
    few = ablation_figures.ablation(one[one["method"] == "loft"].iloc[[0, -1]], "n_shot").sentence
    assert few == "Real images per class, against 16 (default): LoFT (S) -10.0 points (one seed: noise not known) at 1."
    none = _summary([(*row[:4], False, False) for row in rows])
    assert (
        "default value of real images per class has not been run" in ablation_figures.ablation(none, "n_shot").sentence
    )


def test_yes_and_no_are_words():
    rows = [("S", "loft", False, [60, 61, 62], False, False), ("S", "loft", True, [63, 64, 68], True, True)]
    figure = ablation_figures.ablation(_summary(rows), "train_text_encoder")
    (ax,) = figure.axes
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["not adapted", "adapted\n(default)"]
    assert figure.sentence.startswith("Text encoder, against adapted (default): LoFT (S) -4.0 points (")
    assert figure.sentence.endswith(") at not adapted.")
    assert "| not adapted | 61.0 ± 1.0 |" in ablations.texts(_summary(rows), "train_text_encoder")["md"]


def test_images_added_are_drawn_against_real_finetune_of_the_same_seed():
    rows = [("R+S", "issynth", 0, [70, 80, 75], False, True), ("R+S", "issynth", 12, [71, 82, 78], False, False),
            ("R+S", "issynth", 50, [72, 82, 74], True, False), ("S", "issynth", 12, [60, 60, 60], False, False),
            ("S", "issynth", 50, [64, 64, 64.3], True, True)]  # fmt: skip
    figure = ablation_figures.ablation(_summary(rows), "synthetic_per_class", 75.0)
    left, right = figure.axes
    assert [tick.get_text() for tick in left.get_xticklabels()] == ["24", "100\n(default)"]
    assert [tick.get_text() for tick in right.get_xticklabels()] == ["0", "24", "100\n(default)"]
    drawn = [list(line.get_ydata()) for line in right.lines]
    assert drawn == [[1, 2, 3], [2, 2, -1], [0, 2, 1], [0, 0]]
    assert right.lines[2].get_xdata()[0] == 0 and not right.collections  # no whiskers
    assert "against 0 (Real-finetune): IsSynth (R+S) +2.0 points (-0.5 to +4.5 over seeds: within noise) at 12" in (
        figure.sentence
    )
    assert "against 50 (default): IsSynth (S) -4.1 points (" in figure.sentence
    assert figure.sentence.endswith("on real images alone (weight 1), half the image-steps.")


def test_shots_and_epochs_are_compared_where_they_cost_the_same():
    shots = _summary([("S", "loft", 4, [60, 61, 62], False, False), ("S", "loft", 16, [70, 70, 70], True, True)])
    epochs = _summary([("S", "loft", 15, [65, 66, 64], False, False), ("S", "loft", 60, [70, 70, 70], True, True)])
    costs = ablations.compute({
        "n_shot": shots.assign(adapted=[2400.0, 9600.0]), "adapt_epochs": epochs.assign(adapted=[2400.0, 9600.0])
    })  # fmt: skip
    sentence = ablation_figures.compute(costs).sentence
    assert "LoFT, real images per class: 61.0 % on 2,400 images adapted on, 70.0 % on 9,600: +9.0 points (+6.5 to" in (
        sentence
    )
    assert sentence.endswith(
        " With as many images adapted on (2,400), LoFT has 65.0 % with 16 shots for 15 epochs, 61.0 % with 4 for 60: "
        "+4.0 points (-0.3 to +8.3 over seeds: within noise)."
    )


def _gains():
    rows = [("fakeit", 0, "zero", -4.0), ("fakeit", 1, "one", 2.0), ("loft", 0, "zero", 1.0), ("loft", 1, "one", 9.0)]
    table = pd.DataFrame(rows, columns=["method", "label", "class_name", "gain"])
    return table.assign(setting="R+S", seed=0, accuracy=50.0)


def _every_figure(folder):
    paths = [folder / f"{i}.png" for i in range(16)]
    for i, path in enumerate(paths):
        Image.new("RGB", (20, 20), (i * 15, 0, 0)).save(path)
    near = pd.DataFrame({"path": paths[:4], "feature": [0.1, 0.2, 0.3, 0.4], "feature_shot": paths[4:8]})
    aligned = pd.DataFrame(
        [{"method": m, "seed": 0, "label": 0} | dict.fromkeys(MEASURES, 0.5) for m in ("loft", REAL)]
    )
    points = _gains().assign(distance=[1.0, 2.0, 3.0, 4.0])
    found = {"rho": 0.5, "low": -0.1, "high": 0.9, "n_points": 4, "n_classes": 2, "verdict": "not decided"}
    found |= {"n_methods": 6, "p_holm": np.nan}
    found = {
        "pooled": found,
        "within": found | {"rho": -0.5, "verdict": "below 0"},
        "adapted": found | {"rho": np.nan, "verdict": ""},
        "classes": found | {"low": 0.001, "verdict": "at 0"},
        "between": found | {"rho": -0.8, "p_holm": 0.1},
    }
    bins = pd.DataFrame(
        {"method": "real", "setting": "R", "certainty": [50.0, 90.0], "accuracy": [60.0, 80.0], "n": 20}
    )
    copies = pd.DataFrame({"method": "loft", "n_shot": [1, 16], "seed": 0, "feature_copies": [30.0, 2.0]})
    copies = copies.assign(feature_nearer=[90.0, 55.0], pixel_nearer=[80.0, 50.0], pixel_copies=[0.5, 0.0])
    drawn = {("issynth", 16): paths[:4], ("datadream_cls", 1): paths[:4]}
    return {
        "ablation": lambda: ablation_figures.ablation(_ablation(), "n_shot", 77.0),
        "scatter": lambda: figures.alignment_scatter(points, found, "R+S"),
        "fidelity": lambda: figures.fidelity_diversity(aligned),
        "nearest": lambda: copy_figures.nearest_shots({"loft": near}, near.assign(feature=near["feature"] + 0.15)),
        "copies": lambda: copy_figures.copies_by_shots(copies),
        "pareto": lambda: figures.pareto(_costs()),
        "gains": lambda: class_figures.class_gains(_gains(), "R+S"),
        "confusion": lambda: class_figures.confusion_change(np.array([[2.0, -2], [-5, 5]]), ["a", "b"], "loft", "S"),
        "reliability": lambda: class_figures.reliability(bins, bins.assign(error=7.0)),
        "qualitative": lambda: picture_figures.qualitative(paths, drawn, "cost $5 or $6", "mine"),
        "worst": lambda: picture_figures.worst_copies({("loft", 16, 2): memorisation.worst(near, 3)}),
        "diagram": lambda: diagram.method_diagram(["zero", "one $2$"], [paths[:3], paths[3:6]]),
    }


@pytest.fixture(scope="module")
def every_figure(tmp_path_factory):
    makers = _every_figure(tmp_path_factory.mktemp("pictures"))
    return {name: make() for name, make in makers.items()}


def test_figures_say_what_the_data_say(every_figure):
    says = {name: figure.sentence for name, figure in every_figure.items()}
    assert says["scatter"] == (
        "4 points of 2 classes, real and synthetic. Nearer images bring more: methods, within classes -0.50 (-0.10 to "
        "+0.90). The interval ends at 0, within the error of resampling: classes, within methods +0.50 (+0.00 to "
        "+0.90). No relation shows: all points +0.50 (-0.10 to +0.90); between methods' means -0.80 (p = 0.100 by "
        "Holm, permuting 6 methods). Rank correlations of Fréchet distance and gain, with 95 % intervals that "
        "resample classes."
    )
    title = every_figure["scatter"].axes[0].get_title()  # the number of what is seen is called by its name
    assert "all points +0.50 [-0.10, +0.90]\nclasses, within methods +0.50 [+0.00, +0.90]" in title
    assert says["fidelity"] == (
        "Precision, recall, density and coverage: LoFT 0.50, 0.50, 0.50, 0.50; other real images 0.50, 0.50, 0.50, "
        "0.50."
    )
    assert "99 % of the held-out real images: 50.0 % of LoFT." in says["nearest"]  # 0.1 and 0.2 are below 0.253
    assert (
        "DataDream_cls with 1 shot was not run. Near copies: by features most of LoFT with 1 shot (30.0 %); by "
        in (says["copies"])
    )
    assert "by pixels none stands out, at most 0.5 %." in says["copies"]
    assert says["gains"].startswith("3 of 4 cells (a class with a method) gain over Real-finetune, with one seed:")
    assert says["confusion"] == "With LoFT (S), b is taken for a less often (-5.0 points)."
    more = class_figures.confusion_change(np.array([[-3.0, 3], [0, 0]]), ["a", "b"], "loft", "S").sentence
    assert more == "With LoFT (S), a is taken for b more often (+3.0 points)."
    same = class_figures.confusion_change(np.zeros((2, 2)), ["a", "b"], "loft", "S").sentence
    assert same == "With LoFT (S), no class is taken for another more or less often."
    assert (
        "DISEF (16), DataDream_dset (1), DataDream_cls (4)" in says["qualitative"]
        and "IsSynth" not in says["qualitative"]
    )
    assert says["worst"] == (
        "LoFT, 16-shot, seed 2: the 3 closest pairs of a drawn picture and a shot, by features: distances from 0.100 "
        "to 0.300."
    )
    for name, figure in every_figure.items():
        assert figure.alt.endswith(figure.sentence) and len(figure.alt) > len(figure.sentence), name


def test_figures_are_read_in_print_and_in_the_dark(every_figure):
    for name, figure in every_figure.items():
        assert figure.get_figwidth() <= figures.BOTH + 0.01, name
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= figures.SMALL, name
        assert figure.get_facecolor() == (1, 1, 1, 1), name


def test_words_of_figures_lie_within_them(every_figure):
    for name in ("scatter", "nearest", "pareto", "reliability", "ablation", "fidelity", "copies", "gains", "confusion"):
        figure = every_figure[name]
        figure.draw_without_rendering()
        words = [text for ax in figure.axes for text in (ax.xaxis.label, ax.yaxis.label, ax.title)]
        for text in (*words, *figure.legends):
            box, empty = text.get_window_extent(), getattr(text, "get_text", lambda: "legend")() == ""
            inside = box.x0 >= 0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0 and box.y1 <= figure.bbox.y1
            assert inside or empty, (name, text)


def test_the_same_figures_have_the_same_bytes_and_carry_their_words(tmp_path):
    (tmp_path / "pictures").mkdir()
    for which in ("first", "second"):
        makers = _every_figure(tmp_path / "pictures")
        for name, make in makers.items():
            figure = make()
            picture = Image.open(plots.save_figure(figure, tmp_path / which, name))
            assert picture.info["Description"] == figure.alt
            assert picture.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
    for first in (tmp_path / "first").iterdir():
        assert first.read_bytes() == (tmp_path / "second" / first.name).read_bytes(), first.name


def test_methods_are_told_apart_without_colour():
    markers = [figures.MARKERS[name] for name in METHODS] + [figures.MARKERS[REAL]]
    assert len(set(markers)) == len(markers)


def test_frames_of_the_shots_are_nested_and_mark_their_rows(every_figure):
    (ax,) = every_figure["qualitative"].axes
    boxes = [patch.get_window_extent() for patch in ax.patches]
    assert len(boxes) == 4
    for inner, outer in pairwise(boxes):
        assert outer.x0 < inner.x0 and outer.y1 > inner.y1 and outer.x1 > inner.x1 and outer.y0 < inner.y0
    edges = {text.get_text(): text.get_bbox_patch().get_edgecolor() for text in ax.texts if text.get_bbox_patch()}
    assert set(edges) == {"1-shot", "16-shot"}  # rows of which something was drawn
    for n, (colour, _) in ((n, picture_figures.FRAMES[n]) for n in (1, 16)):
        assert edges[f"{n}-shot"] == matplotlib.colors.to_rgba(colour)
    assert len(ax.images) == 16 + 4 + 4 and sum(text.get_text() == "not run" for text in ax.texts) == 4 + 4
    few = picture_figures.qualitative(["x"] * 0, {}, "a", "b")
    assert "no few shots" in few.sentence


def test_a_picture_of_the_diagram_is_frozen_or_trained(every_figure):
    (ax,) = every_figure["diagram"].axes
    trained = [patch for patch in ax.patches if patch.get_hatch()]
    words = [text.get_text() for text in ax.texts]
    assert sum("loss $L_D$" in text for text in words) == 1 and sum("shots $x$" in text for text in words) == 1
    assert words.count("LoRA") == 4 and words.count("adapter\nall classes") == 1
    assert len(trained) == 4 + 1 + 3  # LoRA, the key, one adapter for all and one for each of two
    assert {matplotlib.colors.to_hex(patch.get_facecolor()).upper() for patch in trained} == {diagram.TRAINED}


def test_drawn_pictures_are_those_of_the_runs(tmp_path):
    for seed in (0, 1):
        images = _write(tmp_path, f"run{seed}", "generate", seed=seed) / "images"
        images.mkdir()
        rows = [{"file_name": f"{i}.png", "label": i % 2} for i in range(8)]
        (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = picture_figures.drawn_pictures(stages.load_stages(tmp_path), "mine", ["datadream_cls"], [4, 16], 1, 1, 3)
    assert found == {("datadream_cls", 4): [tmp_path / "run1/generate/images" / f"{i}.png" for i in (1, 3, 5)]}


def test_seconds_of_a_cpu_are_the_processors(tmp_path):
    took = {"seconds": 90.0, "processor_seconds": 60.0}
    _write(tmp_path, "a", "adapt", 90.0, took | {"device": "cpu (a processor)"})
    _write(tmp_path, "b", "adapt", 90.0, took | {"device": "NVIDIA H100"})
    _write(tmp_path, "c", "adapt", 90.0, {"device": "cpu (before they were noted)"})
    found = stages.load_stages(tmp_path).set_index("run")["seconds"]
    assert found.to_dict() == {"a": 60.0, "b": 90.0, "c": 90.0}


def test_the_gallery_shows_every_figure_with_its_words(every_figure):
    text = plots.gallery(every_figure)
    pictures = re.findall(r'<img src="(.+?)\.png" alt="(.+?)">\n\n(.+)', text)
    assert [name for name, *_ in pictures] == list(every_figure)
    assert "\n## nearest\n" in text and "\n## The pairs\n" in plots.gallery(every_figure, {"worst": "The pairs"})
    for name, alt, sentence in pictures:
        assert html.unescape(alt) == every_figure[name].alt and sentence == markdown(every_figure[name].sentence)


def test_tables_say_what_they_hold():
    aligned = pd.DataFrame([{"method": m, "n_shot": 4, "label": 0, "class_name": "zero"} for m in ("loft", REAL)])
    aligned = aligned.assign(**dict.fromkeys(MEASURES, 0.12345), seed=0, n_real=20, n_synthetic=8)
    both = headings.texts("measures", fidelity.means(aligned))
    assert both["csv"].startswith("method,n_shot,seed,n_real,n_synthetic,frechet,") and ",0.12345," in both["csv"]
    sentence, _, head, _, first, *_ = both["md"].splitlines()
    assert "lower is nearer to real" in sentence and "| Gaussian MMD × 1000 ↓ |" in head
    assert first.startswith("| LoFT | 4 | 0 | 20 | 8 | 0.123 |")
    gains = pd.DataFrame([dict(method="loft", setting="R+S", seed=0, label=0, class_name="zero", gain=3.0)])
    points = fidelity.by_class(aligned, gains).set_index("method")
    assert points.loc["loft", "gain_R+S"] == 3 and points.loc["loft", "frechet"] == 0.12345
    assert points["gain_S"].isna().all() and np.isnan(points.loc[REAL, "gain_R+S"])
    md = headings.texts("alignment_by_class", points.reset_index())["md"]
    assert "| Gain of R+S over Real-finetune (points) ↑ |" in md and md.count("\n") == 2 + 2 + 2


def test_copies_are_told_with_their_ties_and_within_their_limits():
    table = pd.DataFrame({"method": ["datadream_cls", "loft", "fakeit"] * 2, "n_shot": 1, "seed": [0, 0, 0, 1, 1, 1]})
    table = table.assign(feature_nearer=[98.0, 60, 40, 100, 60, 60], pixel_nearer=75.0, pixel_copies=0.2)
    table = table.assign(feature_copies=[0.0, 1, 0, 8, 7, 0])
    figure = copy_figures.copies_by_shots(table)
    assert figure.sentence.startswith(  # of the same seeds 58 and 40 points more: 49 ± 12.706 * 9
        "DataDream_cls with 1 shot: by features 4.0 % near copies, 99.0 % nearer to a shot than to as many held-out "
        "images; against FakeIt's, which sees no shot, +49.0 points (-65.4 to +163.4 over seeds: within noise): not "
        "decided; by pixels 0.2 % near copies, 75.0 % nearer to a shot than to as many held-out images; against "
        "FakeIt's, which sees no shot, +0.0 points (+0.0 to +0.0 over seeds: within noise): not decided. Near copies: "
        "by features most of "
        "DataDream_cls with 1 shot and LoFT with 1 shot (4.0 %); by pixels none stands out, at most 0.2 %. 1 % would"
    )
    assert [ax.get_xlabel() for ax in figure.axes] == [""] * 2 + ["real images per class"] * 2
    for ax in figure.axes:
        ends = np.concatenate([segment for bars in ax.collections for segment in bars.get_segments()])[:, 1]
        assert ends.min() >= 0 and ends.max() <= 100
    none = copy_figures.copies_by_shots(table.assign(feature_nearer=np.nan, feature_copies=0.2)).sentence
    assert "a class has fewer held-out images than shots" in none and "none stands out, at most 0.2 %" in none


def test_the_claim_of_one_shot_has_a_verdict_in_each_space():
    table = pd.DataFrame({"method": ["datadream_cls"] * 6 + ["fakeit"] * 6, "n_shot": ([1] * 3 + [16] * 3) * 2})
    table = table.assign(
        seed=[0, 1, 2] * 4, feature_nearer=[99, 98, 97] + [50] * 9, pixel_nearer=[80, 75, 79] + [40] * 9
    )
    table = table.assign(feature_copies=[92, 95, 90] + [1] * 9, pixel_copies=[1, 2, 1] + [0] * 9)
    found = memorisation.excess(table).set_index(["method", "n_shot", "seed"])
    assert found["feature_excess"].iloc[:6].tolist() == [49, 48, 47, 0, 0, 0]
    assert (
        found["pixel_excess"].iloc[:6].tolist() == [40, 35, 39, 0, 0, 0] and found.loc["fakeit"].isna().sum().max() == 6
    )
    sentence = copy_figures.copies_by_shots(table).sentence
    one, most = sentence.split("DataDream_cls with 16 shots: ")
    assert "+48.0 points (+45.5 to +50.5 over seeds: more than noise): recreated; by pixels 1.3 % near copies" in one
    assert one.endswith("more than noise): drawn towards its shot. ") and most.count("within noise): not decided") == 2
    alone = copy_figures.copies_by_shots(table[table["method"] == "datadream_cls"]).sentence
    assert "against chance, +28.0 points (" in alone  # no control: against the 50 %
    assert (
        copy_figures.most_copies(table) == copy_figures.most_copies(table, "datadream_cls") == ("datadream_cls", 1, 1)
    )
    assert copy_figures.most_copies(table, "loft") is None and copy_figures.most_copies(table[:0]) is None


def test_the_worst_copies_of_several_runs_stand_below_each_other(tmp_path):
    for i in range(4):
        Image.new("RGB", (20, 20), (i * 15, 0, 0)).save(tmp_path / f"{i}.png")
    pairs = pd.DataFrame({"path": [tmp_path / "0.png"], "shot": [tmp_path / "1.png"], "distance": [0.5]})
    blocks = {("issynth", 16, 0): pairs, ("loft", 4, 0): pairs[:0], ("datadream_cls", 1, 0): pairs}
    figure = picture_figures.worst_copies(blocks)
    assert [part.get_suptitle().split(",")[0] for part in figure.subfigs] == ["IsSynth", "DataDream_cls"]
    assert figure.sentence.count("the closest pair of a drawn picture and a shot, by features: distances") == 2
    assert picture_figures.worst_copies({("loft", 4, 0): pairs[:0]}).empty


def test_curves_of_nearest_shots_are_named_in_the_tables_order():
    rng = np.random.default_rng(0)
    near = {name: pd.DataFrame({"feature": rng.random(50) + 0.1}) for name in ("loft", "datadream_cls", "fakeit")}
    figure = copy_figures.nearest_shots(near, pd.DataFrame({"feature": rng.random(50) + 0.1}))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["FakeIt", "DataDream_cls", "LoFT", REAL, "1 % of real images"]
    widths = [line.get_linewidth() for line in figure.axes[0].lines[:3]]
    assert widths == sorted(widths, reverse=True) and min(widths) > 0.5  # a curve under another shows beside it


def test_costs_are_in_the_main_tables_order_and_say_what_memory_is(monkeypatch):
    keys = [("loft", "R+S"), ("real", "R"), ("loft", "S"), ("clip_zeroshot", "none"), ("fakeit", "S")]
    rows = pd.DataFrame(keys, columns=["method", "setting"]).assign(n_shot=4, classifier="clip", seed=0, accuracy=50.0)
    numbers = [f"{kind}_{part}" for kind in ("steps", "seconds") for part in cost.KINDS]
    rows = rows.assign(**dict.fromkeys([*numbers, "seconds"], 1.0), peak_memory_mb=[1172.0, 854, 905, 756, 928])
    monkeypatch.setattr(cost, "costs", lambda *_: rows)
    monkeypatch.setattr(cost, "flops_of", lambda *_: {})
    runs = pd.DataFrame({"dataset": ["d"], "n_shot": 4, "variant": "", "classifier": "clip", "protocol": "sound",
                         "folder": [SimpleNamespace(parent=SimpleNamespace(name="run"))]})  # fmt: skip
    found = pd.DataFrame({"run": ["run"], "stage": ["train-none"]})
    table = cost.of_runs(runs, found, SimpleNamespace(name="d", class_names=["a"]), 4)
    assert [*zip(table["method"], table["setting"], strict=True)] == [keys[i] for i in (3, 4, 2, 1, 0)]
    note = cost.texts(table)["md"].splitlines()[0]
    assert note.endswith("say nothing. CLIP (zero-shot), which trains nothing, has 756 MB.")
    assert cost.texts(table[table["setting"] != "none"])["md"].splitlines()[0].endswith("between rows say nothing.")


def _bars():
    keys = [("disef", "S", 40.0), ("real", "R", 78.0), ("issynth", "R+S", 80.0)]
    table = pd.DataFrame(keys, columns=["method", "setting", "accuracy_mean"]).assign(dataset="d", accuracy_std=1.0)
    rng, images = np.random.default_rng(0), np.arange(400)
    right = {"disef": 160, "real": 312, "issynth": 320}
    correct = {
        (m, s): pd.DataFrame({seed: rng.permutation(images < right[m]) for seed in range(3)}) for m, s, _ in keys
    }
    return table, compare.pairs(correct)


def test_the_highest_mean_is_told_with_what_is_within_noise_of_it():
    table, pairs = _bars()
    figure = plots.accuracy_bars(table, "d", pairs)
    assert figure.sentence == (
        "Highest mean: IsSynth, R+S (80.0 %), within noise of it: Real-finetune, R; lowest: DISEF, S (40.0 %)."
    )
    assert plots.accuracy_bars(table, "d").sentence.startswith("Highest mean: IsSynth, R+S (80.0 %); lowest: DISEF")
    (bars,) = (part for part in figure.axes[0].containers if hasattr(part, "errorbar"))
    lines = [*bars.errorbar.lines[1], *bars.errorbar.lines[2]]
    assert all(line.get_path_effects() for line in lines)  # seen on a black bar


def test_the_widest_figures_fit_a_page(every_figure):
    labels = [method.label for method in METHODS.values() if method.generates]
    teaser = plots.teaser({name: [np.zeros((4, 4, 3))] * 8 for name in ("Real images", *labels)}, "seven", "mnist5k")
    table, pairs = _bars()
    forest = plots.forest(compare.order(pairs), "d")
    for figure in (teaser, plots.accuracy_bars(table, "d"), forest, *every_figure.values()):
        assert figure.get_figwidth() <= figures.BOTH + 0.01
        assert min(text.get_fontsize() for text in figure.findobj(Text)) >= figures.SMALL
    assert (
        "IsSynth, DISEF: from a shot with noise added, no adapter; DataDream_cls, DataDream_dset, LoFT: from noise, "
        in (teaser.sentence)
    )


def test_seeds_are_seen_under_a_wide_interval_over_images():
    _, pairs = _bars()
    order = compare.order(pairs)
    (ax,) = plots.forest(order, "d").axes
    dots, broad, thin = ax.lines[1:4]
    assert set(dots.get_ydata()) == {0.3} and sorted(dots.get_xdata()) == sorted(order["per_seed"][0].values())
    assert broad.get_alpha() < 0.5 and thin.get_zorder() > broad.get_zorder() and thin.get_marker() == "|"
    assert list(thin.get_xdata()) == [order["seeds_low"][0], order["seeds_high"][0]]


# How red, green and blue of linear light look to who has no green cones (Machado et al. 2009).
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]


def _linear(colour):
    values = np.array(matplotlib.colors.to_rgb(colour))
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def _lab(linear):
    xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    x, y, z = np.cbrt(np.array(xyz) @ linear.clip(0, 1) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_colours_stand_out_from_white_and_from_each_other():
    colours = [plots.COLOURS[name] for name in METHODS]
    lights = [_linear(colour) for colour in colours]
    for name, light in zip(METHODS, lights, strict=True):
        assert 1.05 / (light @ [0.2126, 0.7152, 0.0722] + 0.05) >= 3, name
    for view in (np.eye(3), np.array(DEUTERANOPIA)):
        seen = [_lab(view @ light) for light in lights]
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) >= 10  # 2.3: just to be told apart


def test_a_single_classifier_is_neither_best_nor_worst():
    bins = pd.DataFrame(
        {"method": "real", "setting": "R", "certainty": [50.0, 90.0], "accuracy": [60.0, 80.0], "n": 20}
    )
    one = class_figures.reliability(bins, bins.assign(error=7.0).head(1))
    assert one.sentence == "The calibration error (15 bins) of Real-finetune (R) is 7.0 points."
    curve = next(line for line in one.axes[0].lines if len(line.get_xdata()) == 2 and line.get_marker() == "s")
    assert list(curve.get_ydata()) == [10, -10]  # accuracy minus certainty
    row = {"dataset": "d", "method": "real", "setting": "R", "accuracy_mean": 70.0, "accuracy_std": np.nan}
    assert plots.accuracy_bars(pd.DataFrame([row]), "d").sentence == "Real-finetune, R: 70.0 %."


def test_a_single_method_is_compared_with_none():
    one, two = (
        pd.DataFrame([{"method": m, "seed": 0, "label": 0} | dict.fromkeys(MEASURES, x) for m, x in rows])
        for rows in ([("loft", 0.5)], [("loft", 0.5), ("fakeit", 0.6)])
    )
    of_one, of_two = (figures.fidelity_diversity(table).sentence for table in (one, two))
    assert of_one == "Precision, recall, density and coverage: LoFT 0.50, 0.50, 0.50, 0.50."
    assert of_two == "Of the generators FakeIt has the highest mean density (0.60) and coverage (0.60)."
    both, one = _gains(), _gains().query("method == 'loft'")
    assert class_figures.class_gains(both, "R+S").sentence.startswith("3 of 4 cells (a class with a method) gain over")
    assert class_figures.class_gains(one, "R+S").sentence.startswith("2 of 2 cells")


def test_gains_of_classes_are_told_by_what_is_more_than_noise():
    seeds = {("fakeit", 0): [-8.0, -9, -10], ("fakeit", 1): [7.1, -4.9, -28.9], ("loft", 0): [3.0, 3, 3],
             ("loft", 1): [1e-14, 0, 0]}  # fmt: skip
    rows = [(m, i, "ab"[i], s, gain) for (m, i), gains in seeds.items() for s, gain in enumerate(gains)]
    gains = pd.DataFrame(rows, columns=["method", "label", "class_name", "seed", "gain"])
    gains = gains.assign(setting="R+S", accuracy=50.0)
    marked = classwise.marked(gains).drop_duplicates(["method", "label"])
    assert marked["verdict"].tolist() == ["below 0", compare.NOISE, "above 0", compare.NOISE]
    assert marked["low"].tolist()[0] == pytest.approx(-9 - 4.302653 / 3**0.5) and marked["gain_mean"].tolist()[0] == -9
    figure = class_figures.class_gains(gains, "R+S")
    assert figure.sentence == (
        "2 of 4 cells (a class with a method) differ from Real-finetune by more than noise over seeds (about 0.2 by "
        "chance): 1 up, most a with LoFT (+3.0 points); 1 down, most a with FakeIt (-9.0 points)."
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["-9*", "+3*", "-9", "0"]
    assert "*: more than noise over seeds" in figure.axes[0].get_title()
    one = class_figures.class_gains(gains[gains["seed"] == 0], "R+S")
    assert "with one seed: how much of that is noise is not known, and none is marked." in one.sentence
    assert not any("*" in text.get_text() for text in one.axes[0].texts) and "*" not in one.axes[0].get_title()
    assert (
        classwise.marked(gains[:0]).empty
        and "| above 0 |" in headings.texts("class_gains", classwise.marked(gains))["md"]
    )


def test_who_is_most_diverse_is_told_with_the_seeds_noise():
    spread = {"loft": [0.5, 0.6, 0.7], "datadream_cls": [0.55, 0.6, 0.62], "datadream_dset": [0.1, 0.2, 0.3]}
    rows = [
        {"method": m, "seed": seed, "label": 0} | dict.fromkeys(MEASURES, x) | {"coverage": x if m != "loft" else 0.0}
        for m, values in (spread | {REAL: [0.9] * 3}).items()
        for seed, x in enumerate(values)
    ]
    sentence = figures.fidelity_diversity(pd.DataFrame(rows)).sentence
    assert sentence == (
        "Of the generators LoFT has the highest mean density (0.60; within the seeds' noise of it: DataDream_cls), "
        "DataDream_cls has the highest mean coverage (0.59). Precision, recall, density and coverage: DataDream_cls "
        "0.59, 0.59, 0.59, 0.59; DataDream_dset 0.20, 0.20, 0.20, 0.20; other real images 0.90, 0.90, 0.90, 0.90."
    )


def test_a_heat_map_of_many_classes_says_that_it_shows_some():
    rows = [("loft", i, f"class {i}", float(i)) for i in range(30)]
    gains = pd.DataFrame(rows, columns=["method", "label", "class_name", "gain"]).assign(setting="S")
    change = np.diag(np.arange(30.0)) - np.diag(np.arange(29.0), 1)
    for figure in (
        class_figures.class_gains(gains, "S"),
        class_figures.confusion_change(change, [f"class {i}" for i in range(30)], "loft", "S"),
    ):
        words = "the 25 of 30 classes that change most"
        assert words in figure.alt and words in figure.axes[0].get_title()
