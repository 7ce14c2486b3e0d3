"""The real JupyterLab: every notebook from the Run menu to its end, and one of its controls moved."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import papermill.iorw
import papermill.parameterize
import pytest

from datadream_utils.params import NOTEBOOKS, ROOT, STAGES, read_params_file

from .conftest import SCREENSHOTS, violations

MINUTES = 15  # at most for one notebook: an idle machine takes one
# JupyterLab shows pictures without the words in their metadata; ipywidgets gives a slider's handle no name
UPSTREAM = ("image-alt", "aria-input-field-name")
NOTEBOOK = "jupyterapp.shell.currentWidget.content"


def _write_notebook(stage, folder):
    """The stage's notebook as papermill would run it with params/smoke.yaml, its output under ``folder``."""
    values = read_params_file("params/smoke.yaml") | {
        "output_root": str(folder / "outputs"),
        "figures_dir": str(folder / "figures"),
    }
    known = STAGES[stage].model_fields
    notebook = papermill.iorw.load_notebook_node(str(ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb"))
    values = {name: value for name, value in values.items() if name in known}
    notebook = papermill.parameterize.parameterize_notebook(notebook, values)
    del notebook.metadata["papermill"]
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
    nbformat.write(notebook, folder / f"{NOTEBOOKS[stage]}.ipynb")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab in a folder with the four notebooks at smoke parameters."""
    folder = tmp_path_factory.mktemp("lab")
    for stage in STAGES:
        _write_notebook(stage, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    options = [f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder}", "--IdentityProvider.token="]
    options += ["--no-browser", "--allow-root", "--expose-app-in-browser", "--LabApp.news_url="]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--ServerApp.port_retries=0"]
    environment = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"), "OMP_NUM_THREADS": "1"}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces")}
    with open(SCREENSHOTS / "jupyterlab.log", "w") as log:
        command = [sys.executable, "-m", "jupyterlab", *options]
        server = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield _ready(f"http://127.0.0.1:{port}", server)
    finally:
        server.terminate()
        server.wait(30)


def _ready(address, server):
    for _ in range(240):
        if server.poll() is not None:
            raise RuntimeError(f"JupyterLab ended at once: {SCREENSHOTS / 'jupyterlab.log'}")
        try:
            json.load(urllib.request.urlopen(f"{address}/api/status", timeout=5))
            return address
        except OSError:
            time.sleep(0.5)
    raise RuntimeError(f"JupyterLab does not answer: {SCREENSHOTS / 'jupyterlab.log'}")


def _outputs(page):
    """``[(execution count, outputs), ...]`` of the open notebook's code cells, from Lab's own model of it."""
    cells = page.evaluate(f"{NOTEBOOK}.model.toJSON().cells")
    return [(cell["execution_count"], cell["outputs"]) for cell in cells if cell["cell_type"] == "code"]


def _run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()
    busy = "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status !== 'idle'"
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        page.wait_for_timeout(1000)
        cells = _outputs(page)
        errors = [o for _, outputs in cells for o in outputs if o["output_type"] == "error"]
        assert not errors, "\n".join(f"{o['ename']}: {o['evalue']}" for o in errors)
        if all(count for count, _ in cells) and not page.evaluate(busy):
            return cells
    raise AssertionError(f"not finished after {MINUTES} minutes: {[count for count, _ in cells]}")


def _move_a_control(page):
    """Move the first slider, or choose the next entry of the first list, by keyboard; the picture below must change."""
    cell = page.locator(".jp-CodeCell", has=page.locator(".noUi-handle, .widget-dropdown select")).first
    cell.scroll_into_view_if_needed()
    control = cell.locator(".noUi-handle, .widget-dropdown select").first
    picture = cell.locator(".jp-OutputArea img").first
    before = picture.get_attribute("src")
    for key in (
        ("ArrowRight", "ArrowLeft") if control.evaluate("e => e.tagName") != "SELECT" else ("ArrowDown", "ArrowUp")
    ):
        control.press(key)  # a control that stands at its end moves the other way
        page.wait_for_timeout(3000)
        if picture.get_attribute("src") != before:
            return
    raise AssertionError("the picture under the control did not change")


@pytest.mark.parametrize("stage", STAGES)
def test_a_notebook_runs_from_the_menu_to_its_end(stage, lab, watch):
    watched = watch(height=1400)
    page, name = watched.page, NOTEBOOKS[stage]
    page.goto(f"{lab}/lab/workspaces/{name}/tree/{name}.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    page.wait_for_function("jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")
    cells = _run_all(page)
    assert any("image/png" in o.get("data", {}) for _, outputs in cells for o in outputs)
    _move_a_control(page)
    watched.screenshot(f"lab-{name}")
    assert not watched.errors and not watched.outside, (watched.errors, watched.outside)
    found = violations(page, within=".jp-OutputArea")
    assert not [violation for violation in found if not violation.startswith(UPSTREAM)], found
