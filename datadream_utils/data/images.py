"""Reading pictures of any kind as RGB, and resizing them; writing files whole or not at all."""

import errno
import os
import re
import shutil
import warnings
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError

from datadream_utils.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")  # for some others Pillow runs programs
LONGEST = 100  # times as long as wide, or wide as long
CANNOT_WRITE = {
    errno.ENOSPC: "the disk is full. Make room there",
    errno.EDQUOT: "your disk quota is used up. Make room there",
    errno.EROFS: "the disk is read-only. Make it writable",
    errno.EACCES: "permission is denied. Allow writing there",
    errno.EPERM: "it is not permitted. Allow writing there",
}


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


@contextmanager
def written_whole(path):
    """Give a temporary path beside ``path`` to write a file or folder to; it takes the name only when complete.

    InputError, naming ``path`` and what to do, when the disk is full or may not be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if path.is_dir() and temporary.is_dir():  # a folder does not replace one that holds something
            shutil.rmtree(path)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        if (reason := _why_not_written(error, path)) is None:
            raise
        raise InputError(
            f"{path} cannot be written: {reason}, or set output_root (data_root, figures_dir) to another folder, and "
            "run this again; what is finished stays."
        ) from None
    finally:
        remove(temporary)


def write_png(path, image, notes=None):
    """Write a PIL image whole or not at all, ``notes`` (text by name) within it."""
    info = PngInfo()
    for name, text in (notes or {}).items():
        info.add_text(name, str(text))
    with written_whole(path) as temporary:
        image.save(temporary, format="PNG", pnginfo=info)


def remove(path):
    """Delete a file or a folder with all it holds, if it is there and can be."""
    with suppress(OSError):  # on a disk that has become read-only it stays; nothing reads it
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def _why_not_written(error, path):
    """What is wrong with the disk and what helps, or None when ``error`` is about something else than writing there."""
    if isinstance(error, SafetensorError):
        found = re.search(r"os error (\d+)", str(error))
        return CANNOT_WRITE.get(int(found[1])) if found else None
    elsewhere = error.filename and not Path(error.filename).is_relative_to(path.parent)
    above = error.filename and path.is_relative_to(error.filename)
    return CANNOT_WRITE.get(error.errno) if not elsewhere or above else None
