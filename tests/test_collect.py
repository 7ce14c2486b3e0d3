"""Collected results: what was copied, and the note of how the runs were made."""

import json

import pytest
from conftest import write_stage

from datadream_utils.errors import InputError
from workflow.scripts.collect import collect


def _write_run(root, run, minutes, **facts):
    noted = dict(git="abc", finished="2026-01-02T00:00:00Z", processor_seconds=1800.0, resumed=False, device="cpu",
                 versions={"torch": "2"})  # fmt: skip
    write_stage(root, run, "adapt", noted | facts)
    notebook = {"metadata": {"papermill": {"duration": 60.0 * minutes}}}
    (root / run / "01_adapt_sd.ipynb").write_text(json.dumps(notebook), encoding="utf-8")


def test_results_are_copied_with_a_note_of_their_making(tmp_path):
    root, folder = tmp_path / "outputs", tmp_path / "kept"
    _write_run(root, "one", 30)
    _write_run(root, "two", 60, git="def", finished="2026-01-01T00:00:00Z", resumed=True)
    (root / "figures").mkdir()
    (root / "figures" / "main_results.csv").write_text("x\n", encoding="utf-8")
    collect(root, folder)
    (folder / "old.png").write_bytes(b"")  # of an earlier collection
    collect(root, folder)
    assert {path.name for path in folder.iterdir()} == {"main_results.csv", "made.json"}
    made = json.loads((folder / "made.json").read_text(encoding="utf-8"))
    assert made["code"] == ["abc", "def"] and made["stages"] == 2 and made["resumed_stages"] == 1
    assert made["processor_hours"] == 1.0 and made["notebook_hours"] == 1.5
    assert made["first_stage"] == "2026-01-01T00:00:00Z" and made["versions"] == ["torch 2"]


@pytest.mark.parametrize("own", ["photo.png", "main_results.csv/mine.md", "thesis.docx"])
def test_a_folder_of_other_files_loses_none(tmp_path, own):
    """The folder may have been named by mistake: a home folder, or one that somebody writes in."""
    root, folder = tmp_path / "outputs", tmp_path / "mine"
    _write_run(root, "one", 30)
    (root / "figures").mkdir()
    (root / "figures" / "main_results.csv").write_text("x\n", encoding="utf-8")
    (folder / own).parent.mkdir(parents=True)
    (folder / own).write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="mine holds something else than collected results: name a new or empty"):
        collect(root, folder)
    assert (folder / own).read_text(encoding="utf-8") == "mine" and len(list(folder.iterdir())) == 1


def test_nothing_is_removed_where_there_is_nothing_to_copy(tmp_path):
    root, folder = tmp_path / "outputs", tmp_path / "kept"
    folder.mkdir()
    (folder / "old.png").write_bytes(b"")
    with pytest.raises(InputError, match="no finished stage"):
        collect(root, folder)
    _write_run(root, "one", 30)
    with pytest.raises(InputError, match=r"run 04_analysis first"):
        collect(root, folder)
    assert (folder / "old.png").exists()


def test_what_an_editor_left_among_the_figures_is_passed_over(tmp_path):
    root, folder = tmp_path / "outputs", tmp_path / "kept"
    _write_run(root, "one", 30)
    for place in (root / "figures", folder):
        (place / ".ipynb_checkpoints").mkdir(parents=True)
        (place / "main_results.csv").write_text("x\n", encoding="utf-8")
    collect(root, folder)
    assert {path.name for path in folder.iterdir()} == {"main_results.csv", "made.json"}
