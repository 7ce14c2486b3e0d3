"""Checkpoints: a training killed anywhere ends in the same bytes; a file that does not fit is not trusted."""

from contextlib import contextmanager, suppress
from dataclasses import replace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from datadream_utils.classifier import train as train_module
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import evaluate, save_results
from datadream_utils.classifier.pictures import make_sets
from datadream_utils.classifier.train import fit
from datadream_utils.data.shots import few_shot
from datadream_utils.diffusion import adapt as adapt_module
from datadream_utils.diffusion.adapt import Adapter, Training, adapt, plan_adapters
from datadream_utils.params import AdaptParams, TrainParams
from datadream_utils.runs.checkpoint import Checkpoint
from datadream_utils.runs.progress import no_progress

CASES = {
    "one adapter": dict(method="datadream_cls", adapters_together=1, adapt_batch_size=2, adapt_epochs=2),
    "a group": dict(method="datadream_cls", adapters_together=2, adapt_batch_size=2, adapt_epochs=2),
    "the data set": dict(method="datadream_dset", adapt_batch_size=8, adapt_epochs=1),
    "an image each": dict(method="loft", adapters_together=3, adapt_epochs=4),
}
STEPS = 4  # of each case and adapter; checkpoints every 3 fall into the middle of an epoch


class Killed(Exception):  # noqa: N818 - no error
    pass


def killed_after(steps):
    """A progress after which nothing more runs; the steps of several adapters at once count as one."""

    @contextmanager
    def progress(total, label):
        made = []

        def advance(n=1):
            if n:
                made.append(n)
            if len(made) == steps:
                raise Killed

        yield advance

    return progress


@pytest.fixture
def start(pipe, make_run, tmp_path, monkeypatch):
    """``start(folder, progress, **changes)`` adapts, and gives the stage and the number of optimizer steps made."""
    step, made = torch.optim.AdamW.step, []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *args, **kw: (made.append(1), step(*args, **kw))[1])

    def adapt_again(folder, progress=no_progress, adapters=2, **changes):
        changes = {"checkpoint_every": 3, "output_root": str(tmp_path / folder)} | changes
        run = make_run("adapt", progress=progress, n_shot=3, **changes)
        made.clear()
        with suppress(Killed):
            adapt(pipe, plan_adapters(run)[:adapters], run)
        assert not pipe.unet.training and not getattr(pipe.unet, "_hf_peft_config_loaded", False)
        return run.stage, len(made)

    return adapt_again


@pytest.fixture
def undisturbed(start):
    """``undisturbed(case)``: what an adaptation without checkpoints leaves; made once."""

    def get(case):
        if case not in _UNDISTURBED:
            _UNDISTURBED[case] = contents(start("whole", checkpoint_every=0, **CASES[case])[0])
        return _UNDISTURBED[case]

    return get


_UNDISTURBED = {}


