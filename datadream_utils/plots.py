"""Figures. Every function takes data and returns the Figure; titles say what to see."""

import io

import numpy as np
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from datadream_utils.images import read_image, written_whole
from datadream_utils.methods import METHODS
from datadream_utils.texts import literal

PALETTE = sns.color_palette("colorblind", max(10, len(METHODS)))
COLOURS = dict(zip(METHODS, PALETTE, strict=False))
VERDICTS = {"holds": (PALETTE[0], "s"), "reversed": (PALETTE[1], "X")}  # colour and shape


class NotebookFigure(Figure):
    """A Figure that a notebook shows as a picture when it is a cell's last value, without pyplot's global state.

    alt: what is to be seen, for who cannot see it ("": ``describe``'s words); sentence: what the data say.
    """

    alt = ""
    sentence = ""

    def _repr_png_(self):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=90)
        return buffer.getvalue(), {"alt": self.alt or describe(self)}  # IPython's form: data, metadata


def describe(figure):
    """The figure in words, for who cannot see it: its titles, what its axes show, names of rows and columns."""
    axes = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    words = [figure.get_suptitle(), *(part.get_suptitle() for part in figure.subfigs)]
    for ax in axes:
        if ax.get_xlabel():
            shown = ax.get_ylabel() or ", ".join(tick.get_text() for tick in ax.get_yticklabels())
            words.append(f"{ax.get_title()}: {shown}, over {ax.get_xlabel()}")
    pictures = [ax for ax in axes if not ax.get_xlabel()]
    for kind, names in {
        "rows": [ax.get_ylabel() for ax in pictures],
        "columns": [ax.get_title() for ax in pictures],
    }.items():
        if any(names):
            words.append(f"{kind}: {', '.join(filter(None, names))}")
    return "; ".join(filter(None, words))


def _figure(rows, columns, width, height, **options):
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _picture(image):
    return image if hasattr(image, "size") and not isinstance(image, str) else read_image(image)


def show_grid(rows, row_titles=None, column_titles=None, title=None, side=0.8):
    """Pictures in rows: ``rows`` is a list of lists of PIL images, arrays or paths; gaps (None) stay empty."""
    rows = rows or [[None]]
    columns = max(1, *(len(row) for row in rows))
    height = side * len(rows) + (0.4 if title else 0.05) + (0.25 if column_titles else 0)
    figure, axes = _figure(len(rows), columns, side * columns + (1.6 if row_titles else 0.1), height)
    for i, row in enumerate(rows):
        for j in range(columns):
            ax = axes[i, j]
            ax.set(xticks=[], yticks=[])
            sns.despine(ax=ax, left=True, bottom=True)
            if j < len(row) and row[j] is not None:
                ax.imshow(np.asarray(_picture(row[j])), interpolation="nearest")
            if i == 0 and column_titles:
                ax.set_title(literal(column_titles[j]), fontsize=8)
        if row_titles:
            axes[i, 0].set_ylabel(literal(row_titles[i]), rotation=0, ha="right", va="center", fontsize=9)
    if title:
        figure.suptitle(literal(title), fontsize=10)
    return figure


def loss_curves(losses, title="Denoising loss", window=20):
    """Losses of several adapters, ``{name: sequence}``, each as a running mean over ``window`` steps."""
    figure, axes = _figure(1, 1, 6, 3)
    ax = axes[0, 0]
    for name, values in losses.items():
        width = min(window, len(values))
        ax.plot(np.arange(width - 1, len(values)), np.convolve(values, np.ones(width) / width, "valid"), label=name)
    ax.set(xlabel="optimizer step", ylabel=f"loss (mean of {window} steps)", title=title)
    if 0 < len(losses) <= 12:
        ax.legend(fontsize=7, ncols=2)
    return figure


def training_curves(history):
    """Training loss, and validation accuracy (%) now and then, over the optimizer steps."""
    figure, axes = _figure(1, 2, 8, 2.8)
    axes[0, 0].plot(history["step"], history["loss"], lw=0.8)
    axes[0, 0].set(xlabel="optimizer step", ylabel="loss", title="Training loss")
    validated = history.dropna(subset="val_accuracy")
    axes[0, 1].plot(validated["step"], 100 * validated["val_accuracy"].astype(float), marker="o", ms=3)
    axes[0, 1].set(xlabel="optimizer step", ylabel="accuracy (%)", title="Validation accuracy while training")
    if validated.empty:
        axes[0, 1].text(0.5, 0.5, "this data set has no val split", ha="center", transform=axes[0, 1].transAxes)
    return figure


def confusion_heatmap(counts, class_names, title="Confusion matrix (share of the true class, %)"):
    """Row: true class; column: predicted class; numbers up to 20 classes."""
    share = 100 * counts / np.maximum(1, counts.sum(1, keepdims=True))
    side = max(3.5, min(0.45 * len(class_names) + 1.5, 12))
    figure, axes = _figure(1, 1, side + 0.6, side)
    labels = [literal(name) for name in class_names] if len(class_names) <= 50 else False
    small = len(class_names) <= 20
    sns.heatmap(share, ax=axes[0, 0], cmap="cividis", vmin=0, vmax=100, annot=small, fmt=".0f", annot_kws={"size": 7},
                xticklabels=labels, yticklabels=labels, square=True, cbar_kws={"label": "%"})  # fmt: skip
    axes[0, 0].set(xlabel="predicted", ylabel="true", title=title)
    return figure


