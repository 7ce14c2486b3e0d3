"""Numbers: intervals, the result file of a classifier, the tidy table of all runs, the paper's main table."""

from pathlib import Path
from string import ascii_lowercase

import pandas as pd

from datadream_utils.analysis.published import load as load_published
from datadream_utils.errors import InputError, suggest
from datadream_utils.files import atomic_write, inside, latex, markdown, read_json
from datadream_utils.methods import METHODS, SETTINGS, get_method
from datadream_utils.params import resolve
from datadream_utils.runs.stage import Stage

RUN_KEYS = ("dataset", "method", "setting", "n_shot", "seed", "variant", "classifier", "protocol")
RESULT_COLUMNS = ("dataset", "method", "setting", "n_shot", "n_seeds", "accuracy_mean", "accuracy_std", "n_test")
BLOCKS = {"none": "zero-shot", "S": "synthetic", "R": "real", "R+S": "real"}  # of the paper's table, by setting

# What ``metrics.json`` must hold for a table, and of which kind.
METRICS = dict.fromkeys(RUN_KEYS, str) | {"n_shot": int, "seed": int, "n_test": int, "accuracy": (int, float)}

# Every table of results: classifier, protocol, and the title that keeps it apart from the main one.
AS_RELEASED = "Evaluated as the authors' released code does (protocol: published), not comparable with the main table"
TABLES = {
    "main_results": ("clip", "sound", ""),
    "resnet_results": ("resnet", "sound", "ResNet trained from scratch"),
    "published_protocol": ("clip", "published", AS_RELEASED),
    "resnet_published_protocol": ("resnet", "published", f"ResNet trained from scratch. {AS_RELEASED}"),
}


def confusion(predictions, n_classes):
    """Counts (n_classes, n_classes): row is the true class, column the predicted one."""
    counts, classes = pd.crosstab(predictions["label"], predictions["prediction"]), range(n_classes)
    return counts.reindex(index=classes, columns=classes, fill_value=0).to_numpy()


def load_results(output_root):
    """A row per finished classifier under ``output_root`` (columns of ``metrics.json``, and its folder).

    InputError when there is none, a result cannot be read, or two folders hold the same run.
    """
    rows = []
    for path in sorted(resolve(output_root).glob("*/train-*/manifest.json")):
        rows.append(_read_metrics(path.parent) | {"folder": path.parent})
    if not rows:
        raise InputError(f"no finished classifier under {resolve(output_root)}: run 03_train_clip first.")
    results = pd.DataFrame(rows)
    doubled = results[results.duplicated(list(RUN_KEYS), keep=False)]
    if len(doubled):
        first, second = doubled["folder"].iloc[:2]
        raise InputError(f"{first} and {second} hold the same run: move one of them out of {resolve(output_root)}.")
    return results


def _read_metrics(folder):
    Stage(folder.name, folder).check_files(["metrics.json", "predictions.parquet"])
    path, fix = folder / "metrics.json", f"delete {folder} and run 03_train_clip again"
    metrics = {"classifier": "clip", "protocol": "sound"} | read_json(path, fix)
    for key, kind in METRICS.items():
        if not isinstance(metrics.get(key), kind) or (key == "setting" and metrics[key] not in SETTINGS):
            raise InputError(f"{path} cannot be read ({key!r} is {metrics.get(key)!r}): {fix}.")
    return metrics


def at_n_shot(results, dataset, n_shot):
    """The runs of every data set with ``n_shot`` real images per class; InputError when ``dataset`` has none."""
    found = results[results["n_shot"] == n_shot]
    if dataset not in set(found["dataset"]):
        there = sorted({f"{row.dataset} with n_shot={row.n_shot}" for row in results.itertuples()})
        raise InputError(
            f"no classifier of {dataset!r} with n_shot={n_shot} has been trained. Found: {', '.join(there)}."
        )
    return found


