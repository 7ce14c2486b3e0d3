"""Results that cannot be right: refused in every stage, with nothing finished; the next run goes on or begins anew."""

import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import run_notebook
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from safetensors.torch import load_file, save_file

from datadream_utils.analysis.features import Encoder, encode
from datadream_utils.backbones.clip import ClipClassifier, clip_judge
from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import evaluate, predict, save_results
from datadream_utils.classifier.pictures import make_sets, training_sets
from datadream_utils.classifier.train import fit
from datadream_utils.data.dataset import flatten
from datadream_utils.diffusion import generate as generating
from datadream_utils.diffusion.adapt import Training, adapt, plan_adapters
from datadream_utils.diffusion.generate import generate, make_recipe, sample
from datadream_utils.errors import InputError
from datadream_utils.runs import plausible
from datadream_utils.runs.checkpoint import Checkpoint
from datadream_utils.runs.plausible import check_loss, check_pictures, check_prompts, check_skipped, steps_taken

ADAPT = dict(n_shot=2, adapt_epochs=2, adapt_batch_size=1, adapt_warmup_steps=0)
TRAIN = dict(method="real", n_shot=2, images_per_class=4, train_epochs=2, train_batch_size=20)
DRAW = dict(method="fakeit", images_per_class=3, generate_batch_size=2, num_inference_steps=2)
CLASSIFIERS = ["clip", "models/tiny-resnet"]
OVERFLOW = partial(torch.amp.GradScaler, init_scale=2.0**120)  # no scale that a few halvings reach is small enough


@pytest.fixture
def few(mnist):
    """The digits with six pictures of a class in each split."""
    return replace(mnist, files={split: [files[:6] for files in mnist.files[split]] for split in mnist.files})


# Stage 1


def _adapt(pipe, run, count=3):
    return adapt(pipe, plan_adapters(run)[:count], run)


@pytest.mark.parametrize(
    "case", [dict(adapters_together=1), dict(adapters_together=3), dict(method="datadream_dset"), dict(method="loft")]
)
def test_a_loss_that_is_not_finite_stops_adaptation(pipe, make_run, case):
    run = make_run("adapt", adapt_lr=1e30, checkpoint_every=1, **ADAPT, **case)
    for _ in range(2):  # given again, it comes to the same end
        with pytest.raises(InputError, match=r"loss of adapter '.*' is nan at step [123]: lower adapt_lr \(1e\+30\)"):
            _adapt(pipe, run)
        assert not run.stage.finished and not list(run.folder.glob("adapters/*"))
    for file in run.folder.glob("checkpoints/*"):
        saved = load_file(file)
        assert all(saved[name].isfinite().all() for name in saved if name.startswith("parameters"))
    assert not pipe.unet.training and not getattr(pipe.unet, "_hf_peft_config_loaded", False)


def test_a_stopped_adaptation_begins_anew_as_its_sentence_says(pipe, make_run):
    with pytest.raises(InputError) as stopped:
        _adapt(pipe, run := make_run("adapt", adapt_lr=1e30, **ADAPT))
    assert f"delete {run.folder} or set 'variant'" in str(stopped.value)
    with pytest.raises(InputError, match="was made with adapt_lr=1e\\+30, not 0.002"):
        make_run("adapt", **ADAPT)
    other = make_run("adapt", variant="gentle", **ADAPT)
    shutil.rmtree(run.folder)
    again = make_run("adapt", **ADAPT)
    losses = [_adapt(pipe, one, 2) for one in (other, again)]
    assert losses[0] == losses[1] and np.isfinite(list(losses[0].values())).all()
    assert other.stage.finished and again.stage.finished


@pytest.fixture
def break_weights(monkeypatch):
    """Every optimizer step leaves an infinite weight."""
    step = torch.optim.AdamW.step

    @torch.no_grad()
    def broken(self, *args, **options):
        step(self, *args, **options)
        self.param_groups[0]["params"][-1].flatten()[-1] = torch.inf

    monkeypatch.setattr(torch.optim.AdamW, "step", broken)


