"""What results cost: operations counted, image-steps by hand, the front that nothing beats."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import torch
from conftest import write_stage

from datadream_utils.analysis import cost
from datadream_utils.analysis.results import load_stages
from datadream_utils.analysis.tables import to_markdown


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
    flops = cost.clip_flops(model, tokenizer, SimpleNamespace(class_names=("zero", "one"), domain=""), 4)
    assert list(model.state_dict()) == keys and flops["texts"] > 0
    pixels = torch.zeros(1, 3, 32, 32)
    with torch.no_grad():
        forward = cost.count_flops(lambda: model.get_image_features(pixel_values=pixels))
    assert 1.5 * forward < flops["image"] < 3.5 * forward


def test_image_steps_by_hand(tmp_path):
    adapted = write_stage(tmp_path, "run", "adapt", {"shots": ["x"] * 8}, adapt_epochs=5).parent
    images = write_stage(tmp_path, "run", "generate", {"passes_per_image": 40}) / "images"
    images.mkdir()
    (images / "metadata.jsonl").write_text('{"tries": 3}\n{}\n')
    training = {"train_epochs": 4, "images_per_class": 10, "train_batch_size": 7, "setting": "R+S"}
    folder = write_stage(tmp_path, "run", "train-R+S", {"seconds": 3.0}, **training)
    stages = load_stages(tmp_path).set_index("stage", drop=False)
    assert cost.count_image_steps(stages.loc["adapt"], 2) == 40
    assert cost.count_image_steps(stages.loc["generate"], 2) == (3 + 1) * 20 * 2
    assert cost.count_image_steps(stages.loc["train-R+S"], 2) == 4 * 10 * 2 * 2
    run = dict(method="datadream_cls", setting="R+S", n_shot=4, seed=0, variant="", classifier="clip", accuracy=70.0)
    lora = {"lora_rank": 16, "train_text_encoder": True}
    rows = load_stages(tmp_path)
    rows["parameters"] = [p | lora for p in rows["parameters"]]
    flops = {"adapt": {(16, True): 1e6}, "denoise": 1e3, "decode": 10, "image": 1e4, "texts": 1}
    table = cost.tabulate_costs(pd.DataFrame([run | {"folder": folder}]), rows, 2, flops)
    assert table["flops"][0] == 40e6 + 160e3 + 4 * 10 + 160e4 + 4 * 3 and table["seconds"][0] == 5.0
    assert adapted.name == "run" and np.isnan(table["peak_memory_mb"][0])


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"seconds": rng.integers(1, 9, 40), "accuracy_mean": rng.integers(1, 9, 40)})
    beaten = [
        any((o.seconds <= r.seconds and o.accuracy_mean > r.accuracy_mean)
            or (o.seconds < r.seconds and o.accuracy_mean >= r.accuracy_mean) for o in table.itertuples())
        for r in table.itertuples()
    ]  # fmt: skip
    expected = set(map(tuple, table[~np.array(beaten)].to_numpy().tolist()))
    assert set(map(tuple, cost.pareto_front(table).to_numpy().tolist())) == expected


def test_costs_are_in_the_main_tables_order(monkeypatch):
    keys = [("loft", "R+S"), ("real", "R"), ("loft", "S"), ("clip_zeroshot", "none"), ("fakeit", "S")]
    rows = pd.DataFrame(keys, columns=["method", "setting"]).assign(n_shot=4, classifier="clip", seed=0, accuracy=50.0)
    numbers = [f"{kind}_{part}" for kind in ("steps", "seconds") for part in cost.STAGE_NAMES]
    rows = rows.assign(
        **dict.fromkeys([*numbers, "seconds", "flops"], 1.0), peak_memory_mb=[1172.0, 854, 905, 756, 928]
    )
    monkeypatch.setattr(cost, "tabulate_costs", lambda *_: rows)
    monkeypatch.setattr(cost, "count_flops_per_step", lambda *_: {})
    runs = pd.DataFrame({"dataset": ["d"], "n_shot": 4, "variant": "", "classifier": "clip", "protocol": "sound",
                         "folder": [SimpleNamespace(parent=SimpleNamespace(name="run"))]})  # fmt: skip
    stages = pd.DataFrame({"run": ["run"], "stage": ["train-none"]})
    table = cost.compute_costs(runs, stages, SimpleNamespace(name="d", class_names=["a"]), 4)
    assert [*zip(table["method"], table["setting"], strict=True)] == [keys[i] for i in (3, 4, 2, 1, 0)]
    lines = to_markdown("cost", table).splitlines()[4:]
    assert [line.split(" | ")[-1] for line in lines] == ["756 |", "928 |", "905 |", "854 |", "1,172 |"]
