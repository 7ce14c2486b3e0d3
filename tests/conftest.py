"""Shared pieces: the notebooks' own defaults as parameters, the shipped tiny models, small data sets."""

import ast

import nbformat
import numpy as np
import papermill
import pytest
import torch
from PIL import Image

from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from datadream_utils.data.dataset import load_dataset
from datadream_utils.params import NOTEBOOKS, ROOT, STAGES, read_params_file

torch.set_num_threads(1)


def notebook_defaults(stage):
    """The values in the parameters cell of a stage's notebook."""
    notebook = nbformat.read(ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb", 4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    return {node.target.id: ast.literal_eval(node.value) for node in ast.parse(cell.source).body}


@pytest.fixture
def make_params(tmp_path):
    """``make_params("adapt", n_shot=2)``: the notebook's defaults with changes, kept under a temporary folder."""

    def make(stage, **changes):
        defaults = notebook_defaults(stage) | {"output_root": str(tmp_path / "outputs")}
        return STAGES[stage].make(**(defaults | changes))

    return make


@pytest.fixture(scope="session")
def pipe():
    return load_stable_diffusion("models/tiny-stable-diffusion")


@pytest.fixture(scope="session")
def clip():
    return load_clip("models/tiny-clip")


@pytest.fixture(scope="session")
def mnist(tmp_path_factory):
    return load_dataset("mnist5k", str(tmp_path_factory.mktemp("data")))


@pytest.fixture
def folder_dataset(tmp_path):
    """A user's own folder: two classes, three training and two test pictures each, of odd sizes."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 3, "test": 2}.items():
        for name in ("apple_pie", "crème brûlée"):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "mine" / split / name / f"{i}.png")
    return tmp_path / "mine"


def same_progress(iterable, total=None, label=""):
    """A silent progress, for tests that call stages directly."""
    return iterable


def run_notebook(stage, folder, **changes):
    """Execute a stage's notebook with params/smoke.yaml and ``changes``, everything kept under ``folder``."""
    parameters = read_params_file(ROOT / "params" / "smoke.yaml") | changes
    parameters |= {"output_root": str(folder / "outputs"), "figures_dir": str(folder / "figures")}
    known = {name: value for name, value in parameters.items() if name in STAGES[stage].model_fields}
    output = folder / f"{stage}-{len(list(folder.glob('*.ipynb')))}.ipynb"
    source = ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb"
    papermill.execute_notebook(str(source), str(output), known, kernel_name="python3", progress_bar=False, cwd=ROOT)
    return nbformat.read(output, 4)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """All four notebooks at smoke parameters: ``(folder, {stage: executed notebook})``. Read only."""
    folder = tmp_path_factory.mktemp("smoke")
    return folder, {stage: run_notebook(stage, folder) for stage in STAGES}
