"""The real JupyterLab: every notebook from the Run menu to its end, and its controls moved."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import papermill
import papermill.iorw
import papermill.parameterize
import pytest
from PIL import Image, ImageDraw
from playwright.sync_api import expect

from datadream_utils.params import ROOT, read_params_file

from .conftest import SCREENSHOTS, violations

MINUTES = 15  # at most for one notebook: an idle machine takes one or two
OWN = "05_your_own_images"
CONTROLS = {
    "01_adapt_sd": ("Timestep t", "Denoising step", "Layer"),
    "02_generate": ("Guidance scale w", "Adapter scale", "Class"),
    "03_train_clip": ("True class", "Predicted class"),
    "04_analysis": ("Class",),
    OWN: (),
    "06_beyond_the_paper": (),
}
BOXES = ("03_train_clip", OWN)  # with a prediction box
NOTEBOOK = "jupyterapp.shell.currentWidget.content"
# Not ours: ipywidgets 8 gives a slider's handle no name (it does not pass on noUiSlider's handleAttributes), and
# JupyterLab makes wide outputs scroll sideways without a tab stop
UPSTREAM = (("aria-input-field-name", "aria-valuemax"), ("scrollable-region-focusable", "jp-OutputArea-output"))
SLOW = 120_000  # milliseconds for one answer of a busy machine


def _shapes(folder):
    """A folder as a user may have it: three classes of six pictures each, of odd sizes."""
    for i in range(18):
        name, size = ("disc", "square", "triangle")[i % 3], (40 + i, 50)
        picture = Image.new("RGB", size, (20, 20, 60))
        box = [8 + i // 3, 10, 32 + i // 3, 34]
        draw = ImageDraw.Draw(picture)
        {
            "disc": lambda: draw.ellipse(box, "white"),  # noqa: B023
            "square": lambda: draw.rectangle(box, "white"),  # noqa: B023
            "triangle": lambda: draw.regular_polygon((20 + i // 3, 25, 14), 3, fill="white"),  # noqa: B023
        }[name]()
        (folder / name).mkdir(parents=True, exist_ok=True)
        picture.save(folder / name / f"{i}.jpg")
    return folder


def _write_notebook(name, folder):
    """The notebook as papermill would run it with params/smoke.yaml, its output under ``folder``."""
    values = read_params_file("params/smoke.yaml")
    values |= {"output_root": str(folder / "outputs"), "figures_dir": str(folder / "figures")}
    if name == OWN:
        values |= {"dataset": str(_shapes(folder / "shapes")), "params_file": "params/smoke.yaml"}
    source = str(ROOT / "notebooks" / f"{name}.ipynb")
    known = {key: values[key] for key in papermill.inspect_notebook(source) if key in values}
    notebook = papermill.iorw.load_notebook_node(source)
    notebook = papermill.parameterize.parameterize_notebook(notebook, known)
    del notebook.metadata["papermill"]
    for cell in notebook.cells:
        cell.metadata.pop("papermill", None)
    nbformat.write(notebook, folder / "notebooks" / f"{name}.ipynb")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder as this repository, with all notebooks at smoke parameters."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for part in ("docs", "figures", "solutions"):
        shutil.copytree(ROOT / part, folder / part)
    for name in CONTROLS:
        _write_notebook(name, folder)
    return folder


@pytest.fixture(scope="module")
def lab(folder):
    """Address of a JupyterLab in that folder."""
    news = folder / ".settings" / "@jupyterlab" / "apputils-extension" / "notification.jupyterlab-settings"
    news.parent.mkdir(parents=True)
    news.write_text('{"fetchNews": "false"}')  # or it asks
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    options = [f"--ServerApp.port={port}", f"--ServerApp.root_dir={folder}", "--IdentityProvider.token="]
    options += ["--no-browser", "--allow-root", "--expose-app-in-browser", "--LabApp.news_url="]
    options += ["--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate", "--ServerApp.port_retries=0"]
    environment = os.environ | {"JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"), "OMP_NUM_THREADS": "1"}
    environment |= {"JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces")}
    with open(SCREENSHOTS / "jupyterlab.log", "w", encoding="utf-8") as log:
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


def _open(page, lab, name):
    page.set_default_timeout(SLOW)
    page.goto(f"{lab}/lab/workspaces/{name}/tree/notebooks/{name}.ipynb")
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    page.wait_for_function("jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'")


def _press_run_all(page):
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.locator("[data-command='runmenu:run-all']").click()


def _run_all(page):
    """Run > Run All Cells, to the end; returns every output."""
    _press_run_all(page)
    busy = "jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status !== 'idle'"
    end = time.monotonic() + 60 * MINUTES
    while time.monotonic() < end:
        page.wait_for_timeout(1000)
        cells = _outputs(page)
        outputs = [output for _, outputs in cells for output in outputs]
        errors = [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]
        assert not errors, errors
        if all(count for count, _ in cells) and not page.evaluate(busy):
            return outputs
    raise AssertionError(f"not finished after {MINUTES} minutes: {[count for count, _ in cells]}")


def _picture_beside(control):
    """The picture in the output area that a control stands in."""
    return control.locator("xpath=ancestor::*[contains(@class, 'jp-OutputArea')][last()]").locator("img").first


def _changed(page, picture, before):
    """The picture's words, as soon as it is another one than ``before``."""
    for _ in range(SLOW // 100):
        if picture.get_attribute("src") != before:
            return picture.get_attribute("alt")
        page.wait_for_timeout(100)
    raise AssertionError(f"the picture did not change: {picture.get_attribute('alt')}")


def _move(page, label):
    """One step of the labelled slider or row of buttons, by keyboard: the picture's words name the new value."""
    box = page.locator(".widget-label", has_text=re.compile(f"^{label}$")).first.locator("xpath=..")
    box.scroll_into_view_if_needed()
    picture = _picture_beside(box)
    before, old, new = picture.get_attribute("src"), picture.get_attribute("alt"), ""
    if (handle := box.locator(".noUi-handle")).count():
        for key in ("ArrowRight", "ArrowLeft"):
            place = handle.get_attribute("aria-valuenow")
            handle.press(key)  # a slider that stands at its end moves the other way
            page.wait_for_timeout(300)
            if handle.get_attribute("aria-valuenow") != place:
                break
        if (readout := box.locator(".widget-readout")).is_visible():  # of numbers
            new = readout.inner_text()
    else:
        button = box.locator("button:not(.mod-active)").last
        new = button.inner_text()
        button.press("Space")
    words = _changed(page, picture, before)
    assert words != old and new in words, (label, old, new, words)


def _draw_and_upload(page, folder):
    """In the prediction box: a cell of the grid where there is one, by keyboard, and a picture from a file."""
    upload = page.get_by_role("button", name="Upload a picture")
    picture = _picture_beside(upload)
    if (cell := page.get_by_title("row 5, column 5", exact=True)).count():
        before = picture.get_attribute("src")
        cell.press("Space")
        assert "what the classifier sees" in _changed(page, picture, before)
        assert cell.inner_text() == "●"
    before = picture.get_attribute("src")
    Image.new("RGB", (30, 40), "white").save(folder / "white.png")
    with page.expect_file_chooser() as chooser:
        upload.click()
    chooser.value.set_files(folder / "white.png")
    _changed(page, picture, before)
    assert page.get_by_text("white.png, 30 x 40 pixels").is_visible()


def _whole(watched, name):
    """Screenshots of the whole notebook, as high as it is, in the light and the dark theme."""
    page, panel = watched.page, "document.querySelector('.jp-WindowedPanel-outer')"
    for suffix, theme in (("", "Light"), ("-dark", "Dark")):
        page.evaluate(f"jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
        height = page.evaluate(f"{panel}.scrollHeight")
        page.set_viewport_size({"width": 1280, "height": min(16_000, height + 120)})
        page.wait_for_timeout(1500)
        page.evaluate(f"{panel}.scrollTop = 0")
        page.wait_for_timeout(500)
        watched.screenshot(f"lab-{name}{suffix}")


def _violations(page):
    found = violations(page, within=".jp-OutputArea")
    return [one for one in found if not any(rule in one and where in one for rule, where in UPSTREAM)]


def test_links_from_notebook_to_notebook_and_glossary_open_in_lab(lab, watch):
    watched = watch()
    page = watched.page
    page.set_default_timeout(SLOW)
    page.goto(f"{lab}/lab/workspaces/links/tree/notebooks/{OWN}.ipynb")
    for link, file in (
        ("glossary", "docs/learn/glossary.md"),
        ("03", "notebooks/03_train_clip.ipynb"),
        (f"solutions/{OWN}", f"solutions/{OWN}.ipynb"),
    ):
        page.get_by_role("tab", name=f"{OWN}.ipynb").first.click()
        page.locator(".jp-Notebook:visible").get_by_role("link", name=link, exact=True).first.click()
        page.wait_for_function("path => jupyterapp.shell.currentWidget?.context?.path === path", arg=file)
    assert not watched.errors and not watched.outside, (watched.errors, watched.outside)


MISTAKES = {
    "order": ('method = "fakeit"', "run 02_generate first"),
    "parameter": ("n_shot = 0", "n_shot"),
    "data": ('dataset = "/no/such/folder"', "/no/such/folder"),
}


def test_a_known_mistake_shows_one_boxed_sentence(lab, folder, watch):
    notebook = nbformat.read(folder / "notebooks" / "03_train_clip.ipynb", 4)
    (given,) = [i for i, cell in enumerate(notebook.cells) if "injected-parameters" in cell.metadata.get("tags", ())]
    nbformat.write(notebook, folder / "notebooks" / "mistakes.ipynb")
    watched = watch()
    page = watched.page
    _open(page, lab, "mistakes")
    first = f"{NOTEBOOK}.model.toJSON().cells.findIndex(c => c.outputs?.some(o => o.ename))"
    for name, (mistake, words) in MISTAKES.items():
        source = json.dumps(f"{notebook.cells[given].source}\n{mistake}\n")
        page.evaluate(f"{NOTEBOOK}.widgets[{given}].model.sharedModel.setSource({source})")
        page.evaluate("jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
        _press_run_all(page)
        page.wait_for_function(f"{first} >= 0")
        error, *more = [o for _, outputs in _outputs(page) for o in outputs if o["output_type"] == "error"]
        # On a slow machine the kernel can begin the next cells before it drops them: what is not defined, and no more.
        assert {o["ename"] for o in more} <= {"NameError"}
        where = page.evaluate(first)
        page.evaluate(f"{NOTEBOOK}.scrollToItem({where}, 'start')")  # cells out of sight are not drawn
        cell = page.locator(f".jp-Cell[data-windowed-list-index='{where}']")
        shown = cell.locator(".jp-OutputArea [data-mime-type='application/vnd.jupyter.stderr']")
        shown.first.scroll_into_view_if_needed()
        watched.screenshot(f"lab-mistake-{name}")
        assert error["ename"] == "InputError" and words in error["evalue"], error["evalue"]
        expect(shown).to_have_count(1)
        assert len(error["traceback"]) == 3 and "Traceback" not in shown.inner_text()
        assert words in re.sub(r"[\s│]+", " ", shown.inner_text()) and not _violations(page)
    assert not watched.errors and not watched.outside, (watched.errors, watched.outside)


@pytest.mark.parametrize("name", CONTROLS)
def test_a_notebook_runs_from_the_menu_to_its_end(name, lab, watch, tmp_path):
    watched = watch(height=1400)
    page = watched.page
    _open(page, lab, name)
    outputs = _run_all(page)
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o["text"] for o in outputs if o["output_type"] == "stream" and o["name"] == "stderr"]
    for label in CONTROLS[name]:
        _move(page, label)
    if name in BOXES:
        _draw_and_upload(page, tmp_path)
    watched.screenshot(f"lab-{name}-control")
    bright = _violations(page)
    _whole(watched, name)
    assert not bright and not _violations(page)
    assert not watched.errors and not watched.outside, (watched.errors, watched.outside)
