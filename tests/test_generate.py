"""Generation: images are functions of (seed, class, index); resuming changes nothing; ImageFolder layout."""

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from PIL import Image
from torch._dynamo.utils import counters

from datadream_utils.backbones.clip import ClipClassifier, clip_judge
from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.classifier.evaluate import predict
from datadream_utils.data.dataset import flatten
from datadream_utils.data.shots import few_shot
from datadream_utils.diffusion import generate as generating
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.captions import read_captions
from datadream_utils.diffusion.denoising import noise_scheduler
from datadream_utils.diffusion.generate import (
    class_adapter,
    count_passes,
    draw_examples,
    generate,
    make_recipe,
    read_metadata,
    sample,
    sample_draws,
    start_picture,
)
from datadream_utils.diffusion.recipe import Recipe, image_seed
from datadream_utils.errors import InputError
from datadream_utils.methods import METHODS, get_method
from datadream_utils.params import ROOT
from datadream_utils.runs import compiling
from datadream_utils.runs.stage import finished_stage


def _pixels(image):
    return np.asarray(image, dtype=int)


def test_an_image_is_the_same_alone_and_in_a_batch(pipe):
    prompts, seeds = ["a photo of a seven"] * 5, [image_seed(0, "7", i) for i in range(5)]
    batch = sample(pipe, prompts, seeds, 2.0, 6, 32)
    for i in (0, 3):
        (alone,) = sample(pipe, prompts[:1], seeds[i : i + 1], 2.0, 6, 32)
        assert np.abs(_pixels(alone) - _pixels(batch[i])).max() <= 1
    assert np.abs(_pixels(batch[0]) - _pixels(batch[1])).mean() > 3


def test_the_more_noise_the_less_is_left_of_the_shot(pipe, mnist):
    shot = start_picture(mnist.files["train"][7][0], 32)
    assert shot.size == (32, 32)

    def distance(noise):
        images = sample(pipe, ["a photo of a seven"] * 4, [1, 2, 3, 4], 2.0, 20, 32, [shot] * 4, noise)
        return np.mean([np.abs(_pixels(image) - _pixels(shot)).mean() for image in images])

    distances = [distance(noise) for noise in (0.23, 0.66, 0.93, 1.0)]
    assert distances == sorted(distances) and distances[0] < 20 and distances[-1] > 2 * distances[0]


def test_image_to_image_begins_at_the_step_whose_noise_is_nearest(pipe, mnist):
    shot, times = start_picture(mnist.files["train"][7][0], 32), []
    amplitudes = (1 - noise_scheduler(pipe).alphas_cumprod).sqrt()
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: times.append(int(inputs[1])))
    try:
        sample(pipe, ["x"], [0], 1.0, 20, 32)
        all_times = times[:]
        for noise in (0.01, 0.2, 0.3, 0.5, 0.7, 0.9, 0.97, 0.99, 1.0):
            times.clear()
            sample(pipe, ["x"], [0], 1.0, 20, 32, [shot], noise)
            assert times[0] == min(all_times, key=lambda t, noise=noise: abs(amplitudes[t] - noise))
            assert times == all_times[-len(times) :] and len(times) == count_passes(pipe, 20, noise)
    finally:
        hook.remove()


def test_published_noise_is_reached_at_these_steps_of_stable_diffusion(monkeypatch, pipe, make_params):
    scheduler = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    for n_shot, skipped in {16: 95, 8: 91, 4: 78, 2: 74, 1: 65}.items():
        noise = make_params("generate", method="issynth", n_shot=n_shot).start_noise
        assert 100 - count_passes(pipe, 100, noise) == skipped
    assert 20 - count_passes(pipe, 20, make_params("generate", method="disef").start_noise) == 5


def test_every_image_has_its_own_seed():
    seeds = {image_seed(s, c, i, a) for s in range(3) for c in ("a", "b", "c") for i in range(50) for a in range(3)}
    assert len(seeds) == 1350


def _generate(pipe, run):
    return generate(pipe, make_recipe(run), run)


