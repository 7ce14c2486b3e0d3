"""Errors and interruptions as a reader meets them: in a real kernel, and with papermill stopped from outside."""

import json
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from jupyter_client.manager import start_new_kernel
from papermill.exceptions import strip_color

from datadream_utils.params import ROOT
from datadream_utils.runs import progress

CELLS = """
from datadream_utils.errors import InputError
from datadream_utils.runs.progress import calm_interruptions, quiet_libraries, show_progress
quiet_libraries()
calm_interruptions()
---
raise InputError("photo.jpg cannot be read: replace it, or take its name out of the list, where it stands under heron.")
---
import time
with show_progress(1200, "steps") as advance:
    for _ in range(1200):
        time.sleep(0.01)
        advance()
---
print("loading a model")
time.sleep(60)
---
1 / 0
---
6 * 7
"""


def _run_cell(client, source, when_shown=None):
    """The cell's outputs and how it ended; ``when_shown()`` is called once, when it shows something."""
    outputs = []

    def hook(message):
        if message["msg_type"] in ("error", "stream", "execute_result", "display_data"):
            outputs.append(message["content"])
            if when_shown and len(outputs) == 1:
                time.sleep(0.5)
                when_shown()

    reply = client.execute_interactive(source, output_hook=hook, timeout=240)
    return outputs, reply["content"]["status"]


def test_a_mistake_and_an_interrupt_are_one_sentence_each_and_the_kernel_goes_on():
    manager, client = start_new_kernel(kernel_name="python3", cwd=ROOT, startup_timeout=120)
    setup, mistake, long, loading, bug, simple = CELLS.split("---")
    try:
        assert _run_cell(client, setup) == ([], "ok")
        (error,), status = _run_cell(client, mistake)
        assert status == "error" and error["ename"] == "InputError"
        top, text, _ = map(strip_color, error["traceback"])
        first, second = text.splitlines()  # broken between words, within the box
        assert len(first) <= len(top) and first.startswith("│ InputError: photo.jpg cannot be read: replace it, or ")
        assert " ".join([first, second[2:]]).endswith("name out of the list, where it stands under heron.")
        (_, error), status = _run_cell(client, long, when_shown=manager.interrupt_kernel)
        assert status == "error" and error["ename"] == "Interrupted" and len(error["traceback"]) == 3
        assert error["traceback"][1].count("\n") == 1 and "Interrupted at step " in error["traceback"][1]
        assert " of 1200. What is finished" in error["traceback"][1]
        (_, error), status = _run_cell(client, loading, when_shown=manager.interrupt_kernel)
        assert status == "error" and error["ename"] == "Interrupted" and len(error["traceback"]) == 3
        assert "Interrupted. What is finished is kept: run this cell again" in error["traceback"][1]
        (error,), _ = _run_cell(client, bug)
        assert error["ename"] == "ZeroDivisionError" and len("\n".join(error["traceback"])) > 300  # bugs in full
        (result,), status = _run_cell(client, simple)
        assert status == "ok" and result["data"]["text/plain"] == "42"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@pytest.mark.slow
def test_sigint_to_papermill_leaves_a_state_that_goes_on_to_the_same_bytes(tmp_path):
    def command(root):
        notebooks = ["notebooks/01_adapt_sd.ipynb", tmp_path / f"{root.name}.ipynb"]
        values = {"output_root": root, "adapters_together": 1, "adapt_epochs": 40}
        options = [x for name, value in values.items() for x in ("-p", name, str(value))]
        return [sys.executable, "-m", "papermill", "-k", "python3", *notebooks, "-f", "params/smoke.yaml", *options]

    disturbed, undisturbed = tmp_path / "disturbed", tmp_path / "undisturbed"
    with subprocess.Popen(command(disturbed), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not list(disturbed.glob("*/adapt/adapters/*")):
            assert process.poll() is None
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=120)
        assert process.returncode != 0
    assert not list(disturbed.glob("*/adapt/manifest.json")) and list(disturbed.glob("*/adapt/adapters/*"))
    for root in (disturbed, undisturbed):
        subprocess.run(command(root), cwd=ROOT, check=True, capture_output=True)
    (one,), (other,) = (list(root.glob("*/adapt")) for root in (disturbed, undisturbed))
    assert (one / "checksums.txt").read_text() == (other / "checksums.txt").read_text()


def test_a_requeued_job_goes_on_from_its_checkpoint_to_the_same_bytes(tmp_path):
    """As Slurm takes a node away: SIGTERM to the job, and later the same command again."""

    def command(root):
        values = {"output_root": root, "adapt_epochs": 30, "checkpoint_every": 1}
        options = [x for name, value in values.items() for x in ("-p", name, str(value))]
        return [sys.executable, "-m", "workflow.scripts.launch", "adapt", "-f", "params/smoke.yaml", *options]

    requeued, undisturbed = tmp_path / "requeued", tmp_path / "undisturbed"
    with subprocess.Popen(command(requeued), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        while not list(requeued.glob("*/adapt/checkpoints/*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        process.communicate(timeout=120)
        assert process.returncode == -signal.SIGTERM
    (stage,) = requeued.glob("*/adapt")
    assert not (stage / "manifest.json").exists() and not list(stage.glob("adapters/*"))
    for root in (requeued, undisturbed):
        subprocess.run(command(root), cwd=ROOT, check=True, capture_output=True)
    (other,) = undisturbed.glob("*/adapt")
    resumed = [json.loads((one / "manifest.json").read_text(encoding="utf-8"))["resumed"] for one in (stage, other)]
    assert resumed == [True, False]
    assert (stage / "checksums.txt").read_text() == (other / "checksums.txt").read_text()


def test_the_time_left_is_not_taken_from_what_a_checkpoint_brought_back(monkeypatch):
    lines, clock = [], [0.0]
    handle = SimpleNamespace(update=lambda line: lines.append(repr(line)))
    monkeypatch.setattr(progress, "display", lambda *_, **__: handle)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    with progress.show_progress(1000, "steps") as advance:
        for _ in range(500):  # of an earlier process, at once
            advance()
        for _ in range(100):
            clock[0] += 2.0
            advance()
    assert "s left" not in lines[0] + lines[1] and "501/1000" in lines[1]
    assert "502/1000  4.0 s, 996 s left" in lines[2] and "600/1000  200.0 s, 800 s left" in lines[-2]
    assert lines[-1].endswith("600/1000  200.0 s")
