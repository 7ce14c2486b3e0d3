"""The rehearsal at reduced width: from models with random weights to its table."""

import json

import pytest
from transformers import CLIPTokenizer

from benchmarks import rehearsal, worlds
from datadream_utils.data.dataset import load_dataset
from workflow.scripts.study import make_study, read_study

NARROW = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
SIZES = {
    "unet": worlds.SIZES["unet"]
    | dict(
        block_out_channels=(32, 32, 64, 64),
        attention_head_dim=(2, 2, 4, 4),
        cross_attention_dim=32,
        layers_per_block=1,
        sample_size=8,
    ),
    "text": NARROW,
    "vae": dict(block_out_channels=(32,) * 4, layers_per_block=1, sample_size=64),
    "clip_text": NARROW,
    "clip_vision": NARROW | dict(patch_size=16, image_size=32),
}
SIZES["filter"] = {part: SIZES[part] for part in ("clip_text", "clip_vision")}


def test_the_tokenizer_has_the_published_number_of_tokens(tmp_path):
    rehearsal.write_models(tmp_path, SIZES)
    for folder in ("sd_model/tokenizer", "clip_model", "filter_model"):
        tokenizer = CLIPTokenizer.from_pretrained(tmp_path / folder)
        assert len(tokenizer) == 49408
        assert max(tokenizer("a photo of a tree frog").input_ids) < 49408


def test_photographs_have_several_sizes_and_make_a_data_set(tmp_path):
    rehearsal.write_photos(tmp_path / "photos", 2, 6, 3)
    data = load_dataset(str(tmp_path / "photos"))
    assert data.class_names == ("fire truck", "tabby cat")
    assert [len(files) for files in data.files["train"]] == [6, 6] and len(data.files["test"][0]) == 3
    assert len({rehearsal.Image.open(path).size for path in data.files["train"][0]}) == 5


def test_the_rehearsal_runs_every_notebook_and_says_what_each_took(tmp_path, monkeypatch):
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- rehearsal -->\nold\n<!-- /rehearsal -->\nafter\n", encoding="utf-8")
    for name, value in {
        "SIZES": SIZES,
        "METHODS": ("real", "datadream_cls"),
        "SMALL": rehearsal.SMALL | {"resolution": 64, "num_threads": 1},
        "RESULT": tmp_path / "result.json",
        "PAGE": page,
        "choose_device": lambda device: "cpu",
    }.items():
        monkeypatch.setattr(rehearsal, name, value)
    assert rehearsal.main(["--output", str(tmp_path / "out")]) == 0
    (result,) = json.loads((tmp_path / "result.json").read_text(encoding="utf-8")).values()
    assert result["precision"] == "bf16"
    assert [(row["method"], row["stage"]) for row in result["rows"]] == [
        ("real", "train-R"),
        ("real", "train-R-resnet"),
        ("datadream_cls", "adapt"),
        ("datadream_cls", "generate"),
        ("datadream_cls", "train-R+S"),
    ]
    assert all(row["unit_seconds"] > 0 and row["memory_gb"] > 0.1 for row in result["rows"])
    assert {row["threads"] for row in result["rows"]} == {1}
    adapt, generate, train = result["rows"][2:]
    assert (adapt["units"], adapt["images"]) == (2 * 3, 2)  # three steps of each of two adapters, on two shots
    assert (generate["units"], generate["images"], generate["passes"]) == (4, 1, 2 * 3)  # PNDM: one more than its steps
    assert train["images"] == 2 * 4
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "Every notebook ran to its end" in text and f"{adapt['unit_seconds']:.2f}" in text


def test_the_committed_page_is_that_of_the_committed_results(tmp_path, monkeypatch):
    committed = rehearsal.PAGE.read_text(encoding="utf-8")
    monkeypatch.setattr(rehearsal, "PAGE", tmp_path / "page.md")
    rehearsal.PAGE.write_text(committed.replace("| generate | loft |", "| old |"), encoding="utf-8")
    rehearsal.write_page(json.loads(rehearsal.RESULT.read_text(encoding="utf-8")))
    assert rehearsal.PAGE.read_text(encoding="utf-8") == committed


@pytest.fixture
def scheduler():
    return worlds.PNDMScheduler(skip_prk_steps=True, steps_offset=1)


def test_hours_are_those_of_the_studys_units(scheduler):
    study = make_study(
        {
            "parameters": "params/paper.yaml",
            "datasets": ["eurosat"],
            "methods": ["datadream_cls"],
            "n_shots": [16],
            "seeds": [0],
        }
    )
    rows = [
        {"method": "datadream_cls", "stage": "adapt", "images": 2, "units": 6, "unit_seconds": 1.0, "passes": 1},
        {"method": "datadream_cls", "stage": "generate", "images": 1, "units": 4, "unit_seconds": 3.0, "passes": 6},
    ]
    hours = rehearsal.scale_up(rows, study, scheduler)
    steps = 200 * 2 * 3  # epochs, steps per epoch, groups of four of the ten adapters
    assert hours["adapt"] == (steps, pytest.approx(steps * (4 * 8 / 2) / 3600))
    batches = 10 * 25
    assert hours["generate"] == (batches, pytest.approx(batches * 3.0 * 20 * 2 * 51 / 6 / 3600))
    assert "train" not in hours


def test_a_failure_is_in_the_table():
    rows = [{"method": "loft", "stage": "adapt", "images": 1, "error": "InputError: the memory of the device is full"}]
    result = dict(device="cpu", cores=2, load=0.1, precision="no", git="0" * 40, date="2026-01-01", rows=rows, hours={})
    killed = {"method": "loft", "stage": "adapt", "images": 1, "threads": 1, "memory_gb": 8.26}
    assert "| adapt | loft | 1 | 1 | killed and continued | 8.3 |" in rehearsal.table(result | {"rows": [killed]})
    assert "First failure: adapt of loft: InputError: the memory of the device is full." in rehearsal.table(result)


@pytest.mark.parametrize("device, precision", [("cpu", "bf16"), ("cuda", "fp16")])
def test_the_rehearsals_study_is_valid_and_its_units_are_counted(tmp_path, monkeypatch, device, precision):
    monkeypatch.setattr(rehearsal, "SIZES", SIZES)
    study = read_study(rehearsal.plan(tmp_path, precision, device))
    size = rehearsal.read_size(study.datasets[0])
    (run,) = (run for run in study.runs().values() if run.method == "datadream_cls")
    units = {name: rehearsal.unit_images(study.params(run, name), size) for name in study.stages(run)}
    small = {"adapt": 2, "generate": 1, "train-R+S": 8}  # as published: batches of 8, 20, and 64 of both kinds
    assert units == (small if device == "cpu" else {"adapt": 8, "generate": 20, "train-R+S": 128})