SMALL = dict(
    images_per_class=3, generate_batch_size=2, num_inference_steps=2, start_noise=0.7, filter_tries=3, n_shot=3
)


@pytest.mark.parametrize("method", ["fakeit", "disef"])
def test_a_killed_run_resumes_to_the_same_bytes(pipe, make_run, tmp_path, method):
    contents = []
    for name in ("once", "resumed"):
        run = make_run("generate", method=method, **SMALL, output_root=str(tmp_path / name))
        files = flatten(_generate(pipe, run))[0]
        list_of_images = run.folder / "images" / "metadata.jsonl"
        if name == "resumed":  # lost: a whole class, half a batch, and the list
            for path in [*files[:3], files[4], list_of_images]:
                path.unlink()
            assert flatten(_generate(pipe, run))[0] == files
        contents.append([path.read_bytes() for path in [*files, list_of_images]])
    assert contents[0] == contents[1] and len(set(contents[0])) == 31


def test_the_set_is_an_image_folder_with_metadata(pipe, mnist, make_run):
    run = make_run("generate", method="fakeit", images_per_class=1, num_inference_steps=1)
    images, folder = _generate(pipe, run), run.folder / "images"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert rows == read_metadata(run.stage) and [row["class_name"] for row in rows] == list(mnist.class_names)
    assert [[folder / row["file_name"]] for row in rows] == images
    assert rows[7]["prompt"] == "seven, a digit" and rows[7]["seed"] == image_seed(0, "7", 0)
    on_disk = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert on_disk == {row["file_name"] for row in rows}


def _recipe(method, mnist, n_shot=4, seed=0, adapters=Path("adapters"), **axes):
    shots = few_shot(mnist, n_shot, seed)
    captions = {path: f"caption of {path.name}" for files in shots for path in files}
    return Recipe(get_method(method, **axes), mnist, shots, seed, adapters, captions)


def test_prompts_follow_the_method(mnist):
    assert _recipe("datadream_cls", mnist).class_prompts[7] == "a photo of a seven"
    assert _recipe("fakeit", mnist).class_prompts[7] == "seven, a digit"


def test_every_method_draws_from_what_its_row_says(mnist):
    draw = {name: _recipe(name, mnist).draw(7, 5) for name in METHODS if METHODS[name].generates}
    shots = few_shot(mnist, 4, 0)[7]
    assert draw["fakeit"].adapters == draw["issynth"].adapters == draw["disef"].adapters == ()
    assert draw["datadream_cls"].adapters == (Path("adapters/0007_seven"),)
    assert draw["datadream_dset"].adapters == (Path("adapters/all_classes"),)
    pair = draw["loft"].adapters
    assert len(pair) == 2 and all(folder.name.startswith("0007_seven_00") for folder in pair)
    plain = {name: _recipe(name, mnist).without_adapters().draw(7, 5) for name in draw}
    assert all(replace(draw[name], adapters=()) == plain[name] for name in draw)
    assert draw["issynth"].start == draw["disef"].start == shots[5 % 4]
    assert {name for name in draw if draw[name].start is None} == {"fakeit", "datadream_cls", "datadream_dset", "loft"}
    assert draw["issynth"].prompt == "a photo of a seven" and draw["disef"].prompt.startswith("caption of ")


def test_disef_prompts_with_the_caption_of_another_shot(mnist):
    recipe = _recipe("disef", mnist)
    draws = [recipe.draw(7, i, attempt) for i in range(40) for attempt in range(3)]
    assert all(draw.prompt != f"caption of {draw.start.name}" for draw in draws)
    assert len({(draw.start, draw.prompt) for draw in draws}) == 4 * 3 and len({draw.seed for draw in draws}) == 120
    alone = _recipe("disef", mnist, n_shot=1).draw(7, 3)
    assert alone.prompt == f"caption of {alone.start.name}"  # one shot has no other


