"""The classifier: CLIP's own logits, the three losses, augmentation, training sets, determinism."""

import json
import math
import threading
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch._dynamo.utils import counters

from datadream_utils.backbones.clip import (
    ClipClassifier,
    attach_clip_lora,
    class_logits,
    image_features,
    text_features,
    tokenize,
)
from datadream_utils.backbones.load import load_clip
from datadream_utils.classifier import evaluate as evaluate_module
from datadream_utils.classifier import pictures as pictures_module
from datadream_utils.classifier import train
from datadream_utils.classifier.build import ResNetClassifier, load_classifier, make_classifier, resnet_config
from datadream_utils.classifier.evaluate import evaluate, predict, read_results, save_results
from datadream_utils.classifier.pictures import (
    evaluation_pictures,
    load_batches,
    make_sets,
    training_pictures,
    training_sets,
)
from datadream_utils.classifier.train import (
    MIN_LR,
    _batches,
    fit,
    learning_rate_factor,
    mixed_loss,
    train_classifier,
    train_steps,
)
from datadream_utils.data.shots import few_shot
from datadream_utils.errors import InputError
from datadream_utils.runs import compiling
from datadream_utils.runs.progress import no_progress


def _pixels(clip, mnist):
    _model, tokenizer, processor = clip
    paths = [files[0] for files in mnist.files["val"]]
    pictures = evaluation_pictures(paths, processor)
    tokens = ClipClassifier(_model, tokenizer, processor, mnist).tokens
    return torch.stack([pictures[i] for i in range(len(paths))]), tokens, paths


@torch.no_grad()
def test_logits_equal_transformers_own(clip, mnist):
    model = clip[0]
    pixels, tokens, _ = _pixels(clip, mnist)
    expected = model(pixel_values=pixels, **tokens).logits_per_image
    actual = class_logits(model, image_features(model, pixels), text_features(model, tokens))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-4)


@torch.no_grad()
def test_class_texts_have_the_features_that_they_have_when_padded_to_clips_full_length(clip, mnist):
    model, tokenizer, _ = clip
    names = ["seven", "a longer name of a thing than seven", "x"]
    short = tokenize(tokenizer, names, "cpu")
    full = tokenizer(names, padding="max_length", truncation=True, return_tensors="pt")
    assert short["input_ids"].shape[1] < full["input_ids"].shape[1] == model.config.text_config.max_position_embeddings
    torch.testing.assert_close(text_features(model, short), text_features(model, full), rtol=0, atol=1e-6)


def test_evaluation_pictures_are_clips_own_preprocessing(clip, mnist):
    processor = clip[2]
    pixels, _, paths = _pixels(clip, mnist)
    images = [Image.open(path).convert("RGB") for path in paths]
    assert torch.equal(pixels, processor(images=images, return_tensors="pt").pixel_values)


def test_a_repeated_file_is_decoded_once_and_batches_are_what_single_pictures_are(clip, mnist, monkeypatch):
    paths, read = mnist.files["test"][3][:2] * 3, []
    decode = pictures_module.read_image
    monkeypatch.setattr(pictures_module, "read_image", lambda path: read.append(path) or decode(path))
    together = evaluation_pictures(paths, clip[2]).__getitems__(range(6))
    assert read == paths[:2]  # and not six
    for i, path in enumerate(paths):
        assert torch.equal(together[i], evaluation_pictures([path], clip[2])[0])


@torch.no_grad()
def test_clip_lora_starts_at_clip(clip, mnist):
    import copy

    pixels, tokens, _ = _pixels(clip, mnist)
    before = class_logits(clip[0], image_features(clip[0], pixels), text_features(clip[0], tokens))
    model = attach_clip_lora(copy.deepcopy(clip[0]), 16, 32.0, 0.1, seed=0).eval()
    assert torch.equal(class_logits(model, image_features(model, pixels), text_features(model, tokens)), before)
    trained = {name.split(".lora_")[0] for name, w in model.named_parameters() if w.requires_grad}
    assert len(trained) == 2 * (4 + 2)  # q and v of 4 vision and 2 text blocks
    assert all(name.endswith(("q_proj", "v_proj")) for name in trained)


