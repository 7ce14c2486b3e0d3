"""Parameters: the notebooks' defaults are valid, files use known names, mistakes are explained."""

import datetime
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import yaml
from papermill.cli import _resolve_type

from datadream_utils.errors import InputError
from datadream_utils.methods import METHODS
from datadream_utils.params import (
    NOTEBOOKS,
    ROOT,
    STAGES,
    AdaptParams,
    notebook_defaults,
    plays_a_part,
    read_params_file,
    resolve,
)
from datadream_utils.values import read_value


@pytest.mark.parametrize("stage", STAGES)
def test_notebook_sets_exactly_the_stages_parameters(stage):
    defaults = notebook_defaults(stage)
    assert list(defaults) and set(defaults) == set(STAGES[stage].model_fields)
    STAGES[stage].make(**defaults)


@pytest.mark.parametrize("name", sorted({n for s in STAGES for n in STAGES[s].model_fields}))
def test_a_parameter_has_one_default(name):
    values = [notebook_defaults(s)[name] for s in STAGES if name in STAGES[s].model_fields]
    assert all(value == values[0] for value in values)


@pytest.mark.parametrize("path", sorted((ROOT / "params").glob("*.yaml")), ids=lambda path: path.name)
def test_parameter_files_fit_every_stage(path):
    changes = read_params_file(path)
    for stage, model in STAGES.items():
        for method in METHODS:
            if stage == "train" and "classifier" in changes and method == "clip_zeroshot":
                continue
            known = {k: v for k, v in (changes | {"method": method}).items() if k in model.model_fields}
            model.make(**(notebook_defaults(stage) | known))