def test_loft_goes_through_every_pair_before_it_repeats_one(mnist):
    recipe = _recipe("loft", mnist, n_shot=5)
    pairs = [recipe.draw(2, i).adapters for i in range(20)]
    assert len(set(pairs[:10])) == 10 and pairs[:10] == pairs[10:] and pairs[:10] != sorted(pairs[:10])
    assert all(a != b for a, b in pairs) and [recipe.draw(3, i).adapters for i in range(10)] != pairs[:10]
    assert _recipe("loft", mnist, n_shot=1).draw(2, 7).adapters == (Path("adapters/0002_two_000"),)


def test_parts_of_methods_combine(pipe, make_run):
    """DataDream's adapters, started from a shot, kept if CLIP agrees."""
    axes = dict(start="shot", keep="clip", variant="mixed")
    changes = dict(method="datadream_dset", **{**SMALL, "images_per_class": 2}, **axes)
    with pytest.raises(InputError, match="start='shot' makes 'datadream_dset' another method: name the run"):
        make_run("generate", **{**changes, "variant": ""})
    adapted = make_run("adapt", method="datadream_dset", n_shot=3, adapt_epochs=1, variant="mixed")
    adapt(pipe, plan_adapters(adapted), adapted)
    run = make_run("generate", source=adapted.stage, **changes)
    _generate(pipe, run)
    rows = read_metadata(run.stage)
    assert all(row["start"].startswith("train/") and row["adapter"] == "all_classes" for row in rows)
    assert {row["kept"] for row in rows} <= {"clip", "gave up"} and len(rows) == 20


