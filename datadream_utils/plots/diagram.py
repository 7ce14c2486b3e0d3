"""The method as a drawing (paper, section 3): what is frozen and what is trained, per class and per data set."""

import numpy as np
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Polygon

from datadream_utils.data.images import centre_square, read_image
from datadream_utils.plots.style import BOTH, NORMAL, SMALL, PrintFigure, describe, literal

FROZEN, TRAINED = "#C9DFF2", "#F5C08A"  # light blue, plain; orange, hatched: distinct without colour too
HATCH = "////"


def method_diagram(class_names, shots, domain=""):
    """How DataDream trains: noised shots and a class sentence through the networks, LoRA in every attention layer.

    Left: one adapter's training. Right: DataDream_dset, one adapter from the shots of all classes, and DataDream_cls,
    one per class. class_names: two or more, the first two are shown; shots: ``shots[label]``, paths.
    """
    figure = PrintFigure(figsize=(BOTH, 3.0))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, 140), ylim=(0, 60))
    ax.axis("off")
    name = literal(class_names[0])
    _training(ax, name, shots[0], domain)
    second = literal(class_names[min(1, len(class_names) - 1)])
    _units(ax, name, second, shots[0], shots[min(1, len(shots) - 1)])
    return describe(
        figure,
        "Diagram: shots with noise and a sentence pass through the networks; frozen parts are plain blue, trained "
        "adapters hatched orange; right: one adapter for all classes, and one for each class.",
        name="diagram",
    )


def _training(ax, name, shots, domain):
    ax.add_patch(FancyBboxPatch((13, 3), 65, 53, boxstyle="round,rounding_size=4", fill=False, ls="--", ec="0.3"))
    ax.text(45, 52.5, "DataDream", ha="center", va="center", fontsize=NORMAL + 2)
    _key(ax, 16, 49)
    sentence = f"“a {domain + ' ' if domain else ''}photo of a {name}”"
    ax.text(6.5, 42, sentence.replace("photo", "\nphoto").replace(" of a ", "\nof a "), ha="center", va="center",
            fontsize=SMALL)  # fmt: skip
    ax.text(48, 47.3, "text encoder", ha="center", fontsize=NORMAL)
    for x in (30, 54):
        _attention(ax, x, 37, 7, 9)
        _box(ax, x + 8, 37, 5, 9, "FF")
    ax.text(48.5, 41.5, "· · ·", ha="center", va="center", fontsize=NORMAL)
    _arrow(ax, (12.2, 42), (29.5, 42))
    _arrow(ax, (67.5, 41.5), (71, 41.5), style="-")
    ax.plot([71, 71, 31], [41.5, 33.5, 33.5], color="0.2", lw=0.8)
    for x in (31, 59):
        _arrow(ax, (x, 33.5), (x, 29.5))
    _half(ax, 18, 9, (24, 18), "conv")
    _attention(ax, 27.5, 8, 7, 21)
    _box(ax, 35.5, 10, 5, 17, "FF")
    _box(ax, 42.5, 13, 11, 11, "· · ·")
    _attention(ax, 55.5, 8, 7, 21)
    _box(ax, 63.5, 10, 5, 17, "FF")
    _half(ax, 70, 9, (18, 24), "conv")
    ax.text(45, 5.2, "diffusion U-Net", ha="center", va="center", fontsize=NORMAL)
    _input(ax, shots)
    _loss(ax)


def _input(ax, shots):
    """The left column: the shots, and below them the noised shots that the U-Net receives."""
    ax.text(5.8, 36.6, "real shots $x$", ha="center", va="center", fontsize=SMALL)
    _stack(ax, shots, 2.4, 26.4, 5)
    _arrow(ax, (2.2, 28.4), (2.2, 23.4))
    ax.text(3.1, 24.9, "+ noise ε", va="center", fontsize=SMALL)
    for i, path in enumerate(shots[:3]):
        x, y = 1.2 + 1.7 * i, 17.6 - 2.3 * i
        ax.imshow(_noised(path, i), extent=(x, x + 5.4, y, y + 5.4), aspect="auto", zorder=3 + i)
    ax.text(5.8, 11.8, "noised shots\n$z_t$", ha="center", va="top", fontsize=SMALL)
    _arrow(ax, (10.4, 18), (17.5, 18))


def _loss(ax):
    """The U-Net's output goes into the loss, whose gradients train the adapters alone."""
    _arrow(ax, (77.2, 19), (82.5, 19))
    ax.add_patch(
        FancyBboxPatch((83, 12), 11, 14, boxstyle="round,pad=0,rounding_size=0.8", fc="white", ec="0.3", lw=0.8)
    )
    ax.text(88.5, 19, "loss $L_D$:\npredicted\nnoise\nagainst ε", ha="center", va="center", fontsize=SMALL)
    ax.plot([88.5, 88.5, 31], [12, 1, 1], color="0.2", lw=0.8, ls="--")
    for x in (31, 59):
        _arrow(ax, (x, 1), (x, 7.8), ls="--")
    ax.text(87.7, 6.5, "gradients:\nLoRA only", ha="right", va="center", fontsize=SMALL)