def example_pictures(output_root, dataset, n_shot, label, count):
    """``{method label: [path, ...]}``: ``count`` pictures of class ``label``, of each method's lowest seed."""
    found, wanted = {}, {"dataset": dataset, "n_shot": n_shot, "variant": ""}
    for path in resolve(output_root).glob("*/generate/manifest.json"):
        parameters = read_json(path, f"delete {path.parent} and run 02_generate again").get("parameters", {})
        if wanted.items() <= parameters.items():
            found[(parameters.get("method"), parameters.get("seed"))] = path.parent / "images"
    pictures = {}
    for name, method in METHODS.items():
        seeds = [seed for other, seed in found if other == name]
        if method.generates and seeds:
            folder = found[(name, min(seeds))]
            source = folder / "metadata.jsonl"
            Stage("generate", folder.parent).check_files(["images/metadata.jsonl"])
            rows = read_json(source, f"delete {folder.parent} and run 02_generate again", lines=True)
            shown = [row.get("file_name") for row in rows if row.get("label") == label][:count]
            pictures[method.label] = [inside(folder, name, source) for name in shown]
            Stage("generate", folder.parent).check_files([f"images/{name}" for name in shown])
    return pictures


def main_results(results, classifier="clip", protocol="sound"):
    """Mean and sample standard deviation over seeds, in the order of the paper's table (``RESULT_COLUMNS``).

    Of several data sets there are rows of their "average", too: means over data sets, deviation over seeds of these.
    """
    same = (results["classifier"] == classifier) & (results["protocol"] == protocol)
    plain = results[same & (results["variant"] == "")]
    for name in plain["method"].unique():
        get_method(name)
    keys = ["dataset", "method", "setting", "n_shot"]
    table = (
        pd.concat([plain, _average(plain)])
        .groupby(keys, as_index=False)
        .agg(
            n_seeds=("seed", "nunique"),
            accuracy_mean=("accuracy", "mean"),
            accuracy_std=("accuracy", "std"),
            n_test=("n_test", "max"),
        )
    )
    settings, methods = list(BLOCKS), list(METHODS)
    ranks = [(settings.index(row.setting), methods.index(row.method)) for row in table.itertuples()]
    table = table.iloc[sorted(range(len(table)), key=ranks.__getitem__)]
    return table[list(RESULT_COLUMNS)].reset_index(drop=True)


def _average(runs):
    """The mean over data sets of every method, setting and seed that has them all, as runs of data set "average"."""
    n_datasets = runs["dataset"].nunique()
    means = runs.groupby(["method", "setting", "n_shot", "seed"], as_index=False).agg(
        accuracy=("accuracy", "mean"), n_test=("n_test", "sum"), n=("dataset", "nunique")
    )
    return means[(means.pop("n") == n_datasets) & (n_datasets > 1)].assign(dataset="average")


def tables(results):
    """``{name: table}``: "main_results" always, the others of ``TABLES`` when there are such runs."""
    made = {name: main_results(results, *which) for name, (*which, _) in TABLES.items()}
    return {name: table for name, table in made.items() if name == "main_results" or len(table)}


def paper_layout(table):
    """The main table as the paper prints it: method, R and S ticks, one column per data set, best per block marked.

    Blocks: zero-shot; S; R and R+S. Returns (rows, columns, notes): rows are dicts with "block" and "cells", cells
    with "best" and "mark"; notes are the texts of the table's "note" column by mark (a, b, ...).
    """
    known = list(load_published()["dataset"].unique())  # the paper's columns first, "average" last
    rank = {name: position for position, name in enumerate(known)} | {"average": 1000}
    columns = sorted(table["dataset"].unique(), key=lambda name: (rank.get(name, len(known)), name))
    table = table.assign(block=table["setting"].map(BLOCKS))
    best = table.groupby(["block", "dataset"])["accuracy_mean"].transform("max") == table["accuracy_mean"]
    table = table.assign(best=best & (table["block"] != "zero-shot"))
    texts = table.get("note", pd.Series("", table.index)).fillna("")
    marks = dict(zip([text for text in texts.unique() if text], ascii_lowercase, strict=False))
    table = table.assign(mark=texts.map(lambda text: marks.get(text, "")))
    rows = []
    for (method, setting), group in table.groupby(["method", "setting"], sort=False):
        rows.append(
            {
                "method": get_method(method).label,
                "R": "R" in setting,
                "S": "S" in setting,
                "block": BLOCKS[setting],
                "cells": {row["dataset"]: row for row in group.to_dict("records")},
            }
        )
    return rows, columns, {mark: text for text, mark in marks.items()}


