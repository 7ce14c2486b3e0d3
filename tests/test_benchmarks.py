"""Benchmarks: both sides come to the same result, and what is measured is what it is called."""

import itertools
import json
from dataclasses import replace

import hub_worlds
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks import (
    clock,
    crops,
    gpu,
    growth,
    limits,
    ours_diffusion,
    reference_clip,
    reference_diffusion,
    stages,
    tables,
    worker,
    worlds,
)
from datadream_utils.backbones.load import load_clip
from datadream_utils.classifier import train
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.pictures import make_sets
from datadream_utils.data.dataset import flatten, load_dataset
from datadream_utils.data.images import centre_square, to_tensor
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.lora import WEIGHTS, save_lora
from datadream_utils.params import ROOT, make_params

SMALL = dict(
    device="cpu",  # cuDNN's convolutions round to TF32
    n_shot=2,
    adapt_epochs=4,
    adapt_batch_size=2,
    images_per_class=3,
    num_inference_steps=3,
    generate_batch_size=2,
    train_epochs=2,
    train_batch_size=4,
    setting="S",
)


@pytest.mark.parametrize("method", ["datadream_cls", "datadream_dset"])
def test_adapters_of_both_procedures_are_the_same(pipe, folder_dataset, make_run, tmp_path, method):
    """On pictures that are not square, so that crops are drawn and encoded anew too."""
    changes = {k: v for k, v in SMALL.items() if k.startswith(("adapt", "n_"))}
    run = make_run("adapt", load_dataset(str(folder_dataset)), method=method, **changes)
    adapters = plan_adapters(run)
    adapt(pipe, adapters, run)
    assert len(adapters) == (2 if method == "datadream_cls" else 1)
    for adapter in adapters:
        reference_diffusion.train_lora(pipe, adapter, run.params)
        save_lora(pipe, tmp_path / "theirs" / "adapters" / adapter.name)
        pipe.unload_lora_weights()
    assert stages.difference("adapt_cls", tmp_path / "theirs", run.folder)[0] < 1e-4


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Every stage by both sides, in this process, on two classes of noise."""
    folder = tmp_path_factory.mktemp("benchmarks")
    worlds.write_pictures(folder / "noise", classes=2, train=2, test=5, side=32)
    changes = SMALL | {"dataset": str(folder / "noise"), "num_threads": 1}
    for stage in ("adapt_cls", "generate", "train", "evaluate"):
        job = {"stage": stage, "changes": changes}
        job |= {name: str(folder / "adapt_cls" / "ours" / "adapters") for name in ("adapters",)}
        job |= {"images": str(folder / "generate/ours/images"), "classifier": str(folder / "train/ours/classifier")}
        for side in stages.SIDES:
            for part in (0, 1) if (stage, side) == ("adapt_cls", "reference") else (None,):
                seconds = worker.run(job | {"side": side, "folder": str(folder / stage / side), "part": part})
                assert seconds["work"] > 0 and seconds["load"] > 0
    return folder


def test_every_stage_gives_the_same_by_both_procedures(measured):
    apart, says = {}, {}
    for stage in set(stages.STAGES) - {"adapt_dset"}:
        apart[stage], says[stage] = stages.difference(stage, *(measured / stage / side for side in stages.SIDES))
    assert apart["adapt_cls"] < 1e-4
    mean, largest = (float(word.strip(",")) for word in says["generate"].split() if word[0].isdigit() and word != "255")
    assert mean < 0.05 and largest <= 2 and apart["generate"] == pytest.approx(mean, abs=1e-4)
    assert says["evaluate"] == "0 of 10 predictions differ" and apart["evaluate"] == 0
    assert len(list((measured / "generate/ours").rglob("*.png"))) == 6


def test_a_difference_is_seen(measured, tmp_path):
    file = next((measured / "adapt_cls/ours").rglob(WEIGHTS))
    with safe_open(file, "pt") as stored:
        state = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118 - not a dict
        metadata = stored.metadata()
    save_file({key: tensor * 1.5 for key, tensor in state.items()}, tmp_path / WEIGHTS, metadata)
    assert stages.adapter_distance(file.parent, file.parent) == 0
    assert stages.adapter_distance(file.parent, tmp_path) == pytest.approx(1.25, rel=1e-4)  # 1.5 A times 1.5 B
    with pytest.raises(ValueError, match="0 files by the reference, 6 by the package"):
        stages.difference("generate", tmp_path / "nothing", measured / "generate/ours")
    for stage in ("train", "evaluate"):  # sides that left nothing are not the same
        with pytest.raises(ValueError, match="0 files by the reference, 0 by the package"):
            stages.difference(stage, tmp_path / "nothing", tmp_path / "nothing")
    for side, labels in {"one": [0, 1, 2], "other": [0, 1, 1]}.items():
        (tmp_path / side).mkdir()
        (tmp_path / side / "predictions.json").write_text(str(labels))
    with pytest.raises(ValueError, match="do not come to the same: 1 of 3 predictions differ"):
        stages.difference("evaluate", tmp_path / "one", tmp_path / "other")
    save_file({key: tensor for key, tensor in list(state.items())[2:]}, tmp_path / WEIGHTS, metadata)
    with pytest.raises(ValueError, match="adapters of other layers"):
        stages.adapter_distance(file.parent, tmp_path)


def test_training_is_the_same_without_augmentation_and_dropout(measured, tmp_path, monkeypatch):
    changes = {"images_per_class": 3, "mix_share": 0.5, "clip_lora_dropout": 0.0}  # fewer tokens, other draws
    p = make_params("train", SMALL | {"dataset": str(measured / "noise")} | changes)
    run, files, losses = worlds.make_run(p, tmp_path), worker.pictures(measured / "generate/ours/images"), {}
    for side in stages.SIDES:
        model = make_classifier(run) if side == "ours" else reference_clip.load_classifier(run)
        processor = model.processor
        mean, std = (torch.tensor(x).reshape(3, 1, 1) for x in (processor.image_mean, processor.image_std))
        if side == "reference":
            plain = lambda image: (to_tensor(centre_square(image, 36))[:, 2:34, 2:34] / 255 - mean) / std  # noqa: B023, E731
            losses[side] = reference_clip.fit(model, flatten(files), plain, p, 2)
        else:
            monkeypatch.setattr(train, "Augment", lambda *_: lambda x: (x[..., 2:34, 2:34] / 255 - mean) / std)  # noqa: B023
            sets = make_sets(p, run.shots, files, 32)
            losses[side] = [row["loss"] for row in train.train_classifier(model, sets, p)]
    assert len(losses["ours"]) == 4
    np.testing.assert_allclose(losses["reference"], losses["ours"], rtol=1e-4)


def test_pictures_are_augmented_one_by_one(make_params):
    p = make_params("train", flip=0.5, rand_augment_magnitude=9)
    augment = reference_clip.PictureAugment(p, 32, [0.0] * 3, [1.0] * 3)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8))
    views = torch.stack([augment(image) for _ in range(200)])
    assert views.shape == (200, 3, 32, 32) and views.min() >= 0 and views.max() <= 1
    assert len({view.numpy().tobytes() for view in views}) > 190
    grey = (views[:, 0] == views[:, 1]).flatten(1).all(1).float().mean()
    assert 0.1 < grey < 0.35  # of a probability of 0.2, and a little where other operations do it


@pytest.mark.parametrize("size", [(28, 28), (50, 33), (31, 90)])
def test_a_picture_is_prepared_as_by_clips_own_processor(size):
    processor = load_clip("models/tiny-clip")[2]
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    expected = torch.from_numpy(processor(images=image).pixel_values[0])
    torch.testing.assert_close(reference_clip.ClipPicture(processor)(image), expected)


def test_attention_on_a_cpu_is_counted():
    query, keys = torch.randn(2, 3, 5, 8, requires_grad=True), torch.randn(2, 3, 7, 8)
    with limits.FlopCounterMode(display=False, custom_mapping=limits.ATTENTION) as counter:
        attended = torch.nn.functional.scaled_dot_product_attention(query, keys, keys)
    assert counter.get_total_flops() == 2 * 2 * (2 * 3) * 5 * 7 * 8  # queries by keys, weights by values
    with limits.FlopCounterMode(display=False, custom_mapping=limits.ATTENTION) as counter:
        attended.sum().backward()
    assert counter.get_total_flops() == 5 * 2 * (2 * 3) * 5 * 7 * 8  # the weights again, and four gradients


@pytest.mark.parametrize("pair", ["num_thread=2", "method=loft", "num_threads"])
def test_a_parameter_that_would_not_be_in_force_is_refused(pair, capsys):
    with pytest.raises(SystemExit):
        stages.main(["--set", pair])
    assert f"--set {pair}: NAME=VALUE, a parameter's name" in capsys.readouterr().err


def test_flops_and_profile_are_those_of_the_work(tmp_path):
    calls = []

    def run(job):
        seconds = {}
        with clock.timed(seconds, "load"):
            torch.zeros(64, 64) @ torch.zeros(64, 64)
        with clock.timed(seconds, "work"):
            for _ in range(20):
                torch.ones(256, 128) @ torch.ones(128, 512)
        calls.append((job["folder"], seconds["work cpu"]))
        return seconds

    found = limits.inspect(run, {"folder": "x", "changes": {}}, "cpu", torch.float32)
    assert [name for name, _ in calls] == ["x/plain", "x/flops", "x/profile"] and not clock.around
    assert found["flops_per_second"] * calls[0][1] == pytest.approx(20 * 2 * 256 * 128 * 512)
    assert found["matmul_peak"] > 1e9
    assert {name for name, _, _ in found["operations"]} >= {"aten::mm", "smaller operations"}
    assert sum(share for _, share, _ in found["operations"]) == pytest.approx(1)


def test_the_full_world_has_the_published_sizes():
    with torch.device("meta"):
        sizes, text = worlds.SIZES, {"vocab_size": 49408, "max_position_embeddings": 77}
        unet = worlds.UNet2DConditionModel(**sizes["unet"])
        encoder = worlds.CLIPTextModel(worlds.CLIPTextConfig(**text, **sizes["text"]))
        clip = worlds.CLIPModel(
            worlds.CLIPConfig(text_config=text | sizes["clip_text"], vision_config=sizes["clip_vision"])
        )
    counts = [round(sum(x.numel() for x in model.parameters()) / 1e6, 1) for model in (unet, encoder, clip)]
    assert counts == [865.9, 340.4, 149.6]


def test_the_full_worlds_files_are_read_by_the_package(tmp_path):
    """At reduced width: all that differs from full size is ``SIZES``."""
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    unet = worlds.SIZES["unet"] | dict(block_out_channels=(32, 32, 64, 64), layers_per_block=1, cross_attention_dim=32)
    sizes = {
        "unet": unet | dict(attention_head_dim=(2, 2, 4, 4), sample_size=4),
        "text": small,
        "vae": dict(block_out_channels=(32,) * 4, layers_per_block=1, sample_size=32),
        "clip_text": small,
        "clip_vision": small | dict(patch_size=16, image_size=32),
    }
    worlds.write_stable_diffusion(tmp_path / "sd", sizes)
    worlds.write_clip(tmp_path / "clip", sizes)
    changes = {"sd_model": str(tmp_path / "sd"), "clip_model": str(tmp_path / "clip"), "resolution": 32}
    p = make_params("adapt", SMALL | changes)
    pipe = ours_diffusion.load_pipeline(worlds.make_run(p, tmp_path / "run"), {})
    assert pipe.tokenizer.model_max_length == worlds.TOKENS == pipe.text_encoder.config.max_position_embeddings
    assert load_clip(changes["clip_model"])[2].crop_size["height"] == 32
    assert worlds.SIZES["unet"]["block_out_channels"] == hub_worlds.WIDTHS


def test_wide_digits_and_the_share_of_encoding(mnist, tmp_path):
    few = replace(mnist, files={split: [files[:2] for files in mnist.files[split]] for split in mnist.files})
    crops.write_wide_digits(few, tmp_path)
    wide, places = load_dataset(str(tmp_path)), set()
    assert wide.class_names == mnist.class_names
    for split, label in itertools.product(("train", "val", "test"), range(10)):
        for path, digit in zip(wide.files[split][label], few.files[split][label], strict=True):
            picture, own = (np.asarray(Image.open(x).convert("RGB")) for x in (path, digit))
            assert picture.shape == (28, crops.WIDTH, 3)
            found = [x for x in range(crops.WIDTH - 27) if np.array_equal(picture[:, x : x + 28], own)]
            places |= {found[0]} if len(found) == 1 else set()
    assert places == set(range(7 - crops.AWAY, 7 + crops.AWAY + 1))
    assert crops.share_of_encoding(worlds.SIZES, 512) == pytest.approx(
        json.loads((ROOT / "benchmarks" / "results" / "crops.json").read_text())["share"]
    )


@pytest.mark.parametrize("world", worlds.WORLDS)
def test_worlds_are_parameters_of_every_stage(world):
    changes = worlds.read_params_file(ROOT / "benchmarks" / f"{world}.yaml")
    for stage in ("adapt", "generate", "train"):
        make_params(stage, changes)


def test_the_readmes_tables_are_those_of_the_results(monkeypatch, tmp_path):
    results = {path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json")}
    results -= {"rehearsal"}  # its table is in docs/howto/reproduce-paper.md
    assert results <= set(tables.TABLES)
    (tmp_path / "README.md").write_text((ROOT / "benchmarks" / "README.md").read_text())
    if results:
        (tmp_path / "results").symlink_to(ROOT / "benchmarks" / "results")
    monkeypatch.setattr(tables, "FOLDER", tmp_path)
    tables.write_readme()
    assert (tmp_path / "README.md").read_text() == (ROOT / "benchmarks" / "README.md").read_text()
    assert (tmp_path / "README.md").read_text().count("*not measured*") == len(tables.TABLES) - len(results)


def test_targets_are_beside_what_was_measured():
    seconds = lambda total: [{"total": 0.0, "total cpu": total, "work cpu": total}]  # noqa: E731
    sides = {"reference": seconds(9.0), "ours": seconds(2.0), "machine": {"device": "cpu"}, "repeats": 1}
    rows = [("DDIM", 8.0, 0.5), ("fast and far", 1.0, 0.6), ("fast and near", 2.0, 0.5)]
    rows = [{"sampler": name, "seconds": seconds, "distance": distance} for name, seconds, distance in rows]
    lines = tables.target_table({"tiny": {"adapt_cls": sides, "evaluate": sides}, "frechet": {"rows": rows}})
    assert lines[2] == "| adapt_cls | start to last file | 4 | 4.50, reached | 2 | not measured |"
    assert "| evaluate | start to last file | 10 | 4.50, not reached | 10 | not measured |" in lines
    assert "| 3 | 4.00 (fast and near), reached | 5 | not measured |" in lines[-1]
    assert "| generate images_per_class=500 | start to last file | – | – | 1.5 | not measured |" in lines
    more = sides | {"reference": seconds(9.0) * 2, "ours": seconds(2.0) + seconds(3.0), "repeats": 2}
    (line,) = [line for line in tables.target_table({"tiny": {"adapt_cls": more}}) if line.startswith("| adapt_cls")]
    assert "| 3.60 (3.00 to 4.50), not reached |" in line
    assert all("| not measured | " in line for line in lines if line.startswith(("| generate | ", "| train")))


def test_a_slope_of_one_is_cost_that_doubles_with_the_size():
    assert growth.slope((10, 3.0), (20, 6.0)) == pytest.approx(1)
    assert growth.slope((10, 3.0), (1000, 3.0)) == 0
    assert growth.slope((10, 1.0), (20, 4.0)) == pytest.approx(2)


def test_noise_of_many_classes_has_the_same_number_of_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "TRAIN_PICTURES", 12)
    monkeypatch.setattr(stages, "TEST_PICTURES", 6)
    for classes, train_, test in ((3, 4, 2), (20, 1, 1)):
        changes = stages.noise(tmp_path, classes, 32)
        assert changes["images_per_class"] == train_
        data = load_dataset(make_params("train", changes).dataset)
        assert len(data.class_names) == classes
        assert {len(files) for files in data.files["test"]} == {test}


@pytest.mark.slow
def test_growth_measures_every_stage_at_every_size(tmp_path):
    changes = worlds.prepare("tiny", tmp_path) | growth.SMALL
    rows = growth.series("classes", (2, 3), None, stages.STAGES, tmp_path, changes)
    assert [row["stage"] for row in rows] == list(stages.STAGES)
    for row in rows:
        assert [size for size, _ in row["points"]] == [2, 3] and all(seconds > 0 for _, seconds in row["points"])


@pytest.mark.slow
def test_stages_are_measured_in_processes_of_their_own(tmp_path):
    worlds.write_pictures(tmp_path / "noise", classes=2, train=2, test=2, side=32)
    changes = SMALL | {"dataset": str(tmp_path / "noise")}
    found = stages.measure(("adapt_cls", "generate", "evaluate"), tmp_path / "work", changes, repeats=1)
    many, images = {"train_epochs": 1, "images_per_class": 2}, tmp_path / "noise" / "train"
    found |= stages.measure(("train",), tmp_path / "other", changes, 1, others=many, images=images)
    assert not (tmp_path / "other" / "made").exists()  # it reads the given pictures
    for sides in found.values():
        for side in stages.SIDES:
            (seconds,) = sides[side]
            assert seconds["total"] > seconds["load"] + seconds["work"]
        assert sides["limits"]["flops_per_second"] > 0
    lines = tables.TABLES["tiny"]({stage: sides | {"repeats": 1, "set": {}} for stage, sides in found.items()})
    assert [line.split(" | ")[0] for line in lines[2:6]] == ["| adapt_cls", "| generate", "| evaluate", "| train"]
    assert found["adapt_cls"]["reference"][0]["load"] > found["adapt_cls"]["ours"][0]["load"]  # a process per class


def test_a_gpus_rows_are_measured_once_and_noted_one_by_one(tmp_path):
    calls, path = [], tmp_path / "gpu.json"

    class Bench:
        def params(self, stage):
            return make_params(stage, {})

        def train_rows(self):
            return {"a": lambda: calls.append("a") or {"says": "fine"}, "b": self.fail}

        def fail(self):
            calls.append("b")
            if len(calls) < 3:
                raise MemoryError
            row = {"unit": "step", "seconds": 0.5, "images": 64, "flops": 2e12, "peak": 8e12, "memory": 3e9}
            return row | {"evaluated": 100.0}

    with pytest.raises(MemoryError):
        gpu.measure(Bench(), ["train"], path, again=False)
    gpu.measure(Bench(), ["train"], path, again=False)
    assert calls == ["a", "b", "b"]
    result = json.loads(path.read_text())
    lines = tables.gpu_table(result)
    assert lines[2] == "| train: b, a step | 0.500 | 128.0 | 2.00 | 25 % | 3.0 |  | 100 |"
    assert "- train: a: fine" in lines and tables.summary({"gpu": result})[2].endswith(": train 25 %.")
    gpu.measure(Bench(), ["train"], path, again=True)
    assert calls == ["a", "b", "b", "a", "b"]


def test_the_readme_begins_with_how_fast_each_stage_is():
    seconds = lambda total: [{"total": 0.0, "total cpu": total}]  # noqa: E731
    limits = {"flops_per_second": 1e9, "matmul_peak": 4e9}
    sides = {"reference": seconds(9.0), "ours": seconds(3.0), "machine": {"device": "cpu (old)"}, "limits": limits}
    first, second, third = tables.summary({"tiny": {"train": sides}})
    assert "cpu (old): adapt_cls not measured," in first and "train 3.0 (25 %), evaluate not measured." in first
    assert "at full size: adapt_cls not measured" in second and third.endswith("not measured.")
