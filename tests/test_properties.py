"""What must hold for any input at all, tried on generated ones. ``benchmarks/fuzz.py`` tries many more.

By default a few examples, the same every time; FUZZ_FACTOR=50 tries fifty times as many, others every time.
"""

import html
import io
import json
import os
import re
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from PIL import Image
from scipy.io import savemat

from datadream_utils.analysis.compare import paired_difference
from datadream_utils.analysis.tables import to_latex, to_markdown
from datadream_utils.classifier.evaluate import wilson_interval
from datadream_utils.data.dataset import Dataset, load_dataset
from datadream_utils.data.folders import safe_dir
from datadream_utils.data.images import SUFFIXES, centre_square, read_image
from datadream_utils.data.known import read_known
from datadream_utils.data.shots import few_shot, read_shots, write_shots
from datadream_utils.data.splits import SplitFile, apply_split, read_split_file
from datadream_utils.errors import InputError
from datadream_utils.files import check_plain, join_inside
from datadream_utils.methods import METHODS, for_method
from datadream_utils.params import STAGES, notebook_defaults, read_params_file
from datadream_utils.seeds import stable_seed

FACTOR = int(os.environ.get("FUZZ_FACTOR", "0"))


def tried(examples):
    """How many examples a property is tried on: ``examples`` fixed ones, or FUZZ_FACTOR times as many random ones."""
    return settings(
        max_examples=examples * max(1, FACTOR),
        derandomize=not FACTOR,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def printable(text):
    try:
        return bool(check_plain(text, "it"))
    except InputError:
        return False


NAMES = st.one_of(
    st.text(min_size=1, max_size=40),
    st.text("aZ0_ .-/\\|&$<>{}#%^~*`[]\"'\n\x1béｅ\u0301ﬁ東\u202e", min_size=1, max_size=12),
    st.sampled_from(
        ["..", "CON", "nul.png", "../../etc", "$x$", "a_$b", "<script>", "[x](javascript:1)", "-", "__a__"]
    ),
).filter(str.strip)
PLAIN = NAMES.filter(printable)
FOLDERS = PLAIN.filter(lambda name: "/" not in name and name[0] != ".")
FILES = st.builds("{}{}".format, FOLDERS, st.sampled_from(SUFFIXES))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(list(METHODS)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["default", *METHODS]) | st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("any")


def refused(function, *arguments):
    """The result, or None when it is refused as it should be: with InputError and a sentence to print."""
    try:
        return function(*arguments)
    except InputError as error:
        assert len(str(error)) > 10
        return None


# -- names


@tried(33)
@given(st.lists(NAMES, min_size=1, max_size=5))
def test_a_class_folder_is_one_safe_part_of_a_path(names):
    folders = [safe_dir(label, name) for label, name in enumerate(names)]
    assert len({name.lower() for name in folders}) == len(names)
    for name in folders:
        assert re.fullmatch(r"\d{4}_[A-Za-z0-9_]{0,60}", name)
        assert (
            PurePosixPath(name).name == name == PureWindowsPath(name).name and not PureWindowsPath(name).is_reserved()
        )


@tried(33)
@given(NAMES, NAMES)
def test_a_runs_folder_is_one_part_of_a_path(dataset, variant):
    values = notebook_defaults("adapt") | {"dataset": dataset, "variant": variant}
    p = refused(lambda: STAGES["adapt"].make(**values)) or refused(
        lambda: STAGES["adapt"].make(**values | {"variant": ""})
    )
    if p:
        assert re.fullmatch(r"[A-Za-z0-9_.=-]{1,200}", p.run_name) and p.run_name.strip(".")


@tried(33)
@given(
    st.lists(st.text(max_size=8) | st.integers() | st.booleans(), max_size=4),
    st.lists(st.text(max_size=8) | st.integers() | st.booleans(), max_size=4),
)
def test_seeds_of_different_parts_differ(one, other):
    typed = [[(type(part), part) for part in parts] for parts in (one, other)]
    assert (stable_seed(*one) == stable_seed(*other)) == (typed[0] == typed[1])
    assert 0 <= stable_seed(*one) < 2**63


@tried(33)
@given(NAMES | st.none() | st.integers())
def test_a_listed_file_is_below_its_folder(name):
    found = refused(join_inside, Path("/run/images"), name, "metadata.jsonl")
    if found:
        assert Path(os.path.normpath(found)).is_relative_to("/run/images") and found != Path("/run/images")


# -- parameters


@pytest.mark.parametrize("stage", STAGES)
@tried(10)
@given(data=st.data())
def test_parameters_are_made_or_refused(stage, data):
    names = st.sampled_from(list(STAGES[stage].model_fields)) | st.text(min_size=1, max_size=8)
    changes = data.draw(st.dictionaries(names, JSON, max_size=4))
    p = refused(lambda: STAGES[stage].make(**(DEFAULTS[stage] | changes)))
    if p:
        for name, value in changes.items():
            assert not isinstance(value, float) or np.isfinite(value)
            assert getattr(p, name) == for_method(name, value, (DEFAULTS[stage] | changes).get("method"))


DEFAULTS = {stage: notebook_defaults(stage) for stage in STAGES}


@tried(16)
@given(
    st.dictionaries(st.sampled_from(["default", *METHODS, "lofts"]), st.integers(), max_size=4),
    st.sampled_from(list(METHODS)),
)
def test_a_value_for_each_method(values, method):
    found = refused(for_method, "x", values, method)
    if "lofts" in values or not values.keys() & {method, "default"}:
        assert found is None
    else:
        assert found == (values[method] if method in values else values["default"])


@tried(10)
@given(
    st.binary(max_size=60)
    | st.builds(
        lambda v: yaml.safe_dump(v).encode(), st.dictionaries(st.text(max_size=9) | st.just("seed"), JSON, max_size=3)
    )
)
@example(b"!!python/object/apply:os.system [echo]")
@example(b"? {}\n: [")
@example(b"[" * 1000)
@example(b"2001-13-45")
@example(b"!!binary x")
@example(b"!!timestamp x")
def test_a_parameter_file_is_read_or_refused(folder, content):
    (folder / "any.yaml").write_bytes(content)
    values = refused(read_params_file, folder / "any.yaml")
    assert values is None or set(values) <= {name for stage in STAGES.values() for name in stage.model_fields}


# -- data sets and lists


def make_data(names, files, split_folders):
    """A data set that is only listed: ``files`` in train and one more in test, for each of the class folders."""
    root = Path("/data/any")
    at = {split: root / split if split_folders else root for split in ("train", "test")}
    listed = {"train": [[at["train"] / n / f for f in sorted(files)] for n in names]}
    listed["test"] = [[at["test"] / n / "the test picture.png"] for n in names]
    return Dataset("any", root, tuple(names), tuple(names), listed)


@tried(16)
@given(
    st.lists(FOLDERS | st.sampled_from(["train", "test", " a"]), min_size=1, max_size=3, unique=True),
    st.lists(FILES, min_size=1, max_size=4, unique=True),
    st.booleans(),
    st.integers(0, 9),
)
def test_few_shot_lists_come_back(folder, names, files, split_folders, seed):
    data = make_data(names, files, split_folders)
    shots = few_shot(data, len(files), seed)
    write_shots(data, shots, folder / "shots.txt")
    assert read_shots(folder / "shots.txt", data, len(files)) == shots


@tried(16)
@given(st.binary(max_size=200) | st.lists(FILES, max_size=4).map(lambda lines: "\n".join(lines).encode()))
def test_any_shots_file_is_read_or_refused(folder, content):
    (folder / "any.txt").write_bytes(content)
    data = make_data(["a", "b"], ["0.png"], True)
    shots = refused(read_shots, folder / "any.txt", data, 1)
    assert shots is None or shots == data.files["train"]


LISTED = st.sampled_from(
    ["a/0.png", "b/0.png", "train/a/0.png", "b/the test picture.png", "../a/0.png", "/data/any/train/a/0.png"]
)


@tried(25)
@given(
    st.lists(
        st.tuples(st.sampled_from(["train", "val", "test"]), LISTED | FILES, st.sampled_from(["", "a"]) | NAMES),
        max_size=6,
    )
)
def test_any_split_is_applied_or_refused(rows):
    data = make_data(["a", "b"], ["0.png", "1.png"], True)
    split = SplitFile(tuple((f"line {i}", *row) for i, row in enumerate(rows)), "any.csv", "0")
    divided = refused(apply_split, split, data.root, data.folders, data.files)
    if divided:
        known = {path for classes in data.files.values() for paths in classes for path in paths}
        given_back = [path for classes in divided.values() for paths in classes for path in paths]
        assert set(given_back) <= known and len(given_back) == len(set(given_back)) == len(rows)


@tried(16)
@given(
    st.binary(max_size=100)
    | st.text(max_size=60).map(lambda text: f"split,filename,class\n{text}".encode())
    | JSON.map(lambda value: json.dumps({"train": value}).encode())
)
@example(b"[" * 100_000)
@example(b'{"train": [["a", ' + b"9" * 5000 + b', "b"]]}')
def test_any_split_file_is_read_or_refused(folder, content):
    (folder / "split").write_bytes(content)
    split = refused(read_split_file, str(folder / "split"), str(folder))
    assert split is None or {row[1] for row in split.rows} <= {"train", "val", "test"}


@pytest.fixture(scope="module")
def small_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("small") / "set"
    for split in ("train", "test"):
        for name in ("a", "1"):
            (root / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(root / split / name / "0.png")
    return root


YAML_VALUES = st.dictionaries(
    st.sampled_from(["classes", "domain", "definition", "definitions", "example", "licence", "x"]),
    JSON | st.fixed_dictionaries({"a": JSON | NAMES, "1": NAMES}) | st.fixed_dictionaries({"a": NAMES, 1: JSON}),
    max_size=3,
)


@tried(13)
@given(st.binary(max_size=60) | YAML_VALUES.map(lambda values: yaml.safe_dump(values, allow_unicode=True).encode()))
def test_any_dataset_yaml_is_read_or_refused(small_set, content):
    (small_set / "dataset.yaml").write_bytes(content)
    data = refused(load_dataset, str(small_set))
    if data:
        sentences = [data.domain, data.licence, *data.class_names, *data.definitions, *data.definitions.values()]
        assert all(not text or check_plain(text, "it", 1000) for text in sentences) and len(set(data.class_names)) == 2


@tried(16)
@given(NAMES | st.text(max_size=300) | st.just("x" * 5000), NAMES | st.just("y" * 5000))
@example("a\0b", "c\0d")
@example(" ", "data")
def test_any_data_set_name_is_found_or_refused(folder, dataset, data_root):
    if dataset != "mnist5k":
        assert refused(load_dataset, dataset, str(folder / data_root.strip("/."))) is None


@tried(10)
@given(data=st.data())
def test_any_label_file_is_read_or_refused(folder, data):
    stream = io.BytesIO()
    savemat(stream, {"labels": np.arange(1, 103)}, do_compression=data.draw(st.booleans()))
    (folder / "flowers102" / "jpg").mkdir(parents=True, exist_ok=True)
    (folder / "flowers102" / "imagelabels.mat").write_bytes(mutated(stream.getvalue(), data))
    assert read_known("flowers102") and refused(load_dataset, "flowers102", str(folder)) is None


# -- pictures


def pictures():
    """Small valid files of every format, ``[(suffix, bytes), ...]``."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    made = []
    for kind, modes in {
        **{"PNG": "1 L LA P RGB RGBA I;16", "JPEG": "L RGB CMYK", "WEBP": "RGB RGBA", "BMP": "1 L RGB"},
        **{"GIF": "L P", "TIFF": "1 L RGB RGBA CMYK I;16 F", "PPM": "1 L RGB", "AVIF": "RGB RGBA"},
    }.items():
        for mode in modes.split():
            image = (
                Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
                if mode == "I;16"
                else rgba.convert("RGB").convert(mode)
            )
            exif, stream = image.getexif(), io.BytesIO()
            exif[274] = 6
            options = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP", "AVIF") else {}
            more = {"save_all": True, "append_images": [image]} if kind in ("GIF", "TIFF", "WEBP") else {}
            image.save(stream, kind, **options, **more)
            made.append((f".{kind.lower()}", stream.getvalue()))
    stream = io.BytesIO()
    rgba.save(stream, "TIFF", compression="tiff_lzw")
    return [*made, (".tiff", stream.getvalue())]


PICTURES = pictures()


def mutated(content, data):
    """The bytes with some of them changed, cut off, taken out, doubled or put in."""
    content = bytearray(content)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, max(0, len(content) - 1)) | st.integers(0, min(80, max(0, len(content) - 1))))
        how = data.draw(st.sampled_from(["set", "set", "set", "word", "cut", "out", "in", "double"]))
        if how == "set":
            content[at : at + 1] = data.draw(st.binary(min_size=1, max_size=1))
        elif how == "word":
            content[at : at + 4] = data.draw(
                st.sampled_from([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff"])
            )
        elif how == "cut":
            del content[at:]
        elif how == "out":
            del content[at : at + data.draw(st.integers(1, 8))]
        elif how == "in":
            content[at:at] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content[at:at] = content[at : at + 20]
    return bytes(content)


@tried(66)
@given(data=st.data())
def test_a_damaged_picture_is_read_or_refused(folder, data):
    suffix, content = data.draw(st.sampled_from(PICTURES))
    path = folder / f"any{data.draw(st.just(suffix) | st.sampled_from(SUFFIXES))}"
    path.write_bytes(mutated(content, data))
    image = refused(read_image, path)
    if image:
        assert image.mode == "RGB" and min(image.size) > 0
        assert centre_square(image, 8).size == (8, 8)


# -- tables and intervals


def table_of(name):
    columns = ["dataset", "method", "setting", "n_shot", "n_seeds", "accuracy_mean", "accuracy_std", "n_test"]
    rows = [
        [name, "real", "R", 16, 3, 50.0, 1.0, 9],
        [name, "fakeit", "S", 16, 1, 40.0, np.nan, 9],
        ["second", "fakeit", "S", 16, 1, 40.0, np.nan, 9],
    ]
    return pd.DataFrame(rows, columns=columns)


def shown(text):
    """What a browser shows of inline HTML."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).split())


@tried(25)
@given(PLAIN.filter(lambda name: name != "second"))
def test_markdown_shows_any_name_in_its_cell(name):
    text = to_markdown("main_results", table_of(name))
    page = MarkdownIt("commonmark").enable("table").enable("strikethrough").render(text)
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", page, re.S)]
    assert len(rows) == 3 and {len(row) for row in rows} == {5}
    assert sorted(map(shown, rows[0][3:])) == sorted([" ".join(name.split()), "second"])
    assert set(re.findall(r"<(\w+)", page)) <= {"p", "table", "thead", "tbody", "tr", "th", "td", "strong", "span"}


def printed(tex):
    """What LaTeX prints of a cell: its escapes undone; anything else that LaTeX obeys fails."""
    undone = re.sub(r"\\textbackslash\{\}|\\\^\{\}|\\~\{\}|\\[_%&#${}]", "", tex)
    assert not set(undone) & set("\\_%&#${}^~"), tex
    tex = tex.replace(r"\textbackslash{}", "\0").replace(r"\^{}", "^").replace(r"\~{}", "~")
    return re.sub(r"\\([_%&#${}])", r"\1", tex).replace("\0", "\\")


@tried(25)
@given(PLAIN.filter(lambda name: name != "second"))
def test_latex_prints_any_name_in_its_cell(name):
    lines = to_latex("main_results", table_of(name)).splitlines()
    rows = [re.split(r"(?<!\\)&", line.removesuffix(r" \\")) for line in lines if line.endswith(r" \\")]
    assert len(rows) == 3 and {len(row) for row in rows} == {5}
    cells = [printed(cell.strip()) for cell in rows[0][3:]]
    assert sorted(cells) == sorted([" ".join(name.split()), "second"])


@tried(16)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_an_interval_holds_its_share(counts):
    low, high = wilson_interval(*counts)
    assert 0 <= low <= counts[0] / counts[1] <= high <= 1


@tried(8)
@given(st.integers(1, 60), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_a_paired_interval_holds_the_difference(n, n_seeds, seed):
    random = np.random.default_rng(seed)
    a, b = (pd.DataFrame(random.random((n, n_seeds)) < random.random()) for _ in range(2))
    found = paired_difference(a, b)
    assert found["low"] - 1e-9 <= found["difference"] <= found["high"] + 1e-9
    assert found["difference"] == pytest.approx(100 * (a.to_numpy().mean() - b.to_numpy().mean()))
    assert paired_difference(b, a)["difference"] == pytest.approx(-found["difference"])
