"""Data sets: nested shots, disjoint splits, a user's own folder, and every way it can be wrong."""

import numpy as np
import pytest
from PIL import Image

from datadream_utils.data.dataset import flatten, load_dataset
from datadream_utils.data.images import check_images, read_image
from datadream_utils.data.shots import few_shot, write_shots
from datadream_utils.errors import InputError
from datadream_utils.seeds import stable_seed


def test_mnist_has_the_splits_it_promises(mnist):
    counts = {split: {len(files) for files in classes} for split, classes in mnist.files.items()}
    assert counts == {"train": {100}, "val": {50}, "test": {350}}
    assert mnist.class_names[7] == "seven" and mnist.folders[7] == "7" and mnist.example == "seven"
    assert mnist.split == "the folder's own train, val, test" and "MNIST" in mnist.source
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


@pytest.mark.parametrize("name", ["F-16A/B", "..", "../../etc", 'the "best" pie', "東京", "CON", "<b>$x$</b>"])
def test_any_class_name_stays_inside_the_run_folder(folder_dataset, name):
    quoted = '"' + name.replace('"', '\\"') + '"'
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


# -- class folders without train and test


@pytest.fixture
def class_folders(tmp_path):
    """A folder that holds class folders directly: ten and four tiny pictures."""
    for name, count in {"apple_pie": 10, "train": 4}.items():
        (tmp_path / "plain" / name).mkdir(parents=True)
        for i in range(count):
            Image.new("L", (4, 4), i).save(tmp_path / "plain" / name / f"{i}.png")
    return tmp_path / "plain"


def test_class_folders_are_divided(class_folders):
    data = load_dataset(str(class_folders))
    assert data.class_names == ("apple pie", "train")  # a class may be called so
    assert {s: [len(c) for c in classes] for s, classes in data.files.items()} == {
        "train": [5, 2],
        "val": [2, 1],
        "test": [3, 1],
    }
    paths = [path for classes in data.files.values() for path in flatten(classes)[0]]
    assert len(set(paths)) == 14 and all(path.is_relative_to(data.root) for path in paths)
    assert data.split.startswith("own split: 50 % train, 20 % val, 30 % test of each class")
    assert load_dataset(str(class_folders)).files == data.files
    # which picture goes where depends on the class's own names alone
    (class_folders / "another").mkdir()
    for i in range(4):
        Image.new("L", (4, 4), i).save(class_folders / "another" / f"{i}.png")
    assert load_dataset(str(class_folders)).files["test"][1] == data.files["test"][0]


def test_class_folders_too_small_to_divide(class_folders):
    (class_folders / "train" / "0.png").unlink()
    with pytest.raises(
        InputError, match="class 'train' has 3 images, and dividing it .* takes at least 4: add images, or"
    ):
        load_dataset(str(class_folders))


def test_class_folders_with_dataset_yaml(class_folders):
    (class_folders / "dataset.yaml").write_text("{classes: {train: locomotive, apple_pie: pie}, example: pie}")
    data = load_dataset(str(class_folders))
    assert data.class_names == ("locomotive", "pie") and data.example == "pie" and data.folders[0] == "train"


def test_a_folder_of_nothing(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty has no class folders: put each class's images in train/<class>/"):
        load_dataset("empty", str(tmp_path))


# -- few-shot lists


def test_shots_come_back_from_their_list(mnist, tmp_path):
    shots = few_shot(mnist, 4, seed=3)
    write_shots(mnist, shots, tmp_path / "shots.txt")
    assert few_shot(mnist, 4, seed=0, shots_file=str(tmp_path / "shots.txt")) == shots
    assert few_shot(mnist, 2, seed=0, shots_file=str(tmp_path / "shots.txt")) == [paths[:2] for paths in shots]
    lines = (tmp_path / "shots.txt").read_text().splitlines()
    assert lines[0] == "# few shots of mnist5k: n_shot=4 for each of 10 classes"
    assert lines[2] == f"0/{shots[0][0].name}" and len(lines) == 2 + 40
    longer = [line if line[0] == "#" else f"train/{line}" for line in lines]  # paths from the data set's folder
    (tmp_path / "longer.txt").write_text("\n\n".join(longer))
    assert few_shot(mnist, 4, seed=0, shots_file=str(tmp_path / "longer.txt")) == shots


def test_shots_of_odd_names_come_back(tmp_path):
    for split in ("train", "test"):
        for name in ("#1", "ä b"):
            (tmp_path / "odd" / split / name).mkdir(parents=True)
            for i in range(2):
                Image.new("L", (4, 4)).save(tmp_path / "odd" / split / name / f"# {i}.png")
    data = load_dataset("odd", str(tmp_path))
    shots = few_shot(data, 2, 0)
    write_shots(data, shots, tmp_path / "shots.txt")
    assert few_shot(data, 2, 1, shots_file=str(tmp_path / "shots.txt")) == shots


@pytest.mark.parametrize(
    "lines, message",
    [
        (
            ["apple_pie/0.png"],
            "lists 0 images of class 'crème brûlée', fewer than n_shot=1: add lines or set n_shot to 0",
        ),
        (
            ["# mine", "apple_pie/7.png"],
            "line 2: 'apple_pie/7.png' is not there, it must be a train image of mine: remove",
        ),
        (["test/apple_pie/0.png"], "line 1: 'test/apple_pie/0.png' belongs to val or test"),
        (["../mine/train/apple_pie/0.png"], "is not there"),
        (["apple_pie/0.png", "train/apple_pie/0.png"], r"line 2: .* stands there twice \(line 1\): remove one"),
    ],
)
def test_bad_shots_files(folder_dataset, tmp_path, lines, message):
    (tmp_path / "shots.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message) as caught:
        few_shot(load_dataset(str(folder_dataset)), 1, seed=0, shots_file=str(tmp_path / "shots.txt"))
    assert "shots.txt" in str(caught.value)


def test_shots_file_that_is_not_there(folder_dataset, tmp_path):
    with pytest.raises(InputError, match=r"shots file .*gone.txt cannot be read \(.*\): give the path of a text file"):
        few_shot(load_dataset(str(folder_dataset)), 1, seed=0, shots_file=str(tmp_path / "gone.txt"))


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
