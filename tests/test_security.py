"""Hostile input: refused with a sentence, or rendered harmless. And what the project writes: no pickle, known files."""

import io
import json
import os
import struct
import zlib

import numpy as np
import pytest
from conftest import finish_stage
from matplotlib.figure import Figure
from PIL import Image

from datadream_utils.analysis.results import compute_main_results, example_pictures, load_results, load_stages
from datadream_utils.analysis.tables import write_table
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import evaluate, save_results
from datadream_utils.classifier.pictures import training_sets
from datadream_utils.classifier.train import fit
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.images import read_image
from datadream_utils.data.shots import few_shot
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import generate, make_recipe, read_generated
from datadream_utils.errors import InputError
from datadream_utils.files import read_yaml
from datadream_utils.params import ROOT, STAGES, read_params_file
from datadream_utils.plots.gallery import save_figure
from datadream_utils.plots.pictures import show_grid
from datadream_utils.plots.results import accuracy_bars, teaser
from datadream_utils.plots.style import literal
from datadream_utils.plots.training import confusion_heatmap
from datadream_utils.runs.stage import Stage


def refuses(match, function, *arguments):
    with pytest.raises(InputError, match=match) as caught:
        function(*arguments)
    assert str(caught.value).isprintable()


# -- links, pipes and names in a data set


def test_a_linked_data_set_is_read(folder_dataset, tmp_path):
    (tmp_path / "link").symlink_to(folder_dataset)
    (folder_dataset / "train" / "apple_pie" / "9.png").symlink_to(folder_dataset / "test" / "apple_pie" / "0.png")
    assert len(load_dataset("link", str(tmp_path)).files["train"][0]) == 4  # a link within it, and itself one


@pytest.mark.parametrize("what", ["train/apple_pie/0.png", "train/apple_pie", "train", "dataset.yaml"])
def test_links_out_of_a_data_set_are_refused(folder_dataset, tmp_path, what):
    place, target = folder_dataset / what, tmp_path / "elsewhere"
    (folder_dataset / "dataset.yaml").write_text("domain: food")
    place.rename(target)
    place.symlink_to(target)
    refuses(f"{what}.* is a link to .*elsewhere.*out of the data set: put a copy", load_dataset, str(folder_dataset))


def test_links_between_data_sets_side_by_side_are_links_out(folder_dataset, tmp_path):
    other = tmp_path / "mine and more" / "private.png"  # its path begins as the data set's own does
    other.parent.mkdir()
    Image.new("L", (4, 4)).save(other)
    (folder_dataset / "train" / "apple_pie" / "9.png").symlink_to(other)
    refuses("9.png is a link to .*private.png", load_dataset, str(folder_dataset))


def test_what_is_called_a_picture_must_be_a_file(folder_dataset):
    odd = folder_dataset / "train" / "apple_pie" / "x.png"
    for make in (odd.mkdir, lambda: os.mkfifo(odd), lambda: odd.symlink_to("gone.png")):
        make()
        refuses("'x.png' is called as a picture but is no file: remove it", load_dataset, str(folder_dataset))
        odd.rmdir() if odd.is_dir() else odd.unlink()


def test_a_pipe_is_no_dataset_yaml(folder_dataset):
    os.mkfifo(folder_dataset / "dataset.yaml")
    refuses("dataset.yaml cannot be read as YAML: it is no file", load_dataset, str(folder_dataset))


@pytest.mark.parametrize("name", ["\x1b[2Jcake", "a\nb", "a\x85b", "\u202egnp", "x" * 210])
def test_names_that_a_terminal_obeys_are_refused(folder_dataset, name):
    (folder_dataset / "train" / "apple_pie").rename(folder_dataset / "train" / name)
    (folder_dataset / "test" / "apple_pie").rename(folder_dataset / "test" / name)
    refuses(
        "a folder in .*: (take the character|200 are allowed)|has 210 characters", load_dataset, str(folder_dataset)
    )


def test_a_file_name_that_is_not_utf8_is_refused(folder_dataset):
    source = folder_dataset / "train" / "apple_pie" / "0.png"
    os.rename(os.fsencode(source), os.fsencode(source.parent) + b"/\xff.png")
    refuses(r"take the character '\\udcff' out of it", load_dataset, str(folder_dataset))


