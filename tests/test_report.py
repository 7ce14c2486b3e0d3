"""The overview page: what is finished, what failed, and names that try to be markup."""

import json
import re
from html.parser import HTMLParser

import yaml
from PIL import Image

from datadream_utils.runs.locks import lock, release
from workflow.scripts.report import write_report
from workflow.scripts.study import read_study


class Page(HTMLParser):
    """Every tag, and the text between them."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data


def _counts(page):
    """The page's numbers of stages: in all, finished, running, failed, waiting."""
    (line,) = re.findall(r"\d+ of \d+ stages are finished.*?begun", page.text, re.S)
    finished, stages, running, failed, waiting = map(int, re.findall(r"\d+", line))
    return stages, finished, running, failed, waiting


def _study(folder, folder_dataset):
    values = {"output_root": str(folder / "outputs"), "figures_dir": str(folder / "figures")}
    (folder / "out.yaml").write_text(yaml.safe_dump(values))
    study = {
        "parameters": ["params/smoke.yaml", str(folder / "out.yaml")],
        "datasets": [str(folder_dataset)],
        "methods": ["real", "fakeit"],
        "n_shots": [2],
        "seeds": [0],
        "settings": ["R", "R+S"],
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return read_study(folder / "study.yaml")


def test_the_page_lists_finished_failed_and_waiting_stages(tmp_path, folder_dataset):
    study = _study(tmp_path, folder_dataset)
    real, fakeit = (tmp_path / "outputs" / name for name in study.runs())
    for folder, seconds in ((real / "train-R", 7200), (fakeit / "generate", 3600)):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"seconds": seconds, "peak_memory_mb": 1500}))
    (real / "train-R" / "metrics.json").write_text(json.dumps({"accuracy": 71.25}))
    hostile = fakeit / "generate" / "images" / "0000_<script>alert(1)<&"
    hostile.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(hostile / "00000.png")
    (fakeit / "03_train_clip-R+S.log").write_text("first\n\x1b[31mInputError: <img src=x onerror=alert(1)>\x1b[0m\n")
    written = write_report(study)
    assert written == tmp_path / "outputs" / "report.html"
    page = Page(written.read_text())
    assert _counts(page) == (3, 2, 0, 1, 0)
    assert "3.00 hours" in page.text and "71.2 %" in page.text and "1.5 GB" in page.text
    assert "InputError: <img src=x onerror=alert(1)>" in page.text and "\x1b" not in page.text
    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "iframe", "link"})
    (picture,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert picture["alt"] == "0000_<script>alert(1)<&" and set(picture) == {"src", "alt", "title"}
    assert "<" not in picture["src"] and ":" not in picture["src"]
    for address in (attrs["href"] for tag, attrs in page.tags if tag == "a"):
        assert (written.parent / address.replace("%2B", "+")).exists(), address


def test_a_running_stage_differs_from_a_stopped_one(tmp_path, folder_dataset):
    study = _study(tmp_path, folder_dataset)
    real, fakeit = (tmp_path / "outputs" / name for name in study.runs())
    real.mkdir(parents=True)
    (real / "03_train_clip-R.log").write_text("Executing\n")
    for folder, part in ((real / "train-R", ""), (fakeit / "generate", "1-of-2")):
        locks = lock(folder, part)
        assert _counts(Page(write_report(study).read_text()))[2] == 1
        release(locks)
    assert _counts(Page(write_report(study).read_text())) == (3, 0, 0, 1, 2)


def test_the_page_of_a_study_that_has_not_begun(tmp_path, folder_dataset):
    page = Page(write_report(_study(tmp_path, folder_dataset)).read_text())
    assert _counts(page) == (3, 0, 0, 0, 3)
