"""Numbers: intervals, the result file of a classifier, the tidy table of all runs, the paper's main table."""

import json
from pathlib import Path

import pandas as pd
from scipy.stats import binomtest
from torch import tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix

from datadream_utils.errors import InputError, suggest
from datadream_utils.images import written_whole
from datadream_utils.methods import METHODS, SETTINGS
from datadream_utils.params import resolve
from datadream_utils.run import write_json

RESULT_COLUMNS = ("dataset", "method", "setting", "n_shot", "n_seeds", "accuracy_mean", "accuracy_std", "n_test")


def wilson_interval(n_correct, n):
    """Wilson's 95 % interval of a proportion, as two shares in [0, 1]."""
    interval = binomtest(n_correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def confusion(predictions, n_classes):
    """Counts (n_classes, n_classes): row is the true class, column the predicted one."""
    return multiclass_confusion_matrix(
        tensor(predictions["prediction"].to_numpy()), tensor(predictions["label"].to_numpy()), n_classes
    ).numpy()


def write_results(stage, p, data, predictions, history):
    """Write predictions.parquet, history.csv and metrics.json (accuracies in percent); return the metrics."""
    low, high = wilson_interval(int(predictions["correct"].sum()), len(predictions))
    per_class = predictions.groupby("label")["correct"].mean()
    metrics = {
        "dataset": data.name,
        "method": p.method,
        "setting": p.setting,
        "n_shot": p.n_shot,
        "seed": p.seed,
        "variant": p.variant,
        "accuracy": round(100 * float(predictions["correct"].mean()), 4),
        "interval_95": [round(100 * low, 4), round(100 * high, 4)],
        "n_test": len(predictions),
        "per_class": {data.class_names[label]: round(100 * share, 4) for label, share in per_class.items()},
        "parameters": p.identity(),
    }
    with written_whole(stage.folder / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary, index=False)
    if history:
        with written_whole(stage.folder / "history.csv") as temporary:
            pd.DataFrame(history).to_csv(temporary, index=False, float_format="%.6g")
    write_json(stage.folder / "metrics.json", metrics)
    return metrics


def read_results(stage):
    """``(metrics, predictions, history)`` of a finished train stage; history is None for zero-shot CLIP."""
    history = stage.folder / "history.csv"
    return (
        json.loads((stage.folder / "metrics.json").read_text()),
        pd.read_parquet(stage.folder / "predictions.parquet"),
        pd.read_csv(history) if history.exists() else None,
    )


def load_results(output_root):
    """A row per finished classifier under ``output_root`` (columns of ``metrics.json``, and its folder)."""
    rows = []
    for path in sorted(resolve(output_root).glob("*/train-*/manifest.json")):
        rows.append(json.loads((path.parent / "metrics.json").read_text()) | {"folder": path.parent})
    if not rows:
        raise InputError(f"no finished classifier under {resolve(output_root)}: run 03_train_clip first.")
    return pd.DataFrame(rows)


def example_pictures(output_root, dataset, n_shot, label, count):
    """``{method label: [path, ...]}``: ``count`` pictures of class ``label``, of each method's lowest seed."""
    found = {}
    for path in resolve(output_root).glob("*/generate/manifest.json"):
        parameters = json.loads(path.read_text())["parameters"]
        if (parameters["dataset"], parameters["n_shot"], parameters["variant"]) == (dataset, n_shot, ""):
            found[(parameters["method"], parameters["seed"])] = path.parent / "images"
    pictures = {}
    for name, method in METHODS.items():
        seeds = [seed for other, seed in found if other == name]
        if method.generates and seeds:
            folder = found[(name, min(seeds))]
            rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
            files = [folder / row["file_name"] for row in rows if row["label"] == label]
            pictures[method.label] = files[:count]
    return pictures


def main_results(results):
    """Mean and sample standard deviation over seeds, in the order of the paper's table (``RESULT_COLUMNS``)."""
    plain = results[results["variant"] == ""]
    keys = ["dataset", "method", "setting", "n_shot"]
    table = plain.groupby(keys, as_index=False).agg(
        n_seeds=("seed", "nunique"),
        accuracy_mean=("accuracy", "mean"),
        accuracy_std=("accuracy", "std"),
        n_test=("n_test", "max"),
    )
    order = {"none": 0, "S": 1, "R": 2, "R+S": 3}
    methods = list(METHODS)
    ranks = table.apply(lambda row: (order[row["setting"]], methods.index(row["method"])), axis=1)
    return table.loc[ranks.sort_values().index, list(RESULT_COLUMNS)].round(2).reset_index(drop=True)


def paper_layout(table):
    """The main table as the paper prints it: method, R and S ticks, one column per data set, best per block marked.

    Blocks: zero-shot; S; R and R+S. Returns (rows, columns): rows are dicts with "block", "cells" and "best".
    """
    columns = sorted(table["dataset"].unique())
    block_of = {"none": "zero-shot", "S": "synthetic", "R": "real", "R+S": "real"}
    table = table.assign(block=table["setting"].map(block_of))
    best = table.groupby(["block", "dataset"])["accuracy_mean"].transform("max") == table["accuracy_mean"]
    table = table.assign(best=best & (table["block"] != "zero-shot"))
    rows = []
    for (method, setting), group in table.groupby(["method", "setting"], sort=False):
        cells = {row["dataset"]: row for row in group.to_dict("records")}
        rows.append(
            {
                "method": METHODS[method].label,
                "R": "R" in setting,
                "S": "S" in setting,
                "block": block_of[setting],
                "cells": cells,
            }
        )
    return rows, columns


def _cell(cell, plus_minus, bold):
    if cell is None:
        return "–"
    text = f"{cell['accuracy_mean']:.1f}"
    if cell["n_seeds"] > 1:
        text += plus_minus.format(f"{cell['accuracy_std']:.1f}")
    return bold.format(text) if cell["best"] else text


def to_markdown(table):
    """The paper's layout as a Markdown table."""
    rows, columns = paper_layout(table)
    lines = ["| Method | R | S | " + " | ".join(columns) + " |", "|---|:-:|:-:|" + "---:|" * len(columns)]
    for row in rows:
        cells = [_cell(row["cells"].get(c), " ± {}", "**{}**") for c in columns]
        ticks = ["✓" if row[k] else "" for k in "RS"]
        lines.append(f"| {row['method']} | {ticks[0]} | {ticks[1]} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def to_latex(table):
    """The paper's layout as a booktabs table."""
    rows, columns = paper_layout(table)
    tex = {"_": r"\_", "%": r"\%", "&": r"\&", "#": r"\#"}
    escape = lambda text: "".join(tex.get(c, c) for c in text)  # noqa: E731
    lines = [r"\begin{tabular}{lcc" + "r" * len(columns) + "}", r"\toprule"]
    lines += [" & ".join(["Method", "R", "S", *map(escape, columns)]) + r" \\"]
    block = None
    for row in rows:
        if row["block"] != block:
            lines.append(r"\midrule")
            block = row["block"]
        cells = [_cell(row["cells"].get(c), r"$_{{\pm {}}}$", r"\textbf{{{}}}") for c in columns]
        ticks = [r"\checkmark" if row[k] else "" for k in "RS"]
        lines.append(" & ".join([escape(row["method"]), *ticks, *cells]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def write_tables(table, folder):
    """``main_results.csv``, ``.md`` and ``.tex`` in ``folder``; returns their paths."""
    folder = Path(folder)
    texts = {"csv": table.to_csv(index=False, lineterminator="\n"), "md": to_markdown(table), "tex": to_latex(table)}
    for kind, text in texts.items():
        with written_whole(folder / f"main_results.{kind}") as temporary:
            temporary.write_text(text)
    return [folder / f"main_results.{kind}" for kind in texts]


def find_class(data, class_name):
    """The label of ``class_name``; InputError with the nearest name otherwise."""
    if class_name not in data.class_names:
        raise InputError(f"{data.name} has no class {class_name!r}.{suggest(class_name, data.class_names)}")
    return data.class_names.index(class_name)


def summary(table, dataset):
    """What the table says of generated images, as Markdown sentences made from its numbers."""
    rows = table[table["dataset"] == dataset].set_index(["method", "setting"])["accuracy_mean"]
    sentences = []
    for name, method in METHODS.items():
        if method.adapter and (name, "S") in rows and ("fakeit", "S") in rows:
            gain = rows[name, "S"] - rows["fakeit", "S"]
            sentences.append(f"Synthetic only, **{method.label}** is {gain:+.1f} points from FakeIt.")
        if method.adapter and (name, "R+S") in rows and ("real", "R") in rows:
            gain = rows[name, "R+S"] - rows["real", "R"]
            sentences.append(f"With real images too, **{method.label}** is {gain:+.1f} points from Real-finetune.")
    return "\n".join(f"- {sentence}" for sentence in sentences) or "There is nothing to compare yet."


def setting_name(setting):
    """What a classifier was trained on, in words."""
    return SETTINGS[setting]
