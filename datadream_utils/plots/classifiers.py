"""Figures of notebook 03: CLIP before training, and classifiers that learnt from different images beside each other."""

import numpy as np
import seaborn as sns

from datadream_utils.plots.style import BLUE, NORMAL, SMALL, describe, label_axes, literal, new_figure, panels
from datadream_utils.prompts import class_prompt

LEARNS_FROM = {  # what a classifier of each setting has learnt from
    "none": "zero-shot CLIP: nothing",
    "R": "R: the few real images",
    "S": "S: generated images",
    "R+S": "R+S: both",
}
SHOWN = 20  # classes in a heat map


def similarity_heatmaps(cosines, probabilities, class_names, domain=""):
    """Pictures (rows, one of each class) against sentences (columns): their cosine, and the probabilities from it.

    The first ``SHOWN`` classes are drawn; the count of right sentences is over all of them.
    """
    names = [literal(name) for name in class_names[:SHOWN]]
    side = max(3.0, 0.4 * len(names) + 1.2)
    figure, axes = new_figure(1, 2, 2 * side + 1.4, side)
    right, total = int((np.asarray(cosines).argmax(1) == np.arange(len(cosines))).sum()), len(cosines)
    cosines, probabilities = (np.asarray(values)[:SHOWN, :SHOWN] for values in (cosines, probabilities))
    for ax, values, title, style in (
        (axes[0, 0], cosines, "Cosine of picture and sentence", {"fmt": ".2f", "cmap": "viridis"}),
        (axes[0, 1], 100 * probabilities, "Zero-shot probability (%)", {"fmt": ".0f", "cmap": "cividis", "vmin": 0}),
    ):
        sns.heatmap(values, ax=ax, annot=True, annot_kws={"size": SMALL}, square=True, xticklabels=names,
                    yticklabels=names, cbar_kws={"shrink": 0.8}, **style)  # fmt: skip
        label_axes(ax, f'sentence: "{class_prompt("...", domain)}"', "picture of a", title)
        ax.tick_params(axis="y", rotation=0)
    alt = "Two heat maps of one picture per class against the sentence of each class: cosines, and probabilities."
    return describe(figure, alt, f"The nearest sentence is the right one for {right} of {total} pictures.")


def settings_chart(metrics):
    """A row per setting: accuracy and Wilson's 95 % interval. ``metrics``: ``{setting: as save_results returns}``."""
    title = "Accuracy on the same test images"
    (figure, (ax,)), names = panels(1, 0.8 + 0.4 * len(metrics)), [LEARNS_FROM[setting] for setting in metrics]
    accuracies = [one["accuracy"] for one in metrics.values()]
    for row, one in enumerate(metrics.values()):
        low, high = one["interval_95"]
        reach = [[one["accuracy"] - low], [high - one["accuracy"]]]
        ax.errorbar(one["accuracy"], row, xerr=reach, color=BLUE, marker="o", ms=5, lw=2, capsize=4)
        ax.annotate(f"{one['accuracy']:.1f} %", (one["accuracy"], row), (0, 7), textcoords="offset points", ha="center",
                    fontsize=NORMAL)  # fmt: skip
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.4, -0.7)
    label_axes(ax, "accuracy (%), with its 95 % interval", title=title)
    ax.margins(x=0.1)
    ax.grid(axis="x", lw=0.4)
    best = int(np.argmax(accuracies))
    finding = f"Highest in this run: {names[best]}, {accuracies[best]:.1f} %." if len(names) > 1 else ""
    rows = [f"{name} {accuracy:.1f} %" for name, accuracy in zip(names, accuracies, strict=True)]
    return describe(figure, f"{title}: {', '.join(rows)}.", finding)