def teaser(rows, class_name, dataset):
    """The paper's first figure: one class, a row of pictures per source, ``{source: [picture, ...]}``."""
    return show_grid(list(rows.values()), list(rows), title=f"Dataset: {dataset}; class: {class_name}", side=0.95)


def accuracy_bars(table, dataset):
    """Test accuracy per method and setting, with the standard deviation over seeds."""
    table = table[table["dataset"] == dataset]
    figure, axes = _figure(1, 1, 7.5, 0.36 * len(table) + 1)
    ax = axes[0, 0]
    names = [f"{METHODS[row.method].label}, {row.setting}" for row in table.itertuples()]
    names = [name.removesuffix(", none") for name in names]
    colours = [COLOURS[method] for method in table["method"]]
    spread = table["accuracy_std"].fillna(0)
    ax.barh(names, table["accuracy_mean"], xerr=spread, color=colours, error_kw={"lw": 1, "capsize": 2})
    for y, (mean, std) in enumerate(zip(table["accuracy_mean"], spread, strict=True)):
        ax.text(mean + std + 0.8, y, f"{mean:.1f}", va="center", fontsize=8)
    ax.invert_yaxis()
    ax.set(
        xlim=(0, 110),
        xticks=range(0, 101, 20),
        xlabel="top-1 accuracy on the test split (%)",
        title=f"Accuracy on {literal(dataset)}",
    )
    sns.despine(ax=ax)
    return figure


def forest(order, dataset):
    """Paired differences of ``compare.order`` with their intervals: seeds as grey dots, published as open diamonds."""
    figure, axes = _figure(1, 1, 8, 0.32 * len(order) + 1.5)
    ax = axes[0, 0]
    ax.axvline(0, color="0.5", lw=0.8)
    for y, row in enumerate(order.itertuples()):
        colour, marker = VERDICTS.get(row.verdict, ("0.4", "o"))
        ax.plot(list(row.per_seed.values()), [y] * len(row.per_seed), ".", color="0.6", ms=4, zorder=1)
        ax.plot([row.low, row.high], [y, y], color=colour, lw=2, zorder=2)
        ax.plot(row.ours, y, marker, color=colour, ms=7, zorder=3)
        ax.plot(row.published, y, "D", mfc="none", mec="black", ms=5, zorder=4)
    looks = [("published averages", "D", "none", "black"), ("one seed", ".", "0.6", "0.6")]
    looks += [(f"ours: {name}", marker, colour, colour) for name, (colour, marker) in VERDICTS.items()]
    looks += [("ours: not decided", "o", "0.4", "0.4")]
    handles = [Line2D([], [], ls="", marker=m, mfc=face, mec=edge, label=label) for label, m, face, edge in looks]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    ax.set_yticks(range(len(order)), order["pair"], fontsize=8)
    ax.invert_yaxis()
    ax.set(
        xlabel="points of accuracy, 95 % intervals over the test images",
        title=literal(f"The published order, on {dataset}"),
    )
    if order.empty:
        ax.text(0.5, 0.5, "no published pair has been run", ha="center", transform=ax.transAxes)
    sns.despine(ax=ax, left=True)
    return figure


def noising_steps(pictures, timesteps):
    """One picture at several timesteps of the forward process; ``pictures`` as arrays in [0, 1]."""
    titles = [f"t = {int(t)}" for t in timesteps]
    return show_grid([list(pictures)], column_titles=titles, title="The same picture, more and more noise", side=1.0)


def lora_changes(spectra, layer, name):
    """How much each layer changes, and the singular values of ``layer``; ``spectra`` as from ``probe.lora_spectra``."""
    figure, axes = _figure(1, 2, 9, 3, width_ratios=(3, 2))
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
    right.plot(range(1, len(values) + 1), values, color=PALETTE[0], marker="o", ms=3)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    held = effective_rank(values)
    right.set(xlabel="direction", ylabel="singular value of BA", ylim=(0, None))
    right.set_title(f"{layer}\n{held} of {len(values)} directions hold 90 %", fontsize=9)
    figure.suptitle(f"Adapter '{name}'", fontsize=10)
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
    return figure


def prediction(picture, seen, probabilities, class_names, top=10):
    """A picture as given, as the classifier sees it, and the probabilities of its likeliest classes."""
    figure, axes = _figure(1, 3, 8, 2.6, width_ratios=(1, 1, 1.6))
    for ax, image, title in zip(axes[0], (picture, seen), ("your picture", "what the classifier sees"), strict=False):
        ax.imshow(np.asarray(image), interpolation="nearest")
        ax.set_title(title, fontsize=9)
        ax.set_axis_off()
    best = np.argsort(probabilities)[::-1][:top]
    ax = axes[0, 2]
    ax.barh([class_names[k] for k in best], 100 * probabilities[best], color=[PALETTE[1], *[PALETTE[0]] * (top - 1)])
    ax.invert_yaxis()
    ax.set(xlim=(0, 100), xlabel="probability (%)")
    ax.set_title(f"{class_names[best[0]]}: {probabilities[best[0]]:.0%}", fontsize=10)
    sns.despine(ax=ax)
    return figure


def save_figure(figure, folder, name):
    """Save as png and pdf with the same bytes every time; returns the png's path."""
    kinds = {"png": ({"Software": None}, "Description"), "pdf": ({"CreationDate": None, "Producer": None}, "Subject")}
    for suffix, (metadata, key) in kinds.items():
        metadata |= {key: figure.alt} if figure.alt else {}
        with written_whole(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, dpi=150, metadata=metadata)
    return folder / f"{name}.png"
