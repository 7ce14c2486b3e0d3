"""Making a run again and comparing: what is told apart, what is reported, and one run really made again."""

import json
import shutil
import subprocess
import sys

import pytest
from conftest import finish_stage

from datadream_utils.params import NOTEBOOKS, ROOT
from datadream_utils.runs.stage import Stage
from workflow.scripts import verify


def _finish(folder, files):
    """A finished stage with these files."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    finish_stage(folder, device="cpu", seconds=1.0)


@pytest.fixture
def outputs(tmp_path):
    """Two runs of two stages, stand-ins for real ones."""
    for run in ("run_a", "run_b"):
        _finish(tmp_path / "outputs" / run / "adapt", {"adapters/x/w": "weights", "losses/x.csv": "1"})
        _finish(tmp_path / "outputs" / run / "train-S", {"metrics.json": json.dumps({"accuracy": 70.0}), "p": "1"})
    return tmp_path / "outputs"


def _again(monkeypatch, device="", **changes):
    """Stand in for the notebooks: copies, with the ``changes`` of some files' contents, made on ``device``."""

    def make_again(stage, output_root):
        folder = output_root / "again" / stage.name
        shutil.copytree(stage.folder, folder)
        for name, text in changes.items():
            path = next(folder.rglob(f"{name}*"), None)
            if path:
                path.write_text(text)
        if device:
            manifest = json.loads((folder / "manifest.json").read_text()) | {"device": device}
            (folder / "manifest.json").write_text(json.dumps(manifest))
        return Stage(stage.name, folder)

    monkeypatch.setattr(verify, "make_again", make_again)


def _run(capsys, *arguments):
    with pytest.raises(SystemExit) as end:
        verify.main([str(argument) for argument in arguments])
    return end.value.code, capsys.readouterr().out


def test_the_same_bytes_end_well(outputs, monkeypatch, capsys):
    _again(monkeypatch)
    code, out = _run(capsys, outputs, "--run", "run_b")
    assert code == 0 and out.count("intact") == 4 and out.count("the same") == 2 and "run_b, made again" in out


def test_a_seed_draws_the_run(outputs, monkeypatch, capsys):
    _again(monkeypatch)
    drawn = [_run(capsys, outputs, "--seed", seed)[1].split(", made again")[0][-5:] for seed in (0, 0, 1, 2, 3, 4)]
    assert drawn[0] == drawn[1] and set(drawn) == {"run_a", "run_b"}


def test_another_byte_is_a_difference(outputs, monkeypatch, capsys):
    _again(monkeypatch, w="weightt")
    code, out = _run(capsys, outputs, "--run", "run_a")
    assert code == 1 and "DIFFERENT: adapters/x/w" in out and out.count("the same") == 1


def test_a_missing_file_is_a_difference(outputs, monkeypatch, capsys):
    (outputs / "run_a" / "adapt" / "more").write_text("not noted when the stage finished")
    _again(monkeypatch)
    make = verify.make_again
    monkeypatch.setattr(verify, "make_again", lambda *a: [make(*a), *map(_remove_more, a[1].rglob("more"))][0])
    code, out = _run(capsys, outputs, "--run", "run_a")
    assert code == 1 and "DIFFERENT: more" in out


def _remove_more(path):
    path.unlink()


@pytest.mark.parametrize("accuracy, code", [(71.5, 0), (73.0, 1)])
def test_on_another_device_only_the_accuracy_is_judged(outputs, monkeypatch, capsys, accuracy, code):
    _again(monkeypatch, device="another", w="x", metrics=json.dumps({"accuracy": accuracy}))
    found, out = _run(capsys, outputs, "--run", "run_a")
    assert found == code and f"accuracies differ by {accuracy - 70:.2f} points (tolerance 2)" in out
    assert "bytes not compared" in out and "1 files differ" in out


def test_damage_of_any_run_is_reported_and_fails(outputs, monkeypatch, capsys):
    (outputs / "run_b" / "adapt" / "losses" / "x.csv").unlink()
    _again(monkeypatch)
    code, out = _run(capsys, outputs, "--run", "run_a")
    assert code == 1 and "changed or missing: losses/x.csv" in out


def test_mistakes_end_in_a_sentence(outputs, tmp_path, capsys):
    assert "holds no finished run" in _run(capsys, tmp_path / "empty")[0]
    assert "Did you mean 'run_" in _run(capsys, outputs, "--run", "run_ab")[0]


@pytest.mark.slow
def test_a_real_run_is_made_again_to_the_same_bytes_and_a_flipped_adapter_is_found(tmp_path):
    outputs = tmp_path / "outputs"
    for notebook in list(NOTEBOOKS.values())[:3]:
        command = ["papermill", "-k", "python3", f"notebooks/{notebook}.ipynb", tmp_path / f"{notebook}.ipynb"]
        options = ["-f", "params/smoke.yaml", "-p", "output_root", outputs]
        subprocess.run([sys.executable, "-m", *command, *options], check=True, cwd=ROOT, capture_output=True)
    command = [sys.executable, "-m", "workflow.scripts.verify", outputs]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count("the same") == 3, done.stdout + done.stderr
    (folder,) = outputs.glob("*/train-R+S")
    content = (folder / "predictions.parquet").read_bytes()
    (folder / "predictions.parquet").write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "DIFFERENT: predictions.parquet" in done.stdout