def test_losses_on_hand_made_logits():
    logits = {"real": torch.tensor([[math.log(3.0), 0.0]]), "synthetic": torch.tensor([[0.0, 0.0]])}
    targets = {"real": torch.tensor([[1.0, 0.0]]), "synthetic": torch.tensor([[0.0, 1.0]])}
    real, synthetic = math.log(4 / 3), math.log(2)
    only = lambda kind: ({kind: logits[kind]}, {kind: targets[kind]})  # noqa: E731
    assert mixed_loss(*only("real"), 0.8).item() == pytest.approx(real)
    assert mixed_loss(*only("synthetic"), 0.8).item() == pytest.approx(synthetic)
    assert mixed_loss(logits, targets, 0.8).item() == pytest.approx(0.8 * real + 0.2 * synthetic)


@pytest.mark.parametrize("setting, kinds", [("R", {"real"}), ("S", {"synthetic"}), ("R+S", {"real", "synthetic"})])
def test_every_setting_has_the_same_length(mnist, make_params, setting, kinds):
    p = make_params(
        "train", method="real" if setting == "R" else "fakeit", setting=setting, n_shot=2, images_per_class=5
    )
    sets = make_sets(p, few_shot(mnist, 2, 0), few_shot(mnist, 7, 1), 32)
    assert set(sets) == kinds
    for pictures, labels in sets.values():
        assert len(pictures) == len(labels) == 50 and labels.bincount().tolist() == [5] * 10
    if "real" in sets:
        assert len(set(sets["real"][0].paths)) == 20


def test_every_picture_keeps_its_label(mnist, make_params):
    p = make_params("train", method="fakeit", n_shot=3, images_per_class=7, train_batch_size=32, train_epochs=2)
    sets = make_sets(p, few_shot(mnist, 3, 0), few_shot(mnist, 9, 1), 32)
    label_of = {
        picture.numpy().tobytes(): label
        for pictures, labels in sets.values()
        for picture, label in zip((pictures[i] for i in range(len(pictures))), labels.tolist(), strict=True)
    }
    seen = {"real": [], "synthetic": []}
    for batch in _batches(sets, p, train_steps(p, 10)[0]):
        for kind, (pictures, labels) in batch.items():
            assert [label_of[picture.numpy().tobytes()] for picture in pictures] == labels.tolist()
            seen[kind] += labels.tolist()
    assert all(torch.tensor(labels).bincount().tolist() == [14] * 10 for labels in seen.values())


def test_processes_that_decode_change_nothing(mnist, make_params):
    shots, synthetic = few_shot(mnist, 2, 0), few_shot(mnist, 4, 1)
    p = make_params("train", method="fakeit", n_shot=2, images_per_class=4, train_batch_size=16, train_epochs=3)
    alone, helped = (
        list(_batches(make_sets(p, shots, synthetic, 32), p.model_copy(update=how), train_steps(p, 10)[0]))
        for how in ({"num_workers": 0}, {"num_workers": 2})
    )
    assert len(alone) == len(helped) == 9
    for one, other in zip(alone, helped, strict=True):
        assert list(one) == list(other) == ["real", "synthetic"]
        for kind in one:
            assert all(torch.equal(a, b) for a, b in zip(one[kind], other[kind], strict=True))


def test_fewer_generated_images_are_shown_more_often(mnist, make_params):
    shots, synthetic = few_shot(mnist, 2, 0), few_shot(mnist, 9, 1)
    few, every = (
        make_sets(make_params("train", n_shot=2, images_per_class=7, **change), shots, synthetic, 32)
        for change in ({"synthetic_per_class": 3}, {})
    )
    for kind, counts in (("real", [4, 3]), ("synthetic", [3, 2, 2])):  # of each picture
        pictures, labels = few[kind]
        assert [pictures.paths[:7].count(path) for path in dict.fromkeys(pictures.paths[:7])] == counts
        assert torch.equal(labels, every[kind][1])
    assert few["synthetic"][0].paths[:3] == list(synthetic[0][:3]) and len(set(few["synthetic"][0].paths)) == 30


def test_too_few_generated_images_are_counted(mnist, make_params):
    with pytest.raises(InputError, match="images_per_class=50, but a class has 4 generated images: set it to 4"):
        make_sets(make_params("train", method="fakeit", setting="S"), None, few_shot(mnist, 4, 0), 32)


