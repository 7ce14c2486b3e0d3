"""Figures made of pictures: the paper's qualitative figure, and the nearest copies side by side."""

import json

import numpy as np
from matplotlib.patches import Rectangle

from datadream_utils.analysis.ablations import STUDY, study_that_moves
from datadream_utils.analysis.stages import generated
from datadream_utils.data.images import centre_square, read_image
from datadream_utils.errors import InputError
from datadream_utils.files import literal
from datadream_utils.plots.results import ADAPTED, BOTH, COLUMN, NORMAL, SMALL, described, empty, label
from datadream_utils.plots.style import PrintFigure, show_grid

# Frames of the shots, innermost first; told apart by the colour-blind (Okabe and Ito) and by their dashes.
FRAMES = {1: ("#E69F00", ":"), 4: ("#D55E00", "--"), 8: ("#56B4E9", "-."), 16: ("#009E73", "-")}
FROM_SHOTS = ("issynth", "disef")
PICTURE, GAP, MIDDLE = 1.0, 0.08, 0.35  # in pictures' sides
BETWEEN = PICTURE + 0.3  # the two rows of shots: frames pass between them
EACH = 4  # pictures of a method in a row


def drawn_pictures(stages, dataset, methods, n_shots, label, seed, count=EACH):
    """``{(method, n_shot): [path, ...]}``: the first ``count`` pictures of class ``label`` that runs of ``seed`` drew.

    Runs that are not there have no entry. InputError when what a run wrote of its images cannot be read.
    """
    found = {}
    for row in generated(stages, dataset).itertuples():
        if row.method in methods and row.n_shot in n_shots and row.seed == seed:
            source = row.folder / "images" / "metadata.jsonl"
            try:
                rows = [json.loads(line) for line in source.read_text().splitlines()]
                files = [row.folder / "images" / entry["file_name"] for entry in rows if entry["label"] == label]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise InputError(
                    f"{source} cannot be read ({error}): delete {row.folder}, run 02_generate again."
                ) from None
            found[row.method, row.n_shot] = files[:count]
    return found