def _noised(path, seed, kept=0.5, side=32):
    """A shot in the middle of the diffusion: ``kept`` of its variance, the rest noise drawn by ``seed``."""
    picture = np.asarray(centre_square(read_image(path), side)) / 127.5 - 1
    noise = np.random.default_rng(seed).normal(size=picture.shape)
    return (0.5 + 0.5 * (kept**0.5 * picture + (1 - kept) ** 0.5 * noise)).clip(0, 1)


def _units(ax, first, second, shots, other_shots):
    for y, title in (
        (49.5, "DataDream_dset: one for all classes"),
        (23.5, "DataDream_cls: one for each class"),
    ):
        ax.text(117, y + 5, title, ha="center", fontsize=NORMAL)
    _unit(ax, 33, 18, "adapter\nall classes")
    for y, name, files in ((44.7, first, shots), (32.8, second, other_shots)):
        ax.text(101.5, y + 2, name, ha="right", va="center", fontsize=SMALL)
        _arrow(ax, (102, y + 2), (106, y + 2))
        _stack(ax, files, 129.5, y - 2.5, 5.5)
        _arrow(ax, (129, y + 2), (126.5, y + 2))
    for y, name, files in ((16, first, shots), (3.5, second, other_shots)):
        _unit(ax, y - 1.5, 9, f"adapter\n{name}")
        ax.text(101.5, y + 3, name, ha="right", va="center", fontsize=SMALL)
        _arrow(ax, (102, y + 3), (106, y + 3))
        _stack(ax, files, 129.5, y - 1.5, 5.5)
        _arrow(ax, (129, y + 3), (126.5, y + 3))
    for x, y in ((99, 40.8), (132.5, 40.8), (99, 13.2), (132.5, 13.2)):
        ax.text(x, y, "⋮", ha="center", va="center", fontsize=SMALL)


def _unit(ax, y, height, text):
    ax.add_patch(FancyBboxPatch((107, y), 18, height, boxstyle="round,rounding_size=2", fc=TRAINED, ec="0.3", ls="--",
                                lw=0.8, hatch=HATCH, alpha=0.55))  # fmt: skip
    ax.text(116, y + height / 2, text, ha="center", va="center", fontsize=SMALL,
            bbox={"fc": "white", "ec": "none", "pad": 1})  # fmt: skip


def _key(ax, x, y):
    for i, (words, colour, hatch) in enumerate((("frozen", FROZEN, None), ("trained", TRAINED, HATCH))):
        ax.add_patch(
            FancyBboxPatch((x, y - 4 * i), 3, 2, boxstyle="square,pad=0", fc=colour, hatch=hatch, ec="0.5", lw=0.4)
        )
        ax.text(x + 4, y - 4 * i + 1, words, va="center", fontsize=SMALL)


def _box(ax, x, y, width, height, text, trained=False):
    ax.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.8", ec="0.5", lw=0.5,
                                fc=TRAINED if trained else FROZEN, hatch=HATCH if trained else None))  # fmt: skip
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=SMALL,
            bbox={"fc": "white", "ec": "none", "pad": 0.5} if trained else None)  # fmt: skip


def _attention(ax, x, y, width, height):
    low = 0.38 * height
    _box(ax, x, y + low, width, height - low, "attention" if width > 8 else "attn")
    _box(ax, x, y, width, low, "LoRA", trained=True)


def _half(ax, x, y, heights, text):
    left, right = heights
    middle = y + 10
    corners = [(x, middle - left / 2), (x, middle + left / 2), (x + 7, middle + right / 2), (x + 7, middle - right / 2)]
    ax.add_patch(Polygon(corners, fc=FROZEN, ec="0.5", lw=0.5))
    ax.text(x + 3.5, middle, text, ha="center", va="center", fontsize=SMALL)


def _stack(ax, paths, x, y, size=9):
    """Three pictures, one over the other."""
    for i, path in enumerate(paths[:3]):
        left, low = x + 0.13 * size * i, y + 0.9 * size - 0.45 * size * i
        picture = np.asarray(centre_square(read_image(path), 64))
        ax.imshow(picture, extent=(left, left + size * 0.8, low, low + size * 0.8), aspect="auto", zorder=3 + i)


def _arrow(ax, start, end, style="-|>", ls="-"):
    looks = {"mutation_scale": 6, "color": "0.2", "lw": 0.8, "ls": ls, "shrinkA": 0, "shrinkB": 0}
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle=style, **looks))
