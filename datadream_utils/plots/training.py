"""Figures of adaptation and training: the forward process, losses, accuracy while training, the confusion matrix."""

from itertools import cycle

import numpy as np
import seaborn as sns

from datadream_utils.plots.pictures import show_grid
from datadream_utils.plots.style import (
    BLUE,
    NORMAL,
    ORANGE,
    SMALL,
    describe,
    label_axes,
    literal,
    panels,
    text_width,
    turn_names,
)

WINDOW = 20  # steps of a running mean


def noising_steps(pictures, timesteps):
    """One picture at several timesteps of the forward process; ``pictures`` as arrays in [0, 1]."""
    titles = [f"t = {int(t)}" for t in timesteps]
    return show_grid(
        [list(pictures)], column_titles=titles, title="The same picture with more and more noise", side=1.0
    )


def losses_over_time(timesteps, losses):
    """The loss at each timestep, a line for each of ``losses``, ``{who: [loss at each timestep, ...]}``."""
    title = "How hard is it to undo the noise?"
    (figure, (ax,)), times = panels(1, 2.4), [int(t) for t in timesteps]
    for (name, values), colour in zip(losses.items(), cycle((BLUE, ORANGE, "0.25")), strict=False):
        ax.plot(times, values, color=colour, marker="o", ms=4, label=name)
    ax.set_ylim(0, None)
    label_axes(ax, "timestep t (0: clean, 999: nothing but noise)", "loss", title)
    ax.legend(fontsize=SMALL)
    ends = [f"{name}: {values[0]:.2f} at t = {times[0]}, {min(values):.2f} at its lowest, {values[-1]:.2f} at "
            f"t = {times[-1]}" for name, values in losses.items()]  # fmt: skip
    return describe(figure, f"{title} The loss against the timestep.", "; ".join(ends) + ".")


def loss_curves(losses, title="Denoising loss"):
    """Losses of several adapters, ``{name: sequence}``, as running means over ``WINDOW`` steps, fewer in short runs."""
    figure, (ax,) = panels(1, 2.8)
    width = max(1, min([WINDOW, *(len(values) // 5 for values in losses.values())]))
    for name, values in losses.items():
        mean = np.convolve(values, np.ones(width) / width, "valid")
        ax.plot(np.arange(width - 1, len(values)), mean, marker="." if len(mean) < 20 else "", label=name)
    label_axes(ax, "optimizer step", f"loss (mean of {width} steps)" if width > 1 else "loss", literal(title))
    if 0 < len(losses) <= 12:
        ax.legend(fontsize=SMALL, ncols=2)
    alt = f"{title}: the loss of {len(losses)} adapters against the optimizer steps."
    return describe(figure, alt, _falls(list(losses.values())))


def _falls(losses):
    """For how many adapters the loss is lower in the last sixth of the steps than in the first."""
    sixths = [[part.mean() for part in np.array_split(curve, 6) if len(part)] for curve in losses]
    if not sixths:
        return "Nothing was adapted."
    first, last = (np.mean([means[i] for means in sixths]) for i in (0, -1))
    fell = sum(means[-1] < means[0] for means in sixths)
    end = f"it is lower at the end for {fell} of {len(losses)} adapters"
    return f"The mean loss goes from {first:.2f} to {last:.2f}; {end}."


def training_curves(history):
    """Training loss, and validation accuracy (%) now and then, over the optimizer steps."""
    figure, (left, right) = panels(2, 2.4)
    left.plot(history["step"], history["loss"], lw=0.8)
    label_axes(left, "optimizer step", "training loss")
    validated = history.dropna(subset="val_accuracy")
    accuracy = 100 * validated["val_accuracy"].astype(float)
    right.plot(validated["step"], accuracy, marker="o", ms=4)
    label_axes(right, "optimizer step", "validation accuracy (%)")
    tenth = max(1, len(history) // 10)
    first, last = history["loss"].head(tenth).mean(), history["loss"].tail(tenth).mean()
    finding = f"The training loss goes from {first:.2f} to {last:.2f}"
    if validated.empty:
        words = "this data set\nhas no val split"
        right.text(0.5, 0.5, words, ha="center", va="center", fontsize=SMALL, transform=right.transAxes)
    else:
        finding += f"; validation accuracy ends at {accuracy.iloc[-1]:.0f} %"
    alt = f"Training loss and validation accuracy over {len(history)} optimizer steps."
    return describe(figure, alt, f"{finding}.")


def confusion_heatmap(counts, class_names):
    """Row: true class; column: predicted class; names up to 20 classes, numbers up to 12."""
    title = "Confusion matrix (share of the true class, %)"
    share = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = max(3.0, min(0.32 * len(class_names) + 1, 4.4))
    figure, (ax,) = panels(1, side)
    room = 2.0 if len(class_names) <= 12 else 1.0  # inches for the names
    fits = len(class_names) <= 20 and max(text_width(literal(name), SMALL) for name in class_names) <= room
    labels = [literal(name) for name in class_names] if fits else False
    sns.heatmap(share, ax=ax, cmap="cividis", vmin=0, vmax=100, annot=len(class_names) <= 12, fmt=".0f",
                annot_kws={"size": SMALL}, xticklabels=labels, yticklabels=labels, square=True,
                cbar_kws={"label": "%", "shrink": 0.8})  # fmt: skip
    label_axes(ax, "predicted", "true")
    figure.suptitle(title, fontsize=NORMAL)
    turn_names(ax, 60)
    colour_bar = figure.axes[-1]
    colour_bar.tick_params(labelsize=SMALL)
    colour_bar.yaxis.label.set_size(NORMAL)
    return describe(figure, f"{title}, as a heat map.", largest_confusion(share, class_names))


def largest_confusion(share, class_names):
    """The class that is confused most often with another one, from a matrix of shares (%), as a sentence."""
    wrong = share - np.diag(np.diag(share))
    true, predicted = np.unravel_index(wrong.argmax(), wrong.shape)
    if not wrong[true, predicted]:
        return "No class is confused with another."
    confused = f"'{class_names[true]}' as '{class_names[predicted]}'"
    return f"Most frequent confusion: {confused} ({wrong[true, predicted]:.0f} %)."