@pytest.mark.parametrize(
    "text, message",
    [
        ("classes: {apple_pie: 'Brûlée', crème brûlée: 'bru\u0302le\u0301e'}", "the same to CLIP"),
        ("classes: {apple_pie: no, crème brûlée: yes}", "False stands where text must: put it in quotes"),
        ("classes: {apple_pie: ' ', crème brûlée: x}", "a class is called ' ': give it a name"),
        ('classes: {apple_pie: "a\\eb", crème brûlée: x}', r"take the character '\\x1b' out"),
        ('{classes: {apple_pie: "\\0", crème brûlée: x}}', r"take the character '\\x00' out|special characters"),
        ("classes: {../../etc: x}", "etc is missing, but dataset.yaml lists it"),
        ("domain: [a]", "stands where text must"),
        ("domain: !!python/object/apply:os.system [id]", "cannot be read as YAML: could not determine a constructor"),
    ],
)
def test_hostile_dataset_yaml(folder_dataset, text, message):
    (folder_dataset / "dataset.yaml").write_text(text, encoding="utf-8")
    refuses(message, load_dataset, str(folder_dataset))


# -- parameter files and lists


def test_a_yaml_bomb_is_refused_before_it_grows(tmp_path):
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"] + [
        f"{b}: &{b} [{', '.join(f'*{a}' for _ in range(9))}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    ]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    refuses(
        r"bomb.yaml cannot be read as YAML: line 2 has an alias, \*a: write it out",
        read_params_file,
        tmp_path / "bomb.yaml",
    )


def test_a_huge_file_is_refused_unread(tmp_path):
    with open(tmp_path / "huge.yaml", "wb") as file:
        file.truncate(10 * 2**30)  # sparse
    refuses("huge.yaml cannot be read as YAML: it has more than 4 MB", read_yaml, tmp_path / "huge.yaml")
    data = load_dataset_of_two(tmp_path)
    refuses("huge.yaml cannot be read .it has more than 256 MB", few_shot, data, 1, 0, str(tmp_path / "huge.yaml"))


def load_dataset_of_two(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            (tmp_path / "two" / split / name).mkdir(parents=True)
            Image.new("L", (4, 4)).save(tmp_path / "two" / split / name / "0.png")
    return load_dataset("two", str(tmp_path))


@pytest.mark.parametrize("name", ["../two/train/a/0.png", "/etc/passwd", "a/../../secret.png", "train/a/../b/0.png"])
def test_lists_name_only_the_data_sets_own_pictures(tmp_path, name):
    data = load_dataset_of_two(tmp_path)
    (tmp_path / "list.txt").write_text(name)
    refuses("list.txt, line 1: .* is not there", few_shot, data, 1, 0, str(tmp_path / "list.txt"))
    (tmp_path / "split.csv").write_text(f"split,filename\ntrain,{name}\n")
    refuses("split.csv names 1 images that are not in", load_dataset, "two", str(tmp_path), str(tmp_path / "split.csv"))


@pytest.mark.parametrize(
    "changes",
    [
        {"variant": "../../x"},
        {"variant": "a/b"},
        {"variant": "a\\b"},
        {"variant": "a\n"},
        {"dataset": "a\0b"},
        {"dataset": "\x1b]0;title\x07"},
        {"output_root": "x" * 5000},
        {"seed": 10**400},
        {"adapt_lr": float("nan")},
        {"adapt_lr": float("inf")},
        {"method": "../real"},
        {"method": ["real"]},
    ],
)
def test_hostile_parameter_values(make_params, changes):
    refuses("parameter|method", lambda: make_params("adapt", **changes))


@pytest.mark.parametrize("dataset", ["../../etc", "/", "..", "x" * 3000, "CON", "a b/ü", "\\\\server\\share"])
def test_a_runs_folder_stays_in_output_root(make_run, tmp_path, dataset):
    run = make_run("adapt", dataset=dataset, n_shot=1)
    assert run.folder.parent.parent == tmp_path / "outputs"
    run.begin()
    assert (tmp_path / "outputs" / run.folder.parent.name / "adapt" / "parameters.json").is_file()


# -- pictures


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, *chunks):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IEND", b"")


def compressed(content):
    return chunk(b"IDAT", zlib.compress(content))


ROWS = b"".join(b"\0" + b"\x10\x20\x30" * 4 for _ in range(4))
LONG_TEXT = zlib.compress(b"a" * 100_000_000)
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(touched) (w) file closefile\nshowpage\n"


