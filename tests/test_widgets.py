"""The pictures to play with: what they compute, checked in another way, and how they behave without a browser."""

import io

import ipywidgets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from datadream_utils.analysis import compare
from datadream_utils.backbones.clip import ClipClassifier, attach_clip_lora
from datadream_utils.backbones.load import load_clip
from datadream_utils.classifier.build import classify, load_classifier
from datadream_utils.classifier.evaluate import predict
from datadream_utils.data.shots import few_shot
from datadream_utils.diffusion import probe
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.denoising import Shots, noise_scheduler, tokenize
from datadream_utils.diffusion.generate import make_recipe, sample
from datadream_utils.diffusion.lora import adapted_layers, fused_lora, read_lora
from datadream_utils.errors import InputError
from datadream_utils.interactive import explorer, model_widgets, prediction_widgets
from datadream_utils.params import AdaptParams, notebook_defaults
from datadream_utils.plots import gallery, style
from datadream_utils.plots.pictures import show_grid
from datadream_utils.plots.style import alt_from_titles, empty_figure
from datadream_utils.runs.progress import no_progress
from datadream_utils.runs.run import Run
from datadream_utils.runs.stage import stage_of

KEYBOARD = (ipywidgets.SelectionSlider, ipywidgets.ToggleButtons, ipywidgets.ToggleButton, ipywidgets.Button,
            ipywidgets.FileUpload)  # fmt: skip


@pytest.fixture(scope="module")
def adapted(pipe, mnist, tmp_path_factory):
    """The run of four steps of one adapter on two shots of every class."""
    changes = {"output_root": str(tmp_path_factory.mktemp("runs")), "method": "datadream_dset", "n_shot": 2}
    changes |= {"adapt_epochs": 4, "adapt_batch_size": 20, "num_inference_steps": 3, "adapt_lr": 1e-2}
    params = AdaptParams.make(**(notebook_defaults("adapt") | changes))
    run = Run(params, stage_of(params), mnist, few_shot(mnist, 2, 0), "cpu", None, "", no_progress)
    adapt(pipe, plan_adapters(run), run)
    return run


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
    p, draw = adapted.params, make_recipe(adapted).draw(7, 0)
    with probe.with_adapters(pipe, draw):
        frames = probe.trajectory(pipe, draw, p, count=2)
        (image,) = sample(pipe, [draw.prompt], [draw.seed], p.guidance_scale, p.num_inference_steps, 32)
    assert list(frames) == [1, 3]
    assert np.abs(frames[3] * 255 - np.asarray(image)).max() <= 1
    assert np.abs(frames[1] - frames[3]).max() > 0.1


def test_the_adapters_scale_goes_from_the_base_model_to_the_fused_adapter(pipe, adapted):
    recipe = make_recipe(adapted)
    draws = [recipe.draw(7, i) for i in range(2)]
    make = lambda: np.stack(sample(pipe, [d.prompt for d in draws], [d.seed for d in draws], 2.0, 2, 32)).astype(int)  # noqa: E731
    base = make()
    with fused_lora(pipe, adapted.folder / "adapters" / "all_classes"):
        fused = make()
    scaled = {}
    for s in (0.0, 1.0):
        with probe.with_adapters(pipe, draws[0], s):
            scaled[s] = make()
    assert np.abs(scaled[0.0] - base).max() <= 1 and np.abs(scaled[1.0] - fused).max() <= 1
    assert np.abs(fused - base).max() > 10
    with probe.with_adapters(pipe, draws[0], [0.0, 1.0]):  # a scale for each image of the batch
        mixed = make()
    assert np.abs(mixed[0] - base[0]).max() <= 1 and np.abs(mixed[1] - fused[1]).max() <= 1
    with probe.with_adapters(pipe, recipe.without_adapters().draw(7, 0)):
        assert (make() == base).all()


def test_spectra_are_those_of_the_whole_product(pipe, adapted):
    folder = adapted.folder / "adapters" / "all_classes"
    spectra, matrices = probe.lora_spectra(pipe, folder), read_lora(folder)
    assert len(spectra) == len(matrices) == len(adapted_layers(pipe))
    for (values, share), (model, name, layer) in zip(spectra.values(), adapted_layers(pipe), strict=True):
        down, up, scale = matrices[model is pipe.unet, name]
        whole = np.linalg.svd(scale * (up @ down).numpy(), compute_uv=False)[: len(values)]
        np.testing.assert_allclose(values, whole, atol=1e-5)
        assert share == pytest.approx(float(scale * (up @ down).norm() / layer.weight.norm()), rel=1e-4)