def test_learning_rate_warms_up_and_returns(make_params):
    p = make_params("train", train_epochs=10, train_warmup_epochs=2.0)
    per_epoch, total = train_steps(p, 10)
    factors = [learning_rate_factor(step, p, per_epoch) for step in range(total)]
    assert factors[0] == pytest.approx(MIN_LR / p.train_lr)
    assert max(factors) == factors[2 * per_epoch] == pytest.approx(1.0)
    assert factors[-1] < 0.01 and per_epoch == math.ceil(p.images_per_class * 10 / 64)


def _train(run, watched=None):
    """A classifier trained on the run's shots and as many pictures as an epoch shows: it, and a row per step."""
    p, classifier = run.params, make_classifier(run)
    sets = make_sets(p, run.shots, few_shot(run.data, p.images_per_class, 1), 32)
    return classifier, list(train_classifier(classifier, sets, p, watched))


EASY = dict(mix_share=0.0, rand_augment_ops=0, color_jitter=0.0, solarize=0.0)
BRIEF = dict(method="real", n_shot=2, images_per_class=4, train_epochs=2, train_batch_size=20)


@pytest.fixture
def few(mnist):
    """The digits with six pictures of a class in each split."""
    return replace(mnist, files={split: [files[:6] for files in mnist.files[split]] for split in mnist.files})


@pytest.mark.parametrize("classifier", ["clip", "models/tiny-resnet"])
def test_training_learns_and_repeats_exactly(make_run, classifier):
    changes = dict(n_shot=4, images_per_class=8, train_epochs=12, train_batch_size=40, train_warmup_epochs=1.0)
    run = make_run("train", method="fakeit", setting="R+S", classifier=classifier, **changes, **EASY)
    (model, rows), (_, again) = _train(run), _train(run)
    losses = [row["loss"] for row in rows]
    assert losses == [row["loss"] for row in again] and len(losses) == 24
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:3])
    assert not model.training


def test_looking_at_validation_data_changes_nothing(mnist, make_run):
    run = make_run("train", method="real", setting="R", n_shot=4, images_per_class=8, train_epochs=4, val_every=3)
    (_, blind), (_, rows) = _train(run), _train(run, mnist.files["val"])
    assert [row["loss"] for row in blind] == [row["loss"] for row in rows]
    assert all(row["val_accuracy"] is None for row in blind)
    per_epoch = train_steps(run.params, 10)[0]
    looked = [row["step"] + 1 for row in rows if row["val_accuracy"] is not None]
    assert looked == [3 * per_epoch, 4 * per_epoch]


@pytest.mark.parametrize("classifier", ["clip", "models/tiny-resnet"])
def test_activations_computed_twice_give_the_same_losses(few, make_run, classifier):
    losses, passes = [], []
    for sparing in (False, True):
        run = make_run("train", data=few, classifier=classifier, gradient_checkpointing=sparing, **BRIEF)
        model, passed = make_classifier(run), []
        if classifier == "clip":
            block = model.clip.text_model.encoder.layers[0].mlp
            block.register_forward_pre_hook(lambda *_, passed=passed: passed.append(1))
        rows = list(train_classifier(model, make_sets(run.params, run.shots, [], 32), run.params))
        losses.append([row["loss"] for row in rows])
        passes.append(len(passed))
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert passes == ([4, 8] if classifier == "clip" else [0, 0])  # once more in every step


@pytest.mark.parametrize("full_at", [0, 1])
def test_full_memory_names_what_to_change(few, make_run, monkeypatch, full_at):
    run, steps = make_run("train", data=few, **BRIEF), []
    forward = ClipClassifier.forward

    def fill(self, *args):
        steps.append(1)
        if len(steps) == full_at + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(self, *args)

    monkeypatch.setattr(ClipClassifier, "forward", fill)
    model, sets = make_classifier(run), training_sets(run, 32)
    with pytest.raises(InputError, match=r"set gradient_checkpointing to true .* lower train_batch_size \(20\)"):
        fit(model, sets, run)
    assert not run.stage.finished and len(steps) == full_at + 1
    assert len(fit(make_classifier(run), sets, run)) == 4  # there is memory again: it goes through