@pytest.mark.parametrize(
    "content, message",
    [
        (png(50_000, 50_000, compressed(b"\0" * 10**7)), "has more than 89 million pixels: make it smaller"),
        (png(10_000, 10_000, compressed(b"")), "has more than 89 million pixels"),
        (png(1, 80_000_000, compressed(b"")), "1 by 80000000 pixels, too long for its width"),
        (png(0, 0, compressed(b"")), "cannot be read as a picture"),
        (png(4, 4, chunk(b"zTXt", b"Comment\0\0" + LONG_TEXT), compressed(ROWS)), "Decompressed data too large"),
        (png(4, 4, chunk(b"iTXt", b"Comment\0\1\0\0\0" + LONG_TEXT), compressed(ROWS)), "Decompressed data too large"),
        (png(4, 4, compressed(ROWS[:20])), "cannot be read as a picture"),
        (b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>', "cannot identify image file"),
        (EPS, "cannot identify image file"),  # Pillow would give it to Ghostscript
        (b"", "cannot identify image file"),
    ],
    ids=["bomb", "hundred megapixels", "thin", "nothing", "text", "international text", "short", "svg", "eps", "empty"],
)
def test_hostile_pictures_are_named(tmp_path, content, message):
    (tmp_path / "it.png").write_bytes(content)
    refuses(rf"it\.png.*{message}", read_image, tmp_path / "it.png")
    (tmp_path / "sound.png").write_bytes(png(4, 4, compressed(ROWS)))
    assert read_image(tmp_path / "sound.png").getpixel((3, 3)) == (16, 32, 48)


@pytest.mark.parametrize("kind", ["png", "gif", "webp", "tiff"])
def test_the_first_picture_of_several_is_read(tmp_path, kind):
    red, blue = (Image.new("RGB", (6, 6), colour) for colour in ("red", "blue"))
    red.save(
        tmp_path / f"it.{kind}", save_all=True, append_images=[blue], **({"lossless": True} if kind == "webp" else {})
    )
    assert read_image(tmp_path / f"it.{kind}").getpixel((3, 3)) == (255, 0, 0)


def test_a_stereo_jpeg_is_read_as_its_first_picture(tmp_path):
    Image.new("RGB", (6, 6), "red").save(
        tmp_path / "it.jpg", "MPO", save_all=True, append_images=[Image.new("RGB", (6, 6))]
    )
    assert read_image(tmp_path / "it.jpg").getpixel((3, 3))[0] > 250


def test_a_transparent_colour_of_a_palette_becomes_white(tmp_path):
    image = Image.new("P", (6, 6), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "it.png", transparency=0)
    found = read_image(tmp_path / "it.png")
    assert (found.getpixel((0, 0)), found.getpixel((3, 3))) == ((255, 255, 255), (255, 0, 0))


def test_numbers_that_are_none_become_black(tmp_path):
    Image.fromarray(np.array([[np.nan, np.inf, -np.inf, 100.0]], np.float32)).save(tmp_path / "it.tif")
    assert [read_image(tmp_path / "it.tif").getpixel((x, 0))[0] for x in (0, 1, 2)] == [0, 255, 0]


# -- what a report shows


def pixels(text, parse_math):
    figure = Figure(figsize=(6, 1))
    figure.text(0.05, 0.5, text, parse_math=parse_math)
    stream = io.BytesIO()
    figure.savefig(stream, format="rgba")
    return stream.getvalue()


@pytest.mark.parametrize("name", ["$x$", "a_$b", r"$\frac{1}$", r"\$5 and $6", "$$", "100 $", r"\alpha"])
def test_figures_show_dollars_as_they_are(name):
    assert pixels(literal(name), True) == pixels(name, False)


def test_no_name_breaks_a_figure(tmp_path):
    names = [r"$\frac{$", "a_$b$", "<b>&amp;", "東京"]
    picture = np.zeros((4, 4, 3))
    save_figure(confusion_heatmap(np.eye(4), names), tmp_path, "confusion")
    save_figure(teaser({name: [picture] for name in names}, names[0], names[1]), tmp_path, "teaser")
    save_figure(show_grid([[picture]], [names[0]], [names[0]], title=names[1]), tmp_path, "grid")
    assert len(list(tmp_path.glob("*.pdf"))) == 3


def _generated(folder, file_name):
    (folder / "generate" / "images").mkdir(parents=True)
    row = {"file_name": file_name, "label": 0}
    (folder / "generate" / "images" / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    parameters = dict(dataset="d", method="fakeit", n_shot=1, seed=0, variant="")
    finish_stage(folder / "generate", stage="generate", parameters=parameters, seconds=1.0, passes_per_image=2)


@pytest.mark.parametrize(
    "file_name", ["../../../secret.png", "/etc/secret.png", "C:/secret.png", "", None, 7, "a\x1b.png"]
)
def test_generated_metadata_names_only_files_beside_it(tmp_path, file_name):
    _generated(tmp_path / "run", file_name)
    refuses("metadata.jsonl", example_pictures, load_stages(tmp_path), "d", 1, 0, 8)
    refuses("metadata.jsonl", read_generated, Stage("generate", tmp_path / "run" / "generate"), 1)


@pytest.mark.parametrize("changes", [{"method": 3}, {"setting": "X"}, {"dataset": None}, {"accuracy": "<b>"}, []])
def test_hostile_metrics_are_refused(tmp_path, changes):
    metrics = dict(dataset="d", method="real", setting="R", n_shot=1, seed=0, variant="", accuracy=1.0, n_test=9)
    metrics |= dict(classifier="clip", protocol="sound")
    folder = tmp_path / "a" / "train-R"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics | changes if changes else []))
    finish_stage(folder)
    refuses("metrics.json cannot be read .* delete .* and run 03_train_clip again", load_results, tmp_path)


