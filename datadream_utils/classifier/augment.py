"""The classifier's augmentations, in batches on the device; strengths are parameters.

They are the authors' (``data.py``), who take them from torchvision: ``RAND_AUGMENT`` has torchvision's definitions,
which are PIL's. kornia does the rest.
"""

import math

import kornia.augmentation as K
import torch
import torch.nn.functional as F

BINS = 30  # RandAugment's magnitudes go from 0 to 30


class Augment:
    """RandAugment, crop, flip, colour jitter, greyscale, blur, solarise (paper, appendix; authors' ``data.py``).

    Takes uint8 pictures (n, 3, H, W), gives float ones (n, 3, image_size, image_size), normalised for CLIP.
    """

    def __init__(self, params, image_size, mean, std, device):
        kernel = max(3, image_size // 10 // 2 * 2 + 1)
        self.crop = K.RandomResizedCrop(
            (image_size, image_size), scale=(params.crop_scale_min, 1.0), resample="bicubic"
        )
        self.flip = K.RandomHorizontalFlip(p=params.flip)
        self.colour = torch.nn.Sequential(
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=params.color_jitter),
            K.RandomGrayscale(p=params.grayscale),
            K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=params.blur),
            K.RandomSolarize(thresholds=(0.5, 0.5), additions=(0.0, 0.0), p=params.solarize),
        )
        self.normalise = K.Normalize(torch.tensor(mean, device=device), torch.tensor(std, device=device))
        self.params, self.device = params, device

    @torch.no_grad()
    def __call__(self, pictures):
        x = pictures.to(self.device).float()
        x = rand_augment(x, self.params.rand_augment_ops, self.params.rand_augment_magnitude)
        x = self.flip(self.crop(x / 255)).clamp(0, 1)
        return self.normalise(self.colour(x))


def rand_augment(pictures, n_operations, magnitude):
    """``n_operations`` of ``RAND_AUGMENT`` on each picture, drawn one by one, so they may repeat (Cubuk et al. 2020).

    pictures: floats (n, 3, H, W) of whole levels 0 to 255, as the result. magnitude: 0 to 30. An operation that has a
    direction gets a random sign.
    """
    pictures = pictures.clone()
    for _ in range(n_operations):
        drawn = torch.randint(len(RAND_AUGMENT), (len(pictures),))
        signs = torch.randint(2, (len(pictures),)) * 2 - 1
        for i, operation in enumerate(RAND_AUGMENT.values()):
            chosen = (drawn == i).nonzero()[:, 0]
            if len(chosen):
                strength = (signs[chosen] * magnitude / BINS).reshape(-1, 1, 1, 1).to(pictures)
                pictures[chosen] = operation(pictures[chosen], strength)
    return pictures


def _blend(other, x, strength):
    """``x`` moved away from ``other`` (strength above 0) or towards it, by up to 0.9 of the difference."""
    return (other + (1 + 0.9 * strength) * (x - other)).clamp(0, 255).floor()


def _grey(x):
    return (x * x.new_tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(1, keepdim=True).round()


def _smooth(x):
    """PIL's SMOOTH filter, which leaves the outermost pixels as they are."""
    kernel = x.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(3, 1, 3, 3)
    smoothed = x.clone()
    smoothed[..., 1:-1, 1:-1] = F.conv2d(x, kernel, groups=3).round()
    return smoothed


def _posterize(x, strength):
    levels = 2 ** (4 * strength.abs()).round()  # the last 0 to 4 of 8 bits are dropped
    return (x / levels).floor() * levels


def _autocontrast(x, _):
    """Each channel is stretched to 0 to 255."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    stretched = (x - low) * 255 / (high - low)
    return torch.where(high > low, stretched.clamp(0, 255).floor(), x)


def _equalize(x, _):
    """Each channel gets an even histogram."""
    channels = x.long().flatten(2).flatten(0, 1)  # (n 3, H W)
    counts = torch.zeros(len(channels), 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(1, channels, torch.ones_like(channels))
    step = (counts.sum(1) - counts.gather(1, channels.amax(1, keepdim=True))[:, 0])[:, None] // 255
    new_levels = ((counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step > 0, new_levels.gather(1, channels), channels).reshape(x.shape).to(x)


def _move(x, a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0):
    """The pixel at (x, y) becomes the nearest to (a x + b y + c, d x + e y + f), or black outside the picture.

    Numbers or tensors (n, 1, 1, 1), in pixels from the upper left corner, as in PIL.
    """
    height, width = x.shape[-2:]
    rows, columns = torch.arange(height, device=x.device)[:, None] + 0.5, torch.arange(width, device=x.device) + 0.5
    column, row = ((p * columns + q * rows + r).floor().long() for p, q, r in ((a, b, c), (d, e, f)))
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    places = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).expand(*x.shape)
    return x.flatten(2).gather(2, places.flatten(2)).reshape(x.shape) * inside


def _rotate(x, strength):
    """By up to 30 degrees, counterclockwise for a strength above 0, around the centre."""
    angle, (height, width) = -strength * math.radians(30), x.shape[-2:]
    cos, sin = angle.cos(), angle.sin()
    c = width / 2 - cos * width / 2 - sin * height / 2
    f = height / 2 + sin * width / 2 - cos * height / 2
    return _move(x, cos, sin, c, -sin, cos, f)


RAND_AUGMENT = {  # {torchvision's name: operation(pictures, strength from -1 to 1)}
    "Identity": lambda x, _: x,
    "ShearX": lambda x, strength: _move(x, b=0.3 * strength),
    "ShearY": lambda x, strength: _move(x, d=0.3 * strength),
    "TranslateX": lambda x, strength: _move(x, c=-(150 / 331 * strength * x.shape[3]).trunc()),
    "TranslateY": lambda x, strength: _move(x, f=-(150 / 331 * strength * x.shape[2]).trunc()),
    "Rotate": _rotate,
    "Brightness": lambda x, strength: _blend(0, x, strength),
    "Color": lambda x, strength: _blend(_grey(x), x, strength),
    "Contrast": lambda x, strength: _blend(_grey(x).mean((2, 3), keepdim=True).round(), x, strength),
    "Sharpness": lambda x, strength: _blend(_smooth(x), x, strength),
    "Posterize": _posterize,
    "Solarize": lambda x, strength: torch.where(x >= 255 * (1 - strength.abs()), 255 - x, x),
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
}


def mix(pictures, targets):
    """Mixup or CutMix, one at random, as torchvision's: each picture with the one before it in the batch.

    One share and one box, drawn evenly, hold for the whole batch. targets: probabilities (n, classes), mixed likewise.
    """
    share, (height, width) = torch.rand(()).item(), pictures.shape[-2:]
    others = pictures.roll(1, 0)
    if torch.rand(()) < 0.5:
        pictures = share * pictures + (1 - share) * others
    else:
        half = 0.5 * math.sqrt(1 - share)
        rows, columns = (_stretch(length, int(half * length)) for length in (height, width))
        pictures = pictures.clone()
        pictures[..., rows, columns] = others[..., rows, columns]
        share = 1 - (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
    return pictures, share * targets + (1 - share) * targets.roll(1, 0)


def _stretch(length, half):
    """A slice of ``range(length)`` around a random centre, up to 2 ``half`` long; less at the border."""
    centre = int(torch.randint(length, ()))
    return slice(max(0, centre - half), min(length, centre + half))