def _cell(cell, plus_minus, bold, mark):
    if cell is None:
        return "–"
    text = f"{cell['accuracy_mean']:.1f}"
    if not pd.isna(cell["accuracy_std"]):
        text += plus_minus.format(f"{cell['accuracy_std']:.1f}")
    return (bold.format(text) if cell["best"] else text) + (mark.format(cell["mark"]) if cell["mark"] else "")


def to_markdown(table, title=""):
    """The paper's layout as a Markdown table, under its title, with its notes below."""
    rows, columns, notes = paper_layout(table)
    lines = [f"**{title}**", ""] if title else []
    lines += [
        "| Method | R | S | " + " | ".join(map(markdown, columns)) + " |",
        "|---|:-:|:-:|" + "---:|" * len(columns),
    ]
    for row in rows:
        cells = [_cell(row["cells"].get(c), " ± {}", "**{}**", "<sup>{}</sup>") for c in columns]
        ticks = ["✓" if row[k] else "" for k in "RS"]
        lines.append(f"| {row['method']} | {ticks[0]} | {ticks[1]} | " + " | ".join(cells) + " |")
    for mark, text in notes.items():
        lines += ["", f"<sup>{mark}</sup> {text}"]
    return "\n".join(lines) + "\n"


def to_latex(table, title=""):
    """The paper's layout as a booktabs table, under its title, with its notes below."""
    rows, columns, notes = paper_layout(table)
    lines = [rf"\textbf{{{latex(title)}}}\\[1ex]"] if title else []
    lines += [r"\begin{tabular}{lcc" + "r" * len(columns) + "}", r"\toprule"]
    lines += [" & ".join(["Method", "R", "S", *map(latex, columns)]) + r" \\"]
    block = None
    for row in rows:
        if row["block"] != block:
            lines.append(r"\midrule")
            block = row["block"]
        cells = [_cell(row["cells"].get(c), r"$_{{\pm {}}}$", r"\textbf{{{}}}", r"$^{{{}}}$") for c in columns]
        ticks = [r"\checkmark" if row[k] else "" for k in "RS"]
        lines.append(" & ".join([latex(row["method"]), *ticks, *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\\{{\footnotesize $^{{{mark}}}$ {latex(text)}}}" for mark, text in notes.items()]
    return "\n".join(lines) + "\n"


def write_tables(table, folder, name="main_results", title=""):
    """``<name>.csv``, ``.md`` and ``.tex`` in ``folder``; returns their paths. The title stands above the last two."""
    texts = {"csv": table.round(4).to_csv(index=False, lineterminator="\n")}
    return write_texts(folder, name, texts | {"md": to_markdown(table, title), "tex": to_latex(table, title)})


def write_texts(folder, name, texts):
    """``<name>.<kind>`` in ``folder`` for each kind and text; returns their paths."""
    for kind, text in texts.items():
        with atomic_write(Path(folder) / f"{name}.{kind}") as temporary:
            temporary.write_text(text)
    return [Path(folder) / f"{name}.{kind}" for kind in texts]


def find_class(data, class_name):
    """The label of ``class_name`` ("": the data set's example, or its first class).

    InputError with the nearest name for one that is not there.
    """
    class_name = class_name or data.example or data.class_names[0]
    if class_name not in data.class_names:
        raise InputError(f"{data.name} has no class {class_name!r}.{suggest(class_name, data.class_names)}")
    return data.class_names.index(class_name)


def setting_name(setting):
    """What a classifier was trained on, in words."""
    return SETTINGS[setting]