PUBLISHED = {
    "datadream_cls": dict(
        lora_rank=16, lora_alpha=16.0, adapt_epochs=200, adapt_batch_size=8, adapt_lr=1e-4, adapt_warmup_steps=100
    ),
    "loft": dict(
        lora_rank=2,
        lora_alpha=2.0,
        train_text_encoder=False,
        adapt_epochs=600,
        adapt_batch_size=1,
        adapt_lr=1e-3,
        train_epochs=60,
        train_batch_size=256,
        train_warmup_epochs=6.0,
    ),
    "issynth": dict(guidance_scale=3.0, num_inference_steps=100, start_noise=0.231),
    "disef": dict(guidance_scale=8.0, num_inference_steps=20, start_noise=0.971, filter_tries=13),
    "datadream_dset": dict(guidance_scale=2.0, num_inference_steps=50, images_per_class=500, train_epochs=10),
    "real": dict(setting="R", clip_lora_rank=16, clip_lora_alpha=32.0, real_weight=0.8, train_lr=1e-4),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_paper_parameters_are_the_published_ones(method):
    paper, resolved = read_params_file(ROOT / "params" / "paper.yaml"), {}
    for stage in ("adapt", "generate", "train"):
        values = notebook_defaults(stage) | paper | {"method": method}
        fields = STAGES[stage].model_fields
        resolved |= STAGES[stage].make(**{k: v for k, v in values.items() if k in fields}).model_dump()
    assert {name: resolved[name] for name in PUBLISHED[method]} == PUBLISHED[method]


def test_a_value_may_depend_on_the_method(make_params):
    assert make_params("generate", guidance_scale={"default": 2.0, "loft": 5.0}).guidance_scale == 2.0
    assert make_params("generate", guidance_scale={"default": 2.0, "loft": 5.0}, method="loft").guidance_scale == 5.0
    with pytest.raises(InputError, match="parameter 'guidance_scale': 'lofts' is no method. Did you mean 'loft'"):
        make_params("generate", guidance_scale={"lofts": 5.0})
    with pytest.raises(InputError, match="'guidance_scale' has no value for method 'datadream_cls': add it, or a"):
        make_params("generate", guidance_scale={"loft": 5.0})
    with pytest.raises(InputError, match="parameter 'guidance_scale' is 0.5"):  # diffusers would take it for 1
        make_params("generate", guidance_scale=0.5)
    with pytest.raises(InputError, match="parameter 'guidance_scale' is 'x'"):
        make_params("generate", guidance_scale={"default": "x"})


def test_noise_follows_the_shots_or_is_a_number(make_params):
    """He et al.'s steps from the end of 100, as noise amplitudes of GLIDE's cosine schedule (betas at most 0.999)."""
    kept = {16: 15, 8: 20, 4: 35, 2: 40, 1: 50}
    signal = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    left = np.cumprod([1 - min(1 - after / before, 0.999) for before, after in pairwise(signal)])
    of_100 = np.sqrt(1 - left[[round(k * 999 / 99) for k in range(100)]])
    for n_shot, steps in kept.items():
        p = make_params("generate", method="issynth", n_shot=n_shot)
        assert p.start_noise == pytest.approx(of_100[steps - 1], abs=0.0005)
    for n_shot, as_with in {3: 2, 15: 8, 64: 16}.items():
        p = make_params("generate", method="issynth", n_shot=n_shot)
        assert p.start_noise == make_params("generate", method="issynth", n_shot=as_with).start_noise
    assert make_params("generate", method="issynth", start_noise=0.5).start_noise == 0.5
    for wrong in (0.0, 1.5, "shots", 0):
        with pytest.raises(InputError, match="parameter 'start_noise' is "):
            make_params("generate", method="disef", start_noise=wrong)
    with pytest.raises(InputError, match="parameter 'n_shot' is "):
        make_params("generate", method="issynth", n_shot=0)


def test_alpha_follows_the_rank_or_is_a_number(make_params):
    assert make_params("adapt").lora_alpha == make_params("adapt", lora_alpha=16.0).lora_alpha == 16.0
    assert make_params("adapt", lora_rank=4).lora_alpha == 4.0
    assert make_params("adapt", lora_rank=4, lora_alpha=16.0).lora_alpha == 16.0
    for wrong in ({"lora_alpha": "rnk"}, {"lora_rank": "x"}, {"lora_alpha": 0.0}):
        with pytest.raises(InputError, match=f"parameter '{next(iter(wrong))}' is "):
            make_params("adapt", **wrong)


def _read(changes, history=(), annotations=()):
    namespace = notebook_defaults("adapt") | changes
    return AdaptParams.read(namespace | {"In": ["", *history], "__annotations__": dict.fromkeys(annotations, int)})


def test_misspelt_parameter_is_found_in_the_injected_cell():
    with pytest.raises(InputError, match=r"parameter 'n_shots' is not known. Did you mean 'n_shot'\?"):
        _read({"n_shots": 4}, ["# Parameters\nn_shots = 4\n"])


def test_misspelt_parameter_is_found_in_the_parameters_cell():
    with pytest.raises(InputError, match=r"parameter 'lora_ranks' is not known. Did you mean 'lora_rank'\?"):
        _read({"lora_ranks": 4}, annotations=["n_shot", "lora_ranks"])


@pytest.mark.parametrize(
    "own", ["k = 5", "k = 5\nn_shots = 3", "from x import y\nstep = 3", "%matplotlib inline", "x ="]
)
def test_other_stages_parameters_and_a_readers_own_cells_are_fine(own):
    assert _read({"k": 5, "n_shots": 3, "train_epochs": 5}, ["# Parameters\ntrain_epochs = 5\n", own, own])


def test_what_only_shows_or_computes_decides_nothing(make_params):
    same = dict(guidance_scale=9.0, num_inference_steps=3, num_threads=4, device="cpu", checkpoint_every=7)
    assert make_params("adapt").identity() == make_params("adapt", **same).identity()
    assert make_params("generate").identity() != make_params("generate", guidance_scale=9.0).identity()
    assert {"n_shot", "lora_rank", "variant"} < set(AdaptParams.decisive())


@pytest.mark.parametrize(
    "name, methods",
    [
        ("lora_rank", {"datadream_cls", "datadream_dset", "loft"}),
        ("guidance_scale", {"fakeit", "issynth", "disef", "datadream_cls", "datadream_dset", "loft"}),
        ("start_noise", {"issynth", "disef"}),
        ("filter_tries", {"disef"}),
        ("captioner", {"disef"}),
        ("real_weight", {"fakeit", "issynth", "disef", "datadream_cls", "datadream_dset", "loft"}),
        ("clip_model", set(METHODS)),
        ("train_lr", set(METHODS) - {"clip_zeroshot"}),
        ("start", {"fakeit", "issynth", "disef", "datadream_cls", "datadream_dset", "loft"}),
        ("output_root", set()),
    ],
)
def test_a_parameter_plays_a_part_for_the_methods_that_read_it(name, methods):
    assert {key for key, method in METHODS.items() if plays_a_part(name, method)} == methods


def test_a_removed_line_is_named():
    namespace = notebook_defaults("adapt")
    del namespace["n_shot"]
    with pytest.raises(InputError, match="parameter 'n_shot' is not set"):
        AdaptParams.read(namespace)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"method": "datadream_class"}, r"method 'datadream_class' is not known. Did you mean 'datadream_cls'\?"),
        ({"n_shot": 0}, "parameter 'n_shot' is 0: write 1 or more"),
        ({"n_shot": "sixteen"}, "parameter 'n_shot' is 'sixteen': write a whole number"),
        ({"n_shot": 16.5}, "parameter 'n_shot' is 16.5: write a whole number"),
        ({"n_shot": 1e300}, "parameter 'n_shot' is 1000.*: write 1000000000 or less"),
        ({"seed": True}, "parameter 'seed' is True: write a whole number"),
        ({"adapt_lr": -1.0}, "parameter 'adapt_lr' is -1.0: write more than 0"),
        ({"adapt_lr": "0,001"}, "parameter 'adapt_lr' is '0,001': write 0.001, with a point"),
        ({"adapt_lr": "low"}, "parameter 'adapt_lr' is 'low': write a number, such as 0.5 or 1e-4"),
        ({"adapt_lr": "nan"}, "parameter 'adapt_lr' is nan: write a finite number"),
        ({"adapt_lr": 10**400}, "parameter 'adapt_lr' is 1000"),
        ({"adapt_lr": True}, "parameter 'adapt_lr' is True: write a number"),
        ({"train_text_encoder": "maybe"}, "parameter 'train_text_encoder' is 'maybe': write true or false"),
        ({"train_text_encoder": 2}, "parameter 'train_text_encoder' is 2: write true or false"),
        ({"dataset": None}, "parameter 'dataset' is None: write text"),
        ({"dataset": True}, "parameter 'dataset' is True: write text, in a YAML file in quotes"),
        ({"mixed_precision": "fp32"}, "parameter 'mixed_precision' is 'fp32': write 'no', 'fp16' or 'bf16'"),
        ({"mixed_precision": True}, "parameter 'mixed_precision' is True: write 'no', 'fp16' or 'bf16'"),
        ({"device": "gpu"}, "device 'gpu' is none: write auto, cpu, cuda, cuda:1"),
        ({"device": "cuda:"}, "device 'cuda:' is none"),
        ({"variant": "../x"}, "parameter 'variant' is '../x': use only letters without accents, digits and . = _ -"),
        ({"variant": "x" * 61}, "parameter 'variant' is 'xxx.*: use 60 characters or fewer"),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(InputError, match=message):
        _read(changes)


