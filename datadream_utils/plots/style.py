"""How every figure looks: its class and its words, sizes, and one colour and marker for each method.

A figure has the size that it has in print: ``WIDTH`` inches are the text width of a conference page, and no letter is
smaller than ``SMALL`` points. Figures of the analysis have an opaque white ground, so that they can be read in dark
mode too. DataDream has one strong hue in two shades, and what it is compared with is muted. Colours differ for the
colour-blind, and every method has a marker of its own, so that figures can be read in grey.
"""

import io
import warnings
from base64 import b64encode
from html import escape
from itertools import cycle

import seaborn as sns
from IPython import get_ipython
from matplotlib import font_manager, rcParams
from matplotlib.figure import Figure
from matplotlib.textpath import TextPath
from matplotlib.ticker import LogLocator, NullFormatter

from datadream_utils.methods import METHODS, short_label

WIDTH = 4.8  # inches
SMALL, NORMAL = 8, 9  # points
DPI = 300  # of files; on a screen a figure has fewer
BLUE, ORANGE = "#0072B2", "#D55E00"

# In the order of ``METHODS``. Each colour has a contrast of at least 3 : 1 to white, as thin lines need (WCAG 1.4.11).
PALETTE = ("#949494", "#000000", "#8A8356", "#4A8A97", "#735B8C", "#E8590C", "#9C2A00", "#38476A")
COLOURS = dict(zip(METHODS, cycle(PALETTE)))
MARKERS = dict(zip(METHODS, cycle("PsovDX^*<>hpd8")))
NO_METHOD = {"color": "0.25", "marker": "+"}  # real images
STRONG = ("datadream_cls", "datadream_dset")  # drawn over the others, with thicker lines
WHISKERS = {"ms": 5, "capsize": 2}
SETTING_TITLES = {"S": "synthetic only (S)", "R+S": "real and synthetic (R+S)"}
GAIN_WORDS = {"S": "over zero-shot CLIP", "R+S": "over Real-finetune"}  # what a classifier's gain is measured against


# Fonts for class names in scripts that matplotlib's own font lacks, as Linux, macOS and Windows have them.
SCRIPTS = ("Noto Sans CJK JP", "Noto Sans CJK SC", "Noto Sans SC", "Hiragino Sans", "PingFang SC", "Microsoft YaHei",
           "Yu Gothic", "Malgun Gothic", "Apple SD Gothic Neo", "Noto Sans Devanagari", "Noto Sans Bengali",
           "Noto Sans Thai", "Noto Sans Arabic", "Noto Sans Hebrew", "Nirmala UI", "Leelawadee UI",
           "WenQuanYi Zen Hei", "Droid Sans Fallback", "Arial Unicode MS", "Unifont")  # fmt: skip
_INSTALLED = set(font_manager.get_font_names())
rcParams["font.family"] = ["DejaVu Sans", *(name for name in SCRIPTS if name in _INSTALLED)]


