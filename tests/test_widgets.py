"""The pictures to play with: what they compute, checked in another way, and how they behave without a browser."""

import io

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from conftest import notebook_defaults, same_progress
from PIL import Image

from datadream_utils.backbones.clip import attach_clip_lora
from datadream_utils.backbones.load import load_clip
from datadream_utils.classifier.build import classify, load_classifier
from datadream_utils.classifier.evaluate import predict
from datadream_utils.classifier.pictures import evaluation_pictures
from datadream_utils.classifier.train import ClipClassifier
from datadream_utils.data.shots import few_shot
from datadream_utils.diffusion import probe
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.denoising import Shots, noise_scheduler, tokenize
from datadream_utils.diffusion.generate import example_recipe, sample
from datadream_utils.diffusion.lora import adapted_layers, fused_lora, read_lora
from datadream_utils.errors import InputError
from datadream_utils.interactive import widgets
from datadream_utils.interactive.widget_figures import effective_rank
from datadream_utils.params import AdaptParams
from datadream_utils.plots import results as figures
from datadream_utils.plots import style as plots
from datadream_utils.plots.style import describe, show_grid
from datadream_utils.runs.stage import stage as run_stage

KEYBOARD = (ipywidgets.SelectionSlider, ipywidgets.ToggleButtons, ipywidgets.ToggleButton, ipywidgets.Button,
            ipywidgets.FileUpload)  # fmt: skip


@pytest.fixture(scope="module")
def adapted(pipe, mnist, tmp_path_factory):
    """Four steps of one adapter on two classes: ``(parameters, recipe, finished adapt stage)``."""
    changes = {"output_root": str(tmp_path_factory.mktemp("runs")), "method": "datadream_dset", "n_shot": 2}
    changes |= {"adapt_epochs": 4, "adapt_batch_size": 20, "num_inference_steps": 3, "adapt_lr": 1e-2}
    p = AdaptParams.make(**(notebook_defaults("adapt") | changes))
    shots = few_shot(mnist, 2, 0)
    stage = run_stage(p, "adapt")
    stage.begin()
    adapt(pipe, plan_adapters(p.system, mnist, shots), p, stage, same_progress)
    return p, example_recipe(p.system, mnist, shots, 0), stage


def test_the_guess_through_noise_is_the_schedulers(pipe, mnist):
    shot = mnist.files["train"][7][0]
    noised, guesses = probe.through_noise(pipe, shot, "a photo of a seven", [10, 600], 32)
    real = np.asarray(Image.open(shot).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)) / 255
    assert np.abs(noised[0] - real).mean() < 0.1 and np.abs(guesses[0] - real).mean() < 0.1
    assert np.abs(noised[1] - real).mean() > 0.2
    # diffusers' own one-step estimate from the same latents, noise and answer
    generator = torch.Generator().manual_seed(0)
    latents = Shots(pipe, [shot], 32).latents([0], generator)
    noise = torch.randn(latents.shape, generator=generator)
    scheduler = noise_scheduler(pipe)
    noisy = scheduler.add_noise(latents, noise, torch.tensor([600]))
    with torch.no_grad():
        context = pipe.text_encoder(tokenize(pipe, ["a photo of a seven"])).last_hidden_state
        answer = pipe.unet(noisy, 600, context).sample
    scheduler.register_to_config(clip_sample=False)
    expected = probe.decode(pipe, scheduler.step(answer, 600, noisy).pred_original_sample)[0]
    assert np.abs(guesses[1] - expected).max() < 1e-3


def test_the_trajectory_ends_at_the_picture_that_is_drawn(pipe, adapted):
    p, recipe, stage = adapted
    draw = recipe.draw(7, 0)
    with probe.with_adapters(pipe, draw, stage):
        frames = probe.trajectory(pipe, draw, p, count=2)
        (image,) = sample(pipe, [draw.prompt], [draw.seed], p.guidance_scale, p.num_inference_steps, 32)
    assert list(frames) == [1, 3]
    assert np.abs(frames[3] * 255 - np.asarray(image)).max() <= 1
    assert np.abs(frames[1] - frames[3]).max() > 0.1


def test_the_adapters_scale_goes_from_the_base_model_to_the_fused_adapter(pipe, adapted):
    _p, recipe, stage = adapted
    draws = [recipe.draw(7, i) for i in range(2)]
    make = lambda: np.stack(sample(pipe, [d.prompt for d in draws], [d.seed for d in draws], 2.0, 2, 32)).astype(int)  # noqa: E731
    base = make()
    with fused_lora(pipe, stage.folder / "adapters" / "all_classes"):
        fused = make()
    scaled = {}
    for s in (0.0, 1.0):
        with probe.with_adapters(pipe, draws[0], stage, s):
            scaled[s] = make()
    assert np.abs(scaled[0.0] - base).max() <= 1 and np.abs(scaled[1.0] - fused).max() <= 1
    assert np.abs(fused - base).max() > 10
    with probe.with_adapters(pipe, draws[0], stage, [0.0, 1.0]):  # a scale for each image of the batch
        mixed = make()
    assert np.abs(mixed[0] - base[0]).max() <= 1 and np.abs(mixed[1] - fused[1]).max() <= 1
    with probe.with_adapters(pipe, draws[0], None):
        assert (make() == base).all()