@pytest.mark.parametrize(
    "written, meant",
    [
        ({"adapt_lr": "1e-4"}, {"adapt_lr": 0.0001}),  # text, as YAML 1.1 reads it
        ({"adapt_lr": 1}, {"adapt_lr": 1.0}),
        ({"n_shot": "16", "seed": " 3 "}, {"n_shot": 16, "seed": 3}),
        ({"n_shot": 16.0, "seed": "1e3"}, {"n_shot": 16, "seed": 1000}),
        ({"n_shot": np.int64(4), "adapt_lr": np.float64(0.5)}, {"n_shot": 4, "adapt_lr": 0.5}),
        ({"lora_rank": "4", "lora_alpha": "rank"}, {"lora_rank": 4, "lora_alpha": 4.0}),
        ({"lora_alpha": "8"}, {"lora_alpha": 8.0}),
        ({"train_text_encoder": "false"}, {"train_text_encoder": False}),
        ({"train_text_encoder": "Yes"}, {"train_text_encoder": True}),
        ({"train_text_encoder": 0}, {"train_text_encoder": False}),
        ({"mixed_precision": False}, {"mixed_precision": "no"}),  # YAML 1.1 reads "no" as false
        ({"mixed_precision": "BF16"}, {"mixed_precision": "bf16"}),
        ({"variant": 4, "dataset": 101}, {"variant": "4", "dataset": "101"}),
        ({"variant": 0.5}, {"variant": "0.5"}),
        ({"variant": datetime.date(2024, 1, 31)}, {"variant": "2024-01-31"}),
        ({"variant": "my_run"}, {"variant": "my_run"}),
        ({"dataset": "file:///home/me/my%20photos"}, {"dataset": "/home/me/my photos"}),
        ({"dataset": Path("/home/me/photos")}, {"dataset": "/home/me/photos"}),
        ({"device": "cuda:11"}, {"device": "cuda:11"}),
        ({"adapt_lr": {"default": "1e-4"}}, {"adapt_lr": 0.0001}),
    ],
    ids=str,
)
def test_what_can_only_mean_one_thing_is_that(make_params, written, meant):
    params = make_params("adapt", **written)
    read = {name: getattr(params, name) for name in meant}
    assert read == meant and [*map(type, read.values())] == [*map(type, meant.values())]
    assert params.identity() == make_params("adapt", **meant).identity()


