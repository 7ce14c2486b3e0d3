"""Fetching what a study needs, from a hub on this machine with the hub's layouts; then without any network."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections import namedtuple

import datasets as hub_library
import hub_worlds
import numpy as np
import pytest
import yaml
from hub_worlds import COMMIT, CONVERTED
from huggingface_hub import constants, scan_cache_dir
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from datadream_utils.backbones import load
from datadream_utils.backbones.load import files_read
from datadream_utils.data.known import read_known
from datadream_utils.files import read_yaml
from datadream_utils.params import ROOT
from workflow.scripts import fetch
from workflow.scripts.study import read_study

EUROSAT = read_known("eurosat")
WEIGHTS = "diffusion_pytorch_model"
FETCH = """
import json, sys
from workflow.scripts.fetch import list_parts, main
from workflow.scripts.study import read_study
studies = sys.argv[1:]
sizes = lambda: [{str(part): part.bytes_to_fetch() for part in list_parts(read_study(study))} for study in studies[:2]]
before, statuses, after = sizes(), [main([study]) for study in studies], sizes()
print(json.dumps([before, statuses, after]))
"""
LOAD = """
import json, sys
import torch
from datadream_utils.backbones.load import load_clip, load_stable_diffusion, model_identity
from datadream_utils.data.dataset import load_dataset
from datadream_utils.diffusion.captions import Captioner
commit, data_root = sys.argv[1:]
half = load_stable_diffusion("tiny/half").unet.conv_in.weight
load_stable_diffusion("tiny/sd", commit)
load_clip("tiny/pickled")
captioner = Captioner("tiny/llava", commit, "cpu", torch.float32)
names = [("tiny/half", ""), ("tiny/sd", commit), ("tiny/pickled", ""), ("tiny/llava", commit)]
counts = {split: sum(map(len, files)) for split, files in load_dataset("eurosat", data_root).files.items()}
template = captioner.processor.chat_template
print(json.dumps([[model_identity(*name) for name in names], counts, half.sum().item(), template]))
"""


def _add_halves(folder, keep_plain=True):
    """A copy of every weight in float16 under its usual name, beside or in place of the plain one."""
    for path in [*folder.rglob("*.safetensors")]:
        half = {
            name: weight.half() if weight.is_floating_point() else weight for name, weight in load_file(path).items()
        }
        save_file(half, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        if not keep_plain:
            path.unlink()


def _add_what_is_not_read(folder):
    """What hub pages have beside the files that are read: other formats, single checkpoints, text about it."""
    for path in [*folder.rglob("*.safetensors")]:
        for other in (".bin", ".onnx", ".msgpack"):
            path.with_suffix(other).write_bytes(b"pickled")
    for name in ("README.md", ".gitattributes", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors", "tf_model.h5"):
        (folder / name).write_bytes(b"text")
    if (folder / "unet").is_dir():
        (folder / "unet" / f"{WEIGHTS}.non_ema.safetensors").write_bytes(b"weights")


def _write_eurosat(folder):
    """Parquet files with a picture of every class for each split."""
    folder.mkdir(parents=True)
    features = hub_library.Features(
        {"image": hub_library.Image(), "label": hub_library.ClassLabel(names=list(EUROSAT.authors_names))}
    )
    for i, split in enumerate(("train", "validation", "test", "extra")):
        noise = np.random.default_rng(i).integers(0, 256, (10, 16, 16, 3), dtype=np.uint8)
        rows = {"image": [Image.fromarray(pixels) for pixels in noise], "label": [*range(10)]}
        hub_library.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")


World = namedtuple("World", "pages studies home data output sizes statuses downloaded loaded")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Studies whose models and data set were fetched from a hub, and loaded when the hub was gone."""
    root = tmp_path_factory.mktemp("fetch")
    pages = {
        "tiny/sd": hub_worlds.write_stable_diffusion(root / "sd", "sd15"),
        "tiny/half": hub_worlds.write_stable_diffusion(root / "half", "sd21-base"),
        "tiny/clip": hub_worlds.write_clip(root / "clip"),
        "tiny/llava": hub_worlds.write_llava(root / "llava"),
        "datasets/timm/eurosat-rgb": root / "eurosat",
    }
    _write_eurosat(root / "eurosat" / "data")
    _add_halves(pages["tiny/sd"])
    _add_halves(pages["tiny/half"], keep_plain=False)
    whole = LlavaForConditionalGeneration.from_pretrained(pages["tiny/llava"])
    (pages["tiny/llava"] / "model.safetensors").unlink()
    whole.save_pretrained(pages["tiny/llava"], max_shard_size="40KB")
    for name in ("tiny/sd", "tiny/half", "tiny/clip", "tiny/llava"):
        _add_what_is_not_read(pages[name])
    pages["tiny/pickled"] = shutil.copytree(pages["tiny/clip"], root / "pickled")
    (root / "pickled" / "model.safetensors").unlink()

    home, data = root / "home", root / "data"
    studies = [
        _write_study(root, data),
        _write_study(root, data, sd_model="tiny/half", sd_revision=""),
        _write_study(root, data, datasets=["dtd"], sd_model="tiny/gated", clip_model="tiny/none"),
    ]
    environment = os.environ | {"HF_HOME": str(home), "no_proxy": "127.0.0.1"}
    for name in ("HF_HUB_OFFLINE", "DISABLE_SAFETENSORS_CONVERSION", "HF_HUB_CACHE", "HF_DATASETS_CACHE"):
        environment.pop(name, None)

    def run(*command):
        command = [sys.executable, "-c", *command]
        done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        *output, last = done.stdout.splitlines()
        return output, json.loads(last)

    with hub_worlds.serve(pages, [EUROSAT.facts["hub"]["revision"]]) as environment["HF_ENDPOINT"]:
        output, (before, statuses, after) = run(FETCH, *studies)
    paths = [path for path in home.glob("hub/models--*/snapshots/*/**/*") if path.is_file()]
    downloaded = {path: path.relative_to(home / "hub").as_posix() for path in paths}
    environment["HF_HUB_OFFLINE"] = "1"  # and the hub is gone
    loaded = run(LOAD, COMMIT, str(data))[1]
    return World(pages, studies, home, data, output, (before, after), statuses, downloaded, loaded)


