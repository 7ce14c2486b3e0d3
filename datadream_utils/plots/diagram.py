"""The method as drawings: an overview of the four notebooks, and what is trained (paper, section 3).

Places in a drawing are inches from its lower left corner.
"""

from textwrap import fill

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon, Rectangle

from datadream_utils.data.images import centre_square, read_image
from datadream_utils.plots.pictures import square_pixels
from datadream_utils.plots.style import NORMAL, SMALL, WIDTH, PrintFigure, describe, literal
from datadream_utils.prompts import class_prompt

FROZEN, TRAINED = "#C9DFF2", "#F5C08A"  # light blue, plain; orange, hatched: distinct without colour too
HATCH = "////"
ROUND = "round,pad=0,rounding_size=0.04"
STEPS = {"01": "adapt", "02": "draw", "03": "train", "04": "test"}  # by notebook
NODE, NEXT, BOTTOM, TOP = 0.62, 1.0, 0.46, 1.36  # of the overview: width, distance, lower and upper edge


def overview(shots, drawn, tests):
    """The method in one picture: photos, adapted Stable Diffusion, drawn images, classifier, test images.

    shots, drawn, tests: paths by label, ``shots[label]``; nothing drawn leaves blank places.
    """
    figure, ax = _page(1.82)
    places = [0.09 + NEXT * i for i in range(5)]
    _pictures(ax, shots, places[0], 2, 3)
    _box(ax, places[1], BOTTOM + 0.3, NODE, TOP - BOTTOM - 0.3, "Stable\nDiffusion")
    _box(ax, places[1], BOTTOM, NODE, 0.28, "LoRA", trained=True)
    _pictures(ax, drawn, places[2], 3, 4)
    _box(ax, places[3], BOTTOM, NODE, TOP - BOTTOM, "CLIP\nor\nResNet", trained=True)
    _pictures(ax, tests, places[4], 2, 3)
    names = ("few photos\nper class", "adapted to\nthese photos", "drawn images\nwith labels", "classifier",
             "accuracy on\ntest images")  # fmt: skip
    for x, words in zip(places, names, strict=True):
        ax.text(x + NODE / 2, BOTTOM - 0.08, words, ha="center", va="top", fontsize=SMALL)
    for x, (number, words) in zip(places, STEPS.items(), strict=False):
        left, right, middle = x + NODE + 0.03, x + NEXT - 0.03, (BOTTOM + TOP) / 2
        _arrow(ax, (left, middle), (right, middle))
        ax.text((left + right) / 2, middle + 0.06, number, ha="center", va="bottom", fontsize=NORMAL, weight="bold")
        ax.text((left + right) / 2, middle - 0.06, words, ha="center", va="top", fontsize=SMALL)
    start, end = places[0] + NODE / 2, places[3] + NODE / 2
    ax.plot([start, start, end], [TOP + 0.04, TOP + 0.18, TOP + 0.18], color="0.2", lw=0.9)
    _arrow(ax, (end, TOP + 0.18), (end, TOP + 0.02))
    ax.text((start + end) / 2, TOP + 0.22, "the real photos too (R+S)", ha="center", va="bottom", fontsize=SMALL)
    complete = any(map(len, drawn))
    alt = "From left to right: a few photos; 01 adapt; Stable Diffusion with LoRA; 02 draw; "
    alt += "drawn images" if complete else "blank places, because nothing is drawn yet"
    alt += "; 03 train; a classifier, which also gets the real photos; 04 test; test images."
    return describe(figure, alt, name="overview", complete=complete)


def _page(height):
    figure = PrintFigure(figsize=(WIDTH, height))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, WIDTH), ylim=(0, height))
    ax.axis("off")
    return figure, ax