# -- what the project writes


SUFFIXES = {".py", ".json", ".jsonl", ".csv", ".txt", ".png", ".pdf", ".safetensors", ".parquet", ".md", ".tex"}
UNWANTED = {b"PK\x03\x04": "zip, as torch.save writes", b"\x80": "pickle", b"\x1f\x8b": "gzip", b"\x7fELF": "a program"}


def known_files(folder):
    """Every file is of a known kind by name and by its first bytes."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        assert path.suffix in SUFFIXES or path.name.endswith(".lock"), path
        start = path.read_bytes()[:8]
        assert not any(start.startswith(magic) and path.suffix != ".safetensors" for magic in UNWANTED), path
        if path.suffix == ".safetensors":
            size = struct.unpack("<Q", start)[0]
            assert path.read_bytes()[8:9] == b"{" and size < path.stat().st_size - 8, path
        if path.suffix == ".parquet":
            assert start[:4] == b"PAR1"
    return files


def test_a_runs_files_hold_no_pickle(make_run, pipe, folder_dataset, tmp_path):
    data = load_dataset(str(folder_dataset))
    changes = dict(dataset=str(folder_dataset), n_shot=1, adapt_epochs=1, images_per_class=1, num_inference_steps=2)
    changes |= dict(train_epochs=1, train_batch_size=1, setting="R+S", val_every=1, method="datadream_dset")
    runs, source = {}, None
    for stage in ("adapt", "generate", "train"):
        known = {key: value for key, value in changes.items() if key in STAGES[stage].model_fields}
        runs[stage] = make_run(stage, data, source, **known)
        source = runs[stage].stage
        if stage == "adapt":
            adapt(pipe, plan_adapters(runs[stage]), runs[stage])
        elif stage == "generate":
            generate(pipe, make_recipe(runs[stage]), runs[stage])
        else:
            model = make_classifier(runs[stage])
            history = fit(model, training_sets(runs[stage], model.image_size), runs[stage])
            save_results(runs[stage], model, history, evaluate(model, runs[stage]))
    table = compute_main_results(load_results(tmp_path / "outputs"))
    write_table(tmp_path / "outputs" / "figures", "main_results", table)
    save_figure(accuracy_bars(table, data.name), tmp_path / "outputs" / "figures", "bars")
    kinds = {path.suffix for path in known_files(tmp_path / "outputs")}
    assert kinds >= {".json", ".jsonl", ".csv", ".png", ".pdf", ".safetensors", ".parquet", ".md", ".tex"}


def test_what_is_shipped_holds_no_pickle():
    for folder in ("models", "figures"):
        assert known_files(ROOT / folder)


@pytest.mark.parametrize("content", [b"PK\x03\x04", b"\x80\x04\x95"])
def test_a_pickle_is_found_under_any_name(tmp_path, content):
    (tmp_path / "harmless.png").write_bytes(content)
    with pytest.raises(AssertionError, match="harmless"):
        known_files(tmp_path)


# -- the hub's form


def test_names_in_parquet_files_stay_inside_the_export(tmp_path):
    import datasets

    stream = io.BytesIO()
    Image.new("RGB", (4, 4)).save(stream, "PNG")
    names = [
        "../../../x.png",
        "/etc/x.png",
        "..\\..\\x.png",
        "CON.png",
        "a.png",
        "A.PNG",
        "\x1b[2J.png",
        "x" * 300 + ".png",
    ]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["../a", "CON"])})
    (tmp_path / "set").mkdir()
    for split in ("train", "test"):
        images = [{"bytes": stream.getvalue(), "path": name} for name in names] * 2
        rows = {"image": images, "label": [0] * len(names) + [1] * len(names)}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "set" / f"{split}-0.parquet")
    data = load_dataset("set", str(tmp_path))
    assert data.class_names == ("../a", "CON") and data.folders == ("0000_a", "0001_CON")
    written = {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".parquet"}
    assert all(path.is_relative_to(tmp_path / "set" / "exported") for path in written)
    pictures = [path.name for path in written if path.name != "dataset.yaml"]
    assert len(pictures) == 4 * len(names)
    assert all(name in ("a.png", "x.png") or name.startswith("row_") for name in pictures)