def _write_study(root, data, datasets=("eurosat", "mnist5k"), **changes):
    values = dict(sd_model="tiny/sd", sd_revision=COMMIT, clip_model="tiny/pickled", clip_revision="")
    values |= dict(captioner="tiny/llava", captioner_revision=COMMIT, filter_model="tiny/clip", filter_revision=COMMIT)
    folder = root / "-".join(["study", *changes])
    folder.mkdir()
    (folder / "values.yaml").write_text(yaml.safe_dump(values | changes | dict(data_root=str(data))))
    study = dict(parameters=["params/tiny.yaml", str(folder / "values.yaml")], n_shots=[1], seeds=[0])
    study |= dict(datasets=[*datasets], methods=["clip_zeroshot", "real", "disef", "datadream_cls"])
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return str(folder / "study.yaml")


@pytest.fixture
def offline(world, monkeypatch):
    """``world``; this process reads the cache of its downloads, and any connection is an error."""

    def refuse(self, address):
        raise AssertionError(f"{address} was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    hub = str(world.home / "hub")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", hub)
    monkeypatch.setattr(load, "scan_cache_dir", lambda: scan_cache_dir(hub))  # it has read the constant before
    return world


def test_what_was_fetched_loads_without_the_hub(world):
    identities, counts, half, template = world.loaded
    assert identities == [
        {"hub": "tiny/half", "commit": COMMIT},
        {"hub": "tiny/sd", "commit": COMMIT},
        {"hub": "tiny/pickled", "commit": COMMIT, "weights": CONVERTED},
        {"hub": "tiny/llava", "commit": COMMIT},
    ]
    weights = load_file(world.pages["tiny/half"] / "unet" / f"{WEIGHTS}.fp16.safetensors")["conv_in.weight"]
    assert half == pytest.approx(weights.float().sum().item(), rel=1e-4) and "ASSISTANT" in template
    assert counts == {"train": 10, "val": 10, "test": 10}