@pytest.mark.usefixtures("break_weights")
@pytest.mark.parametrize("together", [1, 3])
def test_weights_that_are_not_finite_are_neither_saved_nor_kept_in_a_checkpoint(pipe, make_run, together):
    one_step = ADAPT | dict(adapt_epochs=1, adapt_batch_size=2)  # its loss is that of the base model, so it is finite
    run = make_run("adapt", adapters_together=together, checkpoint_every=1, **one_step)
    with pytest.raises(InputError, match="weights of adapter '0000_zero'.* are not finite and are not saved: lower"):
        _adapt(pipe, run)
    assert not [path for path in run.folder.rglob("*") if path.suffix in (".safetensors", ".csv")]
    assert not run.stage.finished


def test_a_checkpoint_with_weights_that_are_not_finite_is_not_used(pipe, make_run, tmp_path, capsys):
    run = make_run("adapt", n_shot=1)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "this", 1)
    training = Training(pipe, plan_adapters(run)[:1], [torch.nn.Parameter(torch.zeros(3))], run.params)
    training.rows.append((0, 1.0, 1e-3))
    checkpoint.save_if_due(training)
    kept = checkpoint.path.read_bytes()
    with torch.no_grad():
        training.parameters[0][1] = torch.inf
    checkpoint.save_if_due(training)
    assert checkpoint.path.read_bytes() == kept
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datadream_utils.runs.checkpoint.are_finite", lambda tensors: True)
        checkpoint.save_if_due(training)
    training.rows.clear()
    checkpoint.load(training)
    assert "is not used (its weights are not finite)" in capsys.readouterr().out and not training.rows


@pytest.mark.parametrize("together", [1, 3])
def test_fp16_that_skips_every_step_of_adaptation_is_refused(pipe, make_run, monkeypatch, together):
    monkeypatch.setattr(torch.amp, "GradScaler", OVERFLOW)
    run = make_run("adapt", mixed_precision="fp16", adapters_together=together, **ADAPT)
    with pytest.raises(InputError, match="3 of 3 optimizer steps were skipped.*: set mixed_precision to 'bf16'"):
        _adapt(pipe, run)
    assert not run.stage.finished and not list(run.folder.glob("adapters/*"))


