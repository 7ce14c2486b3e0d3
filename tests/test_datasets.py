"""Data sets: nested shots, disjoint splits, a user's own folder, and every way it can be wrong."""

import numpy as np
import pytest
from PIL import Image

from datadream_utils.datasets import check_images, few_shot, flatten, load_dataset, stable_seed
from datadream_utils.errors import InputError
from datadream_utils.images import read_image


def test_mnist_has_the_splits_it_promises(mnist):
    counts = {split: {len(files) for files in classes} for split, classes in mnist.files.items()}
    assert counts == {"train": {100}, "val": {50}, "test": {350}}
    assert mnist.class_names[7] == "seven" and mnist.folders[7] == "7"
    assert read_image(mnist.files["test"][7][0]).size == (28, 28)


def test_no_picture_is_in_two_splits(mnist):
    pictures = {split: {p.read_bytes() for files in classes for p in files} for split, classes in mnist.files.items()}
    assert not pictures["train"] & pictures["test"] and not pictures["val"] & pictures["test"]
    assert not pictures["train"] & pictures["val"]


def test_few_shots_come_from_train_and_are_nested(mnist):
    small, large = few_shot(mnist, 4, seed=0), few_shot(mnist, 16, seed=0)
    assert all(b[:4] == a for a, b in zip(small, large, strict=True))
    assert all(set(shots) <= set(files) for shots, files in zip(large, mnist.files["train"], strict=True))
    assert all(len(set(shots)) == 16 for shots in large)
    assert few_shot(mnist, 16, seed=1) != large
    assert few_shot(mnist, 16, seed=0) == large


def test_stable_seed_is_the_same_on_every_machine():
    assert stable_seed("generate", 0, "seven", 3) == 3233465078600638685
    assert stable_seed("ab", "c") != stable_seed("a", "bc")


def test_a_users_folder_needs_no_yaml(folder_dataset):
    data = load_dataset(str(folder_dataset))
    assert data.class_names == ("apple pie", "crème brûlée")
    assert [len(files) for files in data.files["train"]] == [3, 3]
    assert "val" not in data.files


@pytest.mark.parametrize("name", ["F-16A/B", "..", "../../etc", 'the "best" pie', "東京", "a\nb", "  "])
def test_any_class_name_stays_inside_the_run_folder(folder_dataset, name):
    quoted = '"' + name.replace('"', '\\"').replace("\n", "\\n") + '"'
    (folder_dataset / "dataset.yaml").write_text(f"classes: {{apple_pie: {quoted}, crème brûlée: brûlée}}")
    data = load_dataset(str(folder_dataset))
    assert data.class_names[0] == name
    assert data.class_dir(0).startswith("0000_") and not set(data.class_dir(0)) & set('/\\".\n')


def test_unknown_data_set_names_the_nearest(tmp_path):
    (tmp_path / "mnist5k").mkdir()
    with pytest.raises(InputError, match=r"'mnist5' is neither known nor a folder. Did you mean 'mnist5k'\?"):
        load_dataset("mnist5", str(tmp_path))


def _remove(folder):
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def test_missing_class_folder(folder_dataset):
    _remove(folder_dataset / "test" / "apple_pie")
    with pytest.raises(InputError, match="class folder .*apple_pie is missing: every class of train needs one in test"):
        load_dataset(str(folder_dataset))


def test_extra_class_folder(folder_dataset):
    _remove(folder_dataset / "train" / "apple_pie")
    with pytest.raises(InputError, match="apple_pie has no counterpart"):
        load_dataset(str(folder_dataset))


def test_empty_class_folder(folder_dataset):
    for file in (folder_dataset / "train" / "apple_pie").iterdir():
        file.unlink()
    with pytest.raises(InputError, match="apple_pie has no images"):
        load_dataset(str(folder_dataset))


def test_no_test_split(folder_dataset):
    (folder_dataset / "test").rename(folder_dataset / "other")
    with pytest.raises(InputError, match="has no 'test' folder"):
        load_dataset(str(folder_dataset))


def test_fewer_images_than_shots(folder_dataset):
    with pytest.raises(InputError, match="has 3 images, fewer than n_shot=4: add images or set n_shot to 3"):
        few_shot(load_dataset(str(folder_dataset)), 4, seed=0)


@pytest.mark.parametrize(
    "text, message",
    [
        ("classes: {apple_pie: pie, creme: x}", "creme is missing"),
        ("classes: {apple_pie: pie}", "crème brûlée is not listed"),
        ("classes: {apple_pie: x, crème brûlée: x}", "two classes are called 'x'"),
        ("clases: {}", r"'clases' is not known. Did you mean 'classes'\?"),
        ("classes: [a, b]", "'classes' must be"),
        ("- a", "must hold 'name: value' lines"),
        ("a: [", "cannot be read as YAML"),
    ],
)
def test_bad_dataset_yaml(folder_dataset, text, message):
    (folder_dataset / "dataset.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_dataset(str(folder_dataset))


def test_hidden_folders_and_other_files_are_ignored(folder_dataset):
    (folder_dataset / "train" / ".ipynb_checkpoints").mkdir()
    (folder_dataset / "train" / "apple_pie" / "notes.txt").write_text("not a picture")
    assert [len(files) for files in load_dataset(str(folder_dataset)).files["train"]] == [3, 3]


def test_truncated_picture_is_named(folder_dataset):
    path = folder_dataset / "train" / "apple_pie" / "1.png"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=r"1\.png cannot be read as a picture"):
        check_images(flatten(load_dataset(str(folder_dataset)).files["train"])[0])


def test_not_a_picture_is_named(tmp_path):
    (tmp_path / "fake.png").write_text("hello")
    with pytest.raises(InputError, match=r"fake\.png cannot be read as a picture"):
        read_image(tmp_path / "fake.png")
    with pytest.raises(InputError, match="is not there any more"):
        read_image(tmp_path / "gone.png")


def test_a_gigantic_picture_is_refused(tmp_path):
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    with pytest.raises(InputError, match="million pixels"):
        read_image(tmp_path / "bomb.png")


def test_odd_pictures_become_rgb(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64)
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "deep.png")
    deep = np.asarray(read_image(tmp_path / "deep.png"))
    assert np.abs(deep[..., 0].astype(int) - np.round(ramp / 257)).max() <= 1

    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (np.asarray(read_image(tmp_path / "clear.png")) == 255).all()

    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=100)
    red, green, blue = np.asarray(read_image(tmp_path / "print.jpg"))[4, 4].astype(int)
    assert red > 240 and green < 16 and blue < 16

    turned = Image.new("RGB", (20, 10))
    exif = turned.getexif()
    exif[274] = 6  # "rotate by 90 degrees to see it upright"
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_image(tmp_path / "turned.jpg").size == (10, 20)

    Image.new("P", (8, 8)).save(tmp_path / "palette.gif")
    assert read_image(tmp_path / "palette.gif").mode == "RGB"