def test_effective_rank():
    assert model_widgets.effective_rank(np.array([1.0, 0, 0])) == 1 and model_widgets.effective_rank(np.ones(10)) == 9
    assert model_widgets.effective_rank(np.zeros(4)) == 0


def test_nearest_is_the_largest_cosine():
    a, b = (
        torch.nn.functional.normalize(torch.randn(n, 5, generator=torch.Generator().manual_seed(n))) for n in (3, 7)
    )
    indices, likeness = probe.find_nearest(a, b)
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

    for module in (explorer, gallery):
        monkeypatch.setattr(module, "display", lambda thing, display_id=False: seen.append(thing) or Handle())
    return seen


def _explorer():
    draw = lambda t, name: show_grid([[np.full((2, 2), t / 9)]], title=f"{name} at {t}")  # noqa: E731
    return explorer.Explorer(draw, {"Timestep t": [0, 9], "Name": ["a", "b"]}, [9, "a"], lambda: show_grid([[None]]))


def test_without_a_front_end_only_a_picture_is_shown_and_no_widget_is_made(shown):
    browser = _explorer()
    browser._ipython_display_()
    assert len(shown) == 1 and list(shown[0]._repr_mimebundle_()[0]) == ["image/png"]
    assert "controls" not in browser.__dict__


def test_live_controls_are_labelled_and_redraw_the_picture_in_its_place(shown, monkeypatch):
    monkeypatch.setattr(explorer, "is_live", lambda: True)
    browser = _explorer()
    browser._ipython_display_()
    panel, first = shown
    assert alt_from_titles(first) == "a at 9"
    slider, words = panel.children
    assert isinstance(slider, ipywidgets.SelectionSlider) and isinstance(words, ipywidgets.ToggleButtons)
    assert (slider.description, words.description) == ("Timestep t", "Name")
    slider.value, words.value = 0, "b"
    assert [alt_from_titles(thing[1]) for thing in shown[2:]] == ["a at 0", "b at 0"]


def test_a_live_notebook_has_the_alt_text_where_jupyterlab_shows_it(monkeypatch):
    monkeypatch.setattr(style, "is_live", lambda: True)
    data, metadata = show_grid([[np.zeros((2, 2))]], title='"a photo of a seven"')._repr_mimebundle_()
    assert data["text/html"].startswith('<img alt="&quot;a photo of a seven&quot;" src="data:image/png;base64,iVBOR')
    assert metadata == {"image/png": {"alt": '"a photo of a seven"'}}


def _with_finding(words):
    figure = show_grid([[np.zeros((2, 2))]], title=words)
    return style.describe(figure, f"A grid of {words}.", f"{words} is *drawn*.")


def test_a_caption_stands_above_its_figure_and_changes_with_it(shown, monkeypatch):
    browser = explorer.choose(_with_finding, "Which", {"first": "a", "second": "b"}, "b")
    browser._ipython_display_()
    words, picture = shown
    assert words.data == "**b is &#42;drawn&#42;.**" and picture is browser.still()
    monkeypatch.setattr(explorer, "is_live", lambda: True)
    browser._ipython_display_()
    browser.controls["Which"].value = "first"
    assert [type(thing).__name__ for thing in shown[2:5]] == ["Markdown", "Panel", "NotebookFigure"]
    assert shown[-1][1].data == "**a is &#42;drawn&#42;.**" and alt_from_titles(shown[-2][1]) == "a"
    assert picture.alt_text() == "A grid of b. b is *drawn*."


def test_where_the_runs_are_too_few_the_committed_figure_stands_below(shown):
    gallery.show(empty_figure("order", "Nothing has been run."))
    reason, label, picture = shown
    assert reason.data == "Nothing has been run." and "committed results (`figures/tiny/order.png`" in label.data
    data, metadata = picture._repr_mimebundle_()
    assert "image/png" in data and metadata["image/png"]["alt"].startswith("Committed results.")
    order = pd.DataFrame(columns=compare.ORDER)
    gallery.show_table("order", order, complete=False)
    assert "| Pair |" in shown[3].data and "figures/tiny/order.md" in shown[4].data and "|---|" in shown[5].data
    gallery.show_table("order", order)
    assert len(shown) == 7


