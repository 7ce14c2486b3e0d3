"""The known data sets: class names, original archives, split files and hub exports, each on small or public files."""

import csv
import http.server
import io
import itertools
import json
import threading
from collections import Counter
from pathlib import Path

import datasets as hub_library
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import savemat

from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.images import read_image
from datadream_utils.data.known import FOLDER, known_names, read_known
from datadream_utils.data.shots import few_shot
from datadream_utils.data.splits import hold_out, own_split
from datadream_utils.errors import InputError
from datadream_utils.params import ROOT
from datadream_utils.prompts import class_prompt, generation_prompt

SHARED = ROOT.parent / "shared" / "paper"  # public split files and the authors' class names, where they are at hand
CLASSES = {
    **{"imagenet": 1000, "imagenet_100": 100, "caltech101": 100, "dtd": 47, "eurosat": 10, "fgvc_aircraft": 100},
    **{"pets": 37, "cars": 196, "sun397": 397, "food101": 101, "flowers102": 102},
}
COOP = {
    "caltech101": (4128, 1649, 2465),
    "dtd": (2820, 1128, 1692),
    "eurosat": (13500, 5400, 8100),
    "flowers102": (4093, 1633, 2463),
}


def touch(path):
    """An empty file; nothing here reads pictures but where a test says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def sizes(data):
    return {split: sum(map(len, classes)) for split, classes in data.files.items()}


def jpeg(value):
    stream = io.BytesIO()
    Image.new("RGB", (8, 8), (value, value, value)).save(stream, "JPEG")
    return stream.getvalue()


# -- class names


def test_every_known_data_set_has_its_file():
    assert {name: len(read_known(name).keys) for name in known_names()} == CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_class_names_are_words(name):
    known = read_known(name)
    assert len({words.lower() for words in known.class_names}) == CLASSES[name]
    assert len(set(known.keys)) == CLASSES[name]
    for words in known.class_names:
        assert words == " ".join(words.split()) and "_" not in words and " / " not in words
        assert not {"lotus lotus", "projectile missile", "dark sunglasses", "AnnualCrop"} & {words}
        parts = words.lower().split()
        assert all(a != b for a, b in itertools.pairwise(parts)) or words == "Chow Chow"


@pytest.mark.parametrize("name", CLASSES)
def test_authors_strings_are_theirs(name):
    if not (SHARED / "classnames.json").exists():
        pytest.skip("the authors' class names are not at hand")
    assert list(read_known(name).authors_names) == json.loads((SHARED / "classnames.json").read_text())[name]


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_is_known_by_each_of_its_names(name):
    known = read_known(name)
    for names in (known.keys, known.authors_names, known.class_names):
        found = [known.label_of(n) for n in names]
        assert found == list(range(len(names)))


@pytest.mark.parametrize("name", CLASSES)
def test_facts_of_every_known_data_set(name):
    facts = read_known(name).facts
    assert facts["licence"] and facts["source"] and facts["archive"]["needs"]
    assert facts["published_test"] == ("train" if name in ("eurosat", "dtd", "flowers102") else "test")
    assert len(facts["hub"]["revision"]) == 40 or (name, facts["hub"]["revision"]) == ("caltech101", "")
    assert {"train", "test"} <= set(facts["hub"]["splits"])
    assert facts.get("example", "") in ("", *read_known(name).class_names)


def test_prompts_with_mended_words():
    def prompts(name):
        known = read_known(name)
        return [class_prompt(words, known.facts["domain"]) for words in known.class_names]

    assert prompts("eurosat")[9] == "a satellite photo of a sea or lake"
    assert prompts("flowers102")[77] == "a flower photo of a lotus"
    assert prompts("sun397")[8] == "a scene photo of a outdoor apartment building"
    assert prompts("fgvc_aircraft")[72] == "a aircraft photo of a F-16A/B"
    assert prompts("caltech101")[18] == "a photo of a car side"


@pytest.mark.parametrize("name", ["imagenet", "imagenet_100"])
def test_every_imagenet_class_has_a_definition(name):
    definitions = read_known(name).facts["definitions"]
    assert tuple(definitions) == read_known(name).class_names and all(len(d) > 8 for d in definitions.values())
    assert not [d for d in definitions.values() if '"' in d or "\n" in d]
    if name == "imagenet":
        prompt = generation_prompt("definition", "great white shark", "", definitions["great white shark"])
        assert prompt.startswith("great white shark, large aggressive shark")


def test_imagenet_100_is_a_part_of_imagenet():
    small, large = read_known("imagenet_100"), read_known("imagenet")
    assert set(small.keys) <= set(large.keys)
    assert list(small.keys) == sorted(small.keys) and list(large.keys) == sorted(large.keys)


# -- original archives


def class_folder_archive(root, name, at, n=10):
    for key in read_known(name).keys:
        for i in range(n):
            touch(root / name / at / key / f"{i:03d}.jpg")


@pytest.mark.parametrize(
    "name, at",
    [
        ("dtd", "images"),
        ("dtd", "dtd/images"),
        ("eurosat", "2750"),
        ("eurosat", "."),
        ("caltech101", "101_ObjectCategories"),
        ("food101", "food-101/images"),
    ],
)
def test_class_folders_are_divided_as_coop_does(tmp_path, name, at):
    class_folder_archive(tmp_path, name, at)
    touch(tmp_path / name / at / "BACKGROUND_Google" / "1.jpg")
    data = load_dataset(name, str(tmp_path))
    n = CLASSES[name]
    assert sizes(data) == {"train": 5 * n, "val": 2 * n, "test": 3 * n} and data.name == name
    assert data.split.startswith("own split: 50 % train, 20 % val, 30 % test")
    assert data.class_names == read_known(name).class_names and data.folders == read_known(name).keys
    every = [path for classes in data.files.values() for paths in classes for path in paths]
    assert len(set(every)) == 10 * n and all(path.is_relative_to(data.root) for path in every)
    assert load_dataset(str(tmp_path / name), "elsewhere").files == data.files  # the same by path


def test_a_missing_class_folder_of_an_archive(tmp_path):
    class_folder_archive(tmp_path, "dtd", "images", n=4)
    (tmp_path / "dtd" / "images" / "woven").rename(tmp_path / "woven")
    with pytest.raises(InputError, match="woven is missing, and 1 class folders in all: dtd has 47"):
        load_dataset("dtd", str(tmp_path))


def test_flowers(tmp_path):
    labels = np.repeat(np.arange(1, 103), 6)[np.random.default_rng(0).permutation(612)]
    for i in range(1, 613):
        touch(tmp_path / "flowers102" / "jpg" / f"image_{i:05d}.jpg")
    savemat(tmp_path / "flowers102" / "imagelabels.mat", {"labels": labels[None]})
    data = load_dataset("flowers102", str(tmp_path))
    assert sizes(data) == {"train": 306, "val": 102, "test": 204}
    for classes in data.files.values():
        for label, paths in enumerate(classes):
            assert {labels[int(path.stem[-5:]) - 1] for path in paths} == {label + 1}
    (tmp_path / "flowers102" / "jpg" / "image_00007.jpg").unlink()
    with pytest.raises(InputError, match=r"imagelabels.mat lists .*image_00007.jpg, which is missing"):
        load_dataset("flowers102", str(tmp_path))
    (tmp_path / "flowers102" / "imagelabels.mat").write_text("no")
    with pytest.raises(InputError, match=r"imagelabels.mat is no Matlab file with 'labels'"):
        load_dataset("flowers102", str(tmp_path))


def pets_archive(root, n=10):
    lists = {"trainval": [], "test": []}
    for number, key in enumerate(read_known("pets").keys, 1):
        for i in range(1, n + 3):
            touch(root / "images" / f"{key}_{i}.jpg")
            lists["trainval" if i <= n else "test"].append(f"{key}_{i} {number} 1 1")
    (root / "annotations").mkdir()
    for name, lines in lists.items():
        (root / "annotations" / f"{name}.txt").write_text("\n".join(["# Image CLASS-ID SPECIES BREED ID", *lines]))


def test_pets_keep_the_official_test(tmp_path):
    pets_archive(tmp_path / "pets")
    data = load_dataset("pets", str(tmp_path))
    assert sizes(data) == {"train": 8 * 37, "val": 2 * 37, "test": 2 * 37}
    assert data.split.startswith("official trainval and test lists; val is 20 %")
    for label, paths in enumerate(data.files["test"]):
        assert {path.name for path in paths} == {f"{data.folders[label]}_{i}.jpg" for i in (11, 12)}
    with open(tmp_path / "pets" / "annotations" / "test.txt", "a", encoding="utf-8") as stream:
        stream.write("\nunicorn_1 38 1 1\n")
    with pytest.raises(InputError, match=r"test.txt, line 76: 'unicorn' is not a class of pets"):
        load_dataset("pets", str(tmp_path))
    (tmp_path / "pets" / "annotations" / "test.txt").unlink()
    with pytest.raises(InputError, match=r"test.txt cannot be read .*: pets needs it"):
        load_dataset("pets", str(tmp_path))


def test_aircraft_has_official_lists(tmp_path):
    root, number = tmp_path / "fgvc_aircraft" / "fgvc-aircraft-2013b" / "data", 0
    lists = {"train": [], "val": [], "test": []}
    for key in read_known("fgvc_aircraft").keys:
        for split in lists:
            number += 1
            touch(root / "images" / f"{number:07d}.jpg")
            lists[split].append(f"{number:07d} {key}")
    for split, lines in lists.items():
        (root / f"images_variant_{split}.txt").write_text("\n".join(lines) + "\n")
    data = load_dataset("fgvc_aircraft", str(tmp_path))
    assert sizes(data) == {"train": 100, "val": 100, "test": 100}
    assert data.split == "official train, val and test lists"
    assert f"{data.files['test'][72][0].stem} F-16A/B" in lists["test"]
    (root / "images" / "0000002.jpg").unlink()
    with pytest.raises(InputError, match=r"images_variant_val.txt, line 1: .*0000002.jpg is missing"):
        load_dataset("fgvc_aircraft", str(tmp_path))


def test_sun397_reads_its_first_partition(tmp_path):
    root, lists = tmp_path / "sun397", {"Training_01": [], "Testing_01": []}
    for key in read_known("sun397").keys:
        for i, name in enumerate(["Training_01"] * 5 + ["Testing_01"] * 2 + [None]):
            touch(root / "SUN397" / key / f"sun_{i}.jpg")
            if name:
                lists[name].append(f"/{key}/sun_{i}.jpg")
    for name, lines in lists.items():
        (root / f"{name}.txt").write_text("\n".join(lines))
    data = load_dataset("sun397", str(tmp_path))
    assert sizes(data) == {"train": 4 * 397, "val": 397, "test": 2 * 397}
    assert all(path.parent == root / "SUN397/a/apartment_building/outdoor" for path in data.files["test"][8])
    assert few_shot(data, 4, 0)[8][0].is_relative_to(data.root)


@pytest.mark.parametrize("inside", ["devkit", "."])
def test_cars(tmp_path, inside):
    root = tmp_path / "cars"
    kind = np.dtype([("class", object), ("fname", object)])
    for split, count, place in (
        ("train", 5, "devkit/cars_train_annos"),
        ("test", 2, f"{inside}/cars_test_annos_withlabels"),
    ):
        rows = [(label, f"{label * 10 + i:05d}.jpg") for i in range(count) for label in range(1, 197)]
        for _, name in rows:
            touch(root / f"cars_{split}" / name)
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        savemat(root / f"{place}.mat", {"annotations": np.array(rows, dtype=kind)[None]})
    data = load_dataset("cars", str(tmp_path))
    assert sizes(data) == {"train": 4 * 196, "val": 196, "test": 2 * 196}
    assert [path.name for path in data.files["test"][0]] == ["00010.jpg", "00011.jpg"]
    assert data.class_names[0] == "AM General Hummer SUV 2000"
    for prefix in ("cars_", ""):  # CoOp's list, and the CSV copy of it
        rows = [f"{s},{prefix}{s}/{label * 10:05d}.jpg" for s in ("train", "test") for label in range(1, 197)]
        (tmp_path / "split.csv").write_text("\n".join(["split,filename", *rows, f"val,{prefix}train/00011.jpg"]))
        listed = load_dataset("cars", str(tmp_path), str(tmp_path / "split.csv"))
        assert sizes(listed) == {"train": 196, "val": 1, "test": 196}
        assert listed.files["test"][4] == [root / "cars_test" / "00050.jpg"]
        assert listed.files["val"][0] == [root / "cars_train" / "00011.jpg"]


@pytest.mark.parametrize("name, at", [("imagenet_100", "."), ("imagenet", "images")])
def test_imagenet_is_tested_on_its_val(tmp_path, name, at):
    for key in (*read_known(name).keys, "n00000000"):  # another class is left alone
        touch(tmp_path / name / at / "train" / key / "a.JPEG")
        touch(tmp_path / name / at / "val" / key / "b.JPEG")
    data = load_dataset(name, str(tmp_path))
    assert sizes(data) == {"train": CLASSES[name], "test": CLASSES[name]}
    assert {path.name for paths in data.files["test"] for path in paths} == {"b.JPEG"}
    assert data.split == "official train; the official val is the test split"


def test_a_known_name_with_another_layout_says_what_to_do(tmp_path):
    touch(tmp_path / "dtd" / "pictures" / "1.jpg")
    with pytest.raises(InputError, match=r"pictures is no class of dtd: put images/banded/\*.jpg there, from https://"):
        load_dataset("dtd", str(tmp_path))


def test_a_known_name_as_folders_of_splits(tmp_path):
    for split in ("train", "test"):
        for words in read_known("eurosat").class_names[::-1]:
            touch(tmp_path / "eurosat" / split / words.replace(" ", "_") / "1.jpg")
    data = load_dataset("eurosat", str(tmp_path))
    assert data.folders[9] == "sea_or_lake" and data.class_names == read_known("eurosat").class_names
    assert data.authors_names[9] == "SeaLake" and data.domain == "satellite" and data.published_test == "train"
    (tmp_path / "eurosat" / "dataset.yaml").write_text("{domain: aerial, example: forrest}")
    with pytest.raises(InputError, match=r"example 'forrest' is no class. Did you mean 'forest'\?"):
        load_dataset("eurosat", str(tmp_path))


def test_a_path_that_is_not_there_is_not_fetched(tmp_path):
    with pytest.raises(InputError, match=r"there is no 'dtd' in \S+\.$"):
        load_dataset(str(tmp_path / "dtd"), str(tmp_path))


# -- splits


def test_own_split_and_hold_out_are_fixed():
    files = [[Path(f"{i:02d}.png") for i in range(n)] for n in (4, 9, 20)]
    divided = own_split("abc", files)
    assert [[len(c) for c in divided[s]] for s in ("train", "val", "test")] == [[2, 4, 10], [1, 2, 4], [1, 3, 6]]
    assert divided == own_split("abc", files)
    assert [p.stem for p in divided["val"][2]] == [p.stem for p in own_split("c", files[2:])["val"][0]]
    train, val = hold_out("abc", files)
    assert [(len(a), len(b)) for a, b in zip(train, val, strict=True)] == [(3, 1), (7, 2), (16, 4)]
    assert all(sorted(a + b) == c for a, b, c in zip(train, val, files, strict=True))
    with pytest.raises(InputError, match="class 'x' has 3 images, and dividing it into train, val and test takes at"):
        own_split("x", [files[0][:3]])
    with pytest.raises(InputError, match="train class 'x' has 2 images, too few for a val split"):
        hold_out("x", [files[0][:2]])


def coop_tree(name, root):
    """An archive of empty files with the names in the public CSV."""
    rows = list(csv.DictReader((SHARED / "coop_splits" / f"{name}.csv").open()))
    base = root / name / {"caltech101": "101_ObjectCategories", "dtd": "images", "eurosat": "2750"}.get(name, "jpg")
    for folder in {(base / row["filename"]).parent for row in rows}:
        folder.mkdir(parents=True)
    for row in rows:
        (base / row["filename"]).touch()
    if name == "flowers102":
        known = read_known(name)
        labels = {int(row["filename"][6:11]): known.label_of(row["class"]) + 1 for row in rows}
        savemat(root / name / "imagelabels.mat", {"labels": [[labels[i] for i in range(1, len(rows) + 1)]]})
    return rows


@pytest.mark.parametrize("name", COOP)
def test_coop_split_files(tmp_path, name):
    path = SHARED / "coop_splits" / f"{name}.csv"
    if not path.exists():
        pytest.skip("the public split files are not at hand")
    rows = coop_tree(name, tmp_path)
    data = load_dataset(name, str(tmp_path), str(path))
    assert tuple(sizes(data).values()) == COOP[name]
    assert sizes(data) == Counter(row["split"] for row in rows)
    assert data.split.startswith(f"split file {path} (sha256 ")
    expected = {row["filename"] for row in rows if row["split"] == "test"}
    base = {"caltech101": "101_ObjectCategories", "dtd": "images", "eurosat": "2750"}.get(name, "jpg")
    found = {p.relative_to(data.root / base).as_posix() for paths in data.files["test"] for p in paths}
    assert found == expected
    assert few_shot(data, 16, 0) != few_shot(load_dataset(name, str(tmp_path)), 16, 0)


@pytest.fixture
def small(tmp_path):
    """Class folders directly, five pictures each."""
    for name in ("cat", "dog"):
        for i in range(5):
            touch(tmp_path / "small" / name / f"{i}.jpg")
    return tmp_path


DIVISION = ["train", "train", "val", "test", "test"]
CSV = [f"{split},{name}/{i}.jpg" for name in ("cat", "dog") for i, split in enumerate(DIVISION)]


def test_split_file_as_csv_json_and_url(small, monkeypatch):
    (small / "s.csv").write_text("\n".join(["split,filename", *CSV]))
    by_csv = load_dataset("small", str(small), str(small / "s.csv"))
    assert sizes(by_csv) == {"train": 4, "val": 2, "test": 4} and by_csv.files["val"][1][0].name == "2.jpg"
    entries = {split: [] for split in ("train", "val", "test")}
    for line in CSV:
        split, file = line.split(",")
        entries[split].append([file, int("dog" in file), file[:3]])
    (small / "s.json").write_text(json.dumps(entries))
    assert load_dataset("small", str(small), str(small / "s.json")).files == by_csv.files

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(small))

        def log_message(self, *args):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    try:
        by_url = load_dataset("small", str(small), f"{url}/s.csv")
        with pytest.raises(InputError, match=r"gone.csv cannot be fetched \(.*404.*\): download it and give"):
            load_dataset("small", str(small), f"{url}/gone.csv")
    finally:
        server.shutdown()
        server.server_close()
    assert by_url.files == by_csv.files and by_url.split.startswith(f"split file {url}/s.csv (sha256 ")
    assert load_dataset("small", str(small), f"{url}/s.csv").files == by_csv.files  # now from the copy


@pytest.mark.parametrize(
    "lines, message",
    [
        (["split,filename", *CSV, "train,cat/9.jpg"], r"names 1 images that are not in .* \(line 12: 'cat/9.jpg'\)"),
        (["split,filename", *CSV, "test,../small/cat/0.jpg"], "names 1 images that are not in"),
        (["split,filename", *CSV, "test,cat/0.jpg"], r"'cat/0.jpg' stands there twice \(line 2 and line 12\)"),
        (["split,filename", "dev,cat/0.jpg"], "line 2: split 'dev' must be one of train, val, test"),
        (["split,filename", *CSV[:5]], "has no train image of class 'dog'"),
        (["where,what", *CSV], r"must have the columns split,filename\[,class\]"),
        (
            ["split,filename,class", "train,cat/0.jpg,cat", "train,dog/0.jpg,cat"],
            "'dog/0.jpg' is of 'dog', but 'cat' was",
        ),
        (["{"], "cannot be read as a CSV or JSON split file"),
        (["[]"], "must hold {'train'"),
        (['{"train": [["cat/0.jpg", 0]]}'], "train entry 0: .* must be"),
    ],
)
def test_bad_split_files(small, lines, message):
    (small / "s.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match=message):
        load_dataset("small", str(small), str(small / "s.txt"))


def test_split_file_that_is_not_there(small):
    with pytest.raises(InputError, match=r"split file .*none.csv cannot be read \(No such file or directory\)"):
        load_dataset("small", str(small), str(small / "none.csv"))


# -- the hub's form


def hub_rows(names, per_class, start=0, paths=True):
    """Rows as the hub keeps them: image bytes with or without a file name, and a class label."""
    features = hub_library.Features({"image": hub_library.Image(), "label": hub_library.ClassLabel(names=list(names))})
    labels = [label for _ in range(per_class) for label in range(len(names))]
    images = [
        {"bytes": jpeg((start + i) % 256), "path": f"{names[k].replace('/', '-')}_{start + i}.jpg" if paths else None}
        for i, k in enumerate(labels)
    ]
    return hub_library.Dataset.from_dict({"image": images, "label": labels}, features=features)


def write_parquet(folder, splits):
    folder.mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def test_parquet_files_of_a_known_data_set(tmp_path):
    names = read_known("eurosat").authors_names[::-1]  # the hub's order need not be the paper's
    splits = {"train": hub_rows(names, 5), "test": hub_rows(names, 2, start=50)}
    write_parquet(
        tmp_path / "eurosat" / "data", {"train": splits["train"], "validation": splits["test"], "test": splits["test"]}
    )
    data = load_dataset("eurosat", str(tmp_path))
    assert sizes(data) == {"train": 50, "val": 20, "test": 20} and data.name == "eurosat"
    assert data.class_names == read_known("eurosat").class_names and data.licence == "MIT"
    assert data.split == "parquet files in eurosat; train is its train; val is its validation; test is its test"
    row = splits["train"].cast_column("image", hub_library.Image(decode=False))[0]
    assert row["image"]["path"] == "SeaLake_0.jpg" and row["label"] == 0
    (sea,) = [path for path in data.files["train"][9] if path.name == "SeaLake_0.jpg"]
    assert sea.read_bytes() == row["image"]["bytes"] and sea.is_relative_to(data.root)
    before = {path: path.stat().st_mtime_ns for paths in data.files["train"] for path in paths}
    assert load_dataset("eurosat", str(tmp_path)).files == data.files
    assert before == {path: path.stat().st_mtime_ns for path in before}  # exported once


def test_parquet_files_of_ones_own(tmp_path):
    write_parquet(
        tmp_path / "mine",
        {"train": hub_rows(["red_ant", "bee"], 10, paths=False), "test": hub_rows(["red_ant", "bee"], 3)},
    )
    data = load_dataset("mine", str(tmp_path))
    assert data.class_names == ("red ant", "bee") and data.authors_names == ()
    assert sizes(data) == {"train": 16, "val": 4, "test": 6}
    assert data.split.endswith("val is 20 % of each class's train by a fixed permutation (no split file given)")
    assert data.files["train"][0][0].name.startswith("row_00000") and read_image(data.files["train"][0][0]).size == (
        8,
        8,
    )


def test_train_and_validation_only_is_tested_on_validation(tmp_path):
    write_parquet(tmp_path / "mine", {"train": hub_rows("ab", 5), "validation": hub_rows("ab", 2)})
    data = load_dataset("mine", str(tmp_path))
    assert sizes(data) == {"train": 8, "val": 2, "test": 4} and "test is its validation" in data.split


@pytest.mark.parametrize(
    "content, message",
    [(b"", "train, row 4 holds no image bytes"), (b"hello", r"train, row 4 cannot be read as a picture")],
)
def test_a_failed_export_leaves_nothing(tmp_path, content, message):
    rows = hub_rows("ab", 3).cast_column("image", hub_library.Image(decode=False)).to_dict()
    rows["image"][4] = {"bytes": content, "path": None}
    broken = hub_library.Dataset.from_dict(rows, features=hub_rows("ab", 1).features)
    write_parquet(tmp_path / "mine" / "data", {"train": broken, "test": hub_rows("ab", 2)})
    with pytest.raises(InputError, match=message):
        load_dataset("mine", str(tmp_path))
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["data"]


@pytest.mark.parametrize(
    "rows, message",
    [
        (lambda: hub_rows(["AnnualCrop", "Moon"], 3), "class 'Moon' is none of eurosat's"),
        (lambda: hub_rows(["AnnualCrop", "Forest"], 3), "has 2 classes where eurosat has 10"),
        (lambda: hub_rows(["a"], 3).cast_column("label", hub_library.Value("int64")), "names no classes"),
        (lambda: hub_rows(["a"], 3).rename_column("label", "y"), "has no column 'label': its columns are image, y"),
    ],
)
def test_parquet_files_of_something_else(tmp_path, rows, message):
    write_parquet(tmp_path / "eurosat", {"train": rows(), "validation": rows(), "test": rows()})
    with pytest.raises(InputError, match=message):
        load_dataset("eurosat", str(tmp_path))


@pytest.mark.parametrize("name", ["caltech101", "flowers102", "imagenet_100", "fgvc_aircraft", "imagenet"])
def test_hub_sets_under_their_own_names_and_columns(tmp_path, monkeypatch, name):
    """The label names as the hub's cards have them; the revision that the file pins; one export."""
    known, facts, asked = read_known(name), read_known(name).facts, []
    names = {
        "caltech101": lambda: sorted([*(key.lower() for key in known.keys), "background_google", "faces_easy"]),
        "flowers102": lambda: sorted(known.keys),  # "1", "10", "100", ...
        "imagenet_100": lambda: [f"{n}, another word" for n in known.authors_names[::-1]],
        "fgvc_aircraft": lambda: list(known.keys),
        "imagenet": lambda: [f"word {i}, other {i}" for i in range(1000)],
    }[name]()
    rows = hub_rows(names, 3)
    if name == "fgvc_aircraft":
        rows = rows.rename_column("label", "variant")

    def load(hub_id, revision=None, streaming=False):
        asked.append((hub_id, revision, streaming))
        return {theirs: rows for theirs in facts["hub"]["splits"].values()}

    monkeypatch.setattr(hub_library, "load_dataset", load)
    data = load_dataset(name, str(tmp_path))
    assert load_dataset(name, str(tmp_path)).files == data.files
    assert asked == [(facts["hub"]["id"], facts["hub"]["revision"] or None, True)]
    assert sorted(p.name for p in (tmp_path / name).iterdir())[0] == "dataset.yaml" and data.root == tmp_path / name
    assert ("val" in data.files) == (not name.startswith("imagenet"))
    for label, paths in enumerate(data.files["test"]):
        assert len(paths) == 3
        theirs = names[label] if name == "imagenet" else paths[0].name.rpartition("_")[0]
        assert name == "imagenet" or known.label_of(theirs) == label
    assert facts["hub"]["id"] in data.source and data.authors_names == known.authors_names


