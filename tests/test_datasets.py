"""Data sets: nested shots, disjoint splits, a user's own folder, pictures of all kinds, and what can be wrong."""

import os
import struct
import subprocess
import sys
import unicodedata

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin
from sklearn.datasets import load_digits

from datadream_utils.data.dataset import flatten, load_dataset
from datadream_utils.data.images import check_images, read_image
from datadream_utils.data.shots import few_shot, write_shots
from datadream_utils.errors import InputError
from datadream_utils.params import ROOT
from datadream_utils.seeds import stable_seed


def test_mnist_has_the_splits_it_promises(mnist):
    counts = {split: {len(files) for files in classes} for split, classes in mnist.files.items()}
    assert counts == {"train": {100}, "val": {50}, "test": {350}}
    assert mnist.class_names[7] == "seven" and mnist.folders[7] == "7" and mnist.example == "four"
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


# -- folders as they come


def write_pictures(folder, count=4, suffix=".png"):
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("L", (4, 4), i).save(folder / f"{i}{suffix}")


@pytest.fixture
def photos(tmp_path):
    """``photos("train/cat", "test/cat", ...)``: a data set of these folders, four pictures each."""

    def make(*folders):
        for folder in folders:
            write_pictures(tmp_path / "photos" / folder)
        return tmp_path / "photos"

    return make


def test_what_systems_leave_beside_classes_is_skipped(photos, class_folders):
    root = photos("train/cat", "train/dog", "test/cat", "test/dog", "__MACOSX/train", "train/@eaDir", "test/__MACOSX")
    (root / "train" / "cat" / "@eaDir").mkdir()
    assert load_dataset(str(root)).class_names == ("cat", "dog")
    write_pictures(class_folders / "__MACOSX")
    write_pictures(class_folders / "$RECYCLE.BIN")
    assert load_dataset(str(class_folders)).class_names == ("apple pie", "train")


def test_one_level_too_high_names_the_folder_below(photos):
    root = photos("photos/cat", "photos/dog")
    with pytest.raises(
        InputError, match="photos holds one folder of folders: did you mean the data set '.*photos/photos'"
    ):
        load_dataset(str(root))
    assert load_dataset(str(root / "photos")).class_names == ("cat", "dog")
    (root / "photos" / "cat" / "black").mkdir()
    for path in (root / "photos" / "cat").glob("*.png"):
        path.rename(path.parent / "black" / path.name)
    with pytest.raises(InputError, match="cat has no images .* only folders: move the pictures out of them"):
        load_dataset(str(root / "photos"))


@pytest.mark.parametrize(
    "train, val, test",
    [
        ("Train", "Val", "Test"),
        ("train", "validation", "test"),
        ("training", "valid", "testing"),
        ("train", "dev", "TEST"),
    ],
)
def test_splits_are_known_by_their_usual_names(photos, train, val, test):
    data = load_dataset(str(photos(*(f"{split}/{name}" for split in (train, val, test) for name in ("cat", "dog")))))
    assert {split: classes[1][0].parts[-3] for split, classes in data.files.items()} == dict(
        train=train, val=val, test=test
    )
    assert data.split == f"the folder's own {train}, {val}, {test}"


def test_a_folder_of_train_and_validation_is_tested_on_validation(photos):
    data = load_dataset(str(photos("train/cat", "train/dog", "valid/cat", "valid/dog")))
    assert set(data.files) == {"train", "test"} and data.files["test"][0][0].parts[-3] == "valid"
    assert data.split == "the folder's own train, valid; test is its valid"


def test_two_folders_for_one_split(photos):
    root = photos("train/cat", "train/dog", "val/cat", "val/dog", "valid/cat", "valid/dog", "test/cat", "test/dog")
    with pytest.raises(InputError, match="/val and .*/valid both stand for val: remove or rename one"):
        load_dataset(str(root))


def test_classes_may_be_called_as_splits_are(photos):
    assert load_dataset(str(photos("car", "bus", "test", "val"))).class_names == ("bus", "car", "test", "val")


def test_splits_without_classes_are_not_two_classes(photos):
    with pytest.raises(InputError, match="holds test and train without class folders in them: put each class's images"):
        load_dataset(str(photos("train", "test")))


def test_codes_before_class_names_are_left_out_of_prompts(photos):
    root = photos("001.Black_footed_Albatross", "002.Laysan_Albatross", "010.Red_winged_Blackbird")
    data = load_dataset(str(root))
    assert data.class_names == ("Black footed Albatross", "Laysan Albatross", "Red winged Blackbird")
    assert data.folders[0] == "001.Black_footed_Albatross"
    (root / "010.Red_winged_Blackbird").rename(root / "7up")  # not every folder has a code
    assert load_dataset(str(root)).class_names[0] == "001.Black footed Albatross"