def _skip(params, skipped, steps):
    """``check_skipped`` after every one of ``steps`` steps, of which torch's scaler skips the first ``skipped``."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer, scaler = torch.optim.AdamW([parameter]), torch.amp.GradScaler("cpu")
    for step in range(steps):
        scaler.scale((parameter * (torch.inf if step < skipped else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        check_skipped(steps_taken(optimizer), step + 1, steps, params)


def test_steps_skipped_at_the_start_are_normal(make_params):
    params = make_params("adapt", mixed_precision="fp16")
    for skipped, steps in [(16, 40), (1, 2), (50, 100), (50, 300), (0, 1)]:
        _skip(params, skipped, steps)
    for skipped, steps in [(1, 1), (2, 3), (51, 100), (51, 300)]:
        with pytest.raises(InputError, match=f"^{skipped} of {skipped} .*skipped"):
            _skip(params, skipped, steps)


def test_the_precision_is_blamed_where_it_can_be_the_reason(make_params):
    blamed = {}
    for precision in ("no", "bf16", "fp16"):
        with pytest.raises(InputError) as raised:
            check_loss([1.0, -np.inf], ["this", "that"], 7, make_params("train", mixed_precision=precision))
        blamed[precision] = str(raised.value)
        assert "loss of that is -inf at step 7" in blamed[precision] and "lower train_lr (0.002)" in blamed[precision]
    assert ["mixed_precision" in text for text in blamed.values()] == [False, False, True]


def test_the_notebook_of_stage_1_fails_with_that_sentence(tmp_path, warm_kernel):
    with pytest.raises(PapermillExecutionError) as error:
        run_notebook("adapt", tmp_path, warm_kernel, adapt_lr=1e30, adapt_warmup_steps=0)
    assert error.value.ename == "InputError" and "is nan at step 1: lower adapt_lr (1e+30)" in error.value.evalue
    assert not list(tmp_path.glob("outputs/*/adapt/manifest.json"))


# Stage 2


def _generate(pipe, run):
    return generate(pipe, make_recipe(run), run)


def _spoiled(monkeypatch, spoil):
    """Stage 2 draws ``spoil(image, index of the image in its batch, prompt)`` instead of each image."""

    def draw(pipe, prompts, *args, **options):
        return [spoil(*each) for each in zip(sample(pipe, prompts, *args, **options), range(99), prompts, strict=False)]

    monkeypatch.setattr(generating, "sample", draw)


def _plain(colour):
    return lambda image, _, prompt: Image.new("RGB", image.size, colour) if prompt.startswith("three") else image


@pytest.mark.parametrize(
    "spoil, words",
    [
        (_plain("black"), "3 of the 3 generated images of class 'three' are black"),
        (_plain((9, 99, 7)), "3 of the 3 generated images of class 'three' are of a single colour"),
        (lambda image, i, prompt: _plain("black")(image, i, prompt) if i == 0 else image, "2 of the 3 .* are black"),
        (
            lambda image, _, prompt: (
                Image.linear_gradient("L").resize(image.size).convert("RGB") if prompt.startswith("three") else image
            ),
            "The 3 generated images of class 'three' are all the same",
        ),
    ],
)
def test_a_class_of_images_that_cannot_be_right_is_drawn_again(pipe, make_run, tmp_path, monkeypatch, spoil, words):
    run = make_run("generate", **DRAW)
    with monkeypatch.context() as patch:
        _spoiled(patch, spoil)
        for _ in range(2):
            with pytest.raises(InputError, match=words) as raised:
                _generate(pipe, run)
            assert not run.stage.finished and not (run.folder / "images" / "metadata.jsonl").exists()
            assert len(list(run.folder.glob("rows/*"))) == 3  # zero, one and two are done
    assert "safety checker" in str(raised.value) or "same" in words
    images = flatten(_generate(pipe, run))[0]
    undisturbed = flatten(_generate(pipe, make_run("generate", **DRAW, output_root=str(tmp_path / "other"))))[0]
    assert [path.read_bytes() for path in images] == [path.read_bytes() for path in undisturbed]
    assert run.stage.finished


def test_one_black_image_among_others_is_allowed_and_alone_it_is_not(pipe, make_run, monkeypatch):
    _spoiled(monkeypatch, lambda image, i, _: Image.new("RGB", image.size) if i == 1 else image)
    _generate(pipe, run := make_run("generate", **DRAW))  # the second of three
    assert run.stage.finished
    _spoiled(monkeypatch, lambda image, i, _: Image.new("RGB", image.size))
    alone = make_run("generate", variant="alone", **DRAW | dict(images_per_class=1))
    with pytest.raises(InputError, match="1 of the 1 generated images of class 'zero' are black"):
        _generate(pipe, alone)


def test_a_dark_image_alone_is_allowed(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[3, 4] = 1
    Image.fromarray(pixels).save(tmp_path / "dark.png")
    check_pictures([tmp_path / "dark.png"], "crow", "fix")


@pytest.mark.parametrize("method", ["fakeit", "issynth"])
def test_numbers_that_are_not_finite_are_no_image(make_run, method):
    broken = load_stable_diffusion("models/tiny-stable-diffusion")
    with torch.no_grad():
        broken.unet.conv_out.bias[0] = torch.nan
    run = make_run("generate", n_shot=2, start_noise=0.7, **DRAW | dict(method=method))
    with pytest.raises(InputError, match="picture of '.*zero.*' .*would be black, because .* not finite"):
        _generate(broken, run)
    assert not list(run.folder.rglob("*.png")) and not run.stage.finished


def test_a_safety_checker_that_blacks_images_out_is_named():
    pipe = load_stable_diffusion("models/tiny-stable-diffusion")

    def check(images, clip_input):
        return torch.zeros_like(images), [False, True]

    pipe.safety_checker = check
    pipe.feature_extractor = lambda images, return_tensors: type(
        "Seen", (), {"to": lambda self, _: self, "pixel_values": torch.zeros(2)}
    )()
    with pytest.raises(InputError, match="safety checker .* has blacked out the picture of 'a two'"):
        sample(pipe, ["a one", "a two"], [0, 1], 2.0, 2, 32)


# Stage 3


@pytest.fixture
def generated(pipe, make_run):
    run = make_run("generate", **DRAW)
    _generate(pipe, run)
    return run


def test_stage_3_refuses_generated_images_that_cannot_be_right(generated, few, make_run):
    changes = dict(method="fakeit", setting="S", images_per_class=3, n_shot=2)
    run = make_run("train", data=few, source=generated.stage, **changes)
    assert len(training_sets(run, 32)["synthetic"][0]) == 30
    for path in (generated.folder / "images" / few.class_dir(4)).glob("*.png"):
        Image.new("RGB", (32, 32)).save(path)
    with pytest.raises(InputError, match=f"class 'four' are black.*delete {generated.folder} and run 02_generate"):
        training_sets(run, 32)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_training_that_fails_is_no_result(few, make_run, classifier):
    run = make_run("train", data=few, classifier=classifier, train_lr=1e30, train_warmup_epochs=0.0, **TRAIN)
    sets = training_sets(run, 32)
    with pytest.raises(InputError, match=r"loss of the classifier is nan at step [123]: lower train_lr \(1e\+30\)"):
        fit(model := make_classifier(run), sets, run)
    with pytest.raises(InputError, match="has not come to its end"):
        evaluate(model, run)
    assert not run.stage.finished and not (run.folder / "classifier").exists()
    shutil.rmtree(run.folder)
    mended = make_run("train", data=few, classifier=classifier, train_warmup_epochs=0.0, **TRAIN)
    history = fit(model, sets, mended)  # the model with broken weights begins anew, too
    assert history["loss"].map(np.isfinite).all()
    assert 0 <= save_results(mended, model, history, evaluate(model, mended))["accuracy"] <= 100


@pytest.mark.usefixtures("break_weights")
@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_a_classifier_whose_weights_are_not_finite_is_not_kept(few, make_run, classifier):
    changes = TRAIN | dict(train_epochs=1, train_batch_size=40)
    unwatched = replace(few, files={split: few.files[split] for split in ("train", "test")})  # its logits would tell
    run = make_run("train", data=unwatched, classifier=classifier, **changes)
    model = make_classifier(run)
    with pytest.raises(InputError, match="weights of the classifier are not finite and are not saved: lower train_lr"):
        fit(model, training_sets(run, 32), run)
    with pytest.raises(InputError, match="has not come to its end"):
        save_results(run, model, None, None)


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_fp16_that_skips_every_step_of_a_classifier_is_refused(few, make_run, monkeypatch, classifier):
    monkeypatch.setattr(torch.amp, "GradScaler", OVERFLOW)
    run = make_run("train", data=few, classifier=classifier, mixed_precision="fp16", **TRAIN)
    with pytest.raises(InputError, match="optimizer steps were skipped.*: set mixed_precision to 'bf16'"):
        fit(make_classifier(run), training_sets(run, 32), run)
    assert not run.trained


@pytest.mark.parametrize("classifier", CLASSIFIERS)
def test_no_accuracy_is_computed_of_logits_that_are_not_finite(few, make_run, classifier):
    run = make_run("train", data=few, classifier=classifier, **TRAIN)
    fit(model := make_classifier(run), make_sets(run.params, run.shots, [], 32), run)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)
    with pytest.raises(InputError, match=r"logits of .*\.png \(and 59 more\) are not finite numbers"):
        evaluate(model, run)
    with pytest.raises(InputError, match="logits of "):
        predict(model, few.files["val"], run.params)


def test_features_and_judgements_that_are_not_finite_are_refused(few, tmp_path):
    clip, tokenizer, processor = load_clip("models/tiny-clip")
    whole = Encoder(clip, processor, {"folder": "whole"})
    encode(whole, few.files["val"], tmp_path)
    (kept,) = tmp_path.iterdir()
    features = load_file(kept)["features"]
    features[3, 1] = torch.inf
    save_file({"features": features}, kept)
    with pytest.raises(InputError, match="the features of picture 3 are not finite numbers: delete it"):
        encode(whole, few.files["val"], tmp_path)
    with torch.no_grad():
        clip.visual_projection.weight[0, 0] = torch.nan
    with pytest.raises(InputError, match=r"CLIP features of .*\.png \(and 59 more\) are not finite"):
        encode(replace(whole, identity={"folder": "broken"}), few.files["val"], tmp_path)
    assert list(tmp_path.iterdir()) == [kept]
    with pytest.raises(InputError, match="logits of image 0 .*set filter_model"):
        clip_judge(clip, tokenizer, processor, few)([Image.new("RGB", (9, 9))])


# Prompts

DOOR, DRUM = "washing machine front loader door", "washing machine front loader drum"
LONG = "very " * 80 + "{} machine"


def _named(data, *names):
    return replace(data, class_names=(*names, *data.class_names[len(names) :]))


@pytest.mark.parametrize("names", [(DOOR, DRUM), (LONG.format("red"), LONG.format("blue")), ("seven", "seven")])
def test_classes_with_the_same_tokens_are_refused_by_both_models_before_any_work(mnist, pipe, clip, make_run, names):
    data = _named(mnist, *names)
    both = f"class {names[0]!r} from {names[1]!r}"
    run = make_run("adapt", data=data, **ADAPT)
    with pytest.raises(InputError, match=f"Stable Diffusion cannot tell {both}"):
        _adapt(pipe, run)
    drawn = make_run("generate", data=data, start_noise=0.7, **DRAW | dict(method="issynth"))
    with pytest.raises(InputError, match=f"Stable Diffusion cannot tell {both}"):
        _generate(pipe, drawn)
    assert not run.folder.exists() and not drawn.folder.exists()
    with pytest.raises(InputError, match=f"CLIP cannot tell {both}"):
        ClipClassifier(*clip, data)
    with pytest.raises(InputError, match=f"CLIP cannot tell {both}"):
        make_classifier(make_run("train", data=data, **TRAIN))


def test_what_does_not_read_class_prompts_may_have_equal_ones(mnist, pipe, make_run):
    data = _named(mnist, DOOR, DRUM)
    make_classifier(make_run("train", data=data, classifier="models/tiny-resnet", **TRAIN))
    few_images = dict(n_shot=1, images_per_class=1, start_noise=0.7, num_inference_steps=2, filter_tries=1)
    run = make_run("generate", data=data, method="disef", keep="all", variant="captions", **few_images)
    assert len(flatten(_generate(pipe, run))[0]) == 10


def test_a_prompt_that_is_cut_but_stays_its_own_is_said_once(mnist, pipe, clip, capsys):
    plausible._say_once.cache_clear()
    prompts = [f"a photo of a {name}" for name in ("door of a " + DOOR, "drum of a " + DRUM, "bolt")]
    for _ in range(2):
        check_prompts(pipe.tokenizer, prompts, ["door", "drum", "bolt"], "Stable Diffusion")
    (line,) = capsys.readouterr().out.splitlines()
    read = pipe.tokenizer(prompts[0], truncation=True).input_ids
    assert len(read) == 24 and line.startswith("Stable Diffusion reads 24 tokens of a prompt: it does not see '")
    lost = line.split("does not see '")[1].split("'")[0]
    seen = pipe.tokenizer.decode(read, skip_special_tokens=True)
    assert lost and (seen + lost).replace(" ", "") == prompts[0].replace(" ", "")
    assert f"at the end of {prompts[0]!r} (and the ends of 1 more)." in line
    ClipClassifier(*clip, _named(mnist, LONG.format("red")))
    assert "CLIP reads 24 tokens" in capsys.readouterr().out


def test_ordinary_class_names_are_not_talked_about(mnist, clip, capsys):
    ClipClassifier(*clip, mnist)
    assert capsys.readouterr().out == ""