def contents(stage):
    files = [path for path in sorted(stage.folder.rglob("*")) if path.suffix in (".csv", ".safetensors")]
    return {path.relative_to(stage.folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_adaptation_goes_on_to_the_same_bytes(start, undisturbed, capsys, case):
    stage, made = start("killed", killed_after(4), **CASES[case])
    assert made == 4 and [name.split("/")[0] for name in contents(stage)] == ["checkpoints"]
    capsys.readouterr()
    _, made = start("killed", **CASES[case])
    groups = 2 if case == "one adapter" else 1
    assert made == groups * STEPS - 3 and "Going on at step 3 of the checkpoint" in capsys.readouterr().out
    assert contents(stage) == undisturbed(case) and not (stage.folder / "checkpoints").exists()
    assert len(undisturbed(case)) == (2 if case == "the data set" else 4)


@pytest.mark.parametrize("case", ["one adapter", "a group"])
def test_killed_between_two_adapters(start, undisturbed, monkeypatch, case):
    written, write = [], adapt_module._write_losses

    def die_at_the_second(*args):
        written.append(args)
        if len(written) == 2:
            raise Killed
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(adapt_module, "_write_losses", die_at_the_second)
        stage, _ = start("killed", **CASES[case])
    assert len(list(stage.folder.glob("adapters/*"))) == 1
    _, made = start("killed", **CASES[case])
    assert made == STEPS - 3 and contents(stage) == undisturbed(case)


def test_without_checkpoints_nothing_is_written(start):
    stage, _ = start("off", killed_after(4), checkpoint_every=0, **CASES["an image each"])
    assert not (stage.folder / "checkpoints").exists() and "checkpoint_every" not in AdaptParams.decisive()


def _truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _empty(path):
    path.write_bytes(b"")


@pytest.fixture
def adapter(mnist):
    return Adapter("seven", (mnist.files["train"][7][0],), ("a photo of a seven",))


@pytest.fixture
def saved(pipe, adapter, make_params, tmp_path):
    """A checkpoint of a small training, and a function that makes another training of so many numbers."""
    checkpoint = Checkpoint(tmp_path / "checkpoints" / "state.safetensors", "this", 1)

    def training(size=3):
        return Training(pipe, [adapter], [torch.nn.Parameter(torch.zeros(size))], make_params("adapt"))

    first = training()
    first.rows.append((0, 1.0, 1e-3))
    checkpoint.save_if_due(first)
    return checkpoint, training


@pytest.mark.parametrize(
    "damage, words",
    [(_truncate, "deserializing"), (_empty, "deserializing"), (_flip_a_bit, "its contents have changed since")],
)
def test_a_damaged_checkpoint_is_not_trusted(saved, capsys, damage, words):
    checkpoint, training = saved
    checkpoint.load(sound := training())
    assert sound.rows == [(0, 1.0, 1e-3)] and "Going on at step 1" in capsys.readouterr().out
    damage(checkpoint.path)
    checkpoint.load(other := training())
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{checkpoint.path} is not used (") and words in line and "starts anew" in line
    assert not other.rows


def test_a_checkpoint_of_other_shapes_is_not_trusted(saved, capsys):
    checkpoint, training = saved
    checkpoint.load(other := training(size=4))
    assert f"{checkpoint.path} is not used (its matrices have other shapes)" in capsys.readouterr().out
    assert not other.rows


def test_an_adaptation_starts_anew_without_a_checkpoint_it_trusts(start, undisturbed, capsys):
    """The file of other parameters, in the right place."""
    there, _ = start("there", killed_after(4), adapt_lr=1e-4, variant="x", **CASES["an image each"])
    stage, _ = start("here", killed_after(4), **CASES["an image each"])
    (path,), (other,) = stage.folder.glob("checkpoints/*"), there.folder.glob("checkpoints/*")
    path.write_bytes(other.read_bytes())
    capsys.readouterr()
    assert start("here", **CASES["an image each"])[1] == STEPS
    assert f"{path} is not used (it was made with other parameters or from other images)" in capsys.readouterr().out
    assert contents(stage) == undisturbed("an image each")


def test_a_checkpoint_brings_back_every_state(pipe, adapter, make_params, tmp_path):
    """Optimizer, schedule, fp16's gradient scaler and rows: the next step is the one that would have followed."""
    p = make_params("adapt", mixed_precision="fp16", adapt_warmup_steps=4, adapt_epochs=10)
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "the same", 1)

    def training():
        parameters = [torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(2, 2))]
        made = Training(pipe, [adapter], parameters, p)
        made.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
        return made

    def advance(training, steps):
        for k in range(steps):
            loss = sum(((parameter - k) ** 3).sum() for parameter in training.parameters)
            training.optimizer.zero_grad()
            training.scaler.scale(loss).backward()
            training.scaler.step(training.optimizer)
            training.scaler.update()
            rate = training.schedule.get_last_lr()[0]
            training.rows.append((len(training.rows), [loss.item(), 2.0], rate))
            training.schedule.step()

    one, other = training(), training()
    advance(one, 4)
    checkpoint.save_if_due(one)
    checkpoint.load(other)
    assert other.rows == one.rows and other.scaler.state_dict() == one.scaler.state_dict()
    assert one.scaler.get_scale() == 16.0
    for part in (one, other):
        advance(part, 5)
    assert other.rows == one.rows and one.schedule.get_last_lr() == other.schedule.get_last_lr()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters, other.parameters, strict=True))
    assert load_file(checkpoint.path)["losses"].shape == (4, 2)


CLASSIFIERS = {
    "clip": dict(setting="R+S"),
    "pictures prepared ahead": dict(setting="R+S", clip_lora_dropout=0.0, ahead=True),
    "resnet": dict(setting="S", classifier="models/tiny-resnet"),
    "published": dict(setting="R+S", protocol="published"),
    "published resnet": dict(setting="S", protocol="published", classifier="models/tiny-resnet"),
    "fp16": dict(setting="S", mixed_precision="fp16"),
    "two processes read": dict(setting="R+S", num_workers=1),
}