@pytest.mark.parametrize(
    "folders, names",
    [
        (["n02085620-Chihuahua", "n02085782-Japanese_spaniel"], ("Chihuahua", "Japanese spaniel")),
        (["1920_fashion", "1930_fashion"], ("1920 fashion", "1930 fashion")),  # they would be the same
        (["707-320", "727-200"], ("707-320", "727-200")),
        (["0", "1"], ("0", "1")),
    ],
)
def test_which_codes_are_left_out(photos, folders, names):
    assert load_dataset(str(photos(*folders))).class_names == names


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "caf\u00e9 noir") for form in ("NFC", "NFD"))


def test_names_in_two_unicode_forms_are_equal(photos, tmp_path):
    root = photos(f"train/{COMPOSED}", "train/tea", f"test/{DECOMPOSED}", "test/tea")
    data = load_dataset(str(root))
    assert data.folders == (COMPOSED, "tea") and DECOMPOSED != COMPOSED
    assert [len(paths) for paths in data.files["test"]] == [4, 4]
    (root / "dataset.yaml").write_text(f"classes: {{tea: tea, {DECOMPOSED}: coffee}}", encoding="utf-8")
    assert load_dataset(str(root)).class_names == ("tea", "coffee")
    for form in (COMPOSED, DECOMPOSED):
        (tmp_path / "shots.txt").write_text(f"{form}/1.png\ntea/0.png\n", encoding="utf-8")
        assert few_shot(data, 1, 0, str(tmp_path / "shots.txt"))[0] == [root / "train" / COMPOSED / "1.png"]
        (tmp_path / "split.csv").write_text(
            f"split,filename\ntest,test/{form}/1.png\ntrain,train/{form}/0.png\ntrain,train/tea/0.png\ntest,test/tea/1.png\n",
            encoding="utf-8",
        )
        assert len(flatten(load_dataset(str(root), "data", str(tmp_path / "split.csv")).files["test"])[0]) == 2
    write_pictures(root / "train" / DECOMPOSED)
    with pytest.raises(InputError, match="has two folders called 'café noir', in two Unicode forms: join them"):
        load_dataset(str(root))


def test_a_data_set_may_be_in_the_home_folder(photos, tmp_path, monkeypatch):
    root = photos("cat", "dog")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load_dataset("~/photos").root == root
    (tmp_path / "photos.zip").touch()
    with pytest.raises(InputError, match=r"photos.zip' is a file: unpack it and give the folder"):
        load_dataset(str(tmp_path / "photos.zip"))


def test_a_class_of_files_that_are_not_read_says_which(photos):
    root = photos("cat", "dog")
    for path in (root / "cat").iterdir():
        path.rename(path.with_suffix(".heix"))
    with pytest.raises(InputError, match="cat has no images .*, only .heix: convert them or remove the folder"):
        load_dataset(str(root))
    (root / "dog" / "deeper").mkdir()
    (root / "dog" / "deeper" / "1.png").touch()
    (root / "dog" / "notes.txt").touch()
    for path in (root / "cat").iterdir():
        path.rename(path.with_suffix(".png"))
    data = load_dataset(str(root))
    assert [data.count_unread(label) for label in (0, 1)] == [0, 2]


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


@pytest.mark.parametrize("broken", [3, 12])
def test_all_broken_pictures_are_reported_together(tmp_path, broken):
    paths = [tmp_path / f"{i:02d}.png" for i in range(20)]
    for path in paths:
        Image.effect_noise((40, 40), 50).save(path)
    assert check_images(paths) == [(40, 40)] * 20
    for path in paths[2 : 2 + broken]:
        path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(InputError, match=f"^{broken} of 20 pictures cannot be read:") as caught:
        check_images(paths)
    lines = str(caught.value).splitlines()
    assert [path.name for path in paths if str(path) in str(caught.value)] == [
        f"{i:02d}.png" for i in range(2, 2 + min(broken, 10))
    ]
    assert lines[-1] == "... and 2 more." if broken == 12 else len(lines) == 4


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


@pytest.mark.parametrize("suffix, kind", [(".jfif", "JPEG"), (".JPE", "JPEG"), (".avif", "AVIF"), (".jpg", "AVIF")])
def test_formats_of_the_web_are_read(photos, suffix, kind):
    root = photos("cat", "dog")
    Image.new("RGB", (30, 20), (200, 30, 30)).save(root / "cat" / f"photo{suffix}", kind)
    paths = [path for classes in load_dataset(str(root)).files.values() for path in classes[0]]
    assert root / "cat" / f"photo{suffix}" in paths
    image = read_image(root / "cat" / f"photo{suffix}")
    assert image.size == (30, 20) and np.abs(np.asarray(image).astype(int) - (200, 30, 30)).max() < 8


def test_photos_of_phones_are_read_with_an_optional_package(tmp_path):
    pytest.importorskip("pillow_heif")
    Image.new("RGB", (30, 20), (200, 30, 30)).save(tmp_path / "photo.heic")
    assert read_image(tmp_path / "photo.heic").size == (30, 20)


def exif_bytes(*entries):
    """EXIF data of ``(tag, type, 4 bytes of value)`` entries, one value each."""
    rows = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + rows + bytes(4)


UPRIGHT, MAKE = 0x0112, 0x010F