def test_spectra_are_those_of_the_whole_product(pipe, adapted):
    folder = adapted[2].folder / "adapters" / "all_classes"
    spectra, matrices = probe.lora_spectra(pipe, folder), read_lora(folder)
    assert len(spectra) == len(matrices) == len(adapted_layers(pipe))
    for (values, share), (model, name, layer) in zip(spectra.values(), adapted_layers(pipe), strict=True):
        down, up = matrices[model is pipe.unet, name]
        whole = np.linalg.svd((up @ down).numpy(), compute_uv=False)[: len(values)]
        np.testing.assert_allclose(values, whole, atol=1e-5)
        assert share == pytest.approx(float((up @ down).norm() / layer.weight.norm()), rel=1e-4)


def test_effective_rank():
    assert effective_rank(np.array([1.0, 0, 0])) == 1 and effective_rank(np.ones(10)) == 9
    assert effective_rank(np.zeros(4)) == 0


def test_nearest_is_the_largest_cosine():
    a, b = (
        torch.nn.functional.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(n))) for n in (3, 7)
    )
    indices, likeness = probe.nearest(a, b)
    for row, index, value in zip(a, indices, likeness, strict=True):
        cosines = [torch.cosine_similarity(row, other, dim=0).item() for other in b]
        assert index == int(np.argmax(cosines)) and value == pytest.approx(max(cosines), abs=1e-6)


@pytest.fixture
def shown(monkeypatch):
    """What is displayed, in order: the object, or ("update", object) for a display that is redrawn."""
    seen = []

    class Handle:
        def update(self, thing):
            seen.append(("update", thing))

    for module in (widgets, plots):
        monkeypatch.setattr(module, "display", lambda thing, display_id=False: seen.append(thing) or Handle())
    return seen


def _explorer():
    draw = lambda t, name: show_grid([[np.full((2, 2), t / 9)]], title=f"{name} at {t}")  # noqa: E731
    return widgets.Explorer(draw, {"Timestep t": [0, 9], "Name": ["a", "b"]}, [9, "a"], lambda: show_grid([[None]]))


def test_without_a_front_end_only_a_picture_is_shown_and_no_widget_is_made(shown):
    explorer = _explorer()
    explorer._ipython_display_()
    assert len(shown) == 1 and list(shown[0]._repr_mimebundle_()[0]) == ["image/png"]
    assert "controls" not in explorer.__dict__


def test_live_controls_are_labelled_and_redraw_the_picture_in_its_place(shown, monkeypatch):
    monkeypatch.setattr(widgets, "is_live", lambda: True)
    explorer = _explorer()
    explorer._ipython_display_()
    panel, first = shown
    assert describe(first) == "a at 9"
    slider, words = panel.children
    assert isinstance(slider, ipywidgets.SelectionSlider) and isinstance(words, ipywidgets.ToggleButtons)
    assert (slider.description, words.description) == ("Timestep t", "Name")
    slider.value, words.value = 0, "b"
    assert [describe(thing[1]) for thing in shown[2:]] == ["a at 0", "b at 0"]


def test_a_live_notebook_has_the_pictures_words_where_jupyterlab_shows_them(monkeypatch):
    monkeypatch.setattr(plots, "is_live", lambda: True)
    data, metadata = show_grid([[np.zeros((2, 2))]], title='"a photo of a seven"')._repr_mimebundle_()
    assert data["text/html"].startswith('<img alt="&quot;a photo of a seven&quot;" src="data:image/png;base64,iVBOR')
    assert metadata == {"image/png": {"alt": '"a photo of a seven"'}}


def _said(words):
    figure = show_grid([[np.zeros((2, 2))]], title=words)
    figure.sentence = f"{words} is *drawn*."
    return figure


def test_what_a_figure_says_stands_above_it_and_changes_with_it(shown, monkeypatch):
    browser = widgets.choose(_said, "Which", {"first": "a", "second": "b"}, "b")
    browser._ipython_display_()
    words, picture = shown
    assert words.data == "**b is &#42;drawn&#42;.**" and picture is browser.still()
    monkeypatch.setattr(widgets, "is_live", lambda: True)
    browser._ipython_display_()
    browser.controls["Which"].value = "first"
    assert [type(thing).__name__ for thing in shown[2:5]] == ["Markdown", "Panel", "NotebookFigure"]
    assert shown[-1][1].data == "**a is &#42;drawn&#42;.**" and describe(shown[-2][1]) == "a"
    plots.show(figures.empty("Nothing is there."))
    assert shown[-1].data == "Nothing is there."


