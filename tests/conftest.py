"""Shared pieces: the notebooks' own defaults as parameters, the shipped tiny models, small data sets."""

import asyncio
import json
import sys
from contextlib import contextmanager

import nbformat
import numpy as np
import papermill
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from jupyter_client.manager import AsyncKernelManager
from PIL import Image

from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.shots import few_shot
from datadream_utils.params import NOTEBOOKS, ROOT, STAGES, notebook_defaults, read_params_file
from datadream_utils.runs.checksums import write_checksums
from datadream_utils.runs.progress import no_progress
from datadream_utils.runs.run import Run
from datadream_utils.runs.stage import FORMAT, stage_of

torch.set_num_threads(1)

# The files that take longest, longest first: with several processes none is left alone at the end.
LONGEST = ("test_solutions.py", "test_notebooks.py", "test_paper_scale.py", "test_figures.py", "test_study.py")


def pytest_collection_modifyitems(items):
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.name, len(rank)))  # a stable sort keeps the order within a file


@pytest.fixture
def make_params(tmp_path):
    """``make_params("adapt", n_shot=2)``: the notebook's defaults with changes, kept under a temporary folder."""

    def make(stage, **changes):
        defaults = notebook_defaults(stage) | {"output_root": str(tmp_path / "outputs")}
        return STAGES[stage].make(**(defaults | changes))

    return make


@pytest.fixture
def make_run(make_params, mnist):
    """``make_run("adapt", n_shot=2)``: a ``Run`` of the digits (or ``data``) without progress on the screen.

    ``source``: the stage that it builds on, where a test has one; it is not looked for.
    """

    def make(stage, data=mnist, source=None, shard="", progress=no_progress, **changes):
        params = make_params(stage, **changes)
        shots = few_shot(data, params.n_shot, params.seed, params.shots_file)
        return Run(params, stage_of(params), data, shots, "cpu", source, shard, progress)

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


def finish_stage(folder, **noted):
    """Make a finished stage of the files in ``folder``: their checksums, and a manifest with what is ``noted``."""
    manifest = {"format": FORMAT, "checksums": write_checksums(folder), **noted}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


@contextmanager
def ipython_shell():
    """An IPython shell in this process, without variables; afterwards this process has its own ``__main__`` again."""
    main = sys.modules["__main__"]
    shell = InteractiveShell.instance()
    shell.reset()
    try:
        yield shell
    finally:
        sys.modules["__main__"] = main


@pytest.fixture(scope="session")
def warm_kernel():
    """A kernel for many notebooks, so that libraries are imported once. Each begins with an empty namespace."""
    kernel = AsyncKernelManager(kernel_name="python3")
    yield kernel
    if kernel.has_kernel:
        asyncio.run(kernel.shutdown_kernel(now=True))


def execute_notebook(name, output, values, kernel=None):
    """Execute ``notebooks/<name>.ipynb`` with papermill, in a kernel of its own or in a ``warm_kernel``."""
    notebook = papermill.iorw.load_notebook_node(str(ROOT / "notebooks" / f"{name}.ipynb"))
    if kernel:
        notebook.cells.insert(0, nbformat.v4.new_code_cell("%reset -f in\n%reset -f", metadata={"tags": []}))
    options = dict(kernel_name="python3", progress_bar=False, cwd=ROOT) | ({"km": kernel} if kernel else {})
    papermill.execute_notebook(notebook, str(output), values, **options)
    return nbformat.read(output, 4)


def run_notebook(stage, folder, kernel=None, **changes):
    """Execute a stage's notebook with params/smoke.yaml and ``changes``, everything kept under ``folder``."""
    parameters = read_params_file(ROOT / "params" / "smoke.yaml") | changes
    parameters |= {"output_root": str(folder / "outputs"), "figures_dir": str(folder / "figures")}
    known = {name: value for name, value in parameters.items() if name in STAGES[stage].model_fields}
    output = folder / f"{stage}-{len(list(folder.glob('*.ipynb')))}.ipynb"
    return execute_notebook(NOTEBOOKS[stage], output, known, kernel)


@pytest.fixture(scope="session")
def smoke(tmp_path_factory):
    """All four notebooks at smoke parameters: ``(folder, {stage: executed notebook})``. Read only."""
    folder = tmp_path_factory.mktemp("smoke")
    changes = {"train": {"compare_settings": True}}  # as a reader has it, who runs 01 to 04
    return folder, {stage: run_notebook(stage, folder, **changes.get(stage, {})) for stage in STAGES}


SAME = {"dataset": "/data/mine", "method": "datadream_cls", "n_shot": 4, "seed": 0, "variant": ""}


def write_stage(root, run, stage, facts=None, **parameters):
    """A finished stage of a run without files; ``facts``: what else its manifest notes."""
    folder = root / run / stage
    folder.mkdir(parents=True, exist_ok=True)
    noted = {"seconds": 1.0, "shots": [], "passes_per_image": 24} | (facts or {})
    finish_stage(folder, stage=stage, parameters=SAME | parameters, **noted)
    return folder
