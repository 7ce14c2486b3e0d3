"""The classifier's augmentations one picture at a time with PIL, as a DataLoader applies them; for the reference.

The operations and strengths of the authors' chain: RandAugment, crop, flip, colour jitter, greyscale, blur, solarise.
PIL is what such chains run on for pictures from disk, and it is fast at one picture: a batch library called for every
picture would make the reference look slower than it is.
"""

import random

import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from datadream_utils.data.images import to_tensor

BINS = 30  # RandAugment's strengths go from 0 to 30


class PictureAugment:
    """A PIL picture to a normalised tensor (3, side, side); draws from Python's own random numbers."""

    def __init__(self, p, side, mean, std):
        self.p, self.side, self.random = p, side, random.Random(p.seed)
        self.mean, self.std = (torch.tensor(values).reshape(3, 1, 1) for values in (mean, std))

    def __call__(self, image):
        p, chance = self.p, self.random.random
        for _ in range(p.rand_augment_ops):
            image = self._rand_augment(image, p.rand_augment_magnitude / BINS)
        image = self._crop(image)
        if chance() < p.flip:
            image = ImageOps.mirror(image)
        if chance() < p.color_jitter:
            image = self._jitter(image)
        if chance() < p.grayscale:
            image = ImageOps.grayscale(image).convert("RGB")
        if chance() < p.blur:
            image = image.filter(ImageFilter.GaussianBlur(self.random.uniform(0.1, 2.0)))
        if chance() < p.solarize:
            image = ImageOps.solarize(image, 128)
        return (to_tensor(image).float() / 255 - self.mean) / self.std

    def _crop(self, image):
        area = image.width * image.height * self.random.uniform(self.p.crop_scale_min, 1.0)
        ratio = 2 ** self.random.uniform(-0.415, 0.415)  # 3:4 to 4:3
        width, height = min(image.width, round((area * ratio) ** 0.5)), min(image.height, round((area / ratio) ** 0.5))
        left, top = self.random.randint(0, image.width - width), self.random.randint(0, image.height - height)
        box = (left, top, left + width, top + height)
        return image.resize((self.side, self.side), Image.Resampling.BICUBIC, box=box)

    def _jitter(self, image):
        changes = [(ImageEnhance.Brightness, 0.4), (ImageEnhance.Contrast, 0.4), (ImageEnhance.Color, 0.2), (None, 0.1)]
        self.random.shuffle(changes)
        for enhance, strength in changes:
            if enhance:
                image = enhance(image).enhance(self.random.uniform(1 - strength, 1 + strength))
                continue
            hue, saturation, value = image.convert("HSV").split()
            turn = round(255 * self.random.uniform(-strength, strength))
            hue = hue.point([(level + turn) % 256 for level in range(256)])
            image = Image.merge("HSV", (hue, saturation, value)).convert("RGB")
        return image

    def _rand_augment(self, image, strength):
        """One of fourteen operations (Cubuk et al. 2020), with a random sign where it has one."""
        sign = self.random.choice((-1, 1))
        shear, shift, factor = 0.3 * strength * sign, 0.45 * strength * sign * image.width, 1 + 0.9 * strength * sign
        affine = lambda *matrix: image.transform(image.size, Image.Transform.AFFINE, matrix)  # noqa: E731
        operations = (
            lambda: image,
            lambda: affine(1, shear, 0, 0, 1, 0),
            lambda: affine(1, 0, 0, shear, 1, 0),
            lambda: affine(1, 0, shift, 0, 1, 0),
            lambda: affine(1, 0, 0, 0, 1, shift),
            lambda: image.rotate(30 * strength * sign),
            lambda: ImageEnhance.Brightness(image).enhance(factor),
            lambda: ImageEnhance.Color(image).enhance(factor),
            lambda: ImageEnhance.Contrast(image).enhance(factor),
            lambda: ImageEnhance.Sharpness(image).enhance(factor),
            lambda: ImageOps.posterize(image, 8 - round(4 * strength)),
            lambda: ImageOps.solarize(image, round(255 * (1 - strength))),
            lambda: ImageOps.autocontrast(image),
            lambda: ImageOps.equalize(image),
        )
        return self.random.choice(operations)()