def qualitative(shots, drawn, class_name, dataset, side=96):
    """The paper's qualitative figure of one class; its few shots in nested frames, one per number of shots.

    Below: IsSynth and DISEF with the most shots; DataDream_cls and DataDream_dset with each number. A row's tag has
    the colour and dashes of the frame that holds its shots; a row of which nothing was drawn is left out, and the
    sentence says so. shots: up to 16 paths; drawn: ``drawn_pictures``.
    """
    frames = {n: look for n, look in FRAMES.items() if n <= len(shots)}
    if not frames:
        return empty("There are no few shots to show.")
    most = max(frames)
    wanted = [(most, FROM_SHOTS)] + [(n, ADAPTED) for n in frames]
    rows = [(n, methods) for n, methods in wanted if any((method, n) in drawn for method in methods)]
    top = 2 if most > 8 else 1
    width, height = 2 * EACH + MIDDLE + 1.7, BETWEEN * (top - 1) + (len(rows) + 1) * (PICTURE + GAP) + 1.8
    figure = PrintFigure(figsize=(BOTH, BOTH * height / width))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(-1.4, width - 1.4), ylim=(height - 0.1, -0.1))
    ax.axis("off")
    ax.text(EACH + MIDDLE / 2, 0.15, f"Dataset: {literal(dataset)}; class: {literal(class_name)}; real few-shot data",
            ha="center", va="center", fontsize=NORMAL + 1)  # fmt: skip
    for i, path in enumerate(shots[:most]):
        _place(ax, path, i % 8, 0.55 + i // 8 * BETWEEN, side)
    for level, (n, look) in enumerate(frames.items()):
        _frame(ax, n, 0.03 + 0.05 * level, look)
    y, above = 0.55 + (top - 1) * BETWEEN + PICTURE + 0.65, None
    for n, methods in rows:
        if methods != above:
            y += 0.4 * (above is not None)
            for half, method in enumerate(methods):
                ax.text(_x(half * EACH) + EACH / 2, y - 0.12, label(method), ha="center", fontsize=NORMAL)
        above = methods
        _tag(ax, n, y, frames[n])
        for half, method in enumerate(methods):
            files = drawn.get((method, n), ())
            for j, path in enumerate(files or [None] * EACH):
                _place(ax, path, half * EACH + j, y, side)
        y += PICTURE + GAP
    shown = sorted({n for n, _ in rows})
    what = f"what was drawn from {', '.join(map(str, shown))} of them" if shown else "nothing drawn from them"
    sentence = f"One class, {class_name}: {most} real image{'s' * (most > 1)}, and {what}."
    if any(n in shown for n in frames if n < most) and shown:
        sentence += (
            " Look from the rows of few shots to those of many: does a row repeat what stands in its frame, and do its "
            "pictures differ from each other?"
        )
    missing = [f"{label(method)} ({n})" for n, methods in wanted for method in methods if (method, n) not in drawn]
    if missing:
        sentence += f" Not run: {', '.join(missing)}; {study_that_moves('n_shot')}"
    return described(figure, "Rows of pictures; the shots are in nested frames whose colours mark the rows.", sentence)


def _x(column):
    return column + (MIDDLE if column >= EACH else 0)


def _place(ax, path, column, y, side):
    x = _x(column)
    box = (x + GAP / 2, x + PICTURE - GAP / 2, y + PICTURE - GAP / 2, y + GAP / 2)
    if path is None:
        ax.text(x + PICTURE / 2, y + PICTURE / 2, "not run", ha="center", va="center", fontsize=SMALL, color="0.5")
        return
    ax.imshow(np.asarray(centre_square(read_image(path), side)), extent=box, interpolation="nearest", aspect="auto")


def _frame(ax, n, margin, look):
    last = min(n, 8)
    right, bottom = _x(last - 1) + PICTURE, 0.55 + BETWEEN * (n > 8) + PICTURE
    ax.add_patch(Rectangle((-margin, 0.55 - margin), right + 2 * margin, bottom - 0.55 + 2 * margin, fill=False,
                           edgecolor=look[0], ls=look[1], lw=1.6, clip_on=False))  # fmt: skip


def _tag(ax, n, y, look):
    ax.text(-0.75, y + PICTURE / 2, f"{n}-shot", ha="center", va="center", fontsize=NORMAL,
            bbox={"facecolor": "white", "edgecolor": look[0], "linestyle": look[1], "linewidth": 1.6})  # fmt: skip


def worst_copies(blocks, space="feature", side=96):
    """``memorisation.worst`` as pictures: above what was drawn, below the shot it is nearest to, with the distance.

    blocks: ``{(method, n_shot, seed): pairs}``, one below the other.
    """
    blocks = {run: pairs for run, pairs in blocks.items() if len(pairs)}
    if not blocks:
        return empty(f"There are no generated images, or no real ones beside the shots: {STUDY}")
    width = min(BOTH, max(COLUMN, 0.62 * max(map(len, blocks.values())) + 0.5))
    figure = PrintFigure(figsize=(width, 1.75 * len(blocks)), layout="constrained")
    parts, said = figure.subfigures(len(blocks), 1, squeeze=False)[:, 0], []
    for part, (run, pairs) in zip(parts, blocks.items(), strict=True):
        _pairs(part, pairs, side)
        title = _pairs_title(run, len(pairs), space)
        part.suptitle(title, fontsize=NORMAL)
        said.append(f"{title}: distances from {pairs['distance'].min():.3f} to {pairs['distance'].max():.3f}.")
    what = "Pairs of pictures: above a generated one, below the few-shot image nearest to it."
    return described(figure, what, " ".join(said))


def _pairs_title(run, count, space):
    method, n_shot, seed = run
    closest = f"the {'ten' if count == 10 else count} closest pairs" if count > 1 else "the closest pair"
    return f"{label(method)}, {n_shot}-shot, seed {seed}: {closest} of a drawn picture and a shot, by {space}s"


def _pairs(part, pairs, side):
    axes = part.subplots(2, len(pairs), squeeze=False)
    for column, row in enumerate(pairs.itertuples()):
        for line, path in enumerate((row.path, row.shot)):
            ax = axes[line, column]
            ax.imshow(np.asarray(centre_square(read_image(path), side)), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            for spine in ax.spines.values():
                spine.set_visible(False)
        axes[0, column].set_title(f"{row.distance:.3f}", fontsize=SMALL)
    for line, words in enumerate(("drawn", "shot")):
        axes[line, 0].set_ylabel(words, fontsize=SMALL)


def real_beside_synthetic(shots, images, class_names, title):
    """A row per class: five of the few shots, a gap, ten generated images. shots, images: paths by label."""
    shown = max((min(len(of_class), 10) for of_class in images), default=0)
    rows = [
        [*real[:5], *[None] * (6 - len(real[:5])), *generated[:10]]
        for real, generated in zip(shots[:100], images[:100], strict=True)
    ]
    titles = ["real"] + [""] * 5 + (["synthetic"] + [""] * 9)[:shown]
    return show_grid(rows, list(class_names[:100]), titles, title)
