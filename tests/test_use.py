"""A trained classifier on new pictures: the same predictions as its evaluation, whatever lies in the folder."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import evaluate, save_results
from datadream_utils.classifier.pictures import training_sets
from datadream_utils.classifier.train import fit
from datadream_utils.classifier.use import classify_folder, open_classifier
from datadream_utils.data.dataset import load_dataset
from datadream_utils.errors import InputError
from datadream_utils.params import ROOT
from datadream_utils.runs.progress import no_progress


@pytest.fixture(scope="module")
def stage(smoke):
    """The finished train stage of the smoke run."""
    (folder,) = (smoke[0] / "outputs").glob("*/train-R+S")
    return folder


def test_a_run_classifies_new_pictures_as_it_did_in_its_evaluation(stage, mnist):
    classifier, names = open_classifier(stage, "cpu")
    assert names == list(mnist.class_names)
    table = classify_folder(classifier, names, mnist.root / "test")
    expected = pd.read_parquet(stage / "predictions.parquet")
    expected = expected.assign(file=expected["file"].str.removeprefix("test/")).set_index("file").loc[table["file"]]
    assert len(table) == len(expected) == 3500
    assert table["class"].tolist() == [names[label] for label in expected["prediction"]]
    assert np.allclose(table["probability"], expected["probability"], atol=1e-4)


@pytest.mark.parametrize(
    "changes", [dict(classifier="models/tiny-resnet"), dict(method="clip_zeroshot", setting="none")]
)
def test_other_classifiers_work_without_their_data_set(changes, make_run, folder_dataset, tmp_path):
    data = load_dataset(str(folder_dataset))
    values = dict(method="real", setting="R", n_shot=2, images_per_class=2, train_epochs=1) | changes
    run = make_run("train", data=data, dataset=str(folder_dataset), **values)
    classifier = make_classifier(run)
    history = fit(classifier, training_sets(run, classifier.image_size) if values["setting"] == "R" else {}, run)
    save_results(run, classifier, history, evaluate(classifier, run))
    pictures = tmp_path / "new"
    shutil.copytree(folder_dataset / "test", pictures)
    shutil.rmtree(folder_dataset)
    opened, names = open_classifier(run.folder, "cpu")
    assert names == list(data.class_names)
    table = classify_folder(opened, names, pictures)
    assert len(table) == 4 and set(table["class"]) <= set(names) and table["probability"].between(0.5, 1).all()


def test_the_command_lists_what_it_cannot_read(stage, mnist, tmp_path):
    new = tmp_path / "new"
    (new / "deeper").mkdir(parents=True)
    (new / "__MACOSX").mkdir()
    shutil.copy(mnist.files["test"][3][0], new / "deeper" / "three.PNG")
    shutil.copy(mnist.files["test"][3][0], new / "__MACOSX" / "junk.png")
    Image.new("RGB", (50, 20), "red").save(new / "red.jpg")
    (new / "torn.png").write_bytes((new / "red.jpg").read_bytes()[:300])
    (new / "notes.txt").write_text("no picture", encoding="utf-8")
    command = [sys.executable, "-m", "workflow.scripts.classify", stage, new, "--output", tmp_path / "new.csv"]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "2 pictures classified, 1 could not be read" in done.stdout and "1 other files were left out" in done.stdout
    table = pd.read_csv(tmp_path / "new.csv").set_index("file")
    assert set(table.index) == {"deeper/three.PNG", "red.jpg", "torn.png"}
    assert "torn.png cannot be read" in table.loc["torn.png", "problem"] and pd.isna(table.loc["torn.png", "class"])
    assert table["problem"].isna().sum() == 2


def test_what_is_no_finished_classifier_is_refused(stage, tmp_path):
    for folder in (stage.parent / "generate", tmp_path):
        with pytest.raises(InputError, match="no finished classifier"):
            open_classifier(folder, "cpu")
    copy = tmp_path / "run" / stage.name
    shutil.copytree(stage, copy)
    metrics = json.loads((copy / "metrics.json").read_text(encoding="utf-8"))
    (copy / "metrics.json").write_text(json.dumps(metrics | {"accuracy": 100.0}), encoding="utf-8")
    with pytest.raises(InputError, match="changed"):
        open_classifier(copy, "cpu")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        classify_folder(None, [], tmp_path / "empty", no_progress)
