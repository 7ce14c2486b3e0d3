"""Reading pictures of any kind as 8-bit RGB, checking many of them, resizing and writing them."""

import importlib.util
import os
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import ExifTags, Image, PngImagePlugin

from datadream_utils.errors import InputError, raise_together
from datadream_utils.files import atomic_write

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".jpe", ".webp", ".avif"),
    *(".bmp", ".gif", ".tif", ".tiff", ".ppm"),
)
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "TIFF", "PPM")  # for some others Pillow runs programs
if importlib.util.find_spec("pillow_heif"):  # an optional package, for the photos of phones
    import pillow_heif

    pillow_heif.register_heif_opener()
    SUFFIXES += (".heic", ".heif")
    FORMATS += ("HEIF",)

LONGEST = 100  # a picture is at most this many times as long as wide, or as wide as long
DEPTHS = (8, 10, 12, 14, 16)  # bits of a grey value, as cameras and scanners deliver them
TURNS = {  # EXIF's Orientation: how the stored picture becomes upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # ``read_image`` refuses such pictures
warnings.filterwarnings("ignore", category=UserWarning, module="PIL.TiffImagePlugin")  # of damaged EXIF data
PngImagePlugin.MAX_TEXT_CHUNK = 16 * 2**20  # bytes; Pillow's own limit of 1 MB refuses PNGs that every viewer shows


def read_image(path):
    """Read any picture (its path, or an open binary file) as an upright 8-bit RGB ``PIL.Image``.

    EXIF rotation is applied, deeper grey values (see ``_grey_to_8_bits``) and CMYK are converted, transparent parts
    become white; of several pictures in a file the first is read. Raises InputError naming the file when it cannot be
    read whole.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > Image.MAX_IMAGE_PIXELS:  # up to twice as many Pillow only warns
                raise Image.DecompressionBombError
            if max(image.size) > LONGEST * min(image.size):  # resized to a square it would fill the memory
                raise ValueError("{} by {} pixels, too long for its width".format(*image.size))
            image.load()
            return _to_rgb(_upright(image))
    except FileNotFoundError:
        raise InputError(f"{path} is not there any more: put it back or remove it from the data set.") from None
    except Image.DecompressionBombError:
        limit = Image.MAX_IMAGE_PIXELS // 10**6
        raise InputError(f"{path} has more than {limit} million pixels: make it smaller.") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow raises IndexError, struct.error, AttributeError and more, by the damage
        reason = str(error) or type(error).__name__
        raise InputError(f"{path} cannot be read as a picture ({reason}): replace or remove it.") from None


def _upright(image):
    """The loaded picture turned as its EXIF data say; as it is stored when they cannot be read."""
    try:
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # cameras and editors write any kind of EXIF data; none of it is worth a picture
        turn = None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image):
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_grey_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _grey_to_8_bits(values):
    """Grey values of any range as uint8, of the same shape.

    White is the highest value of the smallest depth (``DEPTHS``) that holds the brightest pixel: 12-bit data in a
    16-bit file are read as 12-bit. Real numbers up to 1 are shares of white. Values that are no number become black,
    infinite ones white or black.
    """
    brightest = float(values[np.isfinite(values)].max(initial=0))
    whites = [2**depth - 1 for depth in DEPTHS]
    if values.dtype.kind == "f":
        whites = [1, *whites]
    white = next((white for white in whites if brightest <= white), brightest)
    shares = np.nan_to_num(values.astype(np.float64), nan=0.0, posinf=white, neginf=0.0) / white
    return (255 * shares.clip(0, 1)).round().astype(np.uint8)


def check_images(paths):
    """Read every picture once, before a model is loaded; returns their upright sizes, ``[(width, height), ...]``.

    InputError for pictures that cannot be read: the first ten of them, and how many there are.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(_size_or_error, paths))
    errors = [result for result in results if isinstance(result, InputError)]
    raise_together(errors, f"{len(errors)} of {len(results)} pictures cannot be read")
    return results


def _size_or_error(path):
    try:
        return read_image(path).size
    except InputError as error:
        return error


def resize_shortest(image, size, resample=Image.Resampling.BILINEAR):
    """Resize so that the shorter side is ``size`` pixels; the longer one keeps the proportions (rounded down)."""
    width, height = image.size
    if width <= height:
        return image.resize((size, int(size * height / width)), resample)
    return image.resize((int(size * width / height), size), resample)


def centre_square(image, size):
    """Resize the shorter side to ``size`` pixels (bicubic) and cut the middle square."""
    image = resize_shortest(image, size, Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def to_tensor(image):
    """A PIL picture as uint8 tensor (3, height, width)."""
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


def write_png(path, image):
    """Write a PIL image as PNG, whole or not at all."""
    with atomic_write(path) as temporary:
        image.save(temporary, format="PNG")
