"""Errors and interruptions as a reader meets them: in a real kernel, and with papermill stopped from outside."""

import signal
import subprocess
import sys
import time

import nbclient
import nbformat
import pytest
from jupyter_client.manager import start_new_kernel

from datadream_utils.params import ROOT

CELLS = """
from datadream_utils.errors import InputError
from datadream_utils.notebook import progress, quiet_libraries
quiet_libraries()
---
raise InputError("photo.jpg cannot be read: replace it.")
---
import time
for _ in progress((time.sleep(0.01) for _ in range(1200)), total=1200, label="steps"):
    pass
---
1 / 0
---
6 * 7
"""


def _run_cell(client, source, after_start=None):
    """The cell's outputs and how it ended; ``after_start()`` is called once it shows something."""
    client.execute(source)
    outputs = []
    while (message := client.get_iopub_msg(timeout=120))["content"].get("execution_state") != "idle":
        if message["msg_type"] in ("error", "stream", "execute_result", "display_data"):
            outputs.append(message["content"])
            if after_start:
                time.sleep(0.5)
                after_start()
                after_start = None
    return outputs, client.get_shell_msg(timeout=120)["content"]["status"]


def test_a_mistake_and_an_interrupt_are_one_sentence_each_and_the_kernel_goes_on():
    manager, client = start_new_kernel(kernel_name="python3", cwd=ROOT, startup_timeout=120)
    setup, mistake, long, bug, simple = CELLS.split("---")
    try:
        assert _run_cell(client, setup) == ([], "ok")
        (error,), status = _run_cell(client, mistake)
        assert status == "error" and error["ename"] == "InputError"
        assert len(error["traceback"]) == 3 and "InputError: photo.jpg cannot be read: replace it." in error["traceback"][1]
        (_, error), status = _run_cell(client, long, after_start=manager.interrupt_kernel)
        assert status == "error" and error["ename"] == "KeyboardInterrupt" and len(error["traceback"]) == 3
        assert "Interrupted at step " in error["traceback"][1] and " of 1200. What is finished" in error["traceback"][1]
        (error,), _ = _run_cell(client, bug)
        assert error["ename"] == "ZeroDivisionError" and "----> 1" in "\n".join(error["traceback"])  # bugs in full
        (result,), status = _run_cell(client, simple)
        assert status == "ok" and result["data"]["text/plain"] == "42"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def test_an_executed_notebook_records_the_error():
    cells = [nbformat.v4.new_code_cell(source) for source in CELLS.split("---")[:2]]
    notebook = nbformat.v4.new_notebook(cells=cells)
    with pytest.raises(nbclient.exceptions.CellExecutionError, match="photo.jpg cannot be read: replace it"):
        nbclient.NotebookClient(notebook, kernel_name="python3", startup_timeout=120).execute(cwd=str(ROOT))
    (output,) = cells[1].outputs
    assert output.output_type == "error" and output.evalue == "photo.jpg cannot be read: replace it."


@pytest.mark.slow
def test_sigint_to_papermill_leaves_a_state_that_goes_on_to_the_same_bytes(tmp_path):
    def command(root):
        source, executed = "notebooks/01_adapt_sd.ipynb", tmp_path / f"{root.name}.ipynb"
        values = {"output_root": root, "adapters_together": 1, "adapt_epochs": 40}
        options = [x for name, value in values.items() for x in ("-p", name, str(value))]
        return [sys.executable, "-m", "papermill", "-k", "python3", source, executed, "-f", "params/smoke.yaml", *options]

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
