"""Reading pictures of any kind as RGB, resizing and writing them."""

import warnings

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # for some others Pillow runs programs
LONGEST = 100  # times as long as wide, or wide as long


def read_image(path):
    """Read any picture file as an upright 8-bit RGB ``PIL.Image``.

    EXIF rotation is applied, 16-bit and CMYK pictures are converted, transparent parts become white. Raises
    InputError naming the file when it cannot be read whole.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                if max(image.size) > LONGEST * min(image.size):  # resized to a square it would fill the memory
                    raise ValueError("{} by {} pixels, too long for its width".format(*image.size))
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError:
        raise InputError(f"{path} is not there any more: put it back or remove it from the data set.") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS // 10**6
        raise InputError(f"{path} has more than {limit} million pixels: make it smaller.") from None
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a picture ({error}): replace or remove it.") from None


def _to_rgb(image):
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image).astype(np.float64))
        top = 65535.0 if values.max(initial=0) > 255 else 255.0  # 16-bit files may open as 32-bit integers
        image = Image.fromarray((values.clip(0, top) * (255 / top)).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def resize_shortest(image, size, resample=Image.Resampling.BILINEAR):
    """Resize so that the shorter side is ``size`` pixels; the longer one keeps the proportions (truncated)."""
    width, height = image.size
    if width <= height:
        return image.resize((size, int(size * height / width)), resample)
    return image.resize((int(size * width / height), size), resample)


def centre_square(image, size, resample=Image.Resampling.BICUBIC):
    """Resize the shorter side to ``size`` and cut the middle square."""
    image = resize_shortest(image, size, resample)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_tensor(image):
    """A PIL picture as uint8 tensor (3, height, width)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def write_png(path, image):
    """Write a PIL image whole or not at all."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
