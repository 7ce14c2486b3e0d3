"""The evaluation of the tiny world's models: it looks at validation images only, and finds what is there."""

from dataclasses import replace

import pytest

from datadream_utils.params import ROOT, read_params_file
from models.pretraining import evaluate

SMOKE = read_params_file(ROOT / "params" / "smoke.yaml") | {"adapt_epochs": 1}


@pytest.fixture
def without_test_images(mnist):
    return replace(mnist, files={split: files for split, files in mnist.files.items() if split != "test"})


def test_features_are_looked_at_without_the_test_images(without_test_images):
    found = evaluate.evaluate_features(ROOT / "models", without_test_images, 100)
    assert len(found) == 7 and all(0 <= value <= 100 for value in found.values())
    assert found["linear probe, 1 shot"] < found["linear probe, 16 shots"]


def test_stages_run_without_the_test_images_and_leave_a_sheet(without_test_images, tmp_path):
    data = without_test_images
    accuracies, images = evaluate.evaluate_stages(ROOT / "models", data, 100, 1, tmp_path / "outputs", SMOKE)
    assert len(accuracies) == 10 and set(images) == {"fakeit", "datadream_cls"}
    evaluate.draw_sheet(data, images, tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    assert evaluate.format_table([100], [accuracies]).count("\n") == 11


def test_seeds_of_published_results_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evaluate", "--seeds", "0"])
    with pytest.raises(SystemExit):
        evaluate.main()
    assert "seeds below 100" in capsys.readouterr().err