def _pictures(ax, files, x, columns, rows):
    """A grid of pictures, class after class: the first of each, the second of each, ..."""
    longest = max(map(len, files), default=0)
    chosen = [of_class[i] for i in range(longest) for of_class in files if i < len(of_class)]
    wide, high = NODE / columns, (TOP - BOTTOM) / rows
    side = min(wide, high) - 0.02
    for place in range(columns * rows):
        left, low = x + wide * (place % columns + 0.5) - side / 2, TOP - high * (place // columns + 0.5) - side / 2
        if place < len(chosen):
            picture = square_pixels(chosen[place], 64)
            ax.imshow(picture, extent=(left, left + side, low, low + side), aspect="auto", interpolation="nearest")
        else:
            ax.add_patch(FancyBboxPatch((left, low), side, side, boxstyle="square,pad=0", fc="0.93", ec="0.7", lw=0.5))


def method_diagram(class_names, shots, domain="", target="ε"):
    """How DataDream trains: noised shots and a class sentence through the networks, LoRA in every attention layer.

    Above: one adapter's training. Below: DataDream_dset, one adapter from the shots of all classes, and DataDream_cls,
    one per class. class_names: two or more, the first two are shown; shots: ``shots[label]``, paths; target: what the
    U-Net predicts, the noise "ε" or "v" (``results.find_target``).
    """
    figure, ax = _page(5.2)
    names, second = [literal(name) for name in class_names[:2]], min(1, len(class_names) - 1)
    _training(ax, names[0], shots[0], domain, target)
    narrow = [fill(name, 10) for name in (names[0], names[second])]
    _units(ax, narrow, (shots[0], shots[min(1, len(shots) - 1)]))
    return describe(
        figure,
        f"Diagram: shots, encoded and noised, and a sentence pass through the networks, which predict {target}; frozen "
        "parts are plain blue, trained adapters hatched orange; below: one adapter for all classes, and one for each "
        "class.",
        name="diagram",
    )


def _training(ax, name, shots, domain, target):
    ax.add_patch(FancyBboxPatch((0.08, 1.9), 4.64, 3.22, boxstyle="round,pad=0,rounding_size=0.1", fill=False, ls="--",
                                ec="0.5", lw=0.8))  # fmt: skip
    _input(ax, shots)
    sentence = f"“{class_prompt(name, domain)}”"
    ax.text(1.6, 4.93, sentence, va="center", fontsize=SMALL)
    _arrow(ax, (1.72, 4.83), (1.72, 4.63))
    for x in (1.6, 3.05):
        _attention(ax, x, 4.12, 0.62, 0.48)
        _box(ax, x + 0.66, 4.12, 0.3, 0.48, "FF")
    ax.text(2.8, 4.36, "···", ha="center", va="center", fontsize=NORMAL)
    ax.text(4.66, 4.36, "text\nencoder", ha="right", va="center", fontsize=NORMAL)
    for x in (2.25, 3.35):  # cross-attention
        _arrow(ax, (x, 4.08), (x, 3.7))
    ax.text(2.8, 3.89, "conditions", ha="center", va="center", fontsize=SMALL)
    _half(ax, 1.5, 3.15, (0.95, 0.7), "conv")
    _attention(ax, 1.95, 2.7, 0.6, 0.95)
    _box(ax, 2.6, 2.8, 0.42, 0.75, "FF ···")
    _attention(ax, 3.07, 2.7, 0.6, 0.95)
    _half(ax, 3.72, 3.15, (0.7, 0.95), "conv")
    ax.text(2.05, 2.52, "U-Net", ha="right", va="center", fontsize=NORMAL)
    ax.plot([4.14, 4.42, 4.42], [3.15, 3.15, 2.9], color="0.2", lw=0.9)
    _arrow(ax, (4.42, 2.9), (4.42, 2.64))
    ax.add_patch(FancyBboxPatch((3.58, 2.02), 1.06, 0.6, boxstyle=ROUND, fc="white", ec="0.3", lw=0.8))
    ax.text(4.11, 2.32, f"loss $L_D$:\npredicted against\ntrue {target}", ha="center", va="center", fontsize=SMALL)
    ax.plot([3.58, 2.25], [2.3, 2.3], color="0.2", lw=0.9, ls="--")
    for x in (2.25, 3.37):
        _arrow(ax, (x, 2.3), (x, 2.68), ls="--")
    ax.text(2.87, 2.15, "gradients: LoRA only", ha="center", va="center", fontsize=SMALL)
    _key(ax)


def _input(ax, shots):
    """The left column: shots, the VAE that encodes them, noise at a timestep, and what the U-Net receives."""
    ax.text(0.72, 5.0, "few real images $x$", ha="center", va="center", fontsize=SMALL)
    _stack(ax, [square_pixels(path, 64) for path in shots[:3]], 0.72, 4.6, 0.42)
    _arrow(ax, (0.72, 4.24), (0.72, 4.06))
    _box(ax, 0.3, 3.76, 0.84, 0.28, "VAE encoder")
    _arrow(ax, (0.72, 3.74), (0.72, 3.34))
    ax.text(0.8, 3.54, "+ noise ε", va="center", fontsize=SMALL)
    ax.text(0.64, 3.54, "time $t$", ha="right", va="center", fontsize=SMALL)
    _stack(ax, [_noised(path, i) for i, path in enumerate(shots[:3])], 0.72, 2.98, 0.42)
    ax.text(0.72, 2.5, "noised, $z_t$", ha="center", va="center", fontsize=SMALL)
    _arrow(ax, (1.13, 3.0), (1.47, 3.0))


def _key(ax):
    for x, words, colour, hatch in ((0.2, "frozen", FROZEN, None), (0.95, "trained", TRAINED, HATCH)):
        ax.add_patch(FancyBboxPatch((x, 2.0), 0.2, 0.12, boxstyle="square,pad=0", fc=colour, hatch=hatch, ec="0.5",
                                    lw=0.4))  # fmt: skip
        ax.text(x + 0.25, 2.06, words, va="center", fontsize=SMALL)


def _noised(path, seed):
    """A shot in the middle of the diffusion: half of its variance, the rest noise drawn by ``seed``."""
    picture = np.asarray(centre_square(read_image(path), 32)) / 127.5 - 1
    noise = np.random.default_rng(seed).normal(size=picture.shape)
    return (0.5 + 0.5 * 0.5**0.5 * (picture + noise)).clip(0, 1)


def _units(ax, names, shots):
    """Below: the adapters of both kinds, with the shots of two classes."""
    for x, title in (
        (1.2, "DataDream_dset:\none adapter for all classes"),
        (3.6, "DataDream_cls:\none for each class"),
    ):
        ax.text(x, 1.6, title, ha="center", va="center", fontsize=NORMAL)
    for left, units in ((0.1, [(0.1, 1.2, "adapter\nall classes")]), (2.55, [])):
        for y, name, files in zip((0.86, 0.14), names, shots, strict=True):
            ax.text(left + 0.6, y + 0.2, name, ha="right", va="center", fontsize=SMALL)
            _stack(ax, [square_pixels(path, 64) for path in files[:3]], left + 0.88, y + 0.2, 0.28)
            _arrow(ax, (left + 1.15, y + 0.2), (left + 1.35, y + 0.2))
        for low, height, words in units or [(0.82, 0.48, f"adapter\n{names[0]}"), (0.1, 0.48, f"adapter\n{names[1]}")]:
            _box(ax, left + 1.38, low, 0.8, height, words, trained=True)
        ax.text(left + 0.88, 0.7, "⋮", ha="center", va="center", fontsize=SMALL)


def _box(ax, x, y, width, height, text, trained=False):
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle=ROUND, ec="0.5", lw=0.5,
                                fc=TRAINED if trained else FROZEN, hatch=HATCH if trained else None))  # fmt: skip
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=SMALL,
            bbox={"fc": "white", "ec": "none", "pad": 0.8} if trained else None)  # fmt: skip