def test_a_resnet_is_not_told_to_compute_activations_twice(few, make_run, monkeypatch):
    def fill(self, *args):
        raise MemoryError

    run = make_run("train", data=few, classifier="models/tiny-resnet", **BRIEF)
    monkeypatch.setattr(ResNetClassifier, "forward", fill)
    with pytest.raises(InputError, match="lower train_batch_size") as raised:
        fit(make_classifier(run), training_sets(run, 32), run)
    assert "gradient_checkpointing" not in str(raised.value)


@pytest.mark.parametrize("classifier", ["clip", "models/tiny-resnet"])
def test_training_begins_anew_after_an_interruption(few, make_run, classifier):
    @contextmanager
    def interrupted(total, label):
        def advance(n=1):
            steps.append(n)
            if len(steps) == 3:
                raise KeyboardInterrupt

        yield advance

    run, steps = make_run("train", data=few, classifier=classifier, **BRIEF), []
    model, sets = make_classifier(run), training_sets(run, 32)
    with pytest.raises(KeyboardInterrupt):
        fit(model, sets, replace(run, progress=interrupted))
    histories = [fit(one, sets, run) for one in (model, model, make_classifier(run))]  # once more, twice, undisturbed
    assert len(steps) == 3 and len(histories[0]) == 4
    for history in histories[1:]:
        pd.testing.assert_frame_equal(history, histories[0])


def test_evaluation_counts_every_test_picture_once(mnist, make_run, make_params):
    run = make_run("train", method="clip_zeroshot", setting="none", eval_batch_size=999)
    model = make_classifier(run)
    assert training_sets(run, 32) == {} and fit(model, {}, run) is None
    table = evaluate(model, run)
    assert len(table) == table["file"].nunique() == 3500
    assert table["file"].str.startswith("test/").all()
    assert (table["correct"] == (table["label"] == table["prediction"])).all()
    assert table["correct"].mean() > 0.2  # the shipped CLIP knows digits a little: chance is 0.1
    one_by_one = make_params("train", method="clip_zeroshot", setting="none", eval_batch_size=1)
    first = predict(model, [[mnist.root / file for file in table["file"][:50]]], one_by_one)
    assert first["label"].tolist() == table["label"][:50].tolist()
    assert first["prediction"].tolist() == table["prediction"][:50].tolist()


def test_the_authors_protocol_takes_the_best_epoch_on_its_test_images(few, make_run):
    changes = dict(method="real", n_shot=2, images_per_class=4, train_epochs=5, train_batch_size=40, val_every=2)
    changes |= dict(train_lr=0.1, train_warmup_epochs=2.0)  # too much: later epochs are worse
    accuracy = {}
    for protocol in ("sound", "published"):
        run = make_run("train", data=few, protocol=protocol, **changes)
        model = make_classifier(run)
        history = fit(model, training_sets(run, 32), run)
        table = evaluate(model, run)
        accuracy[protocol] = (table["correct"].mean(), history["val_accuracy"].dropna().tolist())
        save_results(run, model, history, table)
        reloaded = predict(load_classifier(run), few.files["test"], run.params)
        assert reloaded["prediction"].tolist() == table["prediction"].tolist()  # the weights that it reports on
    assert len(accuracy["sound"][1]) == 3 and len(accuracy["published"][1]) == 5
    assert accuracy["published"][0] == max(accuracy["published"][1])
    assert accuracy["published"][1][-1] == accuracy["sound"][0]  # the last epoch, on the test images
    assert accuracy["published"][0] > accuracy["published"][1][-1]  # an epoch before the last
    eurosat_like = replace(few, published_test="train")
    assert pictures_module.evaluation_split(make_run("train", data=eurosat_like, n_shot=2, protocol="sound")) == "test"
    assert (
        pictures_module.evaluation_split(make_run("train", data=eurosat_like, n_shot=2, protocol="published"))
        == "train"
    )