def _pipeline_files(half=""):
    configurations = {"model_index.json", "scheduler/scheduler_config.json"}
    words = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")
    parts = {"unet": WEIGHTS, "vae": WEIGHTS, "text_encoder": "model"}
    weights = {f"{part}/{stem}{half}.safetensors" for part, stem in parts.items()}
    return (
        configurations | {f"tokenizer/{name}" for name in words} | weights | {f"{part}/config.json" for part in parts}
    )


def test_only_files_that_are_read_are_downloaded(world):
    files = {}
    for name in world.downloaded.values():
        page, _, commit, file = name.split("/", 3)
        files.setdefault((page.replace("models--tiny--", ""), commit), set()).add(file)
    clip = {"config.json", "preprocessor_config.json", "vocab.json", "merges.txt", "special_tokens_map.json"}
    clip |= {"tokenizer_config.json"}
    llava = {
        path.name for path in world.pages["tiny/llava"].iterdir() if path.suffix in (".json", ".safetensors", ".jinja")
    }
    assert len([name for name in llava if "-of-" in name]) > 2
    assert files == {
        ("sd", COMMIT): _pipeline_files(),
        ("half", COMMIT): _pipeline_files(".fp16"),
        ("clip", COMMIT): clip | {"model.safetensors"},
        ("pickled", COMMIT): clip,
        ("pickled", CONVERTED): {"model.safetensors"},
        ("llava", COMMIT): llava - {"v1-5-pruned.safetensors"},
    }
    assert not [*world.home.glob("hub/datasets--*/blobs/*")]  # data sets are streams, not kept twice


def test_sizes_are_known_before(world):
    before, after = world.sizes
    files = _pipeline_files(".fp16") - {"model_index.json"}  # that was read to judge the page
    half = sum((world.pages["tiny/half"] / file).stat().st_size for file in files)
    read = ("train", "validation", "test")
    folder = world.pages["datasets/timm/eurosat-rgb"] / "data"
    eurosat = sum((folder / f"{split}-00000-of-00001.parquet").stat().st_size for split in read)
    assert before[1]["sd_model tiny/half"] == half and before[1]["data set eurosat"] == eurosat
    assert before[0]["data set mnist5k"] == 0 and all(
        size > 0 for part, size in before[0].items() if "mnist" not in part
    )
    assert {size for of_study in after for size in of_study.values()} == {0}
    assert any(line.endswith(" GB  to download") for line in world.output)


def test_what_cannot_be_had_is_said_at_the_end(world):
    assert world.statuses == [0, 0, 1]
    sentences = world.output[-3:]
    assert "clip_model 'tiny/none' cannot be had (there is no such folder, and no such hub page" in sentences[0]
    assert "asks you to accept its terms and to log in with 'hf auth login'" in sentences[1]
    assert (
        "dtd" in sentences[2] and "cannot be had from the hub" in sentences[2] and "images/banded/*.jpg" in sentences[2]
    )


def test_the_check_passes_without_the_hub(offline, capsys):
    assert [fetch.main([study, "--check"]) for study in offline.studies[:2]] == [0, 0]
    assert "missing" not in capsys.readouterr().out


def test_the_check_names_every_file_that_is_missing(offline, capsys):
    for path, name in offline.downloaded.items():
        page, _, _, file = name.split("/", 3)
        study = offline.studies["half" in page]
        kept = path.rename(path.with_name("elsewhere"))
        assert fetch.main([study, "--check"]) == 1, name
        *_, sentence = capsys.readouterr().out.splitlines()
        assert (f"lacks {file}:" in sentence or "*.safetensors is missing" in sentence) and page in sentence
        kept.rename(path)
    assert fetch.main([offline.studies[0], "--check"]) == 0


def test_the_check_sees_half_a_file(offline, capsys):
    (file,) = (path for path, name in offline.downloaded.items() if f"sd/snapshots/{COMMIT}/unet/{WEIGHTS}" in name)
    blob = file.resolve()
    content = blob.read_bytes()
    blob.write_bytes(content[:-1])
    assert fetch.main([offline.studies[0], "--check"]) == 1
    assert f"sd_model tiny/sd at {COMMIT} lacks unet/{WEIGHTS}.safetensors: " in capsys.readouterr().out
    blob.write_bytes(content)


