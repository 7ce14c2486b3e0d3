"""The short path for a folder of one's own: what is seen and refused before anything is computed, and all of it."""

import shutil

import nbformat
import pandas as pd
import papermill
import pytest
from conftest import ipython_shell

from datadream_utils.data.dataset import load_dataset
from datadream_utils.errors import InputError
from datadream_utils.interactive.own_images import (
    EXAMPLE_CLASSES,
    OwnImagesParams,
    describe_folder,
    duplicates,
    gain,
    loose_pictures,
    write_example,
)
from datadream_utils.params import ROOT

NOTEBOOK = ROOT / "notebooks" / "05_your_own_images.ipynb"


@pytest.fixture
def example(tmp_path, mnist):
    write_example(tmp_path / "mine", str(mnist.root.parent))
    return tmp_path / "mine"


def test_the_example_is_a_folder_as_a_user_has_it(example):
    assert sorted(f.name for f in example.iterdir()) == sorted(EXAMPLE_CLASSES)
    (example / "three" / "mine.txt").write_text("kept")
    write_example(example, "nowhere")  # what is there already stays as it is
    assert (example / "three" / "mine.txt").exists()
    table = describe_folder(load_dataset(str(example)))
    assert table["class"].tolist() == sorted(EXAMPLE_CLASSES) and (table["smallest side"] == 28).all()
    assert table[["train", "val", "test"]].to_numpy().tolist() == [[50, 20, 30]] * 3
    assert table["not read"].tolist() == [0, 0, 1]  # mine.txt, of "three"


def test_pictures_beside_the_class_folders_are_named(example, folder_dataset):
    three = load_dataset(str(example)).files["train"][EXAMPLE_CLASSES.index("three")][0]
    assert loose_pictures(load_dataset(str(example))) == []
    shutil.copy(three, example / "loose.png")
    assert loose_pictures(load_dataset(str(example))) == [example / "loose.png"]
    shutil.copy(three, folder_dataset / "train" / "loose.png")
    shutil.copy(three, folder_dataset / "loose.png")
    found = loose_pictures(load_dataset(str(folder_dataset)))
    assert found == [folder_dataset / "loose.png", folder_dataset / "train" / "loose.png"]


def test_one_class_is_refused_before_anything_runs(example):
    for name in EXAMPLE_CLASSES[1:]:
        shutil.rmtree(example / name)
    with pytest.raises(InputError, match="has one class, 'three': .* add the folder of another class"):
        describe_folder(load_dataset(str(example)))


def test_every_unreadable_picture_of_a_folder_is_named(folder_dataset):
    for path in (folder_dataset / "train" / "apple_pie").iterdir():
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match="3 of 5 pictures cannot be read"):
        describe_folder(load_dataset(str(folder_dataset)))


def test_a_picture_in_train_and_test_is_found(folder_dataset):
    assert duplicates(load_dataset(str(folder_dataset))) == []
    source = folder_dataset / "train" / "apple_pie" / "0.png"
    copy = folder_dataset / "test" / "crème brûlée" / "again.png"
    shutil.copy(source, copy)
    assert duplicates(load_dataset(str(folder_dataset))) == [(source, copy)]


def test_the_gain_is_that_of_the_same_images():
    alone = pd.Series([True] * 80 + [False] * 20)
    more, less, other = alone.copy(), alone.copy(), alone.copy()
    more[80:], less[60:] = True, False
    other[79:81] = [False, True]
    assert gain(more, alone).startswith("The generated images bring +20.0 points") and "helped" in gain(more, alone)
    assert "-20.0 points" in gain(less, alone) and "harm" in gain(less, alone)
    assert "+0.0 points" in gain(other, alone) and "too few test images" in gain(other, alone)


def _checked(**changes):
    """Run the notebook up to the cell that checks the parameters; returns its variables."""
    with ipython_shell() as shell:
        for cell in (cell for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"):
            shell.run_cell(cell.source).raise_error()
            if "parameters" in cell.metadata.get("tags", ()):
                shell.push(changes)
            if "OwnImagesParams.read" in cell.source:
                return shell.user_ns


def test_all_three_notebooks_parameters_are_checked_first(folder_dataset, tmp_path):
    mine = {"dataset": str(folder_dataset), "n_shot": 2, "output_root": str(tmp_path / "outputs")}
    mine |= {"images_per_class": 3, "params_file": "params/smoke.yaml"}
    checked = _checked(**mine)["checked"]
    assert list(checked) == [
        ("adapt", "datadream_cls"), ("generate", "datadream_cls"),
        ("train", "datadream_cls"), ("train", "real"), ("train", "clip_zeroshot"),
    ]  # fmt: skip
    assert {p.dataset for p in checked.values()} == {str(folder_dataset)}
    assert checked["adapt", "datadream_cls"].adapt_epochs == 2  # the file's
    assert checked["generate", "datadream_cls"].images_per_class == 3  # the notebook's, before the file's
    assert [checked["train", m].setting for m in ("datadream_cls", "real", "clip_zeroshot")] == ["R+S", "R", "none"]
    with pytest.raises(InputError, match="n_shot=8 is more than images_per_class=3"):
        _checked(**mine | {"n_shot": 8})
    assert not (tmp_path / "outputs").exists()


def test_its_parameters_are_documented():
    described = papermill.inspect_notebook(str(NOTEBOOK))
    assert set(described) == set(OwnImagesParams.model_fields)
    assert all(entry["help"] and entry["inferred_type_name"] != "None" for entry in described.values())


@pytest.mark.slow
def test_a_folder_goes_through_in_one_run(folder_dataset, tmp_path):
    values = {"dataset": str(folder_dataset), "n_shot": 2, "images_per_class": 2, "params_file": "params/smoke.yaml"}
    values |= {"output_root": str(tmp_path / "outputs")}
    output = tmp_path / "out.ipynb"
    papermill.execute_notebook(str(NOTEBOOK), str(output), values, kernel_name="python3", progress_bar=False, cwd=ROOT)
    outputs = [o for cell in nbformat.read(output, 4).cells for o in cell.get("outputs", ())]
    (table,) = (o.data["text/plain"] for o in outputs if "95 % interval" in o.get("data", {}).get("text/plain", ""))
    assert all(name in table for name in ("shots and generated", "shots alone", "no training"))
    assert sum("image/png" in o.get("data", {}) for o in outputs) == 3
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    runs = sorted(path.name for path in (tmp_path / "outputs").iterdir() if path.is_dir())
    assert runs == ["mine_clip_zeroshot_2shot_seed0", "mine_datadream_cls_2shot_seed0", "mine_real_2shot_seed0"]
    assert len(list((tmp_path / "outputs").glob("*/0*.ipynb"))) == 5