@pytest.mark.parametrize("classifier", ["clip", "models/tiny-resnet"])
def test_a_finished_stage_is_read_and_not_trained_again(few, make_run, monkeypatch, capsys, classifier):
    run = make_run("train", data=few, classifier=classifier, **BRIEF)
    model, sets = make_classifier(run), training_sets(run, 32)
    history = fit(model, sets, run)
    predictions = evaluate(model, run)
    metrics = save_results(run, model, history, predictions)
    kept = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()}
    monkeypatch.setattr(train, "Training", None)  # would fail if it were called
    monkeypatch.setattr(evaluate_module, "predict", None)
    again = make_run("train", data=few, classifier=classifier, **BRIEF)
    fresh = make_classifier(again)
    stored_history = fit(fresh, sets, again)
    assert f"{run.folder} is finished already" in capsys.readouterr().out
    stored_predictions = evaluate(fresh, again)
    assert save_results(again, fresh, stored_history, stored_predictions) == metrics
    pd.testing.assert_frame_equal(stored_history, history, rtol=1e-5, check_dtype=False)
    pd.testing.assert_frame_equal(stored_predictions, predictions)
    assert {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file()} == kept
    after, before = (predict(one, few.files["test"], run.params) for one in (fresh, model))
    pd.testing.assert_frame_equal(after, before)  # its weights are the stored ones
    stored = read_results(run.stage)
    assert stored[0] == metrics and len(stored[2]) == 4


def test_pictures_are_decoded_by_processes_that_start_afresh(clip, mnist, make_params):
    paths, p = mnist.files["val"][3][:3], make_params("train", num_workers=1)
    for pictures in (training_pictures(paths, 32), evaluation_pictures(paths, clip[2])):
        (batch,) = load_batches(pictures, p, batch_size=3, multiprocessing_context="spawn")
        assert torch.equal(batch, torch.stack([pictures[i] for i in range(3)]))


def test_every_kind_of_classifier_has_its_folder(make_params):
    names = [
        make_params("train", **changes).stage
        for changes in (
            {"setting": "S"},
            {"classifier": "resnet50"},
            {"method": "real", "protocol": "published"},
            {"setting": "S", "classifier": "models/tiny-resnet", "protocol": "published"},
        )
    ]
    assert names == ["train-S", "train-R+S-resnet", "train-R-published", "train-S-resnet-published"]


