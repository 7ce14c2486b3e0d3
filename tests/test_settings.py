"""What notebook 03 sets beside each other, and the pictures of it."""

import numpy as np
import pytest

from datadream_utils.classifier.settings import open_settings, train_and_test
from datadream_utils.errors import InputError
from datadream_utils.files import write_json
from datadream_utils.params import notebook_defaults
from datadream_utils.plots.classifiers import settings_chart, similarity_heatmaps
from datadream_utils.plots.training import losses_over_time
from datadream_utils.runs.run import start_run
from datadream_utils.runs.stage import FORMAT


@pytest.fixture
def opened(mnist, tmp_path):
    """``opened(**changes)``: what ``open_settings`` gives for the notebook's defaults, method "real", with changes."""

    def open_with(**changes):
        values = {"method": "real", "output_root": str(tmp_path), "data_root": str(mnist.root.parent)} | changes
        namespace = notebook_defaults("train") | values
        return open_settings(start_run("train", namespace), namespace)

    return open_with


def test_real_images_alone_are_compared_with_no_training(opened, tmp_path):
    settings = opened(n_shot=4, variant="mine", train_epochs=3)
    assert list(settings) == ["none", "R"]
    assert [run.params.method for run in settings.values()] == ["clip_zeroshot", "real"]
    assert [run.stage.name for run in settings.values()] == ["train-none", "train-R"]
    for run in settings.values():
        p = run.params
        assert (p.n_shot, p.variant, p.train_epochs) == (4, "mine", 3) and run.folder.is_relative_to(tmp_path)
    assert settings["none"].shots == settings["R"].shots
    assert not list(tmp_path.rglob("train-*"))  # nothing is computed


@pytest.mark.parametrize("changes", [{"compare_settings": False}, {"protocol": "published"}])
def test_one_classifier_alone_when_a_study_asks_for_it(opened, changes):
    assert list(opened(**changes)) == ["R"]


def test_a_resnet_has_no_zero_shot_beside_it(opened):
    assert list(opened(classifier="resnet50")) == ["R"]


def test_another_settings_stage_with_other_parameters_stops_before_any_training(opened, tmp_path):
    folder = tmp_path / "mnist5k_clip_zeroshot_16shot_seed0" / "train-none"
    folder.mkdir(parents=True)
    parameters = opened()["none"].params.identity() | {"clip_model": "another"}
    write_json(folder / "parameters.json", {"format": FORMAT, "parameters": parameters})
    with pytest.raises(InputError, match="was made with clip_model='another'"):
        opened()


def test_a_finished_setting_is_read_and_a_damaged_one_refused(opened, monkeypatch):
    run = opened()["none"]
    metrics = train_and_test(run)
    monkeypatch.setattr("datadream_utils.classifier.settings.make_classifier", lambda run: pytest.fail("made again"))
    assert metrics["n_test"] == 3500 and train_and_test(opened()["none"]) == metrics
    (run.folder / "metrics.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"metrics\.json has vanished or changed"):
        train_and_test(opened()["none"])


def test_the_chart_names_the_highest_and_every_accuracy():
    metrics = {
        "R": {"accuracy": 80.0, "interval_95": [78.0, 82.0]},
        "S": {"accuracy": 70.5, "interval_95": [68.0, 73.0]},
    }
    figure = settings_chart(metrics)
    assert "R: the few real images" in figure.finding and "80.0 %" in figure.finding
    assert "S: generated images 70.5 %" in figure.alt
    assert settings_chart({"S": metrics["S"]}).finding == ""  # nothing to compare


def test_heat_maps_count_the_right_sentences():
    cosines = np.array([[0.5, 0.1, 0.2], [0.6, 0.5, 0.1], [0.0, 0.1, 0.3]])
    figure = similarity_heatmaps(cosines, np.full((3, 3), 1 / 3), ["a", "b", "c"])
    assert "2 of 3 pictures" in figure.finding
    many = np.eye(30)
    many[0, 25] = 2.0  # a class that is not drawn may be the nearest
    figure = similarity_heatmaps(many, many, [str(i) for i in range(30)], "satellite")
    assert len(figure.axes[0].get_xticklabels()) == 20 and "29 of 30 pictures" in figure.finding
    assert figure.axes[0].get_xlabel() == 'sentence: "a satellite photo of a ..."'


def test_losses_are_drawn_over_their_timesteps():
    figure = losses_over_time([0, 500, 999], {"base": [2.0, 0.5, 1.5], "adapted": [1.0, 0.4, 0.9]})
    first, second = figure.axes[0].lines
    assert list(first.get_xdata()) == [0, 500, 999] and list(second.get_ydata()) == [1.0, 0.4, 0.9]
    assert "base: 2.00 at t = 0, 0.50 at its lowest, 1.50 at t = 999" in figure.finding
