"""Runs that differ in one parameter: how they are found among all stages, averaged and compared."""

import pandas as pd
import pytest
from conftest import SAME, write_stage

from datadream_utils.analysis import ablations
from datadream_utils.analysis.compare import Verdict
from datadream_utils.analysis.results import load_stages, select_measured
from datadream_utils.analysis.tables import to_markdown
from datadream_utils.catalogue import ABLATIONS
from datadream_utils.errors import InputError
from datadream_utils.plots.ablations import ablation_lines
from datadream_utils.runs.stage import FORMAT


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
        write_stage(root, run, "adapt", {"shots": list("abcdefgh")}, **names, **values)
        folder = write_stage(root, run, "train-S", setting="S", real_weight=0.8, **names)
        rows.append(dict(dataset="mine", method="datadream_cls", setting="S", n_shot=4, classifier="clip",
                         protocol="sound", folder=folder, accuracy=50.0 + len(rows), **names))  # fmt: skip
    return pd.DataFrame(rows)


def test_a_variant_is_known_by_what_it_changes(tmp_path):
    runs, stages = _study(tmp_path), load_stages(tmp_path)
    assert set(stages["dataset"]) == {"mine"} and len(stages) == 12
    assert ablations.find_changes(stages) == {
        "r0": {"lora_rank": 2}, "r1": {"lora_rank": 2}, "x0": {"lora_rank": 8, "adapt_epochs": 9}}  # fmt: skip
    table = ablations.select_ablation(runs, stages, "mine", 4, "lora_rank")
    assert table[["value", "seed", "accuracy"]].to_numpy().tolist() == [
        [16, 0, 50],
        [16, 1, 51],
        [2, 0, 52],
        [2, 1, 53],
    ]
    summary = ablations.summarise_ablation(table).set_index("value")
    assert summary.loc[2, ["n_seeds", "accuracy_mean", "accuracy_std"]].tolist() == pytest.approx([2, 52.5, 0.5**0.5])
    (tmp_path / "r0" / "generate").symlink_to("../a0/adapt")  # shared with another run: still the other's
    assert len(load_stages(tmp_path)) == 12
    text = to_markdown("ablation_lora_rank", ablations.summarise_ablation(table))
    assert "| DataDream_cls |  | ✓ | 2 | 52.5 ± 0.7 | 2 |" in text
    assert ablations.select_ablation(runs, stages, "mine", 4, "guidance_scale").empty
    assert ablations.count_adapted(stages, "x0") == 8 * 9 and ablations.count_adapted(stages, "nothing") == 0


def test_all_generated_images_are_a_number_too(tmp_path):
    rows = []
    for run, variant, of_train in (("a", "", 0), ("b", "few", 12)):
        write_stage(tmp_path, run, "generate", variant=variant, images_per_class=50)
        folder = write_stage(tmp_path, run, "train-R+S", setting="R+S", variant=variant, images_per_class=50,
                        synthetic_per_class=of_train)  # fmt: skip
        rows.append(SAME | dict(dataset="mine", setting="R+S", classifier="clip", protocol="sound", folder=folder,
                                variant=variant, accuracy=60.0 + len(rows)))  # fmt: skip
    table = ablations.select_ablation(pd.DataFrame(rows), load_stages(tmp_path), "mine", 4, "synthetic_per_class")
    assert table.set_index("value")["accuracy"].to_dict() == {50: 60.0, 12: 61.0}
    folder = write_stage(
        tmp_path, "c", "train-R", method="real", setting="R", images_per_class=50, synthetic_per_class=0
    )
    real = rows[0] | dict(method="real", setting="R", folder=folder, accuracy=58.0)
    loft = rows[0] | dict(method="loft", folder=write_stage(tmp_path, "d", "train-R+S", method="loft", setting="R+S",
                                                       images_per_class=50, synthetic_per_class=0))  # fmt: skip
    runs, stages = pd.DataFrame([*rows, real, loft]), load_stages(tmp_path)
    table = ablations.select_ablation(runs, stages, "mine", 4, "synthetic_per_class")  # LoFT has one value alone
    assert table.set_index("value")["accuracy"].to_dict() == {50: 60.0, 12: 61.0, 0: 58.0}
    assert set(table["method"]) == {"datadream_cls"} and table.set_index("value")["default"].to_dict()[0] is False


def test_only_seeds_with_every_value_are_averaged(tmp_path):
    runs = _study(tmp_path)
    runs = runs[~((runs["variant"] == "lora-rank=2") & (runs["seed"] == 1))]
    table = ablations.select_ablation(runs, load_stages(tmp_path), "mine", 4, "lora_rank")
    assert set(table["seed"]) == {0} and len(table) == 2


def test_shots_are_compared_between_plain_runs(tmp_path):
    runs = _study(tmp_path)
    few = runs[runs["variant"] == ""].assign(n_shot=1, accuracy=30.0)
    runs = pd.concat([runs, few], ignore_index=True)
    table = ablations.select_ablation(runs, load_stages(tmp_path), "mine", 4, "n_shot")
    assert sorted(set(table["value"])) == [1, 4] and len(table) == 4
    assert set(table["adapted"]) == {8 * 3}  # eight shots, three epochs, whatever the row of runs says
    summary = ablations.summarise_ablation(table)
    assert "| 4 | 24 |" in to_markdown("ablation_n_shot", summary)
    assert summary.set_index("value")["default"].to_dict() == {1: False, 4: True}
    other = ablations.select_ablation(runs, load_stages(tmp_path), "mine", 4, "guidance_scale")
    none = ablations.summarise_ablation(other)
    costs = ablations.join_compute({"n_shot": summary, "guidance_scale": summary, "adapt_epochs": none})
    assert set(costs["moved"]) == {"n_shot"} and len(costs) == 2
    assert set(costs["adapted"]) == {24} and ablations.join_compute({"n_shot": none}).empty


