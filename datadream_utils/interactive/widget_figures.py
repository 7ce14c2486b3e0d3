"""What widgets draw besides grids of pictures: what an adapter changes, what is behind a confusion, a prediction."""

import numpy as np
import seaborn as sns
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from datadream_utils.plots.style import BLUE, ORANGE, NotebookFigure, new_figure
from datadream_utils.plots.training import confusion_words


def lora_changes(spectra, layer, name):
    """How much each layer changes, and the singular values of ``layer``; ``spectra`` as from ``probe.lora_spectra``."""
    figure, axes = new_figure(1, 2, 9, 3, width_ratios=(3, 2))
    left, right = axes[0]
    layers = list(spectra)
    for i, kind in enumerate(dict.fromkeys(_projection(other) for other in layers)):
        there = [j for j, other in enumerate(layers) if _projection(other) == kind]
        left.plot(
            there, [100 * spectra[layers[j]][1] for j in there], ls="", marker="osD^vP*X"[i % 8], ms=4, label=kind
        )
    values, change = spectra[layer]
    left.plot(layers.index(layer), 100 * change, "o", ms=12, mfc="none", mec="black")
    left.set(xlabel="layer, U-Net first", ylabel="|BA| / |W| (%)", title="How much each layer changes", ylim=(0, None))
    left.legend(fontsize=7, ncols=4)
    for other, _ in spectra.values():
        right.plot(range(1, len(other) + 1), other, color="0.85", lw=0.6)
    right.plot(range(1, len(values) + 1), values, color=BLUE, marker="o", ms=3)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    held = effective_rank(values)
    right.set(xlabel="direction", ylabel="singular value of BA", ylim=(0, None))
    hold = f"{held} of {len(values)} directions {'holds' if held == 1 else 'hold'} 90 % of the sum of squares"
    right.set_title(f"{layer}\n{hold}", fontsize=9)
    figure.suptitle(f"Adapter '{name}'", fontsize=10)
    every = [100 * other for _, other in spectra.values()]
    figure.alt = (
        f"Adapter '{name}'. Left: the change of each layer beside its weights, {min(every):.0f} to {max(every):.0f} %. "
        f"Right: the singular values of {layer}, which changes by {100 * change:.0f} %; {hold} of the singular values."
    )
    return figure


def _projection(layer):
    return layer.removesuffix(".0").split(".")[-1].removeprefix("to_").removesuffix("_proj")


def effective_rank(values, share=0.9):
    """How many singular values, largest first, hold ``share`` of their sum of squares; 0 for an adapter of zeros."""
    energy = np.cumsum(np.square(values))
    return int(np.searchsorted(energy, share * energy[-1]) + 1) if energy[-1] else 0


def confusion_cell(counts, class_names, true, predicted, pictures):
    """The confusion matrix with one cell marked, and ``pictures``, [(picture, caption), ...], behind that cell."""
    columns = 8
    rows = max(2, -(-len(pictures) // columns))
    figure = NotebookFigure(figsize=(9.5, 3.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(2, 3))
    ax = left.subplots()
    ax.imshow(np.sqrt(counts / np.maximum(1, counts.sum(1, keepdims=True))), cmap="cividis", vmin=0, vmax=1)
    ax.add_patch(Rectangle((predicted - 0.5, true - 0.5), 1, 1, fill=False, ec="red", lw=2))
    ticks = range(len(class_names)) if len(class_names) <= 20 else [true, predicted]
    ax.set_xticks(ticks, [class_names[i] for i in ticks], rotation=90, fontsize=7)
    ax.set_yticks(ticks, [class_names[i] for i in ticks], fontsize=7)
    ax.set(xlabel="predicted", ylabel="true")
    axes = right.subplots(rows, columns, squeeze=False).ravel()
    for ax in axes:
        ax.set_axis_off()
    for ax, (picture, caption) in zip(axes, pictures, strict=False):
        ax.imshow(np.asarray(picture), interpolation="nearest")
        ax.set_title(caption, fontsize=7)
    count, of = counts[true, predicted], counts[true].sum()
    what = "recognised" if true == predicted else f"taken for '{class_names[predicted]}'"
    title = f"'{class_names[true]}' {what}: {count} of {of}" + (", the surest:" if pictures else "")
    right.suptitle(title, fontsize=9)
    share = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    surest = " " + ", ".join(caption for _, caption in pictures) if pictures else ""
    figure.alt = f"{title}{surest}. Beside it the confusion matrix, in %. {confusion_words(share, class_names)}"
    return figure


def prediction(picture, seen, probabilities, class_names, top=10):
    """A picture as given, as the classifier sees it, and the probabilities of its likeliest classes."""
    figure, axes = new_figure(1, 3, 8, 2.6, width_ratios=(1, 1, 1.6))
    for ax, image, title in zip(axes[0], (picture, seen), ("your picture", "what the classifier sees"), strict=False):
        ax.imshow(np.asarray(image), interpolation="nearest")
        ax.set_title(title, fontsize=9)
        ax.set(xticks=[], yticks=[])  # its frame stays: a white picture on a white page
    best = np.argsort(probabilities)[::-1][:top]
    ax = axes[0, 2]
    ax.barh([class_names[k] for k in best], 100 * probabilities[best], color=[ORANGE, *[BLUE] * (top - 1)])
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="probability (%)")
    ax.set_title(f"{class_names[best[0]]}: {probabilities[best[0]]:.0%}", fontsize=10)
    sns.despine(ax=ax)
    return figure
