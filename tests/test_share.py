"""A shared run: plain libraries read it, and it says where it comes from without saying where it was made."""

import json
from dataclasses import replace

import datasets as hub_library
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from huggingface_hub import DatasetCard, ModelCard

from datadream_utils.data.dataset import load_dataset
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import generate, make_recipe
from datadream_utils.errors import InputError
from datadream_utils.runs.checksums import write_checksums
from workflow.scripts.share import describe_origin, share_run


@pytest.fixture
def run(folder_dataset, make_run, pipe):
    """The folder of a run of two adapters and four images, from a user's own folder."""
    (folder_dataset / "dataset.yaml").write_text(yaml.safe_dump({"source": "my <b>kitchen</b>", "licence": "CC0"}))
    options = {"data": load_dataset(str(folder_dataset)), "dataset": str(folder_dataset), "n_shot": 2}
    first = make_run("adapt", adapt_epochs=2, adapt_warmup_steps=0, adapt_batch_size=2, **options)
    adapt(pipe, plan_adapters(first), first)
    few = {"images_per_class": 2, "num_inference_steps": 1, "generate_batch_size": 2}
    second = make_run("generate", source=first.stage, **few, **options)
    generate(pipe, make_recipe(second), second)
    return first.folder.parent


def test_plain_diffusers_and_datasets_read_what_is_shared(run, tmp_path):
    there = share_run(run, tmp_path / "shared")
    plain = StableDiffusionPipeline.from_pretrained("models/tiny-stable-diffusion", safety_checker=None)
    adapters = sorted(path for path in (there / "adapters").iterdir() if path.is_dir())
    assert len(adapters) == 2
    before = plain.unet.state_dict().keys()
    plain.load_lora_weights(str(adapters[0]))
    added = [v for k, v in plain.unet.state_dict().items() if k not in before and "lora_B" in k]
    assert added and any(torch.count_nonzero(v) for v in added)
    rows = hub_library.load_dataset(
        "imagefolder", data_dir=str(there / "images"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert len(rows) == 4 and set(rows["class_name"]) == {"apple pie", "crème brûlée"}
    assert rows[0]["image"].size == (32, 32)


def test_cards_name_origin_and_licence_and_no_path_of_this_machine(run, tmp_path):
    there = share_run(run, tmp_path / "shared")
    model, images = ModelCard.load(there / "adapters" / "README.md"), DatasetCard.load(there / "images" / "README.md")
    assert model.data.library_name == "diffusers" and "lora" in model.data.tags and model.data.license == "other"
    assert model.data.base_model is None  # models/tiny-stable-diffusion is a folder, no hub id
    assert images.data.license == "cc0-1.0" and images.data.size_categories == "n<1K"
    assert images.data.dataset_info["splits"] == [{"name": "train", "num_examples": 4}]
    assert images.data.task_categories == ["image-classification"] and "0. apple pie" in images.text
    for text in (model.text, images.text):
        assert "licence: CC0" in text and "&#60;b&#62;" in text and "<b>" not in text
    for path in there.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path
    assert (there / "shots.txt").read_text() == (run / "adapt" / "shots.txt").read_text()


def test_what_is_known_of_the_origin_is_said(mnist):
    data = replace(mnist, source="somewhere", licence="")
    lacks = "of the real images: not stated (`dataset.yaml` can state it)."
    assert describe_origin(data) == f"somewhere; licence {lacks}"
    assert describe_origin(replace(data, source="", licence="MIT")) == f"licence: MIT; source {lacks}"
    assert describe_origin(replace(data, licence="MIT")) == "somewhere; licence: MIT."
    assert describe_origin(replace(data, source="")) == f"source and licence {lacks}"


def test_a_shared_folder_is_never_overwritten_nor_an_unfinished_run_shared(run, tmp_path):
    (tmp_path / "shared").mkdir()
    with pytest.raises(InputError, match="exists already: name a new folder"):
        share_run(run, tmp_path / "shared")
    with pytest.raises(InputError, match="holds no finished stage"):
        share_run(tmp_path / "mine", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_hubs_id_of_the_base_model_is_in_the_card(run, tmp_path):
    path = run / "adapt" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"model": {"hub": "somebody/sd", "commit": "abc"}}))
    there = share_run(run, tmp_path / "shared")
    assert ModelCard.load(there / "adapters" / "README.md").data.base_model == "somebody/sd"


def test_a_path_of_this_machine_in_a_file_stops_the_sharing(run, tmp_path):
    (run / "adapt" / "shots.txt").write_text(f"# made in {tmp_path}/mine\n")
    path = run / "adapt" / "manifest.json"
    manifest = json.loads(path.read_text()) | {"checksums": write_checksums(run / "adapt")}
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"shots.txt of .* holds the path .*: nothing was shared"):
        share_run(run, tmp_path / "shared")
    assert not (tmp_path / "shared").exists()


def test_the_split_files_folder_is_not_shared(run, tmp_path):
    split = tmp_path / "lists" / "split.csv"
    for stage in ("adapt", "generate"):
        path = run / stage / "shots.txt"
        if path.exists():
            path.write_text(f"# split: split file {split} (sha256 abc)\napple_pie/a.png\n", encoding="utf-8")
            manifest = json.loads((run / stage / "manifest.json").read_text())
            (run / stage / "manifest.json").write_text(
                json.dumps(manifest | {"checksums": write_checksums(run / stage)})
            )
    there = share_run(run, tmp_path / "shared")
    text = (there / "shots.txt").read_text(encoding="utf-8")
    assert text == "# split: split file split.csv (sha256 abc)\napple_pie/a.png\n"