def test_the_filter_draws_again_and_gives_up_when_it_said_it_would(pipe, mnist, make_run, monkeypatch):
    changes = {**SMALL, "generate_batch_size": 3}
    run, looks = make_run("generate", method="issynth", keep="clip", variant="filtered", **changes), []

    def judge(images):  # never agrees on class 0; agrees on the others at the second look
        looks.append(len(images))
        label = max(0, (len(looks) - 2) // 2)
        return [label if label and len(looks) % 2 else -1] * len(images)

    monkeypatch.setattr(generating, "load_filter", lambda run: judge)
    _generate(pipe, run)
    rows = read_metadata(run.stage)
    assert [row["tries"] for row in rows] == [3] * 3 + [2] * 27
    assert [row["kept"] for row in rows] == ["gave up"] * 3 + ["clip"] * 27
    assert all(row["seed"] == image_seed(0, str(row["label"]), i % 3, row["tries"] - 1) for i, row in enumerate(rows))
    again = sample(pipe, [rows[4]["prompt"]] * 3, [row["seed"] for row in rows[3:6]], 3.0, 2, 32,
                   [start_picture(mnist.root / row["start"], 32) for row in rows[3:6]], 0.7)  # fmt: skip
    assert np.abs(_pixels(again[1]) - _pixels(Image.open(run.folder / "images" / rows[4]["file_name"]))).max() <= 1


def test_a_class_has_as_many_draws_as_its_images_have_tries(pipe, make_run, monkeypatch):
    changes = {**SMALL, "images_per_class": 5, "filter_tries": 2, "n_shot": 1}  # 10 draws, in blocks of 2, 2, 1
    monkeypatch.setattr(generating, "load_filter", lambda run: lambda images: [0] * len(images))
    run = make_run("generate", method="issynth", keep="clip", variant="filtered", **changes)
    _generate(pipe, run)
    rows = read_metadata(run.stage)
    assert [row["tries"] for row in rows] == [1] * 5 + [3, 3, 1, 1, 2] * 9  # 10 each
    assert [row["kept"] for row in rows] == ["clip"] * 5 + ["gave up"] * 45
    run.folder.joinpath("manifest.json").unlink()
    (run.folder / "images" / rows[23]["file_name"]).unlink()
    again = make_run("generate", method="issynth", keep="clip", variant="filtered", **changes)
    _generate(pipe, again)
    assert read_metadata(again.stage) == rows


def test_the_judge_is_zero_shot_clip(clip, mnist, make_params):
    one_per_class = [files[:1] for files in mnist.files["val"]]
    expected = predict(ClipClassifier(*clip, mnist), one_per_class, make_params("train", eval_batch_size=4))
    judge = clip_judge(*clip, mnist)
    images = [Image.open(path).convert("RGB") for (path,) in one_per_class]
    assert judge(images) == expected["prediction"].tolist()


def test_captions_are_written_once_and_say_who_wrote_them(mnist, make_run, capsys):
    run = make_run("generate", method="disef", n_shot=2)
    captions = read_captions(run)
    assert set(captions) == {path for files in run.shots for path in files}
    assert all(mnist.class_names[label] in captions[path] for label, files in enumerate(run.shots) for path in files)
    assert "stand-in" in capsys.readouterr().out
    stored = json.loads((run.folder / "captions.json").read_text())
    stored["captions"] = dict.fromkeys(stored["captions"], "mine")
    (run.folder / "captions.json").write_text(json.dumps(stored))
    assert set(read_captions(run).values()) == {"mine"} == set(make_recipe(run).captions.values())
    other = replace(run, params=run.params.model_copy(update={"seed": 1}), shots=few_shot(mnist, 2, 1))
    assert "mine" not in read_captions(other).values()
    assert make_recipe(make_run("generate", method="fakeit", n_shot=2)).captions is None


def test_each_shard_captions_the_shots_of_its_classes(make_run):
    whole = make_run("generate", method="disef", n_shot=2)
    captions = read_captions(whole)
    run = make_run("generate", method="disef", n_shot=2, variant="divided")
    with ThreadPoolExecutor(3) as pool:
        parts = list(pool.map(lambda k: read_captions(replace(run, shard=f"{k}/3")), (3, 1, 2)))
    assert [len(part) for part in parts] == [6, 8, 6] and parts[0] | parts[1] | parts[2] == captions
    one, other = ((r.folder / "captions.json").read_bytes() for r in (whole, run))
    assert one == other  # whichever shard was first
    (run.folder / "captions.json").unlink()
    read_captions(replace(run, shard="2/3"))
    assert read_captions(run) == captions and (run.folder / "captions.json").read_bytes() == one


def test_captions_go_on_where_a_killed_run_was(make_run):
    steps = []

    @contextmanager
    def killed_after_five(total, label):
        def advance(n=1):
            steps.append(total)
            if len(steps) == 5:
                raise KeyboardInterrupt

        yield advance

    whole = read_captions(make_run("generate", method="disef", n_shot=2))
    run = make_run("generate", method="disef", n_shot=2, variant="killed", progress=killed_after_five)
    with pytest.raises(KeyboardInterrupt):
        read_captions(run)
    assert read_captions(run) == whole
    assert steps == [20] * 5 + [16] * 16  # the third class had begun only


def test_pndm_does_not_start_in_the_middle(pipe, mnist, monkeypatch):
    scheduler = PNDMScheduler(skip_prk_steps=True, prediction_type="v_prediction")
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    times, shot = [], start_picture(few_shot(mnist, 1, 0)[7][0], 32)
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: times.append(int(inputs[1])))
    try:
        sample(pipe, ["a photo of a seven"], [0], 2.0, 20, 32, [shot], 0.7)
        from_shot = times[:]
        times.clear()
        sample(pipe, ["a photo of a seven"], [0], 2.0, 50, 32)
    finally:
        hook.remove()
    assert 0 < len(from_shot) == count_passes(pipe, 20, 0.7) < 20
    assert all(later < earlier for earlier, later in pairwise(from_shot))
    assert len(times) == count_passes(pipe, 50) == 51
    assert pipe.scheduler is scheduler


