"""Figures. Every function takes data and returns the Figure; titles say what to see."""

import io
from base64 import b64encode
from html import escape
from itertools import cycle

import numpy as np
import seaborn as sns
from IPython.display import Markdown, display
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.textpath import TextPath

from datadream_utils.analysis.compare import OUTCOMES, Verdict, select_pair
from datadream_utils.analysis.tables import escape_markdown
from datadream_utils.data.images import read_image
from datadream_utils.files import atomic_write, literal
from datadream_utils.methods import METHODS, classifier_name
from datadream_utils.plots.live import is_live

WIDEST = 7.0  # inches: both columns of a page
BLUE, ORANGE = "#0072B2", "#D55E00"
# Each at least 3 : 1 against white, as thin lines need (WCAG 1.4.11), and apart from the others for the colour-blind.
PALETTE = ("#8A8A8A", "#000000", ORANGE, BLUE, "#1B9E4B", "#AA3377", "#1F1FA8", "#7A4A00")
COLOURS = dict(zip(METHODS, cycle(PALETTE)))
VERDICTS = {"holds": (BLUE, "s"), "reversed": (ORANGE, "X")}  # colour and shape


class NotebookFigure(Figure):
    """A Figure that a notebook shows as a picture when it is a cell's last value, without pyplot's global state.

    alt: what is to be seen, for who cannot see it ("": ``describe``'s words); sentence: what the data say; empty: there
    are no data, and the sentence says what makes them; dots: per inch, on a screen.
    """

    dots = 90
    alt = ""
    sentence = ""
    empty = False

    def _repr_mimebundle_(self, **_):
        """The picture and its words. JupyterLab shows a picture without them, so a live notebook has them as HTML."""
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dots)
        png, words = b64encode(buffer.getvalue()).decode(), self.alt or describe(self)
        html = {"text/html": f'<img alt="{escape(words)}" src="data:image/png;base64,{png}">'} if is_live() else {}
        return {"image/png": png} | html, {"image/png": {"alt": words}}  # IPython's form: data, metadata


class PrintFigure(NotebookFigure):
    """A figure in sizes for print, on opaque white: its letters of 6 points take more dots on a screen."""

    dots = 140

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, facecolor="white", **options)


def says(figure):
    """A figure's sentence as a notebook shows it: bold, and of an empty figure plain."""
    words = escape_markdown(figure.sentence)
    return Markdown(words if figure.empty else f"**{words}**")


def show(figure):
    """Display what a figure says, then the figure; of an empty one only the sentence."""
    if figure.sentence:
        display(says(figure))
    if not figure.empty:
        display(figure)


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
        "columns": [word for ax in pictures for word in (ax.get_title(), *_words_above(ax))],
    }.items():
        if any(names):
            words.append(f"{kind}: {', '.join(filter(None, names))}")
    return "; ".join(filter(None, words))


def _words_above(ax):
    above = ax.xaxis.get_ticks_position() == "top"
    return [tick.get_text() for tick in ax.get_xticklabels()] if above else []


def new_figure(rows, columns, width, height, **options):
    """A figure of ``width`` x ``height`` inches and its axes, an array (rows, columns)."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def _picture(image):
    return image if hasattr(image, "size") and not isinstance(image, str) else read_image(image)


def show_grid(rows, row_titles=None, column_titles=None, title=None, side=0.8):
    """Pictures in rows: ``rows`` is a list of lists of PIL images, arrays or paths; gaps (None) stay empty.

    One axes for each row, its pictures in squares of length 1: axes for each picture would take five times as long.
    The figure is as wide as its titles need, and laid out by hand: matplotlib's own layout cuts names beside squares.
    """
    rows = rows or [[None]]
    columns, large = max(1, *(len(row) for row in rows)), side >= 1.5
    names, heads = ([literal(words) for words in titles or ()] for titles in (row_titles, column_titles))
    sizes = {"title": 12 if large else 10, "head": 10 if large else 8, "name": 9}
    overhang = max([0.05, *((_inches(words, sizes["head"]) - side) / 2 + 0.05 for words in heads)])
    left = max([overhang, *(_inches(words, sizes["name"]) + 0.2 for words in names)])
    above = (0.35 if title else 0.05) + (0.25 if heads else 0)
    heading = _inches(literal(title), sizes["title"]) / 2 + 0.1 if title else 0
    left += max(0, heading - left - side * columns / 2)
    width = left + side * columns + max(overhang, heading - side * columns / 2)
    height = above + side * len(rows)
    figure = NotebookFigure(figsize=(width, height))
    for i, row in enumerate(rows):
        ax = figure.add_axes(
            (left / width, 1 - (above + side * (i + 1)) / height, side * columns / width, side / height)
        )
        for j, picture in enumerate(row):
            if picture is not None:
                pixels = np.asarray(_picture(picture))
                high, wide = 0.47 * np.divide(pixels.shape[:2], max(pixels.shape[:2]))
                place = (j + 0.5 - wide, j + 0.5 + wide, 0.5 - high, 0.5 + high)
                ax.imshow(pixels, interpolation="nearest", extent=place)
        ax.set(xlim=(0, columns), ylim=(0, 1), xticks=[], yticks=[], aspect="auto")
        ax.spines[:].set_visible(False)
        if names:
            ax.set_ylabel(names[i], rotation=0, ha="right", va="center", fontsize=sizes["name"])
    if heads:
        ax = figure.axes[0]
        ax.xaxis.tick_top()
        ax.set_xticks(np.arange(len(heads)) + 0.5, heads, fontsize=sizes["head"])
        ax.tick_params(length=0)
    if title:
        middle = (left + side * columns / 2) / width
        figure.suptitle(literal(title), x=middle, y=1 - 0.08 / height, fontsize=sizes["title"])
    return figure


def _inches(words, size):
    """How wide ``words`` are in inches, in matplotlib's font of ``size`` points; hinting makes it a little wider."""
    return 1.06 * TextPath((0, 0), words, size=size).get_extents().width / 72 if words.strip() else 0


