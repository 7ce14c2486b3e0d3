"""Figures of training: losses, accuracy while training, the confusion matrix. Each says in words what it shows."""

import numpy as np
import seaborn as sns

from datadream_utils.files import literal
from datadream_utils.plots.style import new_figure, noising_steps  # noqa: F401


def loss_curves(losses, title="Denoising loss", window=20):
    """Losses of several adapters, ``{name: sequence}``, as running means over ``window`` steps, fewer in short runs."""
    figure, axes = new_figure(1, 1, 6, 3)
    ax = axes[0, 0]
    width = max(1, min([window, *(len(values) // 5 for values in losses.values())]))
    for name, values in losses.items():
        mean = np.convolve(values, np.ones(width) / width, "valid")
        ax.plot(np.arange(width - 1, len(values)), mean, marker="." if len(mean) < 20 else "", label=name)
    ax.set(xlabel="optimizer step", ylabel=f"loss (mean of {width} steps)" if width > 1 else "loss", title=title)
    if 0 < len(losses) <= 12:
        ax.legend(fontsize=7, ncols=2)
    figure.sentence = _falls(list(losses.values()))
    figure.alt = f"{title}. {figure.sentence}"
    return figure


def _falls(losses):
    """The mean loss in each sixth of the steps, and for how many curves it is lower in the last than in the first."""
    if not losses:
        return "Nothing was adapted."
    sixths = np.array([[part.mean() for part in np.array_split(curve, 6) if len(part)] for curve in losses])
    means, fell = ", ".join(f"{mean:.2f}" for mean in sixths.mean(0)), int((sixths[:, -1] < sixths[:, 0]).sum())
    end = f"it is lower in the last for {fell} of {len(losses)} adapters."
    return f"Mean loss, in equal parts of the steps: {means}; {end}"


def training_curves(history):
    """Training loss, and validation accuracy (%) now and then, over the optimizer steps."""
    figure, axes = new_figure(1, 2, 8, 2.8)
    axes[0, 0].plot(history["step"], history["loss"], lw=0.8)
    axes[0, 0].set(xlabel="optimizer step", ylabel="loss", title="Training loss")
    validated = history.dropna(subset="val_accuracy")
    accuracy = 100 * validated["val_accuracy"].astype(float)
    axes[0, 1].plot(validated["step"], accuracy, marker="o", ms=3)
    axes[0, 1].set(xlabel="optimizer step", ylabel="accuracy (%)", title="Validation accuracy while training")
    tenth = max(1, len(history) // 10)
    first, last = history["loss"].head(tenth).mean(), history["loss"].tail(tenth).mean()
    figure.alt = f"Two curves over {len(history)} optimizer steps. "
    figure.alt += f"Training loss: {first:.2f} at first, {last:.2f} at last."
    if validated.empty:
        axes[0, 1].text(0.5, 0.5, "this data set has no val split", ha="center", transform=axes[0, 1].transAxes)
    else:
        figure.alt += f" Validation accuracy: {', '.join(f'{value:.0f}' for value in accuracy)} %."
    return figure


def confusion_heatmap(counts, class_names, title="Confusion matrix (share of the true class, %)"):
    """Row: true class; column: predicted class; numbers up to 20 classes."""
    share = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = max(3.5, min(0.45 * len(class_names) + 1.5, 12))
    figure, axes = new_figure(1, 1, side + 0.6, side)
    labels = [literal(name) for name in class_names] if len(class_names) <= 50 else False
    small = len(class_names) <= 20
    sns.heatmap(share, ax=axes[0, 0], cmap="cividis", vmin=0, vmax=100, annot=small, fmt=".0f",
                annot_kws={"size": 8}, xticklabels=labels, yticklabels=labels, square=True,
                cbar_kws={"label": "%", "shrink": 0.8})  # fmt: skip
    axes[0, 0].set(xlabel="predicted", ylabel="true", title=title)
    axes[0, 0].tick_params(axis="y", rotation=0)
    figure.alt = f"{title}. {confusion_words(share, class_names)}"
    return figure


def confusion_words(share, class_names, most=5):
    """A matrix of shares (%) in words: its diagonal (of many classes the mean), and the largest values off it."""
    right = np.diag(share)
    each = ", ".join(f"{name} {value:.0f}" for name, value in zip(class_names, right, strict=True))
    words = f"On the diagonal: {each}." if len(class_names) <= 20 else f"Mean of the diagonal: {right.mean():.0f}."
    wrong = share - np.diag(right)
    order = [np.unravel_index(i, wrong.shape) for i in np.argsort(-wrong, axis=None, kind="stable")[:most]]
    pairs = [f"{class_names[i]} as {class_names[j]} {wrong[i, j]:.0f}" for i, j in order if wrong[i, j]]
    return words + (f" Largest off it: {', '.join(pairs)}." if pairs else "")
