"""Figures made of pictures: grids, and the paper's qualitative figure."""

import numpy as np
from matplotlib.patches import Rectangle

from datadream_utils.analysis.results import list_pictures, select_generated
from datadream_utils.data.images import centre_square, read_image
from datadream_utils.methods import short_label
from datadream_utils.plots.style import (
    NORMAL,
    SMALL,
    WIDTH,
    NotebookFigure,
    PrintFigure,
    describe,
    empty_figure,
    literal,
    text_width,
)

# Frames of the shots, innermost first; the colour-blind see them apart (Okabe and Ito), and so do their dashes.
FRAMES = {1: ("#E69F00", ":"), 4: ("#D55E00", "--"), 8: ("#56B4E9", "-."), 16: ("#009E73", "-")}
FROM_SHOTS = ("issynth", "disef")
ADAPTED = ("datadream_cls", "datadream_dset")
PICTURE, GAP, MIDDLE = 1.0, 0.08, 0.35  # in pictures' sides
BETWEEN = PICTURE + 0.3  # the two rows of shots: frames pass between them
EACH = 4  # pictures of a method in a row


def _open(image):
    return image if hasattr(image, "size") else read_image(image)


def square_pixels(path, side):
    """The middle square of a picture, at most ``side`` pixels wide, as an array; a smaller one keeps its pixels."""
    image = read_image(path)
    return np.asarray(centre_square(image, min(side, *image.size)))


def show_grid(rows, row_titles=None, column_titles=None, title=None, side=0.8):
    """Pictures in rows: ``rows`` is a list of lists of PIL images, arrays or paths; gaps (None) stay empty.

    side: inches of a picture. Each row is one axes with its pictures in squares of length 1, because axes for each
    picture would take five times as long. The figure is as wide as its titles need, and its layout is computed here,
    because matplotlib's own cuts off the names of rows.
    """
    rows = rows or [[None]]
    columns, large = max(1, *(len(row) for row in rows)), side >= 1.5
    names, heads = ([literal(words) for words in titles or ()] for titles in (row_titles, column_titles))
    sizes = {"title": 12 if large else 10, "head": 10 if large else 8, "name": 9}
    overhang = max([0.05, *((text_width(words, sizes["head"]) - side) / 2 + 0.05 for words in heads)])
    left = max([overhang, *(text_width(words, sizes["name"]) + 0.2 for words in names)])
    above = (0.35 if title else 0.05) + (0.25 if heads else 0)
    heading = text_width(literal(title), sizes["title"]) / 2 + 0.1 if title else 0
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
                pixels = np.asarray(_open(picture))
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


def real_beside_synthetic(shots, images, class_names, title):
    """A row per class: five of the few shots, a gap, ten generated images. shots, images: paths by label."""
    shown = max((min(len(of_class), 10) for of_class in images), default=0)
    rows = [
        [*real[:5], *[None] * (6 - len(real[:5])), *generated[:10]]
        for real, generated in zip(shots[:100], images[:100], strict=True)
    ]
    titles = ["real"] + [""] * 5 + (["synthetic"] + [""] * 9)[:shown]
    return show_grid(rows, list(class_names[:100]), titles, title)


def drawn_pictures(stages, dataset, methods, n_shots, label, seed, count=EACH):
    """``{(method, n_shot): [path, ...]}``: the first ``count`` pictures of class ``label`` in runs of ``seed``.

    stages: ``results.load_stages``. Runs that are not there have no entry.
    """
    return {
        (stage.method, stage.n_shot): list_pictures(stage, label, count)
        for stage in select_generated(stages, dataset).itertuples()
        if stage.method in methods and stage.n_shot in n_shots and stage.seed == seed
    }


def qualitative(shots, drawn, class_name, dataset, side=96):
    """The paper's qualitative figure of one class; its few shots in nested frames, one per number of shots.

    Below: IsSynth and DISEF with the most shots; DataDream_cls and DataDream_dset with each number. A row's tag has
    the colour and dashes of the frame that holds its shots; a row without any generated picture is left out. shots: up
    to 16 paths; drawn: ``drawn_pictures``.
    """
    frames = {n: style for n, style in FRAMES.items() if n <= len(shots)}
    if not frames:
        return empty_figure("qualitative", "There are no few shots to show.")
    most = max(frames)
    wanted = [(most, FROM_SHOTS)] + [(n, ADAPTED) for n in frames]
    rows = [(n, methods) for n, methods in wanted if any((method, n) in drawn for method in methods)]
    top = 2 if most > 8 else 1
    width, height = 2 * EACH + MIDDLE + 1.7, BETWEEN * (top - 1) + (len(rows) + 1) * (PICTURE + GAP) + 1.8
    figure = PrintFigure(figsize=(WIDTH, WIDTH * height / width))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-1.4, width - 1.4), ylim=(height - 0.1, -0.15))
    ax.axis("off")
    ax.text(EACH + MIDDLE / 2, 0.1, f"Dataset: {literal(dataset)}; class: {literal(class_name)}; real few-shot data",
            ha="center", va="center", fontsize=NORMAL)  # fmt: skip
    for i, path in enumerate(shots[:most]):
        _place(ax, path, i % 8, 0.55 + i // 8 * BETWEEN, side)
    for level, (n, style) in enumerate(frames.items()):
        _frame(ax, n, 0.03 + 0.05 * level, style)
    y, above = 0.55 + (top - 1) * BETWEEN + PICTURE + 0.65, None
    for n, methods in rows:
        if methods != above:
            y += 0.4 * (above is not None)
            for half, method in enumerate(methods):
                ax.text(_x(half * EACH) + EACH / 2, y - 0.12, short_label(method), ha="center", fontsize=NORMAL)
        above = methods
        _tag(ax, n, y, frames[n])
        for half, method in enumerate(methods):
            files = drawn.get((method, n), ())
            for j, path in enumerate(files or [None] * EACH):
                _place(ax, path, half * EACH + j, y, side)
        y += PICTURE + GAP
    alt = f"Rows of pictures of the class {class_name}: {most} real image{'s' * (most > 1)} in nested frames; below, "
    alt += f"images generated with {', '.join(str(n) for n, _ in rows)} of them." if rows else "nothing generated."
    complete = all((method, n) in drawn for n, methods in wanted for method in methods)
    return describe(figure, alt, name="qualitative", complete=complete)


def _x(column):
    return column + (MIDDLE if column >= EACH else 0)


def _place(ax, path, column, y, side):
    x = _x(column)
    box = (x + GAP / 2, x + PICTURE - GAP / 2, y + PICTURE - GAP / 2, y + GAP / 2)
    if path is None:
        ax.text(x + PICTURE / 2, y + PICTURE / 2, "not run", ha="center", va="center", fontsize=SMALL, color="0.5")
        return
    ax.imshow(square_pixels(path, side), extent=box, interpolation="nearest", aspect="auto")


def _frame(ax, n, margin, style):
    last = min(n, 8)
    right, bottom = _x(last - 1) + PICTURE, 0.55 + BETWEEN * (n > 8) + PICTURE
    ax.add_patch(Rectangle((-margin, 0.55 - margin), right + 2 * margin, bottom - 0.55 + 2 * margin, fill=False,
                           edgecolor=style[0], ls=style[1], lw=1.6, clip_on=False))  # fmt: skip


def _tag(ax, n, y, style):
    ax.text(-0.75, y + PICTURE / 2, f"{n}-shot", ha="center", va="center", fontsize=NORMAL,
            bbox={"facecolor": "white", "edgecolor": style[0], "linestyle": style[1], "linewidth": 1.6})  # fmt: skip