def test_loft_draws_each_image_of_a_batch_with_its_own_two_adapters(pipe, make_run):
    run = make_run("adapt", method="loft", n_shot=3, adapt_epochs=30)
    adapt(pipe, plan_adapters(run)[:3], run)
    recipe, p = make_recipe(run), run.params
    together = draw_examples(pipe, recipe, p, [0], 3)["zero"]
    base = draw_examples(pipe, recipe.without_adapters(), p, [0], 3)["zero"]
    plain = StableDiffusionPipeline.from_pretrained(ROOT / "models" / "tiny-stable-diffusion", dtype=torch.float32)
    plain.set_progress_bar_config(disable=True)
    for i in range(3):
        name = f"0000_zero_{i:03d}"
        plain.load_lora_weights(run.folder / "adapters" / name, adapter_name=name)
    for i, image in enumerate(together):
        draw = recipe.draw(0, i)
        plain.set_adapters([folder.name for folder in draw.adapters], [0.5, 0.5])
        options = (p.guidance_scale, p.num_inference_steps, p.resolution)
        (alone,) = sample(plain, [draw.prompt], [draw.seed], *options)
        assert np.abs(_pixels(image) - _pixels(alone)).max() <= 1
        assert np.abs(_pixels(image) - _pixels(base[i])).mean() > 3


def test_examples_of_several_classes_drawn_at_once_are_those_drawn_class_by_class(pipe, make_run):
    run = make_run("adapt", n_shot=2, adapt_epochs=10, num_inference_steps=5)
    adapt(pipe, plan_adapters(run)[:2], run)
    for recipe in (make_recipe(run), make_recipe(run).without_adapters()):
        together = draw_examples(pipe, recipe, run.params, range(2), 2)
        for label, images in enumerate(together.values()):
            draws = [recipe.draw(label, i) for i in range(2)]
            with class_adapter(pipe, recipe, label):
                alone = sample_draws(pipe, recipe, draws, run.params)
            assert len(images) == 2
            assert max(np.abs(_pixels(a) - _pixels(b)).max() for a, b in zip(images, alone, strict=True)) <= 1


def test_stages_out_of_order_say_what_to_run(make_params):
    with pytest.raises(InputError, match="adapt is not finished: run 01_adapt_sd first with the same dataset, method"):
        finished_stage(make_params("generate"), "adapt")


def test_other_parameters_never_overwrite(make_run, capsys):
    run = make_run("generate")
    run.begin()
    run.finish()
    with pytest.raises(InputError, match="was made with guidance_scale=2.0, not 3.0: set 'variant'"):
        make_run("generate", guidance_scale=3.0)
    assert not make_run("generate", num_threads=2).begin()  # how it is computed, not what
    assert "finished already" in capsys.readouterr().out
    assert make_run("generate", guidance_scale=3.0, variant="strong").begin()


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"start": "shots"}, "start 'shots' is not known. Did you mean 'shot'"),
        ({"adapter": "classes"}, "adapter 'classes' is not known. Did you mean 'class'"),
    ],
)
def test_unknown_parts_are_named(axes, message):
    with pytest.raises(InputError, match=message):
        get_method("fakeit", **axes)
    with pytest.raises(InputError, match="method 'real' generates nothing, so start='shot' means nothing"):
        get_method("real", start="shot")


def test_a_replaced_part_makes_the_other_methods_row():
    assert replace(METHODS["issynth"], label="") == replace(
        get_method("datadream_cls", adapter="none", start="shot"), label=""
    )


@pytest.fixture
def fresh_pipe():
    """A pipeline of its own: dynamo's records of a module outlive compiling."""
    return load_stable_diffusion("models/tiny-stable-diffusion")


