"""Figures and tables of the catalogue: shown in a notebook, with the committed ones where runs lack, and written."""

import io
from html import escape

from IPython.display import Markdown, display
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datadream_utils.analysis.tables import escape_markdown, to_markdown, write_table, write_text
from datadream_utils.catalogue import FIGURES, TABLES
from datadream_utils.files import atomic_write
from datadream_utils.params import ROOT
from datadream_utils.plots.style import DPI, StoredPicture

COMMITTED = ROOT / "figures" / "tiny"


def caption(figure):
    """A figure's words as Markdown: its finding in bold and its fixed caption, or why there is nothing to draw."""
    if figure.reason:
        return Markdown(escape_markdown(figure.reason))
    finding = f"**{escape_markdown(figure.finding)}**" if figure.finding else ""
    fixed = escape_markdown(FIGURES[figure.name].caption) if figure.name else ""
    return Markdown(" ".join(filter(None, (finding, fixed))))


def show(figure):
    """Display a figure's caption and the figure; where the runs are too few, the committed figure too."""
    words = caption(figure)
    if words.data:
        display(words)
    if not figure.reason:
        display(figure)
    show_committed(figure)


def show_committed(figure):
    """Display the committed figure where the runs are too few for the comparison that the figure is made for."""
    file = COMMITTED / f"{figure.name}.png"
    if not figure.complete and file.is_file():
        display(committed_label(file))
        entry = FIGURES[figure.name]
        display(StoredPicture(file, f"Committed results. {entry.title}. {entry.caption}"))


def show_table(name, table, complete=True):
    """Display a table of the catalogue; where the runs are too few for what it compares, the committed one too.

    table: a data frame as ``analysis.tables.to_markdown`` takes it.
    """
    show_text(name, to_markdown(name, table), complete)


def show_text(name, text, complete):
    """Display a table of the catalogue as the Markdown that its file holds, and the committed one as ``show_table``."""
    display(Markdown(text))
    file = COMMITTED / f"{name}.md"
    if not complete and file.is_file():
        display(committed_label(file))
        display(Markdown(file.read_text(encoding="utf-8")))


def committed_label(file):
    """The line above a committed figure or table, which keeps it apart from the reader's own."""
    return Markdown(f"*Not from your runs: the committed results (`{file.relative_to(ROOT)}`).*")


def save_figure(figure, folder, name):
    """Write ``<name>.png`` and ``<name>.pdf``, with the same bytes every time; returns the png's path.

    The png has ``DPI`` dots per inch and 256 colours, which makes it a third as large; the pdf keeps all colours.
    """
    with atomic_write(folder / f"{name}.png") as temporary:
        buffer, words = io.BytesIO(), PngInfo()
        figure.savefig(buffer, format="png", dpi=DPI)
        words.add_text("Description", figure.alt_text())
        picture = Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, 1, dither=Image.Dither.NONE)
        picture.save(temporary, "png", optimize=True, dpi=(DPI, DPI), pnginfo=words)
    with atomic_write(folder / f"{name}.pdf") as temporary:
        metadata = {"CreationDate": None, "Producer": None, "Subject": figure.alt_text()}
        figure.savefig(temporary, format="pdf", dpi=DPI, metadata=metadata)
    return folder / f"{name}.png"


def write_tables(tables, folder):
    """Write tables of the catalogue, ``{name: data frame or Markdown}``, into ``folder``; returns the paths."""
    paths = []
    for name, table in tables.items():
        if isinstance(table, str):
            paths.append(write_text(folder / f"{name}.md", f"{table}\n"))
        else:
            paths += write_table(folder, name, table)
    return paths


def write_figures(figures, folder, page):
    """Write figures of the catalogue into ``folder``, and ``<page>.md``, which shows them all; returns the png's paths.

    An empty figure is written only if every study has it. Figures of the appendix come last. page: an entry of
    ``catalogue.TABLES``.
    """
    kept = [figure for figure in figures if FIGURES[figure.name].always or not figure.reason]
    kept.sort(key=lambda figure: FIGURES[figure.name].appendix)
    write_text(folder / f"{page}.md", gallery(kept, TABLES[page].title))
    return [save_figure(figure, folder, figure.name) for figure in kept]


def gallery(figures, title):
    """A Markdown page of figures whose png lie beside it, each with its title, alt text, finding and caption."""
    lines = [f"# {title}"]
    for figure in figures:
        entry, picture = FIGURES[figure.name], f'<img src="{figure.name}.png" alt="{escape(figure.alt_text())}">'
        title = f"Appendix: {entry.title}" if entry.appendix else entry.title
        lines += ["", f"## {escape_markdown(title)}", "", picture, "", caption(figure).data]
    return "\n".join(lines) + "\n"