def test_the_check_says_everything_that_is_missing(offline, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    study = read_yaml(offline.studies[0])
    values = tmp_path / "values.yaml"
    values.write_text(yaml.safe_dump(dict(data_root=str(tmp_path / "data"))))
    study["parameters"].append(str(values))
    study["datasets"] = ["eurosat", "dtd"]
    study["split_files"] = {"dtd": str(tmp_path / "split.json"), "eurosat": "https://example.org/split.json"}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(study))
    assert fetch.main([str(tmp_path / "study.yaml"), "--check"]) == 1
    sentences = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("missing")]
    wanted = [
        ("captioner tiny/llava", str(tmp_path / "hub" / "models--tiny--llava")),
        ("clip_model tiny/pickled", "models--tiny--pickled"),
        ("filter_model tiny/clip", "models--tiny--clip"),
        ("sd_model tiny/sd", "models--tiny--sd"),
        ("eurosat", "https://example.org/split.json", str(tmp_path / "data" / "split_files")),
        ("eurosat", str(tmp_path / "data" / "eurosat"), "2750/AnnualCrop/*.jpg"),
        ("dtd", str(tmp_path / "split.json")),
        ("dtd", str(tmp_path / "data" / "dtd"), "images/banded/*.jpg"),
    ]
    for sentence, words in zip(sentences, wanted, strict=True):
        assert all(word in sentence for word in words), sentence
    assert not (tmp_path / "data").exists() and not (tmp_path / "hub").exists()  # a check writes nothing


def test_nothing_is_begun_that_the_disk_has_no_room_for(offline, tmp_path, monkeypatch, capsys):
    shutil.rmtree(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(fetch.Model, "bytes_to_fetch", lambda model: 3 * 10**18)
    assert fetch.main([offline.studies[0]]) == 2
    assert "12000000000.0 GB are needed at" in capsys.readouterr().err and not tmp_path.exists()


def test_a_study_of_shipped_models_needs_nothing(offline, capsys):
    assert fetch.main(["params/studies/tiny.yaml", "--check"]) == 0
    assert "clip_model models/tiny-clip" in capsys.readouterr().out


def test_the_models_of_the_papers_study():
    parts = {str(part) for part in fetch.list_parts(read_study("params/studies/paper.yaml"))}
    for words in ("captioner llava-hf/", "clip_model openai/", "filter_model laion/", "sd_model sd2-community/"):
        assert [part for part in parts if part.startswith(words)]
    parts = {str(part) for part in fetch.list_parts(read_study("params/studies/paper_shots.yaml"))}
    assert not [part for part in parts if part.startswith(("captioner", "filter_model"))]  # no method uses them


SHARDS = [f"model-0000{i}-of-00002" for i in (1, 2)]


@pytest.mark.parametrize(
    "files, read",
    [
        (["model.safetensors", "model.fp16.safetensors"], ["model.safetensors"]),
        (["model.safetensors", *(f"{s}.safetensors" for s in SHARDS)], ["model.safetensors"]),
        ([f"{s}.safetensors" for s in SHARDS], [f"{s}.safetensors" for s in SHARDS]),
        (["model.safetensors.index.json", "pytorch_model.bin.index.json"], []),
        (["open_clip_model.safetensors", "pytorch_model.bin"], []),
    ],
)
def test_one_copy_of_the_weights_is_read(files, read):
    files = [*files, "config.json"]
    assert files_read("clip_model", files) == (sorted(["config.json", *read]), [] if read else ["."])


def test_halves_of_a_pipeline_are_those_that_diffusers_takes():
    """Its variant is the same for U-Net and VAE, with plain files where a part has no others."""
    plain, half = f"{WEIGHTS}.safetensors", f"{WEIGHTS}.fp16.safetensors"
    files = [
        f"unet/{plain}",
        f"unet/{half}",
        f"vae/{half}",
        "text_encoder/model.safetensors",
        "text_encoder/model.fp16.safetensors",
    ]
    assert files_read("sd_model", files)[0] == ["text_encoder/model.safetensors", f"unet/{half}", f"vae/{half}"]
    files = [f"unet/{half}", f"vae/{plain}", "text_encoder/model.safetensors"]
    assert files_read("sd_model", files) == (sorted(files), [])
    assert files_read("sd_model", files[1:])[1] == ["unet"]