@pytest.mark.parametrize("method", ["datadream_cls", "loft"])
def test_compiled_images_are_the_same_and_classes_share_what_is_compiled(fresh_pipe, make_run, monkeypatch, method):
    """Two classes of three images in batches of two: the odd image of each is drawn uncompiled."""
    monkeypatch.setattr(compiling, "HOW", {"backend": "aot_eager"})
    pipe, changes = fresh_pipe, {**SMALL, "method": method}
    adapted = make_run("adapt", method=method, n_shot=3, adapt_epochs=2)
    adapt(pipe, plan_adapters(adapted), adapted)
    modules, images, graphs = [id(module) for module in pipe.unet.modules()], {}, []
    draw_block = generating._draw_block

    def counted(*args):
        rows = draw_block(*args)
        graphs.append(counters["stats"]["unique_graphs"])
        return rows

    monkeypatch.setattr(generating, "_draw_block", counted)
    for choice in ("no", "yes"):
        run = make_run("generate", source=adapted.stage, output_root=f"{adapted.folder}-{choice}", compile=choice,
                       shard="1/5", **changes)  # fmt: skip
        _generate(pipe, run)
        images[choice] = sorted(run.folder.rglob("*.png"))
        assert [id(module) for module in pipe.unet.modules()] == modules
        assert all(module._compiled_call_impl is None for module in pipe.unet.modules())
    assert len(images["yes"]) == len(images["no"]) == 6
    for one, other in zip(images["no"], images["yes"], strict=True):
        assert np.abs(_pixels(Image.open(one)) - _pixels(Image.open(other))).max() <= 1
    compiled_graphs = graphs[len(graphs) // 2 :]
    assert graphs[0] < compiled_graphs[0] and len(set(compiled_graphs)) == 1


def test_a_compiler_that_fails_is_named(fresh_pipe, make_run, monkeypatch, capsys):
    def fail(graph, inputs):
        raise OSError("no such compiler")

    monkeypatch.setattr(compiling, "HOW", {"backend": fail})
    changes = {**SMALL, "method": "fakeit", "shard": "1/10"}
    with pytest.raises(InputError, match=r"torch.compile fails .*no such compiler.*: set compile to 'no'"):
        _generate(fresh_pipe, make_run("generate", compile="yes", **changes))
    run = make_run("generate", compile="auto", variant="auto", **changes)
    generate(fresh_pipe, make_recipe(run), run, pays=True)
    assert "going on without" in capsys.readouterr().out and len(list(run.folder.rglob("*.png"))) == 3


@pytest.mark.parametrize(
    "device, changes, pays",
    [
        ("cuda", {}, True),
        ("cpu", {}, False),
        ("mps", {}, False),
        ("cuda", {"images_per_class": 99}, False),
        ("cuda", {"guidance_scale": 1.0}, False),
        ("cuda", {"sampler": "dpmsolver++", "num_inference_steps": 49}, False),
    ],
)
def test_auto_compiles_a_long_stage_on_a_gpu(pipe, make_params, device, changes, pays):
    gpu = type("Pipe", (), {"device": torch.device(device), "scheduler": pipe.scheduler})
    p = make_params("generate", **{"images_per_class": 100, "num_inference_steps": 50} | changes)
    assert generating.compile_pays(gpu, p, 10) == pays


def test_another_solver_draws_the_same_in_other_steps(pipe, monkeypatch, make_params):
    tiny = sample(pipe, ["a photo of a seven"], [0], 2.0, 6, 32)
    assert _pixels(sample(pipe, ["a photo of a seven"], [0], 2.0, 6, 32, sampler="dpmsolver++")[0]).tolist() == (
        _pixels(tiny[0]).tolist()  # the tiny model's own solver
    )
    scheduler = PNDMScheduler.from_config(pipe.scheduler.config, skip_prk_steps=True)
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda _, inputs: calls.append(int(inputs[1])))
    try:
        for sampler, passes in (("model", 7), ("dpmsolver++", 6)):
            calls.clear()
            sample(pipe, ["a photo of a seven"], [0], 2.0, 6, 32, sampler=sampler)
            assert len(calls) == passes == count_passes(pipe, 6, sampler=sampler)
            p = make_params("generate", num_inference_steps=6, sampler=sampler)
            assert generating.passes_per_image(pipe, p) == 2 * passes
    finally:
        hook.remove()
    assert pipe.scheduler is scheduler


def test_a_solver_of_ones_own_makes_another_run_and_the_models_own_does_not(make_run):
    run = make_run("generate")
    run.begin()
    assert "sampler" not in json.loads((run.folder / "parameters.json").read_text())["parameters"]
    make_run("generate", compile="yes")  # how it is computed, not what
    with pytest.raises(InputError, match="was made with sampler=None, not 'dpmsolver"):
        make_run("generate", sampler="dpmsolver++")