@pytest.fixture
def train(mnist, make_run, tmp_path, monkeypatch):
    """``train(folder, progress, **changes)`` fits a classifier in 12 steps, 3 an epoch.

    It gives the run, the classifier, the history (None if killed) and the number of steps made. generated: the seed
    that draws what is taken for generated images.
    """
    data = replace(mnist, files={split: [files[:6] for files in mnist.files[split]] for split in mnist.files})
    step, made = train_module.Training._step, []
    monkeypatch.setattr(train_module.Training, "_step", lambda *args: (made.append(1), step(*args))[1])

    def fit_again(folder, progress=no_progress, ahead=False, model=None, generated=1, **changes):
        monkeypatch.setattr(train_module, "AHEAD", {"cpu"} if ahead else set())
        values = dict(method="fakeit", n_shot=2, images_per_class=4, train_epochs=4, train_batch_size=15, mix_share=0.5)
        values |= {"checkpoint_every": 5, "output_root": str(tmp_path / folder), "val_every": 2, "clip_lora_rank": 4}
        run = make_run("train", data=data, progress=progress, **values | changes)
        model, history = model or make_classifier(run), None
        sets = make_sets(run.params, run.shots, few_shot(data, 4, generated), 32)
        made.clear()
        with suppress(Killed):
            history = fit(model, sets, run)
        return run, model, history, len(made)

    return fit_again


@pytest.mark.parametrize("case", CLASSIFIERS)
def test_a_killed_classifier_goes_on_to_the_same_weights(train, capsys, case):
    changes = CLASSIFIERS[case]
    whole, sound, expected, made = train("whole", checkpoint_every=0, **changes)
    assert made == 12 and not list(whole.folder.glob("checkpoints"))
    run, half, history, made = train("killed", killed_after(8), **changes)
    assert history is None and made == (9 if changes.get("ahead") else 8) and not run.trained
    capsys.readouterr()
    run, model, history, made = train("killed", model=half, **changes)  # as a cell that is run again
    assert made == 12 - 5 and "Going on at step 5 of the checkpoint" in capsys.readouterr().out
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert all(torch.equal(weight, sound.state_dict()[name]) for name, weight in model.state_dict().items())
    assert list(run.folder.glob("checkpoints/*"))  # training is done, the stage is not
    for finished, one, rows in ((whole, sound, expected), (run, model, history)):
        save_results(finished, one, rows, evaluate(one, finished))
    lists = [(one.folder / "checksums.txt").read_text() for one in (whole, run)]
    assert lists[0] == lists[1] and not list(run.folder.glob("checkpoints"))


def test_the_best_epoch_may_lie_before_the_kill(train, monkeypatch):
    """Protocol published: the first of four epochs is the best one, and the checkpoint is of the second."""
    changes = dict(CLASSIFIERS["published resnet"], checkpoint_every=4)
    accuracies = iter([0.9, 0.3, 0.5, 0.7, 0.9, 0.3, 0.5, 0.7])  # once as a whole, once with the kill
    monkeypatch.setattr(train_module, "predict", lambda *_: pd.DataFrame({"correct": [next(accuracies)]}))
    _, sound, expected, _ = train("whole", **changes)
    _, half, history, _ = train("killed", killed_after(5), **changes)
    assert history is None
    _, model, history, made = train("killed", model=half, **changes)
    assert made == 12 - 4 and history["val_accuracy"].dropna().tolist() == [0.9, 0.3, 0.5, 0.7]
    pd.testing.assert_frame_equal(history, expected, check_exact=True)
    assert all(torch.equal(weight, sound.state_dict()[name]) for name, weight in model.state_dict().items())


def test_a_classifier_does_not_go_on_from_other_images(train, capsys):
    """The checkpoint of a training on other generated images, which another process put there."""
    run, *_ = train("here", killed_after(8), **CLASSIFIERS["resnet"])
    capsys.readouterr()
    assert train("here", generated=2, **CLASSIFIERS["resnet"])[-1] == 12
    (path,) = run.folder.glob("checkpoints/*")
    out = capsys.readouterr().out
    assert f"{path} is not used (it was made with other parameters or from other images)" in out
    assert "checkpoint_every" not in TrainParams.decisive()
