"""Pictures of typeset characters with captions: all that the tiny world's base models ever see.

The tiny CLIP and the tiny Stable Diffusion are pre-trained on these pictures only (see ``pretrain.py``), so they
know a *seven* as a printed, coloured character and have never seen handwriting. Glyphs are drawn once from the
fonts that ship with matplotlib; every batch is then warped, coloured and captioned in torch, from one generator.

Look at some: ``python -m models.pretraining.typeset`` writes ``typeset.png``.
"""

import functools
from pathlib import Path

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from datadream_utils.data.digits import DIGIT_NAMES

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
COLOURS = {
    "red": (0.85, 0.12, 0.15),
    "orange": (0.98, 0.55, 0.10),
    "yellow": (0.97, 0.87, 0.15),
    "green": (0.12, 0.65, 0.25),
    "blue": (0.15, 0.30, 0.85),
    "purple": (0.50, 0.20, 0.65),
    "pink": (0.96, 0.60, 0.75),
    "white": (0.97, 0.97, 0.97),
    "gray": (0.50, 0.50, 0.50),
    "black": (0.03, 0.03, 0.03),
}
FONTS = (
    *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
    *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
    *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
    *("STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta"),
    *("cmr10", "cmb10", "cmss10", "cmtt10", "cmti10"),
)
GREYS = torch.tensor([7, 8, 9])  # the colours without hue: white, gray, black
FONT_SIZE, CANVAS = 58, 64  # glyphs are warped at this size and averaged down to the picture's
DIGIT_SHARE = 0.5  # of the pictures; the other characters share the rest

# What each kind of picture may be, at most. The U-Net learns to draw "print". The CLIP sees "bent" print too. The VAE
# is a generic image codec, as in Stable Diffusion, and sees "wild" shapes. rotate: degrees; shear, shift, elastic: in
# half widths; size: how much larger than plain print; stroke: share of the pictures with thinner or thicker strokes;
# coarse: share drawn at half the resolution; grey: share without any hue.
KINDS = {
    "print": dict(rotate=12.0, shear=0.3, shift=0.06, elastic=0.03, size=0.0, stroke=0.7, coarse=0.0, grey=0.3),
    "bent": dict(rotate=18.0, shear=0.4, shift=0.10, elastic=0.06, size=0.2, stroke=0.8, coarse=0.2, grey=0.3),
    "wild": dict(rotate=45.0, shear=0.6, shift=0.15, elastic=0.12, size=0.3, stroke=0.7, coarse=0.2, grey=0.5),
}


def character_name(character):
    """The words a caption uses: ``7`` is "seven", ``Q`` "capital q", ``q`` "small q"."""
    if character.isdigit():
        return DIGIT_NAMES[int(character)]
    return f"capital {character.lower()}" if character.isupper() else f"small {character}"


