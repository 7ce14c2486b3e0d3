"""The notebooks: clean as stored, and run from first to last cell through papermill."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from base64 import b64decode

import nbformat
import numpy as np
import papermill
import pytest
from conftest import execute_notebook, run_notebook
from papermill.exceptions import PapermillExecutionError
from PIL import Image

from datadream_utils.catalogue import FIGURES, TABLES, files
from datadream_utils.errors import InputError
from datadream_utils.params import NOTEBOOKS, ROOT, STAGES
from datadream_utils.plots.classifiers import LEARNS_FROM
from datadream_utils.plots.gallery import COMMITTED
from workflow.scripts.expected import BYTES, PLACE, WIDTH, expected_cells, small_picture, write_pictures

FILES = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_there_are_four_and_a_short_path():
    assert [file.stem for file in FILES] == sorted([*NOTEBOOKS.values(), "05_your_own_images"])


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_stored_clean(file):
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert notebook.metadata.kernelspec.name == "python3" and "widgets" not in notebook.metadata
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in code) == 1
    for cell in code:
        lines = cell.source.splitlines()
        assert len(lines) <= (60 if "parameters" in cell.metadata.get("tags", ()) else 40)
        assert not any(line.startswith(("def ", "class ", "!", "%pip")) for line in lines)
    assert len(code) <= 0.6 * len(notebook.cells)


@pytest.mark.parametrize("stage", STAGES)
def test_papermill_documents_every_parameter(stage):
    notebook = ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb"
    described = papermill.inspect_notebook(str(notebook))
    assert set(described) == set(STAGES[stage].model_fields)
    assert all(entry["help"] and entry["inferred_type_name"] != "None" for entry in described.values())


def _outputs(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_all_four_run_in_order_and_leave_their_files(smoke):
    folder, _notebooks = smoke
    run = folder / "outputs" / "mnist5k_datadream_cls_2shot_seed0"
    assert {path.parent.name for path in run.glob("*/manifest.json")} == {"adapt", "generate", "train-S", "train-R+S"}
    assert len(list(run.glob("adapt/adapters/*/pytorch_lora_weights.safetensors"))) == 10
    assert len(list(run.glob("generate/images/*/*.png"))) == 20
    metrics = json.loads((run / "train-R+S" / "metrics.json").read_text())
    assert metrics["n_test"] == 3500 and 0 <= metrics["interval_95"][0] <= metrics["accuracy"] <= 100
    written = {path.name for path in (folder / "figures").iterdir()}
    assert written == {*files(FIGURES), *files(TABLES)}
    assert not list(folder.rglob("*.part"))


def test_03_sets_the_settings_beside_each_other(smoke):
    """S, R, R+S and zero-shot CLIP on the same test images; each is the stage that a run of its own would be."""
    folder, notebooks = smoke
    places = {"none": ("clip_zeroshot", "none"), "R": ("real", "R")}
    places |= {setting: ("datadream_cls", setting) for setting in ("S", "R+S")}
    (cell,) = [cell for cell in notebooks["train"].cells if "train_and_test(" in cell.source]
    words = next(o.metadata["image/png"]["alt"] for o in cell.outputs if "image/png" in o.get("data", {}))
    tested = set()
    for setting, (method, name) in places.items():
        stage = folder / "outputs" / f"mnist5k_{method}_2shot_seed0" / f"train-{name}"
        manifest = json.loads((stage / "manifest.json").read_text())
        metrics = json.loads((stage / "metrics.json").read_text())
        tested.add(manifest["evaluated_sha256"])
        assert "compare_settings" not in manifest["parameters"] and metrics["setting"] == setting
        assert f"{LEARNS_FROM[setting]} {metrics['accuracy']:.1f} %" in words
    assert len(tested) == 1


def test_03_trains_one_classifier_where_a_study_runs_it(tmp_path, warm_kernel, smoke):
    shutil.copytree(smoke[0] / "outputs" / "mnist5k_datadream_cls_2shot_seed0" / "generate",
                    tmp_path / "outputs" / "mnist5k_datadream_cls_2shot_seed0" / "generate")  # fmt: skip
    run_notebook("train", tmp_path, warm_kernel, setting="S")
    made = {path.parent.relative_to(tmp_path / "outputs").as_posix() for path in tmp_path.rglob("manifest.json")}
    run = "mnist5k_datadream_cls_2shot_seed0"
    assert made == {f"{run}/generate", f"{run}/train-S"}
    for name in ("predictions.parquet", "history.csv", "metrics.json"):  # as the notebook of another setting made it
        alone, beside = (root / "outputs" / run / "train-S" / name for root in (tmp_path, smoke[0]))
        assert alone.read_bytes() == beside.read_bytes()


def test_the_first_picture_comes_early_and_parameters_are_folded():
    """A picture at the top; then hardly a screen of code before the first cell that draws."""
    for file in FILES[:3]:
        cells = nbformat.read(file, 4).cells
        assert "docs/assets/expected/" in cells[0].source
        drawn = next(i for i, cell in enumerate(cells) if re.search(r"pictures\.show|heatmaps\(", cell.source))
        visible = [cell for cell in cells[1:drawn] if not cell.metadata.get("jupyter", {}).get("source_hidden")]
        assert sum(len(cell.source.splitlines()) for cell in visible) <= 45, file.stem
        (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", ())]
        assert parameters not in visible


def test_every_expected_picture_is_there_small_and_shown():
    ids = [name for file in FILES for name in expected_cells(file)]
    assert len(ids) >= 8 and {path.stem for path in PLACE.iterdir()} == set(ids)
    for file in FILES:
        shown = "\n".join(cell.source for cell in nbformat.read(file, 4).cells if cell.cell_type == "markdown")
        for name in expected_cells(file):
            assert (PLACE / f"{name}.webp").stat().st_size <= BYTES
            assert f"](../docs/assets/expected/{name}.webp)" in shown, name
        assert set(re.findall(r"assets/expected/([\w-]+)\.webp", shown)) <= set(ids)


def test_expected_pictures_are_those_that_the_cells_drew(smoke, tmp_path):
    for stage in ("adapt", "generate", "train"):
        nbformat.write(smoke[1][stage], tmp_path / f"{NOTEBOOKS[stage]}.ipynb")
    (tmp_path / "place").mkdir()
    (tmp_path / "place" / "old.png").touch()
    paths = write_pictures(tmp_path, tmp_path / "place")
    assert sorted(paths) == sorted((tmp_path / "place").iterdir())
    (cell,) = [cell for cell in smoke[1]["adapt"].cells if cell.id == "01-after"]
    (drawn,) = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
    a, b = (Image.open(f).convert("RGB") for f in (io.BytesIO(b64decode(drawn)), tmp_path / "place" / "01-after.webp"))
    b = b.resize(a.size)
    assert np.abs(np.asarray(a, float) - np.asarray(b, float)).mean() < 8
    with pytest.raises(InputError, match="no notebook in which cell '01-after'"):
        write_pictures(tmp_path / "place", tmp_path / "elsewhere")
    assert not (tmp_path / "elsewhere").exists()


def test_a_picture_with_much_in_it_is_made_smaller():
    noise, buffer = np.random.default_rng(0).integers(0, 256, (700, 900, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(noise).save(buffer, format="png")
    small = small_picture(buffer.getvalue())
    assert len(small) <= BYTES and Image.open(io.BytesIO(small)).width < WIDTH


def test_pictures_show_and_nothing_is_printed_to_stderr(smoke):
    for stage, notebook in smoke[1].items():
        outputs = _outputs(notebook)
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2, stage
        assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == [], stage


def test_widgets_leave_a_picture_with_alt_text_and_no_state(smoke):
    count = 0
    for stage, notebook in smoke[1].items():
        assert "widgets" not in notebook.metadata, stage
        for cell in notebook.cells:
            if re.search(r"(model_widgets|prediction_widgets|explorer)\.(?!show_source)\w+\(", cell.source):
                *_, output = cell.outputs
                assert len(output.metadata["image/png"]["alt"]) > 20, cell.id
                count += 1
    assert count == 3 + 2 + 2 + 3 + 7


@pytest.mark.parametrize("stage, sections", [("analysis", 9), ("beyond", 10)])
def test_no_section_of_the_analysis_is_empty_after_one_run(smoke, stage, sections):
    """Each has a picture or a table; where these runs compare nothing, the committed results, and named as such."""
    parts = []
    for cell in smoke[1][stage].cells:
        if re.match(r"## [1-9]", cell.source):
            parts.append([])
        elif parts and cell.cell_type == "code":
            parts[-1] += [output.data for output in cell.outputs if "data" in output]
    assert len(parts) == sections
    for number, part in enumerate(parts[:-1], 1):  # the last one writes files
        shown = [data for data in part if {"image/png", "text/html"} & data.keys() or data["text/markdown"]]
        assert len(shown) >= 1, number
    texts = [data.get("text/markdown", "") for part in parts for data in part]
    reasons = [i for i, text in enumerate(texts) if "snakemake -s workflow/Snakefile" in text]
    assert reasons
    texts.append("")  # the last reason may have nothing below it
    without = [i for i in reasons if "Not from your runs: the committed results (`figures/tiny/" not in texts[i + 1]]
    names = [name for name, entry in FIGURES.items() if entry.notebook == NOTEBOOKS[stage] and name != "overview"]
    assert len(without) <= sum(not (COMMITTED / f"{name}.png").is_file() for name in names)


def test_04_opens_with_a_conclusion_and_06_with_what_it_measures(smoke):
    folder, notebooks = smoke
    conclusion = (folder / "figures" / "conclusion.md").read_text(encoding="utf-8").strip()
    texts = [output.data.get("text/markdown", "") for output in _outputs(notebooks["analysis"]) if "data" in output]
    assert texts[0] == conclusion and len(conclusion.split(". ")) <= 5
    metrics = next(folder.glob("outputs/*/train-R+S/metrics.json")).read_text()
    assert f"{json.loads(metrics)['accuracy']:.1f} %" in conclusion
    assert "4 classifiers of mnist5k, 1 sets of generated images" in _outputs(notebooks["beyond"])[0].text


def test_progress_lines_end_at_their_total(smoke):
    lines = [o.data["text/plain"] for o in _outputs(smoke[1]["adapt"]) if "█" in str(o.get("data", {}))]
    assert len(lines) == 1 and "10 adapters" in lines[0] and "20/20" in lines[0] and "░" not in lines[0]


def test_a_finished_stage_is_not_run_again(smoke, warm_kernel):
    folder, _ = smoke
    run = folder / "outputs" / "mnist5k_datadream_cls_2shot_seed0"
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()}
    notebook = run_notebook("generate", folder, warm_kernel)
    assert any("finished already" in output.get("text", "") for output in _outputs(notebook))
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "stage, changes, message",
    [
        ("generate", {"seed": 5}, "run 01_adapt_sd first"),
        ("adapt", {"dataset": "mnist"}, "neither known nor a folder"),
        ("adapt", {"method": "datadreamcls"}, "Did you mean 'datadream_cls'"),
        ("adapt", {"n_shot": 200}, "fewer than n_shot=200"),
        ("train", {"setting": "SR"}, "setting 'SR' is not known"),
    ],
)
def test_mistakes_stop_before_a_model_is_loaded(tmp_path, warm_kernel, stage, changes, message):
    with pytest.raises(PapermillExecutionError) as error:
        run_notebook(stage, tmp_path, warm_kernel, **changes)
    assert error.value.ename == "InputError" and message in error.value.evalue
    assert not list(tmp_path.glob("outputs/*/*/*"))


def test_an_unknown_parameter_stops_the_notebook(tmp_path, warm_kernel):
    with pytest.raises(PapermillExecutionError) as error:
        execute_notebook("01_adapt_sd", tmp_path / "x.ipynb", {"n_shots": 4}, warm_kernel)
    assert "parameter 'n_shots' is not known. Did you mean 'n_shot'" in error.value.evalue


def test_a_users_own_folder_goes_through_all_four(folder_dataset, tmp_path, warm_kernel):
    changes = {"dataset": str(folder_dataset), "method": "datadream_dset", "example_class": "apple pie"}
    for stage in STAGES:
        run_notebook(stage, tmp_path, warm_kernel, **changes)
    metrics = json.loads(next(tmp_path.glob("outputs/*/train-R+S/metrics.json")).read_text())
    assert metrics["n_test"] == 4 and set(metrics["per_class"]) == {"apple pie", "crème brûlée"}


@pytest.mark.parametrize("method, setting", [("clip_zeroshot", "none"), ("real", "R")])
def test_methods_that_generate_nothing_go_through_all_four(tmp_path, warm_kernel, method, setting):
    for stage in STAGES:
        run_notebook(stage, tmp_path, warm_kernel, method=method, setting=setting)
    assert json.loads(next(tmp_path.glob(f"outputs/*/train-{setting}/metrics.json")).read_text())["n_test"] == 3500


def test_kernels_of_a_study_choose_no_ports(tmp_path):
    with tempfile.TemporaryDirectory(prefix="t") as short:  # the path of a socket has a limit
        _check_that_kernels_choose_no_ports(tmp_path, short)


def _check_that_kernels_choose_no_ports(tmp_path, short):
    source = "import ipykernel, json\nprint(json.dumps(ipykernel.get_connection_info(unpack=True), default=str))"
    cell = nbformat.v4.new_code_cell(source)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "in.ipynb")
    command = [
        sys.executable,
        str(ROOT / "workflow" / "scripts" / "execute.py"),
        "-k",
        "python3",
        "in.ipynb",
        "out.ipynb",
    ]
    environment = os.environ | {"TMPDIR": short}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (output,) = nbformat.read(tmp_path / "out.ipynb", 4).cells[0].outputs
    connection = json.loads(output["text"])
    assert connection["transport"] == "ipc" and connection["ip"].startswith(short)
    assert "encryption" not in done.stderr and not os.listdir(short)
