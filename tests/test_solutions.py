"""The exercises and their solutions: every notebook has them, links lead somewhere, the solutions run and are right."""

import json
import re
import shutil

import nbformat
import numpy as np
import pandas as pd
import pytest
from conftest import ipython_shell
from IPython.utils.capture import capture_output

from datadream_utils.data.images import centre_square, read_image
from datadream_utils.errors import InputError
from datadream_utils.params import ROOT
from datadream_utils.runs.run import params_of

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SOLUTIONS = sorted((ROOT / "solutions").glob("*.ipynb"))


def _markdown(file):
    return [cell.source for cell in nbformat.read(file, 4).cells if cell.cell_type == "markdown"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_opens_with_what_to_expect_and_ends_with_three_exercises(file):
    first, last = _markdown(file)[0], _markdown(file)[-1]
    assert "**Question.**" in first and "**You will see**" in first
    assert "| goes in | comes out | takes |" in first and "../docs/learn/glossary.md" in first
    assert last.startswith("## What you have learnt, and what to try")
    kinds = re.findall(r"^\d\. \*\*(.+?)\*\*", last, re.MULTILINE)
    assert kinds == ["Change, but predict first.", "Write a little code.", "Think."]
    assert f"(../solutions/{file.name})" in last


@pytest.mark.parametrize("file", [*NOTEBOOKS, *SOLUTIONS], ids=lambda file: file.name)
def test_links_to_other_files_lead_somewhere(file):
    for link in re.findall(r"\]\(([^)#]+)\)", "\n".join(_markdown(file))):
        assert link.startswith("https://") or (file.parent / link).exists(), link


@pytest.mark.parametrize("file", SOLUTIONS, ids=lambda file: file.stem)
def test_stored_clean(file):
    notebook = nbformat.read(file, 4)
    nbformat.validate(notebook)
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        assert not cell.outputs and cell.execution_count is None and len(cell.source.splitlines()) <= 40
    headings = [line for text in _markdown(file) for line in text.splitlines() if line.startswith("## ")]
    assert [heading[:4] for heading in headings] == ["## 1", "## 2", "## 3"]


def test_a_run_is_looked_for_in_the_projects_folder(tmp_path, monkeypatch):
    """A solution's ``run_folder`` is relative to the project, from wherever the notebook is run."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="run 01_adapt_sd first") as raised:
        params_of("outputs/never_made", "adapt")
    assert str(ROOT / "outputs" / "never_made" / "adapt") in str(raised.value)


@pytest.fixture(scope="module")
def solved(smoke, mnist, tmp_path_factory):
    """Every solution run on a copy of the smoke run: ``(run folder, {name: printed text}, {name: its variables})``."""
    run = tmp_path_factory.mktemp("solved") / "mnist5k_datadream_cls_2shot_seed0"
    shutil.copytree(smoke[0] / "outputs" / run.name, run)
    texts, variables = {}, {}
    for file in SOLUTIONS:
        with ipython_shell() as shell, capture_output() as captured:
            for cell in (cell for cell in nbformat.read(file, 4).cells if cell.cell_type == "code"):
                shell.run_cell(cell.source).raise_error()
                if "parameters" in cell.metadata.get("tags", ()):
                    shell.push({"run_folder": str(run), "data_root": str(mnist.root.parent)})
        texts[file.stem], variables[file.stem] = captured.stdout, dict(shell.user_ns)
    return run, texts, variables


def test_rank_1_has_a_sixteenth_of_the_parameters(solved):
    (_, sixteen), (_, one) = re.findall(r"rank +(\d+): +(\d+) parameters", solved[1]["01_adapt_sd"])
    assert int(sixteen) == 16 * int(one) > 0
    assert (solved[0].parent / f"{solved[0].name}_rank1" / "adapt" / "manifest.json").exists()


def test_rank_1_is_compared_with_the_first_adapters(solved):
    far = solved[2]["01_adapt_sd"]["far"]
    assert far["base model"] > 0 and far["rank 1"] > 0


def test_losses_are_given_at_five_times_before_and_after(solved):
    lines = re.findall(r"t = +(\d+): (\S+) before, (\S+) after", solved[1]["01_adapt_sd"])
    assert [int(t) for t, _, _ in lines] == [50, 250, 500, 750, 950]
    there = solved[2]["01_adapt_sd"]["losses"]
    assert all(0 < there["before", t] < 3 and there["before", t] != there["after", t] for t in (50, 250, 500, 750, 950))


def test_the_nearest_pair_is_as_near_as_it_says(solved):
    there = solved[2]["02_generate"]
    a, b = (np.asarray(centre_square(read_image(there[name]), 32), dtype=float) for name in ("image", "shot"))
    assert there["distance"] == pytest.approx(np.abs(a - b).mean())
    assert len(there["best"]) == 10 and there["distance"] == min(there["best"])[0]


def test_more_guidance_is_tried_on_a_classifier(solved):
    liked = solved[2]["02_generate"]["liked"]
    assert list(liked) == [2.0, 8.0] and all(0 <= share <= 1 for share in liked.values())
    kept = solved[0].parent / f"{solved[0].name}_guided-few" / "generate"
    assert json.loads((kept / "parameters.json").read_text())["parameters"]["guidance_scale"] == 8.0


def test_two_weights_are_tried(solved):
    weighed = solved[2]["03_train_clip"]["weighed"]
    assert list(weighed) == [(2, 0.5), (2, 0.8)] and all(0 <= share <= 1 for share in weighed.values())


def test_another_seed_is_a_run_of_its_own(solved):
    other = solved[0].parent / "solutions" / "mnist5k_datadream_cls_2shot_seed1" / "train-R+S" / "metrics.json"
    moved = json.loads(other.read_text())["accuracy"] - solved[2]["04_analysis"]["first"]["accuracy"]
    assert f"{moved:+.1f} points" in solved[1]["04_analysis"]


def test_fewer_shots_are_compared(solved):
    table = solved[2]["05_your_own_images"]["table"]
    assert len(list((solved[0].parent / "solutions").glob("*_1shot_seed0/train-*/manifest.json"))) == 2
    assert list(table) == ["1 shots", "2 shots", "moved by"]
    assert list(table.index) == ["shots and generated", "shots alone"]
    stored = json.loads((solved[0] / "train-R+S" / "metrics.json").read_text())["accuracy"]
    assert table.loc["shots and generated", "2 shots"] == stored


def test_accuracies_from_predictions_are_those_of_the_metrics(solved):
    stored = json.loads((solved[0] / "train-R+S" / "metrics.json").read_text())["per_class"]
    printed = dict(re.findall(r"^ *(\w+): +([\d.]+) %$", solved[1]["03_train_clip"], re.MULTILINE))
    assert {name: float(value) for name, value in printed.items()} == pytest.approx(stored, abs=0.051)
    assert json.loads((solved[0] / "train-S" / "metrics.json").read_text())["n_test"] == 3500


def test_the_unpaired_interval_has_the_variance_of_two_samples(solved):
    tables = [pd.read_parquet(solved[0] / name / "predictions.parquet") for name in ("train-R+S", "train-S")]
    low, high = solved[2]["04_analysis"]["unpaired"]
    means = [table["correct"].mean() for table in tables]
    assert (low + high) / 2 == pytest.approx(100 * (means[0] - means[1]))
    half = 196 * np.sqrt(sum(table["correct"].astype(float).var(ddof=0) / 3500 for table in tables))
    assert (high - low) / 2 == pytest.approx(half)


def test_the_least_sure_pictures_come_first(solved):
    doubts = [probability for probability, *_ in solved[2]["05_your_own_images"]["worst"]]
    assert doubts == sorted(doubts) and len(doubts) == 8 and 0 <= doubts[0] <= doubts[-1] <= 1
    assert len(solved[2]["05_your_own_images"]["doubts"]) == 20


def test_more_bins_find_more_or_equal_error_where_they_nest_and_more_seeds_narrow_the_interval(solved):
    there = solved[2]["06_beyond_the_paper"]
    assert there["binned"][5] <= there["binned"][15] + 1e-9  # each of 5 bins is three of 15
    assert list(there["reach"]) == [3, 5, 10]
    assert there["reach"][5] == pytest.approx(2.776445 / 5**0.5) and there["reach"][10] < there["reach"][3] / 3