def test_the_confusion_browser_starts_at_the_most_frequent_mistake(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    rows = [("x.png", 0, 0, 0.9)] * 5 + [("x.png", 0, 1, 0.8)] + [("x.png", 1, 0, 0.6), ("x.png", 1, 0, 0.7)]
    predictions = pd.DataFrame(rows, columns=["file", "label", "prediction", "probability"])
    browser = widgets.confusion_browser(predictions, tmp_path, ("cat", "dog"))
    assert browser.start == ["dog", "cat"]
    assert "'dog' taken for 'cat': 2 of 2" in describe(browser.still()) and "70%" in describe(browser.still())
    assert "'dog' taken for 'cat': 2 of 2, the surest: 70%, 60%. Beside" in browser.still().alt
    browser.controls["True class"].value = "cat"
    assert "'cat' recognised: 5 of 6" in describe(browser.figure())
    browser.controls["Predicted class"].value, browser.controls["True class"].value = "dog", "dog"
    assert "'dog' recognised: 0 of 2" in describe(browser.figure())


def test_the_gallery_shows_the_nearest_shot(mnist):
    shots = [files[:3] for files in mnist.files["train"]]
    pixels = lambda paths: torch.nn.functional.normalize(  # noqa: E731
        torch.stack([torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32).ravel()) for path in paths])
    )
    gallery = widgets.gallery({"copies": shots}, shots, mnist.class_names, pixels, 7)
    figure = gallery.still()
    upper, lower = ([image.get_array() for image in ax.images] for ax in figure.axes)
    assert np.array_equal(upper, lower) and "1.00" in describe(figure) and "seven" in describe(figure)
    gallery.controls["Class"].value = "one"
    assert "copies, one" in describe(gallery.figure())


def test_the_box_predicts_what_is_drawn_and_what_is_uploaded(shown):
    given = []

    def predict_one(image):
        given.append(image)
        return np.asarray(image), np.array([0.2, 0.8])

    box = widgets.PredictionBox(predict_one, ("zero", "one"), Image.new("RGB", (28, 28)))
    box.handle = widgets.display("picture")
    for row in range(1, 11):
        box.controls[f"row {row}, column 5"].value = True
    drawn = np.asarray(given[-1])[..., 0].astype(float)
    assert drawn.shape == (28, 28) and drawn[:, 12:14].mean() > 100 > 5 > drawn[:, :8].max()
    assert len(given) == 10 and "one: 80%" in describe(shown[-1][1])
    box.controls["Clear the drawing"].click()
    assert np.asarray(given[-1]).max() == 0 and len(given) == 11
    buffer = io.BytesIO()
    Image.new("RGB", (5, 7), "red").save(buffer, format="PNG")
    for content, message in ((buffer.getvalue(), "mine.png, 5 x 7 pixels"), (b"no picture", "cannot be read")):
        upload = {"name": "mine.png", "type": "image/png", "size": 1, "content": content, "last_modified": None}
        box._uploaded({"new": (upload,)})
        assert message in box.controls["Message"].value and given[-1].size == (5, 7)


def test_every_control_is_one_that_the_keyboard_can_use_and_says_what_it_is(shown):
    box = widgets.PredictionBox(lambda image: (image, np.ones(1)), ("x",), Image.new("RGB", (2, 2)))
    for control in [*_explorer().controls.values(), *box.controls.values()]:
        if not isinstance(control, ipywidgets.Label):
            assert isinstance(control, KEYBOARD) and (control.description or control.tooltip)


def test_a_saved_classifier_is_the_one_that_was_tested(mnist, make_params):
    p = make_params("train", n_shot=2)
    stage = run_stage(p, "train-R+S")
    clip, tokenizer, processor = load_clip(p.clip_model)
    model = ClipClassifier(attach_clip_lora(clip, 4, 8.0, 0.0, seed=0), tokenizer, mnist).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save(stage.folder / "classifier")
    paths = [files[0] for files in mnist.files["val"]]
    expected = predict(model, evaluation_pictures(paths, processor), range(10), p)
    loaded, processor = load_classifier(stage, mnist, p)
    for path, row in zip(paths, expected.itertuples(), strict=True):
        seen, probabilities = classify(loaded, processor, Image.open(path).convert("RGB"))
        assert probabilities.argmax() == row.prediction and probabilities.max() == pytest.approx(
            row.probability, abs=1e-5
        )
        assert seen.shape == (32, 32, 3) and 0 <= seen.min() <= seen.max() <= 1


def test_an_adapter_of_another_model_is_named(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "read_lora", lambda folder: {(True, "elsewhere"): None})
    with pytest.raises(InputError, match="made for another sd_model"):
        probe.lora_spectra(pipe, tmp_path)