@pytest.mark.parametrize(
    "written, meant", [(True, "yes"), ("true", "yes"), (False, "no"), ("false", "no"), ("No", "no"), ("Auto", "auto")]
)
def test_a_word_that_yaml_and_papermill_take_for_a_switch(make_params, written, meant):
    assert make_params("generate", compile=written).compile == make_params("train", compile=written).compile == meant


@pytest.mark.parametrize("word, meant", [("false", False), ("False", False), ("no", False), ("true", True)])
def test_a_switch_as_papermill_gives_it(word, meant):
    for given in (_resolve_type(word), yaml.safe_load(word), word):  # -p, -y, -r
        assert read_value(given, bool) is meant


@pytest.mark.parametrize("stage", ["adapt", "generate"])
def test_a_resolution_that_the_model_cannot_halve(make_params, tmp_path, stage):
    assert make_params(stage, resolution=512).resolution == 512
    for model in ("models/tiny-stable-diffusion", "someone/on-the-hub"):
        with pytest.raises(InputError, match="resolution=500 is no multiple of 8, .* use 496 or 504"):
            make_params(stage, resolution=500, sd_model=model)
    with pytest.raises(InputError, match="resolution=4 is no multiple of 8, .* use 8"):
        make_params(stage, resolution=4)
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text('{"block_out_channels": [8, 8, 8, 8, 8]}')  # halves four times
    assert make_params(stage, resolution=48, sd_model=str(tmp_path)).resolution == 48
    with pytest.raises(InputError, match="resolution=40 is no multiple of 16, .* use 32 or 48"):
        make_params(stage, resolution=40, sd_model=str(tmp_path))