def test_the_confusion_browser_starts_at_the_most_frequent_mistake(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    rows = [("x.png", 0, 0, 0.9)] * 5 + [("x.png", 0, 1, 0.8)] + [("x.png", 1, 0, 0.6), ("x.png", 1, 0, 0.7)]
    predictions = pd.DataFrame(rows, columns=["file", "label", "prediction", "probability"])
    browser = prediction_widgets.confusion_browser(predictions, tmp_path, ("cat", "dog"))
    assert browser.start == ["dog", "cat"]
    words = alt_from_titles(browser.still())
    assert "'dog' taken for 'cat': 2 of 2" in words and "70%" in words
    assert "'dog' taken for 'cat': 2 of 2, the surest: 70%, 60%." in browser.still().alt
    browser.controls["True class"].value = "cat"
    assert "'cat' recognised: 5 of 6" in alt_from_titles(browser.figure())
    browser.controls["Predicted class"].value, browser.controls["True class"].value = "dog", "dog"
    assert "'dog' recognised: 0 of 2" in alt_from_titles(browser.figure())


def test_each_sample_is_shown_with_its_nearest_shot(mnist):
    shots = [files[:3] for files in mnist.files["train"]]
    pixels = lambda paths: torch.nn.functional.normalize(  # noqa: E731
        torch.stack([torch.from_numpy(np.asarray(Image.open(path)).astype(np.float32).ravel()) for path in paths])
    )
    sets = {"copies": shots, "too few": [[], *shots[1:]]}
    browser = model_widgets.nearest_shot_browser(sets, shots, mnist.class_names, pixels, 7)
    assert browser.controls["Method"].options == (("copies", "copies"),)
    figure = browser.still()
    upper, lower = ([image.get_array() for image in ax.images] for ax in figure.axes)
    assert np.array_equal(upper, lower) and "1.00" in alt_from_titles(figure) and "seven" in alt_from_titles(figure)
    browser.controls["Class"].value = "one"
    assert "copies, one" in alt_from_titles(browser.figure())


def test_the_box_predicts_what_is_drawn_and_what_is_uploaded(shown, tmp_path):
    given, example = [], tmp_path / "example.png"
    Image.new("RGB", (28, 28)).save(example)

    def predict_one(image):
        given.append(image)
        return np.asarray(image), np.array([0.2, 0.8])

    box = prediction_widgets.PredictionBox(predict_one, ("zero", "one"), example)
    box.picture_shown = explorer.display("picture")
    for row in range(1, 11):
        box.controls[f"row {row}, column 5"].value = True
    drawn = np.asarray(given[-1])[..., 0].astype(float)
    assert drawn.shape == (28, 28) and drawn[:, 12:14].mean() > 100 > 5 > drawn[:, :8].max()
    assert len(given) == 10 and "one: 80%" in alt_from_titles(shown[-1][1])
    box.controls["Clear the drawing"].click()
    assert np.asarray(given[-1]).max() == 0 and len(given) == 11
    buffer = io.BytesIO()
    Image.new("RGB", (5, 7), "red").save(buffer, format="PNG")
    for content, message in ((buffer.getvalue(), "mine.png, 5 x 7 pixels"), (b"no picture", "cannot be read")):
        upload = {"name": "mine.png", "type": "image/png", "size": 1, "content": content, "last_modified": None}
        box._uploaded({"new": (upload,)})
        assert message in box.controls["Message"].value and given[-1].size == (5, 7)


def test_every_control_is_one_that_the_keyboard_can_use_and_says_what_it_is(shown, tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "example.png")
    box = prediction_widgets.PredictionBox(lambda image: (image, np.ones(1)), ("x",), tmp_path / "example.png")
    for control in [*_explorer().controls.values(), *box.controls.values()]:
        if not isinstance(control, ipywidgets.Label):
            assert isinstance(control, KEYBOARD) and (control.description or control.tooltip)


def test_a_saved_classifier_is_the_one_that_was_tested(mnist, make_run):
    run = make_run("train", n_shot=2)
    clip, tokenizer, processor = load_clip(run.params.clip_model)
    model = ClipClassifier(attach_clip_lora(clip, 4, 8.0, 0.0, seed=0), tokenizer, processor, mnist).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save(run.folder / "classifier")
    paths = [files[0] for files in mnist.files["val"]]
    expected = predict(model, [[path] for path in paths], run.params)
    loaded = load_classifier(run)
    for path, row in zip(paths, expected.itertuples(), strict=True):
        seen, probabilities = classify(loaded, Image.open(path).convert("RGB"))
        assert probabilities.argmax() == row.prediction
        assert probabilities.max() == pytest.approx(row.probability, abs=1e-5)
        assert seen.shape == (32, 32, 3) and 0 <= seen.min() <= seen.max() <= 1


def test_an_adapter_of_another_model_is_named(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "read_lora", lambda folder: {(True, "elsewhere"): None})
    with pytest.raises(InputError, match="made for another sd_model"):
        probe.lora_spectra(pipe, tmp_path)