def test_images_of_another_split_are_not_measured(tmp_path):
    write_stage(tmp_path, "run", "generate", split_file="elsewhere/coop.json")
    stages = load_stages(tmp_path)
    assert len(select_measured(stages, "mine", "/here/coop.json")) == 1
    with pytest.raises(
        InputError, match="was made with split_file='elsewhere/coop.json', not '': set split_file to that"
    ):
        select_measured(stages, "mine")


def test_a_broken_manifest_is_named(tmp_path):
    folder = write_stage(tmp_path, "run", "adapt")
    (folder / "manifest.json").write_text(f'{{"format": {FORMAT}}}')
    with pytest.raises(InputError, match="manifest.json cannot be read.*run 01_adapt_sd again"):
        load_stages(tmp_path)


def test_seconds_of_a_cpu_are_the_processors(tmp_path):
    took = {"seconds": 90.0, "processor_seconds": 60.0}
    write_stage(tmp_path, "a", "adapt", took | {"device": "cpu (a processor)"})
    write_stage(tmp_path, "b", "adapt", took | {"device": "NVIDIA H100"})
    write_stage(tmp_path, "c", "adapt", {"seconds": 90.0, "device": "cpu (before they were noted)"})
    stages = load_stages(tmp_path).set_index("run")["seconds"]
    assert stages.to_dict() == {"a": 60.0, "b": 90.0, "c": 90.0}


def _summary(accuracies, values=(1, 16)):
    """``summarise_ablation`` of one method: a list of the seeds' accuracies per value, the last the reference."""
    rows = [
        {"setting": "S", "method": "loft", "value": value, "default": value == values[-1], "adapted": 0.0,
         "reference": value == values[-1], "seed": seed, "accuracy": accuracy}
        for value, seeds in zip(values, accuracies, strict=True) for seed, accuracy in enumerate(seeds)
    ]  # fmt: skip
    return ablations.summarise_ablation(pd.DataFrame(rows))


def test_a_value_is_compared_with_the_reference_seed_by_seed():
    one = _summary([[62.5, 60, 57.5], [72.5, 75, 77.5]]).set_index("value").loc[1]
    reach = 4.302653 * 5 / 3**0.5  # Student's t, standard deviation of -10, -15, -20
    assert one["difference"] == -15 and one["verdict"] == Verdict.BELOW.label
    assert [one["low"], one["high"]] == pytest.approx([-15 - reach, -15 + reach])
    noise = _summary([[37.5, 40, 42.5], [46.5, 44, 41.5]]).set_index("value").loc[1]
    assert noise["difference"] == -4 and noise["verdict"] == Verdict.WITHIN_NOISE.label
    assert _summary([[37.5], [46.5]]).set_index("value").loc[1, "verdict"] == Verdict.ONE_SEED.label
    text = to_markdown("ablation_lora_rank", _summary([[62.5, 60, 57.5], [72.5, 75, 77.5]]))
    assert "| 1 | 60.0 ± 2.5 | 3 | -15.0 | -27.4 to -2.6 | below |" in text
    assert "| 16 | 75.0 ± 2.5 | 3 | reference |  |  |" in text
    words = to_markdown("ablation_train_text_encoder", _summary([[60, 61, 62], [63, 64, 68]], (False, True)))
    assert "| not adapted | 61.0 ± 1.0 |" in words


def test_every_ablation_names_its_study():
    assert all(f"params/studies/tiny_{kind}.yaml" in ablations.study_command(parameter)
               for parameter, kind in zip(ABLATIONS, ["shots", "images"] + ["ablations"] * 5, strict=True))  # fmt: skip


def test_runs_from_before_a_parameter_have_the_value_that_made_them(tmp_path):
    rows = []
    for run, variant, own in (("a", "", {}), ("b", "fast", {"sampler": "dpmsolver++"})):
        write_stage(tmp_path, run, "generate", variant=variant, images_per_class=12, **own)
        folder = write_stage(tmp_path, run, "train-S", setting="S", variant=variant)
        rows.append(dict(dataset="mine", method="datadream_cls", setting="S", n_shot=4, classifier="clip", seed=0,
                         protocol="sound", folder=folder, accuracy=50.0, variant=variant))  # fmt: skip
    stages = load_stages(tmp_path)
    assert ablations.find_changes(stages)["b"] == {"sampler": "dpmsolver++"}
    table = ablations.select_ablation(pd.DataFrame(rows), stages, "mine", 4, "sampler")
    assert table["value"].tolist() == ["model", "dpmsolver++"]


def test_without_its_reference_a_method_has_no_differences_to_draw():
    table = _summary([[60, 61, 62], [63, 64, 68]])
    alone = ablations.summarise_ablation(
        pd.DataFrame(
            [dict(setting="S", method="loft", value=value, default=False, adapted=0.0, reference=False, seed=0,
                  accuracy=60.0) for value in (12, 25)]
        )
    )  # fmt: skip
    both = pd.concat([table.assign(method="fakeit"), alone], ignore_index=True)
    figure = ablation_lines(both, "synthetic_per_class")
    labels = figure.legends[0].get_texts() if figure.legends else figure.axes[0].get_legend().get_texts()
    assert [text.get_text() for text in labels] == ["FakeIt"]
