"""Parameters: the notebooks' defaults are valid, files use known names, mistakes are explained."""

import math
from itertools import pairwise

import numpy as np
import pytest

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
)


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
        ({"n_shot": 0}, "parameter 'n_shot' is 0: Input should be greater than or equal to 1"),
        ({"n_shot": "16"}, "parameter 'n_shot' is '16': Input should be a valid integer"),
        ({"adapt_lr": -1.0}, "parameter 'adapt_lr' is -1.0"),
        ({"device": "gpu"}, "parameter 'device' is 'gpu': Input should be 'auto', 'cpu', 'cuda' or 'mps'"),
        ({"variant": "../x"}, "parameter 'variant' is '../x'"),
        ({"seed": True}, "parameter 'seed' is True"),
    ],
)
def test_impossible_values(changes, message):
    with pytest.raises(InputError, match=message):
        _read(changes)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"setting": "RS"}, r"setting 'RS' is not known. Did you mean 'R\+S'\?"),
        ({"setting": "S", "method": "real"}, "method 'real' has no setting 'S'; use R"),
        ({"setting": "R", "method": "clip_zeroshot"}, "method 'clip_zeroshot' has no setting 'R'; use none"),
        ({"n_shot": 64}, "n_shot=64 is more than images_per_class=50"),
        ({"synthetic_per_class": 51}, "synthetic_per_class=51 is more than images_per_class=50: use 50 or less"),
    ],
)
def test_settings_fit_methods(make_params, changes, message):
    with pytest.raises(InputError, match=message):
        make_params("train", **changes)


@pytest.mark.parametrize(
    "text, message",
    [("n_shots: 4", "Did you mean 'n_shot'"), ("- 1", "must hold"), ("a: [", "cannot be read as YAML")],
)
def test_bad_parameter_file(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=r"mine\.yaml.*" + message):
        read_params_file(tmp_path / "mine.yaml")


def test_every_stage_has_a_notebook():
    assert set(NOTEBOOKS) == set(STAGES)


def test_run_name_is_never_a_path(make_params):
    p = make_params("adapt", dataset="/home/me/../my data")
    assert p.run_name == "my-data_datadream_cls_16shot_seed0"
    assert make_params("adapt", dataset="..", variant="x.1").run_name == "dataset_datadream_cls_16shot_seed0_x.1"