def _attention(ax, x, y, width, height):
    low = max(0.22, 0.35 * height)
    _box(ax, x, y + low, width, height - low, "attention")
    _box(ax, x, y, width, low, "LoRA", trained=True)


def _half(ax, x, middle, heights, text):
    left, right = heights
    corners = [(x, middle - left / 2), (x, middle + left / 2), (x + 0.4, middle + right / 2),
               (x + 0.4, middle - right / 2)]  # fmt: skip
    ax.add_patch(Polygon(corners, fc=FROZEN, ec="0.5", lw=0.5))
    ax.text(x + 0.2, middle, text, ha="center", va="center", fontsize=SMALL)


def _stack(ax, pictures, x, y, side):
    """Up to three pictures around (x, y), one over the other."""
    for i, picture in enumerate(pictures):
        shift = 0.3 * side * (i - (len(pictures) - 1) / 2)
        left, low = x + shift - side / 2, y - 0.6 * shift - side / 2
        ax.imshow(picture, extent=(left, left + side, low, low + side), aspect="auto", zorder=3 + i)
        ax.add_patch(Rectangle((left, low), side, side, fill=False, ec="white", lw=1, zorder=3 + i))


def _arrow(ax, start, end, ls="-"):
    looks = {"mutation_scale": 8, "color": "0.2", "lw": 0.9, "ls": ls, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", **looks))