def teaser(rows, class_name, dataset):
    """The paper's first figure: one class, a row of pictures per source, ``{source: [picture, ...]}``."""
    names = max((_inches(literal(source), 9) for source in rows), default=0)
    side = min(0.95, (WIDEST - names - 0.4) / max([1, *map(len, rows.values())]))
    figure = show_grid(list(rows.values()), list(rows), title=f"Dataset: {dataset}; class: {class_name}", side=side)
    missing = [row.label for row in METHODS.values() if row.generates and row.label not in rows]
    figure.sentence = f"One class, {class_name}; rows from the top: {', '.join(rows)}.{_made_how(rows)}"
    if missing:
        figure.sentence += f" Not run: {', '.join(missing)}."
    return figure


def _made_how(rows):
    """How the rows of the teaser came about, by construction of their methods: what differs between them."""
    how = {}
    for row in METHODS.values():
        if row.generates and row.label in rows:
            start = "a shot with noise added" if row.start == "shot" else "noise"
            taught = "adapters trained on the shots" if row.adapts else "no adapter"
            how.setdefault((start, taught), []).append(row.label)
    said = [f"{', '.join(names)}: from {start}, {taught}" for (start, taught), names in how.items()]
    return f" {'; '.join(said)}." if said else ""


def accuracy_bars(table, dataset, pairs=None):
    """Test accuracy per method and setting, with the standard deviation over seeds.

    pairs: ``compare.pairs`` of the data set; what they do not tell apart from the highest mean is named beside it.
    """
    table = table[table["dataset"] == dataset]
    figure, axes = new_figure(1, 1, WIDEST, 0.36 * len(table) + 1)
    ax = axes[0, 0]
    names = [f"{METHODS[row.method].label}, {row.setting}" for row in table.itertuples()]
    names = [name.removesuffix(", none") for name in names]
    colours = [COLOURS[method] for method in table["method"]]
    spread = table["accuracy_std"]  # one seed has none
    bars = ax.barh(names, table["accuracy_mean"], xerr=spread, color=colours, error_kw={"lw": 1, "capsize": 2})
    for line in (*bars.errorbar.lines[1], *bars.errorbar.lines[2]):  # black on a black bar too
        line.set_path_effects([withStroke(linewidth=2.5, foreground="white")])
    for y, (mean, std) in enumerate(zip(table["accuracy_mean"], spread.fillna(0), strict=True)):
        ax.text(mean + std + 0.8, y, f"{mean:.1f}", va="center", fontsize=8)
    ax.invert_yaxis()
    ax.set(
        xlim=(0, 110),
        xticks=range(0, 101, 20),
        xlabel="top-1 accuracy on the test split (%)",
        title=f"Accuracy on {literal(dataset)}",
    )
    sns.despine(ax=ax)
    if names:
        means = dict(zip(names, table["accuracy_mean"], strict=True))
        best, worst = max(means, key=means.get), min(means, key=means.get)
        figure.sentence = (
            f"Highest mean: {best} ({means[best]:.1f} %){_same_as_highest(table, names, best, pairs)}; lowest: {worst} "
            f"({means[worst]:.1f} %)."
        )
        if len(means) == 1:
            figure.sentence = f"{best}: {means[best]:.1f} %."
        figure.alt = f"Bars: test accuracy of each method and setting. {figure.sentence}"
    return figure


