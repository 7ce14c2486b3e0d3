"""The cell of docs/start/colab.md, with git and pip recorded instead of run."""

import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from datadream_utils.params import ROOT

(CELL,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "start" / "colab.md").read_text(encoding="utf-8"), re.S)


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """The commands that the cell runs in an empty folder; a clone there has the file of the pins."""
    seen = []

    def run(command, check):
        assert check
        seen.append((Path.cwd(), command))
        if command[0] == "git":
            Path(command[-1]).mkdir()
            Path(command[-1], "constraints.txt").touch()

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_the_cell_clones_once_installs_and_is_ready(calls, tmp_path, capsys):
    exec(CELL, {})
    (where, clone), (there, install) = calls
    assert where == tmp_path and clone[:2] == ["git", "clone"] and clone[-1] == "datadream"
    assert there == tmp_path / "datadream" and install[1:4] == ["-m", "pip", "install"] and install[-1] == "."
    assert install[install.index("-c") + 1] == "constraints.txt" and sys.path[0] == str(there)
    assert "Ready" in capsys.readouterr().out
    exec(CELL, {})  # once more, in the project's folder
    assert [command[0] == "git" for _, command in calls] == [True, False, False]


def test_after_a_restart_it_finds_the_clone(calls, tmp_path, monkeypatch):
    exec(CELL, {})
    monkeypatch.chdir(tmp_path)
    exec(CELL, {})
    assert [command[0] == "git" for _, command in calls] == [True, False, False]
    assert Path.cwd() == tmp_path / "datadream"


def test_a_replaced_library_that_was_loaded_asks_for_a_restart(calls, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__="1.0+cu126"))
    exec(CELL, {})
    said = capsys.readouterr().out
    assert "torch was replaced" in said and "restart" in said and "Ready" not in said
