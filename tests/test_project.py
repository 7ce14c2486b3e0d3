"""The project itself: environments in step, no pickle, imports one way."""

import ast
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from itertools import chain

import yaml
from packaging.requirements import Requirement

from datadream_utils.params import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and line[0] != "#")


def test_every_dependency_is_pinned_within_its_range():
    pins = {name.lower().replace("_", "-"): version for name, version in PINS.items()}
    for line in [*PROJECT["dependencies"], *chain(*PROJECT["optional-dependencies"].values())]:
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), line
    assert pins["torch"] == "2.13.0" and "torchvision" not in pins


def test_conda_environment_installs_the_same_package_and_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *conda, pip = environment["dependencies"]
    assert pip == {"pip": ["-c constraints.txt", "-e .[test]"]}
    (python,) = [entry for entry in conda if entry.startswith("python=")]
    assert Requirement("python" + PROJECT["requires-python"]).specifier.contains(python.split("=")[1] + ".0")


def test_these_tests_run_on_the_pinned_versions():
    for name in ("torch", "diffusers", "transformers", "peft", "papermill", "kornia"):
        assert importlib.metadata.version(name).split("+")[0] == PINS[name]
    assert importlib.util.find_spec("torchvision") is None


def test_the_package_without_its_clone_says_what_is_missing(tmp_path):
    shutil.copytree(ROOT / "datadream_utils", tmp_path / "datadream_utils")  # as from a wheel
    command = [sys.executable, "-c", "import datadream_utils.data.dataset"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, encoding="utf-8")
    assert f"{tmp_path} has the package alone" in run.stderr and "clone the repository" in run.stderr


# From the bottom: a module imports from its own room and from rooms on lower floors.
FLOORS = [
    ("datadream_utils",),
    ("datadream_utils.data",),
    ("datadream_utils.runs",),
    ("datadream_utils.backbones",),
    ("datadream_utils.diffusion",),
    ("datadream_utils.classifier",),
    ("datadream_utils.analysis",),
    ("datadream_utils.plots",),
    ("datadream_utils.interactive",),
    ("workflow.scripts", "models.pretraining"),
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def _modules():
    """``{dotted name: source}`` of every module of every room; no room is empty."""
    found = {}
    for room in FLOOR_OF:
        paths = [path for path in (ROOT / room.replace(".", "/")).glob("*.py") if path.name != "__init__.py"]
        assert paths, f"{room} has no modules"
        found |= {f"{room}.{path.stem}": path.read_text(encoding="utf-8") for path in paths}
    return found


def _imports(source):
    """The project's modules that a module imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {f"{node.module}.{alias.name}" if node.module in FLOOR_OF else node.module for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def test_nothing_is_pickled_or_trusted():
    for name, source in _modules().items():
        for word in ("pickle", "torch.load", "torch.save", "yaml.load(", "trust_remote_code", "eval(", "exec("):
            assert word not in source.replace(".eval(", "").replace("literal_eval(", ""), (name, word)
    assert not [path for kind in ("bin", "pt", "pth", "ckpt", "pkl") for path in (ROOT / "models").rglob(f"*.{kind}")]


def test_text_files_are_opened_with_their_encoding():
    """ruff's PLW1514 does not know of every variable that it is a path."""
    scripts = [path for folder in ("benchmarks", "docs") for path in (ROOT / folder).glob("*.py")]
    for name, source in _modules().items() | {(path.stem, path.read_text(encoding="utf-8")) for path in scripts}:
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            if getattr(call.func, "attr", "") in ("read_text", "write_text"):
                assert "encoding" in {keyword.arg for keyword in call.keywords}, (name, ast.unparse(call))


def test_every_module_is_in_a_room():
    everywhere = {path for top in ("datadream_utils", "workflow", "models") for path in (ROOT / top).rglob("*.py")}
    everywhere -= {ROOT / "workflow" / "__init__.py"}  # only rooms have modules
    assert {str(path.parent.relative_to(ROOT)).replace("/", ".") for path in everywhere} == set(FLOOR_OF)


def test_imports_go_to_lower_floors_only():
    modules = _modules()
    imports = {name: _imports(source) & modules.keys() for name, source in modules.items()}
    assert sum(map(len, imports.values())) > 100  # the test sees the imports at all
    room = lambda name: name.rpartition(".")[0]  # noqa: E731
    upward = [
        f"{name} -> {other}"
        for name, others in imports.items()
        for other in others
        if room(other) != room(name) and FLOOR_OF[room(other)] >= FLOOR_OF[room(name)]
    ]
    assert not upward
    list(TopologicalSorter(imports).static_order())  # CycleError names a circle