class NotebookFigure(Figure):
    """A matplotlib figure that a notebook shows as a picture when it is a cell's last value, without pyplot.

    name: its entry in ``catalogue.FIGURES`` ("": none); alt: what is drawn ("": ``alt_from_titles``); finding: what
    the data say, at most 25 words; reason: why there is nothing to draw ("": there is); complete: False where the
    runs are too few for the comparison that the figure is made for; dots: per inch on a screen.
    """

    dots = 90
    name = alt = finding = reason = ""
    complete = True

    def alt_text(self):
        """What a screen reader reads: what is drawn and what it shows."""
        return " ".join(filter(None, (self.alt or alt_from_titles(self), self.finding or self.reason)))

    def savefig(self, *args, **options):
        """Write the figure; one hint, instead of a warning per letter, where no font has a letter."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            super().savefig(*args, **options)
        missing = [warning for warning in caught if "missing from font" in str(warning.message)]
        for warning in caught:
            if warning not in missing:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
        if missing:
            print("No font on this machine has some letters of this figure: install one, such as Noto Sans CJK.")

    def _repr_mimebundle_(self, **_):
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=self.dots)
        return png_bundle(buffer.getvalue(), self.alt_text())


class PrintFigure(NotebookFigure):
    """A figure in its size in print, on opaque white; a screen shows it half as large again."""

    dots = 150

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, facecolor="white", **options)


class StoredPicture:
    """A png file with alt text, as a notebook shows it."""

    def __init__(self, file, alt):
        self.file, self.alt = file, alt

    def _repr_mimebundle_(self, **_):
        return png_bundle(self.file.read_bytes(), self.alt)


def png_bundle(png, alt):
    """A picture (bytes) and its alt text in IPython's form: data, metadata.

    JupyterLab shows PNG without alt text, so a live notebook has HTML too.
    """
    data = b64encode(png).decode()
    html = {"text/html": f'<img alt="{escape(alt)}" src="data:image/png;base64,{data}">'} if is_live() else {}
    return {"image/png": data} | html, {"image/png": {"alt": alt}}


def is_live():
    """Whether somebody uses this notebook: False under papermill and nbconvert, True where a control was moved."""
    kernel = getattr(get_ipython(), "kernel", None)
    request = kernel.get_parent() if kernel else {}
    return request.get("content", {}).get("allow_stdin", False) or request.get("msg_type") == "comm_msg"


def new_figure(rows, columns, width, height, **options):
    """A figure of ``width`` x ``height`` inches for a notebook, and its axes as an array (rows, columns)."""
    figure = NotebookFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def panels(columns, height, rows=1, **options):
    """A white figure for print, ``WIDTH`` x ``height`` inches, with its panels: ``(figure, [axes, ...])``."""
    figure = PrintFigure(figsize=(WIDTH, height), layout="constrained")
    return figure, list(figure.subplots(rows, columns, squeeze=False, **options).flat)


def describe(figure, alt, finding="", name="", complete=True):
    """Give a figure its words (see ``NotebookFigure``), and return it."""
    figure.alt, figure.finding, figure.name, figure.complete = alt, finding, name, complete
    return figure


def empty_figure(name, reason):
    """A figure that says why there is nothing to draw, and what to run."""
    figure, (ax,) = panels(1, 0.8)
    ax.text(0.5, 0.5, literal(reason), ha="center", va="center", fontsize=NORMAL, wrap=True)
    ax.axis("off")
    figure.reason = reason
    return describe(figure, "An empty figure.", name=name, complete=False)


def alt_from_titles(figure):
    """Alt text from what a figure has written on it: titles, names of axes, of rows and of columns."""
    axes = [ax for ax in figure.axes if ax.get_label() != "<colorbar>"]
    words = [figure.get_suptitle(), *(part.get_suptitle() for part in figure.subfigs)]
    for ax in axes:
        if ax.get_xlabel():
            shown = ax.get_ylabel() or ", ".join(tick.get_text() for tick in ax.get_yticklabels())
            words.append(f"{ax.get_title()}: {shown}, over {ax.get_xlabel()}")
    pictures = [ax for ax in axes if not ax.get_xlabel()]
    for kind, names in {
        "rows": [ax.get_ylabel() for ax in pictures],
        "columns": [word for ax in pictures for word in (ax.get_title(), *_column_titles(ax))],
    }.items():
        if any(names):
            words.append(f"{kind}: {', '.join(filter(None, names))}")
    return "; ".join(filter(None, words))


def _column_titles(ax):
    above = ax.xaxis.get_ticks_position() == "top"
    return [tick.get_text() for tick in ax.get_xticklabels()] if above else []


def in_table_order(names):
    """Names of methods in the order of ``METHODS``, which is that of the tables; others last."""
    order = list(METHODS)
    return sorted(names, key=lambda name: order.index(name) if name in order else len(order))


def can_compare(methods):
    """Whether at least two of the names are methods that generate images."""
    return sum(METHODS[name].generates for name in set(methods) if name in METHODS) >= 2


def marker_style(method):
    """Colour, marker and weight of a method's lines, or those of real images, as keywords of matplotlib."""
    look = {"color": COLOURS[method], "marker": MARKERS[method]} if method in METHODS else NO_METHOD
    return look | ({"lw": 2, "zorder": 3} if method in STRONG else {"lw": 1.1, "zorder": 2})


def label_axes(ax, xlabel="", ylabel="", title=""):
    """Labels in print sizes, and no more frame than is needed."""
    ax.set_xlabel(xlabel, fontsize=NORMAL)
    ax.set_ylabel(ylabel, fontsize=NORMAL)
    ax.set_title(title, fontsize=NORMAL)
    ax.tick_params(labelsize=SMALL, which="both")
    sns.despine(ax=ax)


def logarithmic(ax):
    """A logarithmic x axis with plain numbers: 1, 2, 5, 10, ... or, over more than three decades, 1, 10, ..."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())


def turn_names(ax, degrees):
    """Names below a heat map turned by ``degrees``, so that each ends at its column; those beside it level."""
    ax.tick_params(axis="y", rotation=0)
    for tick in ax.get_xticklabels():
        tick.set(rotation=degrees, ha="right", rotation_mode="anchor")


def legend(figure, axes, columns=3):
    """One legend below all panels with each label of any of ``axes``; methods in the table's order, then others."""
    handles = {}
    order = {label: i for i, name in enumerate(METHODS) for label in (METHODS[name].label, short_label(name))}
    for ax in axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    labels = sorted(handles, key=lambda label: order.get(label, len(order)))
    if labels:
        figure.legend([handles[label] for label in labels], labels, loc="outside lower center", ncols=columns,
                      fontsize=SMALL, frameon=False, columnspacing=1.2, handletextpad=0.5)  # fmt: skip


def literal(text):
    """A text as matplotlib shows it literally: no dollar in it begins a formula."""
    return text.replace("$", r"\$")


def text_width(text, size):
    """The width of ``text`` in inches, in matplotlib's font of ``size`` points; hinting makes it a little wider."""
    with warnings.catch_warnings(action="ignore"):  # of letters that no font has: ``savefig`` says it
        return 1.06 * TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0