@functools.cache
def glyphs():
    """Every character in every font, white on black, centred: float tensor (fonts, characters, 64, 64) in [0, 1]."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    atlas = np.zeros((len(FONTS), len(CHARACTERS), CANVAS, CANVAS), np.uint8)
    for i, font_name in enumerate(FONTS):
        font = ImageFont.truetype(str(folder / f"{font_name}.ttf"), size=FONT_SIZE)
        for j, character in enumerate(CHARACTERS):
            tile = Image.new("L", (CANVAS, CANVAS))
            ImageDraw.Draw(tile).text((CANVAS // 2, CANVAS // 2), character, fill=255, font=font, anchor="mm")
            box = tile.getbbox()  # centre the ink, as MNIST does
            centred = Image.new("L", (CANVAS, CANVAS))
            glyph = tile.crop(box)
            centred.paste(glyph, ((CANVAS - glyph.width) // 2, (CANVAS - glyph.height) // 2))
            atlas[i, j] = np.asarray(centred)
    return torch.from_numpy(atlas).float() / 255


def _uniform(n, low, high, generator):
    return torch.rand(n, generator=generator) * (high - low) + low


def _warp(masks, limits, generator):
    """Rotate, shear, scale, shift, bend and thicken (n, 64, 64) masks within ``limits``."""
    n = len(masks)
    angle = _uniform(n, -1, 1, generator) * limits["rotate"] * torch.pi / 180
    shear = _uniform(n, -1, 1, generator) * limits["shear"]
    scale_x = _uniform(n, 0.75, 1.15 + limits["size"], generator)
    scale_y = _uniform(n, 0.80, 1.10 + limits["size"], generator)
    cos, sin = angle.cos(), angle.sin()
    shift = _uniform((n, 2), -1, 1, generator) * limits["shift"] * 2
    matrix = torch.stack(
        [
            torch.stack([cos / scale_x, (sin + shear) / scale_x, shift[:, 0]], dim=-1),
            torch.stack([-sin / scale_y, cos / scale_y, shift[:, 1]], dim=-1),
        ],
        dim=1,
    )  # (n, 2, 3): output to input coordinates
    grid = F.affine_grid(matrix, (n, 1, CANVAS, CANVAS), align_corners=False)
    if limits["elastic"]:
        bend = torch.randn(n, 2, 5, 5, generator=generator) * limits["elastic"]
        grid = grid + F.interpolate(bend, CANVAS, mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    masks = F.grid_sample(masks[:, None], grid, align_corners=False)
    # Thinner or thicker by moving the threshold of a blurred mask
    threshold = _uniform((n, 1, 1, 1), 0.15, 0.50, generator)
    changed = torch.rand(n, 1, 1, 1, generator=generator) < limits["stroke"]
    return torch.where(changed, torch.sigmoid((F.avg_pool2d(masks, 7, 1, 3) - threshold) * 16), masks)


def _colours(n, grey, generator):
    """Two different colours each, of which a share ``grey`` without hue: (n,) indices of ink and of background."""
    ink, step = torch.randint(0, len(COLOURS), (n,), generator=generator), len(COLOURS)
    background = (ink + torch.randint(1, step, (n,), generator=generator)) % step
    grey_ink, step = torch.randint(0, len(GREYS), (n,), generator=generator), len(GREYS)
    grey_background = (grey_ink + torch.randint(1, step, (n,), generator=generator)) % step
    is_grey = torch.rand(n, generator=generator) < grey
    return torch.where(is_grey, GREYS[grey_ink], ink), torch.where(is_grey, GREYS[grey_background], background)


def _rgb(colours, generator):
    """Each colour a little off its palette entry, (n, 3, 1, 1); those without hue stay without."""
    jitter = torch.randn(len(colours), 3, generator=generator) * 0.05
    jitter = torch.where(torch.isin(colours, GREYS)[:, None], jitter[:, :1], jitter)
    return (torch.tensor(list(COLOURS.values()))[colours] + jitter)[:, :, None, None]


def render(n, generator, kind="print", bend=1.0, size=32):
    """Draw ``n`` random pictures of a kind (a key of ``KINDS``).

    bend: from 0, upright and plain print, to 1, all that the kind may be.
    Returns ``(pictures, facts)``: pictures (n, 3, size, size) in [0, 1]; facts (n, 3) of character, ink colour and
    background colour indices.
    """
    limits = {name: value if name == "grey" else value * bend for name, value in KINDS[kind].items()}
    is_digit = torch.rand(n, generator=generator) < DIGIT_SHARE
    digit = torch.randint(0, 10, (n,), generator=generator)
    letter = torch.randint(10, len(CHARACTERS), (n,), generator=generator)
    character = torch.where(is_digit, digit, letter)
    font = torch.randint(0, len(FONTS), (n,), generator=generator)
    ink, background = _colours(n, limits["grey"], generator)

    masks = F.avg_pool2d(_warp(glyphs()[font, character], limits, generator), CANVAS // size)
    coarse = F.interpolate(F.avg_pool2d(masks, 2), size, mode="bilinear", align_corners=False)
    masks = torch.where(torch.rand(n, 1, 1, 1, generator=generator) < limits["coarse"], coarse, masks)
    pictures = masks * _rgb(ink, generator) + (1 - masks) * _rgb(background, generator)
    return pictures.clamp(0, 1), torch.stack([character, ink, background], dim=1)


def captions(facts, generator):
    """A caption for each row of ``facts``, and what it says.

    Returns ``(texts, says)``: says (n, 2) bool, whether ink and background colours are named. Forms: "a photo of a
    red seven on a blue background", "a picture of a seven", "seven, a digit".
    """
    colours = list(COLOURS)
    says = torch.rand(len(facts), 2, generator=generator) < 0.6
    forms = torch.rand(len(facts), generator=generator)
    texts = []
    for (character, ink, background), (say_ink, say_background), form in zip(
        facts.tolist(), says.tolist(), forms.tolist(), strict=True
    ):
        name = character_name(CHARACTERS[character])
        noun = f"{colours[ink]} {name}" if say_ink else name
        where = f" on a {colours[background]} background" if say_background else ""
        if form < 0.6:
            texts.append(f"a photo of a {noun}{where}")
        elif form < 0.8:
            texts.append(f"a picture of a {noun}{where}")
        else:
            texts.append(f"{noun}, a {'digit' if character < 10 else 'letter'}{where}")
    return texts, says


def caption_is_true(facts, says):
    """(n, n) bool: is caption j true of picture i? The positives of the contrastive loss, exactly."""
    same = facts[:, None, :] == facts[None, :, :]  # (picture, caption, fact)
    return same[..., 0] & (same[..., 1] | ~says[None, :, 0]) & (same[..., 2] | ~says[None, :, 1])


def vocabulary():
    """Every word the captions can use, sorted."""
    words = {"a", "photo", "picture", "of", "on", "background", "digit", "letter", "capital", "small"}
    words |= set(COLOURS) | set(DIGIT_NAMES) | {c for c in CHARACTERS if c.islower()}
    return sorted(words)


if __name__ == "__main__":
    rng = torch.Generator().manual_seed(0)
    rows = [torch.cat(list(render(12, rng, kind, bend)[0]), dim=2) for kind in KINDS for bend in (0.0, 0.5, 1.0)]
    sheet = (torch.cat(rows, dim=1).permute(1, 2, 0) * 255).byte().numpy()
    Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2)).save("typeset.png")
    print("\n".join(captions(render(5, rng)[1], rng)[0]))