def _same_as_highest(table, names, best, pairs):
    """Who is within noise of the highest mean, over images or over seeds, as words; "" where nothing is known of it."""
    keys = {name: classifier_name(row.method, row.setting) for name, row in zip(names, table.itertuples(), strict=True)}
    found = {name: select_pair(pairs, keys[best], keys[name]) for name in names if name != best and pairs is not None}
    words = ""
    for verdict in (Verdict.WITHIN_NOISE.label, Verdict.UNDECIDED.label):
        if same := [name for name, pair in found.items() if pair and pair["verdict"] == verdict]:
            words += f", {verdict} of it: {'; '.join(same)}"
    return words


def forest(order, dataset):
    """Paired differences of ``compare.order`` with both intervals: seeds as dots below, published as open diamonds."""
    figure, axes = new_figure(1, 1, WIDEST, 0.32 * len(order) + 1.5)
    ax = axes[0, 0]
    ax.axvline(0, color="0.5", lw=0.8)
    for y, row in enumerate(order.itertuples()):
        colour, marker = VERDICTS.get(row.outcome, ("0.4", "o"))
        ax.plot(list(row.per_seed.values()), [y + 0.3] * len(row.per_seed), ".", color="0.35", ms=3.5, zorder=3)
        ax.plot([row.low, row.high], [y, y], color=colour, lw=6, alpha=0.35, solid_capstyle="butt", zorder=1)
        ax.plot([row.seeds_low, row.seeds_high], [y, y], "|-", color=colour, lw=0.9, ms=6, zorder=2)
        ax.plot(row.ours, y, marker, color=colour, ms=3.5, zorder=3)
        ax.plot(row.published, y, "D", mfc="none", mec="black", mew=0.8, ms=4, zorder=4)
    looks = [("published averages", "D", "none", "black"), ("one seed", ".", "0.35", "0.35")]
    looks += [(f"ours: {name}", marker, colour, colour) for name, (colour, marker) in VERDICTS.items()]
    looks += [("ours: not decided", "o", "0.4", "0.4")]
    handles = [Line2D([], [], ls="", marker=m, mfc=face, mec=edge, label=label) for label, m, face, edge in looks]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=7, frameon=False)
    ax.set_yticks(range(len(order)), order["pair"], fontsize=8)
    ax.invert_yaxis()
    ax.set(
        xlabel="points of accuracy, with 95 % intervals\n(broad and pale: over test images, thin: over seeds)",
        title=literal(f"The published order, on {dataset}"),
    )
    if order.empty:
        ax.text(0.5, 0.5, "no published pair has been run", ha="center", transform=ax.transAxes)
    sns.despine(ax=ax, left=True)
    counts = ", ".join(f"{(order['outcome'] == outcome).sum()} {outcome}" for outcome in OUTCOMES)
    figure.sentence = f"Of {len(order)} published orders: {counts}."
    figure.alt = f"Differences in accuracy with intervals, beside the published ones. {figure.sentence}"
    return figure


def noising_steps(pictures, timesteps):
    """One picture at several timesteps of the forward process; ``pictures`` as arrays in [0, 1]."""
    titles = [f"t = {int(t)}" for t in timesteps]
    return show_grid([list(pictures)], column_titles=titles, title="The same picture, more and more noise", side=1.0)


def save_figure(figure, folder, name):
    """Save as png and pdf with the same bytes every time; returns the png's path."""
    kinds = {"png": ({"Software": None}, "Description"), "pdf": ({"CreationDate": None, "Producer": None}, "Subject")}
    for suffix, (metadata, key) in kinds.items():
        metadata |= {key: figure.alt} if figure.alt else {}
        with atomic_write(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, dpi=150, metadata=metadata)
    return folder / f"{name}.png"


def gallery(pages, titles=None):
    """A Markdown page of ``{name: figure}``, whose png lie beside it, each with its words and its sentence.

    titles: ``{name: heading}``; a figure without one is headed by its name.
    """
    lines = ["# Figures", "", "The sentence under a figure is written from its data."]
    for name, figure in pages.items():
        alt = escape(figure.alt or describe(figure))
        heading = (titles or {}).get(name, name.replace("_", " "))
        lines += ["", f"## {heading}", "", f'<img src="{name}.png" alt="{alt}">', ""]
        lines += [escape_markdown(figure.sentence or describe(figure))]
    return "\n".join(lines) + "\n"
