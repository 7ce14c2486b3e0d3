"""Figures of the catalogue: shown with their caption, beside the committed results, and written to files."""

from html import escape

from IPython.display import Image, Markdown, display

from datadream_utils.catalogue import FIGURES, TABLES
from datadream_utils.files import atomic_write, markdown
from datadream_utils.params import ROOT

COMMITTED = ROOT / "figures" / "tiny"
DPI = 150


def caption(figure):
    """A figure's words as Markdown: its finding in bold and its fixed caption, or why there is nothing to draw."""
    if figure.reason:
        return Markdown(markdown(figure.reason))
    finding = f"**{markdown(figure.finding)}**" if figure.finding else ""
    fixed = markdown(FIGURES[figure.name].caption) if figure.name else ""
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
        display(Image(filename=file, alt=f"Committed results. {FIGURES[figure.name].caption}"))


def show_table(name, text, complete=True):
    """Display a table's caption and its Markdown ``text``; where the runs are too few, the committed table too.

    name: its entry in ``catalogue.TABLES``; complete: False where the runs are too few for what the table compares.
    """
    display(Markdown(f"{TABLES[name].caption}\n\n{text}"))
    file = COMMITTED / f"{name}.md"
    if not complete and file.is_file():
        display(committed_label(file))
        display(Markdown(file.read_text(encoding="utf-8")))


def committed_label(file):
    """The line above a committed figure or table, which keeps it apart from the reader's own."""
    return Markdown(
        f"*Not from your runs, but the committed results (`{file.relative_to(ROOT)}`: mnist5k, 16 shots, every method, "
        "three seeds):*"
    )


def save_figure(figure, folder, name):
    """Write ``<name>.png`` and ``<name>.pdf``, with the same bytes every time; returns the png's path."""
    formats = {"png": ({"Software": None}, "Description"), "pdf": ({"CreationDate": None, "Producer": None}, "Subject")}
    for suffix, (metadata, key) in formats.items():
        with atomic_write(folder / f"{name}.{suffix}") as temporary:
            figure.savefig(temporary, format=suffix, dpi=DPI, metadata=metadata | {key: figure.alt_text()})
    return folder / f"{name}.png"


def write_figures(figures, folder, page):
    """Write figures of the catalogue into ``folder``, and ``<page>.md``, which shows them all; returns the png's paths.

    An empty figure is written only if every study has it. page: an entry of ``catalogue.TABLES``.
    """
    kept = [figure for figure in figures if FIGURES[figure.name].always or not figure.reason]
    with atomic_write(folder / f"{page}.md") as temporary:
        temporary.write_text(gallery(kept, TABLES[page].title), encoding="utf-8")
    return [save_figure(figure, folder, figure.name) for figure in kept]


def gallery(figures, title):
    """A Markdown page of figures whose png lie beside it, each with its title, alt text, finding and caption."""
    lines = [f"# {title}"]
    for figure in figures:
        entry, picture = FIGURES[figure.name], f'<img src="{figure.name}.png" alt="{escape(figure.alt_text())}">'
        lines += ["", f"## {markdown(entry.title)}", "", picture, "", caption(figure).data]
    return "\n".join(lines) + "\n"