def test_resnet50_is_the_published_one(make_run, make_params):
    from transformers import ResNetForImageClassification

    config = resnet_config("resnet50", [str(i) for i in range(1000)])
    with torch.device("meta"):
        assert sum(w.numel() for w in ResNetForImageClassification(config).parameters()) == 25_557_032
    run = make_run("train", setting="S", classifier="models/tiny-resnet")
    first, again = (make_classifier(run).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    with pytest.raises(InputError, match="is zero-shot CLIP: set classifier to 'clip'"):
        make_params("train", method="clip_zeroshot", classifier="resnet50")


def test_saved_classifiers_are_read_by_their_own_libraries(clip, mnist, make_run, tmp_path):
    from peft import PeftModel
    from transformers import ResNetForImageClassification

    changes = dict(method="real", n_shot=2, images_per_class=2, train_epochs=2)
    pixels, tokens, _ = _pixels(clip, mnist)
    model, _ = _train(make_run("train", **changes))
    model.save(tmp_path / "clip")
    config = json.loads((tmp_path / "clip" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "models/tiny-clip"
    assert isinstance(model.clip.peft_config["default"].target_modules, list)  # of a set, the order would be by chance
    assert config["target_modules"] == ["q_proj", "v_proj"]
    loaded = PeftModel.from_pretrained(load_clip("models/tiny-clip")[0], tmp_path / "clip").eval()
    with torch.no_grad():
        assert torch.equal(image_features(loaded, pixels), image_features(model.clip, pixels))
        assert torch.equal(text_features(loaded, tokens), text_features(model.clip, tokens))
    model, _ = _train(make_run("train", classifier="models/tiny-resnet", **changes))
    model.save(tmp_path / "resnet")
    loaded = ResNetForImageClassification.from_pretrained(tmp_path / "resnet").eval()
    assert loaded.config.id2label[7] == "seven"
    with torch.no_grad():
        assert torch.equal(loaded(pixels).logits, model(pixels, None))


def test_half_trained_weights_never_become_a_result(make_run):
    @contextmanager
    def interrupted(total, label):
        def advance(n=1):
            raise KeyboardInterrupt

        yield advance

    changes = dict(method="real", setting="R", n_shot=2, images_per_class=4, train_epochs=2, train_batch_size=20)
    run = make_run("train", progress=interrupted, **changes)
    model = make_classifier(run)
    sets = training_sets(run, model.image_size)
    with pytest.raises(KeyboardInterrupt):
        fit(model, sets, run)
    for go_on in (lambda: evaluate(model, run), lambda: save_results(run, model, None, None)):
        with pytest.raises(InputError, match="has not come to its end: run the cell with fit again"):
            go_on()
    assert not run.stage.finished
    run.progress = no_progress
    history = fit(model, sets, run)
    assert save_results(run, model, history, evaluate(model, run))["n_test"] == 3500


@pytest.mark.parametrize("mix_share", [0.0, 1.0])
def test_pictures_prepared_ahead_and_losses_read_later_change_nothing(few, make_run, monkeypatch, mix_share):
    """As on a GPU, where dropout has a generator of its own; here it would take augmentation's numbers."""
    changes = dict(method="fakeit", setting="R+S", n_shot=2, images_per_class=4, train_epochs=2, train_batch_size=15)
    histories, threads = [], set()
    augment = train.Augment.__call__

    def noted(self, pictures):
        threads.add(threading.current_thread().name)
        return augment(self, pictures)

    monkeypatch.setattr(train.Augment, "__call__", noted)
    for ahead in (set(), {"cpu"}):
        monkeypatch.setattr(train, "AHEAD", ahead)
        run = make_run("train", data=few, clip_lora_dropout=0.0, mix_share=mix_share, **changes)
        model, rows = _train(run, few.files["val"])
        histories.append((rows, model.state_dict()))
    assert len(threads) == 2 and histories[0][0] == histories[1][0] and len(histories[0][0]) == 6
    assert all(torch.equal(weight, histories[1][1][name]) for name, weight in histories[0][1].items())


def test_a_loss_that_is_read_later_still_stops_the_training(few, make_run, monkeypatch):
    monkeypatch.setattr(train, "AHEAD", {"cpu"})
    monkeypatch.setattr(train, "mixed_loss", lambda logits, *_: logits["real"].sum() * float("nan"))
    run, steps = make_run("train", data=few, **BRIEF), []
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda self: steps.append(1) or backward(self))
    with pytest.raises(InputError, match="The loss of the classifier is nan at step 0"):
        _train(run)
    assert len(steps) == 2


@pytest.mark.parametrize("classifier", ["clip", "models/tiny-resnet"])
@pytest.mark.parametrize("sparing", [False, True])
def test_compiled_training_is_the_same_up_to_rounding(few, make_run, monkeypatch, classifier, sparing):
    """Batches of 15 of 40 pictures: the last of an epoch is smaller and runs uncompiled, as validation does."""
    monkeypatch.setattr(compiling, "HOW", {"backend": "aot_eager"})
    changes = dict(BRIEF, train_batch_size=15, gradient_checkpointing=sparing, classifier=classifier)
    histories, graphs = [], []
    for choice in ("no", "yes"):
        run = make_run("train", data=few, compile=choice, **changes)
        model = make_classifier(run)
        sets = make_sets(run.params, run.shots, few_shot(few, 4, 1), 32)
        rows = []
        for row in train_classifier(model, sets, run.params, few.files["val"]):
            rows.append(row)
            graphs.append(counters["stats"]["unique_graphs"])
        histories.append(pd.DataFrame(rows))
        assert all(module._compiled_call_impl is None for module in model.modules())
    before, after = graphs[:6], graphs[6:]
    assert len(set(before)) == len(set(after)) == 1 and before[0] < after[0]
    pd.testing.assert_frame_equal(histories[0], histories[1], rtol=1e-4, check_dtype=False)


def test_auto_compiles_a_long_training_on_a_gpu(make_params):
    long = make_params("train", images_per_class=640, train_epochs=10, train_batch_size=64)
    assert train.compile_pays("cuda", long, 10) and not train.compile_pays("cpu", long, 10)
    assert not train.compile_pays("cuda", long, 9)