def test_neither_archive_nor_hub_is_one_sentence_with_the_way_out(tmp_path, monkeypatch):
    def refuse(*args, **options):
        raise ConnectionError("Couldn't reach the hub")

    monkeypatch.setattr(hub_library, "load_dataset", refuse)
    for name in known_names():
        with pytest.raises(InputError) as caught:
            load_dataset(name, str(tmp_path))
        text, facts = str(caught.value), read_known(name).facts
        assert str(tmp_path / name) in text and facts["hub"]["id"] in text and facts["archive"]["needs"] in text
        assert facts["licence"] in text and facts.get("note", "") in text and "Couldn't reach the hub" in text
    assert not list(tmp_path.iterdir())


def test_a_split_file_that_a_hub_copy_cannot_serve(tmp_path):
    names = read_known("eurosat").authors_names
    write_parquet(tmp_path / "eurosat", {s: hub_rows(names, 3, paths=False) for s in ("train", "validation", "test")})
    (tmp_path / "s.csv").write_text("split,filename\ntrain,AnnualCrop/AnnualCrop_1.jpg\n")
    with pytest.raises(InputError, match="copies from the hub may not keep the original file names"):
        load_dataset("eurosat", str(tmp_path), str(tmp_path / "s.csv"))


def test_a_split_file_fits_a_hub_copy_that_kept_the_names(tmp_path):
    names = read_known("eurosat").authors_names
    write_parquet(
        tmp_path / "eurosat",
        {"train": hub_rows(names, 2), "validation": hub_rows(names, 1, 20), "test": hub_rows(names, 1, 30)},
    )
    lines = [
        f"{s},{n}/{n}_{at + i}.jpg"
        for s, at in (("test", 0), ("train", 10), ("val", 20), ("train", 30))
        for i, n in enumerate(names)
    ]
    (tmp_path / "s.csv").write_text("\n".join(["split,filename", *lines]))
    data = load_dataset("eurosat", str(tmp_path), str(tmp_path / "s.csv"))
    assert [path.name for path in data.files["test"][3]] == [f"{names[3]}_3.jpg"]
    assert sizes(data) == {"train": 20, "val": 10, "test": 10}


def test_files_are_plain_yaml():
    for path in FOLDER.glob("*.yaml"):
        assert isinstance(yaml.safe_load(path.read_text()), dict), path


def test_own_photos_in_a_folder_called_as_a_known_set_are_not_taken_for_it(tmp_path):
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(3):
                Image.new("RGB", (8, 8)).save(tmp_path / "pets" / split / name / f"{i}.png")
    (tmp_path / "pets" / "dataset.yaml").write_text("classes: {cat: cat, dog: dog}")
    with pytest.raises(InputError, match="called as the known data set pets, but has 2 classes, not 37: give the fold"):
        load_dataset(str(tmp_path / "pets"))