def test_a_home_folder_is_found(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve("~/photos") == tmp_path / "photos" and resolve("photos") == ROOT / "photos"


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"setting": "RS"}, r"setting 'RS' is not known. Did you mean 'R\+S'\?"),
        ({"setting": "S", "method": "real"}, "method 'real' has no setting 'S'; use R"),
        ({"setting": "R", "method": "clip_zeroshot"}, "method 'clip_zeroshot' has no setting 'R'; use none"),
        ({"n_shot": 64}, "n_shot=64 is more than images_per_class=50"),
        ({"classifier": "resnet18"}, "neither 'clip' nor 'resnet50' nor a folder with .* Did you mean 'resnet50'"),
        ({"classifier": "CLIP"}, "neither 'clip' nor .* Did you mean 'clip'"),
        ({"clip_model": "models/tiny-clipp"}, "there is no 'tiny-clipp' in .*models. Did you mean 'tiny-clip'"),
        ({"synthetic_per_class": 51}, "synthetic_per_class=51 is more than images_per_class=50: use 50 or less"),
    ],
)
def test_settings_fit_methods(make_params, changes, message):
    with pytest.raises(InputError, match=message):
        make_params("train", **changes)


@pytest.mark.parametrize(
    "text, message",
    [
        ("n_shots: 4", "Did you mean 'n_shot'"),
        ("- 1", "must hold"),
        ("a: [", "cannot be read as YAML"),
        ("seed: 1\nn_shot: 8\nseed: 2", r"'seed' stands there twice \(lines 1 and 3\): keep one"),
        ("lora_rank: {default: 4, loft: 2, default: 8}", "'default' stands there twice"),
        ("seed: 1".encode("utf-16"), "is not in UTF-8"),
        ("variant: é".encode("latin-1"), "is not in UTF-8"),
    ],
)
def test_bad_parameter_file(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=r"mine\.yaml.*" + message):
        read_params_file(tmp_path / "mine.yaml")


def test_every_stage_has_a_notebook():
    assert set(NOTEBOOKS) == set(STAGES)


@pytest.mark.parametrize(
    "written, message",
    [
        ("", "name a folder"),
        (" outputs", "write 'outputs'"),
        ("D:\\outputs", "in WSL '/mnt/d/outputs'"),
        ("$NO_SUCH_VARIABLE/outputs", r"no '\$NO_SUCH_VARIABLE'"),
        ("/scratch/${NO_SUCH_VARIABLE}", r"no '\$\{NO_SUCH_VARIABLE\}'"),
    ],
)
def test_results_go_to_no_folder_that_was_not_meant(make_params, written, message):
    with pytest.raises(InputError, match=message):
        _ = make_params("adapt", output_root=written).run_folder


@pytest.mark.parametrize(
    "stage, name, value, limit",
    [
        ("adapt", "resolution", 80000, 4096),
        ("adapt", "lora_rank", 10**6, 4096),
        ("adapt", "adapt_epochs", 10**9, 10**5),
        ("adapt", "num_threads", 10**6, 1024),
        ("generate", "num_inference_steps", 2000, 1000),
        ("generate", "images_per_class", 10**9, 10**6),
        ("train", "clip_lora_rank", 10**6, 4096),
        ("train", "train_epochs", 10**9, 10**5),
        ("train", "num_workers", 10**5, 1024),
    ],
)
def test_numbers_that_no_machine_can_hold_are_refused(make_params, stage, name, value, limit):
    """Beyond them the system kills the process, without a word, or a library fails in the middle."""
    with pytest.raises(InputError, match=f"'{name}' is {value}: write {limit} or less"):
        make_params(stage, **{name: value})
    assert getattr(make_params(stage, **{name: 8}), name) == 8


def test_a_slash_at_the_end_makes_no_other_run(make_params):
    first, second = (make_params("adapt", dataset=f"/home/me/photos{end}") for end in ("", "/"))
    assert first.identity() == second.identity() and make_params("adapt", dataset="/").dataset == "/"


def test_a_variable_in_a_path_is_read(make_params, monkeypatch, tmp_path):
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    assert make_params("adapt", output_root="$SCRATCH/out").run_folder.parent == tmp_path / "out"


def test_run_name_is_never_a_path(make_params):
    p = make_params("adapt", dataset="/home/me/../my data")
    assert p.run_name == "my-data_datadream_cls_16shot_seed0"
    assert make_params("adapt", dataset="..", variant="x.1").run_name == "dataset_datadream_cls_16shot_seed0_x.1"
