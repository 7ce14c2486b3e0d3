"""How every figure looks: its class and its words, sizes, and one colour and marker for each method.

Sizes are for print: ``COLUMN`` inches are one column of a page, ``BOTH`` two, no letter is smaller than ``SMALL``
points. Figures of the analysis have an opaque white ground, so that they can be read in dark mode too. Colours differ
for the colour-blind, and every method has a marker of its own.
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

from datadream_utils.methods import METHODS, short_label

COLUMN, BOTH = 3.4, 7.0  # inches
SMALL, NORMAL = 6, 7  # points
BLUE, ORANGE = "#0072B2", "#D55E00"

# In the order of ``METHODS``. Each colour has a contrast of at least 3 : 1 to white, as thin lines need (WCAG 1.4.11).
PALETTE = ("#8A8A8A", "#000000", ORANGE, BLUE, "#1B9E4B", "#AA3377", "#1F1FA8", "#7A4A00")
COLOURS = dict(zip(METHODS, cycle(PALETTE)))
MARKERS = dict(zip(METHODS, cycle("PsovDX^*<>hpd8")))
NO_METHOD = {"color": "0.25", "marker": "+"}  # real images
WHISKERS = {"ms": 4, "lw": 1, "capsize": 2}
SETTING_TITLES = {"S": "synthetic only", "R+S": "real and synthetic", "R": "real only", "none": "zero-shot"}


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
    """A figure in sizes for print, on opaque white; its small letters take more dots on a screen."""

    dots = 140

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


def panels(columns, width, height, **options):
    """A white figure for print with a row of panels: ``(figure, [axes, ...])``."""
    figure = PrintFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns, squeeze=False, **options)[0]


def describe(figure, alt, finding="", name="", complete=True):
    """Give a figure its words (see ``NotebookFigure``), and return it."""
    figure.alt, figure.finding, figure.name, figure.complete = alt, finding, name, complete
    return figure


def empty_figure(name, reason):
    """A figure that says why there is nothing to draw, and what to run."""
    figure, (ax,) = panels(1, BOTH, 0.6)
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
    """Colour and marker of a method, or of real images, as keywords of matplotlib."""
    return {"color": COLOURS[method], "marker": MARKERS[method]} if method in METHODS else NO_METHOD


def label_axes(ax, xlabel="", ylabel="", title=""):
    """Labels in print sizes, and no more frame than is needed."""
    ax.set_xlabel(xlabel, fontsize=NORMAL)
    ax.set_ylabel(ylabel, fontsize=NORMAL)
    ax.set_title(title, fontsize=NORMAL)
    ax.tick_params(labelsize=SMALL, which="both")
    sns.despine(ax=ax)


def legend(figure, axes, columns=4):
    """One legend below all panels, with each label of any of ``axes`` once."""
    handles = {}
    for ax in axes:
        handles |= dict(zip(*reversed(ax.get_legend_handles_labels()), strict=True))
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, fontsize=SMALL,
                      frameon=False)  # fmt: skip


def list_names(methods):
    """Short labels of methods in a sentence: "LoFT, DISEF and FakeIt"."""
    names = [short_label(name) for name in methods]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def literal(text):
    """A text as matplotlib shows it literally: no dollar in it begins a formula."""
    return text.replace("$", r"\$")


def text_width(text, size):
    """The width of ``text`` in inches, in matplotlib's font of ``size`` points; hinting makes it a little wider."""
    with warnings.catch_warnings(action="ignore"):  # of letters that no font has: ``savefig`` says it
        return 1.06 * TextPath((0, 0), text, size=size).get_extents().width / 72 if text.strip() else 0