def test_odd_exif_data_cost_no_picture(tmp_path):
    pixels = np.zeros((10, 20, 3), np.uint8)
    pixels[:5, :10] = 255  # white at the top left: rotated by 90 degrees it is at the top right
    image, turn = Image.fromarray(pixels), (UPRIGHT, 3, struct.pack("<HH", 6, 0))
    wrong_type = (MAKE, 11, struct.pack("<f", 1.5))  # a maker's name typed as FLOAT
    image.save(tmp_path / "typed.jpg", exif=exif_bytes(wrong_type, turn), quality=95)
    with pytest.raises(AttributeError), Image.open(tmp_path / "typed.jpg") as opened:
        ImageOps.exif_transpose(opened)
    turned = read_image(tmp_path / "typed.jpg")
    assert turned.size == (10, 20) and turned.getpixel((8, 2))[0] > 200 and turned.getpixel((1, 2))[0] < 50
    for name, exif in {
        "no data": b"Exif\0\0",
        "no header": b"Exif\0\0hello",
        "cut": exif_bytes(turn)[:20],
        "as a fraction": exif_bytes((UPRIGHT, 5, struct.pack("<I", 9999))),
        "as a text": exif_bytes((UPRIGHT, 2, b"6\0\0\0")),
        "too large": exif_bytes((UPRIGHT, 3, struct.pack("<HH", 99, 0))),
    }.items():
        image.save(tmp_path / f"{name}.jpg", exif=exif)
        assert read_image(tmp_path / f"{name}.jpg").size == (20, 10)


@pytest.mark.parametrize("kind, compression", [("tiff", None), ("tiff", "tiff_lzw"), ("png", None), ("webp", None)])
def test_pictures_are_turned_once(tmp_path, kind, compression):
    image = Image.new("RGB", (20, 10))
    exif = image.getexif()
    exif[UPRIGHT] = 6
    image.save(tmp_path / f"it.{kind}", exif=exif, **({"compression": compression} if compression else {}))
    assert read_image(tmp_path / f"it.{kind}").size == (10, 20)


def test_much_text_in_a_png_is_read(tmp_path):
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", "<x/>" * 2**19, zip=True)  # 2 MB
    Image.new("L", (4, 4), 7).save(tmp_path / "it.png", pnginfo=info)
    assert read_image(tmp_path / "it.png").getpixel((0, 0)) == (7, 7, 7)


@pytest.mark.parametrize("depth", [8, 10, 12, 14, 16])
def test_deep_grey_values_are_scaled_by_their_depth(tmp_path, depth):
    ramp = np.linspace(0, 2**depth - 1, 64 * 64).reshape(64, 64)
    expected = np.round(np.linspace(0, 255, 64 * 64).reshape(64, 64))
    for values, suffix in (
        (ramp.astype(np.uint16), "png"),
        (ramp.astype(np.int32), "tif"),
        (ramp.astype(np.float32), "tif"),
    ):
        Image.fromarray(values).save(tmp_path / f"it.{suffix}")
        assert np.abs(np.asarray(read_image(tmp_path / f"it.{suffix}"))[..., 1] - expected).max() <= 1


def test_real_numbers_up_to_one_are_shares_of_white(tmp_path):
    Image.fromarray(np.array([[0.0, 0.5, 1.0, np.nan]], np.float32)).save(tmp_path / "it.tif")
    assert [read_image(tmp_path / "it.tif").getpixel((x, 0))[0] for x in range(4)] == [0, 128, 255, 0]


def _load_in_locale(folder, **variables):
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONUTF8", "LC_CTYPE", "LANG")}
    code = f"from datadream_utils.data.dataset import *\nprint(ascii(load_dataset({str(folder)!a}).class_names))"
    command = [sys.executable, "-c", code]
    environment |= {"PYTHONPATH": str(ROOT), "LC_ALL": "C"} | variables
    return subprocess.run(command, env=environment, capture_output=True, encoding="utf-8")


def test_accents_in_a_locale_without_them(folder_dataset):
    usual = _load_in_locale(folder_dataset)
    assert usual.returncode == 0 and ascii("crème brûlée") in usual.stdout, usual.stderr
    legacy = _load_in_locale(folder_dataset, PYTHONUTF8="0")
    assert "InputError" in legacy.stderr and "set PYTHONUTF8=1 in the environment" in legacy.stderr


def test_uci_digits_are_scikit_learns_enlarged_and_no_picture_is_in_two_splits(tmp_path):
    data = load_dataset("uci_digits", tmp_path)
    digits = load_digits()
    assert data.class_names[7] == "seven" and {len(files) for files in data.files["train"]} == {60}
    rows = [int(path.stem) for classes in data.files.values() for files in classes for path in files]
    assert sorted(rows) == list(range(1797))
    path = data.files["test"][4][0]
    picture = np.asarray(Image.open(path), float)
    assert picture.shape == (32, 32) and digits.target[int(path.stem)] == 4
    means = picture.reshape(8, 4, 8, 4).mean((1, 3)) * 16 / 255  # of each enlarged pixel
    assert np.corrcoef(means.ravel(), digits.images[int(path.stem)].ravel())[0, 1] > 0.95
