"""Augmentation: every operation against PIL by torchvision's published definition; mixup and CutMix."""

import math

import kornia.augmentation as K
import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from datadream_utils.classifier import augment as augmenting
from datadream_utils.classifier.augment import RAND_AUGMENT, Augment, mix, rand_augment
from datadream_utils.classifier.pictures import augment_examples
from datadream_utils.data.images import to_tensor


def _by_torchvision(name, image, magnitude, sign):
    """An operation of torchvision.transforms.RandAugment (31 bins, nearest pixels, black outside) on a PIL image."""
    level = {
        "ShearX": 0.3,
        "ShearY": 0.3,
        "TranslateX": 150 / 331 * image.width,
        "TranslateY": 150 / 331 * image.height,
        "Rotate": 30.0,
    }.get(name, 0.9) * (magnitude / 30 * sign)
    affine = {
        "ShearX": (1, level, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, level, 1, 0),
        "TranslateX": (1, 0, -int(level), 0, 1, 0),
        "TranslateY": (1, 0, 0, 0, 1, -int(level)),
    }
    enhance = {name: getattr(ImageEnhance, name) for name in ("Brightness", "Color", "Contrast", "Sharpness")}
    if name in affine:
        return image.transform(image.size, Image.Transform.AFFINE, affine[name], Image.Resampling.NEAREST)
    if name in enhance:
        return enhance[name](image).enhance(1 + level)
    return {
        "Identity": lambda: image,
        "Rotate": lambda: image.rotate(level, Image.Resampling.NEAREST),
        "Posterize": lambda: ImageOps.posterize(image, 8 - round(magnitude / 7.5)),
        "Solarize": lambda: ImageOps.solarize(image, 255 - 255 * magnitude / 30),
        "AutoContrast": lambda: ImageOps.autocontrast(image),
        "Equalize": lambda: ImageOps.equalize(image),
    }[name]()


def _images(height=40, width=40):
    """A photograph-like picture of low contrast, one of noise, one of a single colour."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    smooth = 120 + 50 * np.sin(rows / 6)[..., None] * np.cos(columns[..., None] / (5, 7, 9)) + rng.normal(0, 4, (3,))
    arrays = smooth, rng.integers(0, 256, (height, width, 3)), np.full((height, width, 3), (200, 30, 90))
    return [Image.fromarray(array.astype(np.uint8)) for array in arrays]


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("magnitude", [0, 1, 9, 22, 30])
@pytest.mark.parametrize("name", RAND_AUGMENT)
def test_each_operation_is_torchvisions(name, magnitude, sign):
    images = _images() + _images(33, 33)
    for pair in (images[:3], images[3:]):
        x = torch.stack([to_tensor(image) for image in pair]).float()
        ours = RAND_AUGMENT[name](x, torch.full((len(pair), 1, 1, 1), sign * magnitude / 30))
        theirs = torch.stack([to_tensor(_by_torchvision(name, image, magnitude, sign)) for image in pair]).float()
        assert ours.shape == x.shape and torch.equal(ours, ours.round()) and ours.min() >= 0 and ours.max() <= 255
        far = (ours - theirs).abs() > 1
        if name in ("ShearX", "ShearY", "Rotate"):  # PIL counts in steps of 1 / 65536 of a pixel
            assert far.float().mean() < 0.02
        else:
            assert not far.any()


def test_the_operations_are_torchvisions_fourteen():
    names = "Identity ShearX ShearY TranslateX TranslateY Rotate Brightness Color Contrast Sharpness Posterize Solarize"
    assert list(RAND_AUGMENT) == [*names.split(), "AutoContrast", "Equalize"]


def test_every_picture_draws_its_own_operations_which_may_repeat(monkeypatch):
    torch.manual_seed(0)
    marks = {"a": lambda x, s: x + 1, "b": lambda x, s: x + 10 * s.sign(), "c": lambda x, s: x + 0 * s + s * 30}
    monkeypatch.setattr(augmenting, "RAND_AUGMENT", marks)
    black = torch.zeros(3000, 3, 2, 2)
    sums, counts = rand_augment(black, 2, 9)[:, 0, 0, 0].unique(return_counts=True)
    single = {1: 1 / 3, 10: 1 / 6, -10: 1 / 6, 9: 1 / 6, -9: 1 / 6}
    expected = {}
    for first, p in single.items():
        for second, q in single.items():
            expected[first + second] = expected.get(first + second, 0) + p * q
    assert set(sums.round().int().tolist()) == set(expected)
    for total, count in zip(sums.round().int().tolist(), counts.tolist(), strict=True):
        share = expected[total]
        assert abs(count / 3000 - share) < 4 * math.sqrt(share * (1 - share) / 3000)
    assert torch.equal(rand_augment(black, 0, 9), black) and not black.any()


@pytest.mark.parametrize("factor", [0.6, 0.9, 1.4])
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_jitter_is_pils(name, factor):
    enhance = {"brightness": "Brightness", "contrast": "Contrast", "saturation": "Color"}[name]
    for image in _images():
        ours = K.ColorJitter(**{name: (factor, factor)}, p=1.0)(to_tensor(image)[None].float() / 255)[0] * 255
        theirs = to_tensor(getattr(ImageEnhance, enhance)(image).enhance(factor)).float()
        assert (ours - theirs).abs().max() <= 2


def test_the_last_solarize_inverts_from_128_on(make_params):
    off = dict(crop_scale_min=1.0, rand_augment_ops=0, color_jitter=0.0, grayscale=0.0, blur=0.0, flip=0.0)
    augment = Augment(make_params("train", solarize=1.0, **off), 32, [0.0] * 3, [1.0] * 3, "cpu")
    for level in (0, 127, 128, 200, 255):
        flat = Image.new("RGB", (36, 36), (level,) * 3)
        ours = (augment(to_tensor(flat)[None]) * 255).round()
        assert ours.unique().tolist() == [ImageOps.solarize(flat).getpixel((0, 0))[0]]


def test_the_shown_examples_are_the_same_every_time(make_params):
    pictures = torch.randint(0, 256, (20, 3, 36, 36), dtype=torch.uint8)
    classifier = torch.nn.Linear(1, 1)
    classifier.image_size = 32
    first, second = (augment_examples({"real": (pictures, None)}, classifier, make_params("train")) for _ in range(2))
    assert list(first) == ["real, as it is", "real, augmented"]
    assert np.array_equal(first["real, augmented"], second["real, augmented"])
    assert np.shape(first["real, augmented"]) == (12, 32, 32, 3)


def test_augmentation_keeps_shape_and_range(make_params):
    torch.manual_seed(0)
    pictures = torch.randint(0, 256, (20, 3, 36, 36), dtype=torch.uint8)
    augmented = Augment(make_params("train"), 32, [0.0] * 3, [1.0] * 3, "cpu")(pictures)
    assert augmented.shape == (20, 3, 32, 32) and augmented.min() >= -1e-3 and augmented.max() <= 1 + 1e-3
    off = dict(crop_scale_min=1.0, rand_augment_ops=0, color_jitter=0.0, grayscale=0.0, blur=0.0, solarize=0.0)
    plain = Augment(make_params("train", **off), 36, [0.5] * 3, [0.5] * 3, "cpu")(pictures[:, :, :, :])
    assert plain.shape == (20, 3, 36, 36)
    flat = torch.full((4, 3, 36, 36), 128, dtype=torch.uint8)
    still = Augment(make_params("train", **off), 32, [0.5] * 3, [0.5] * 3, "cpu")(flat)
    torch.testing.assert_close(still, torch.full_like(still, (128 / 255 - 0.5) / 0.5), atol=1e-3, rtol=0)


def test_soft_targets_match_what_was_mixed_and_one_share_holds_for_the_batch():
    kinds, shares = set(), []
    for seed in range(300):
        torch.manual_seed(seed)
        pictures = torch.eye(6)[:, :, None, None].expand(6, 6, 16, 16).contiguous()  # channel = class
        mixed, targets = mix(pictures, torch.eye(6))
        torch.testing.assert_close(mixed.mean((2, 3)), targets, atol=1e-5, rtol=0)
        own = targets.diagonal()
        assert len(own.unique()) == 1 and torch.equal(pictures, torch.eye(6)[:, :, None, None].expand(6, 6, 16, 16))
        torch.testing.assert_close(targets.sum(1), torch.ones(6))
        boxes = mixed[torch.arange(6), torch.arange(6)]  # where each picture is its own
        assert all(torch.equal(box, boxes[0]) for box in boxes)
        kinds.add("cutmix" if set(boxes.unique().tolist()) <= {0.0, 1.0} else "mixup")
        shares.append(own[0].item())
    assert kinds == {"cutmix", "mixup"}
    assert min(shares) < 0.1 and max(shares) > 0.95 and 0.45 < np.mean(shares) < 0.7  # even, larger for boxes cut off


def test_cutmix_exchanges_a_box_and_mixup_blends_with_the_picture_before():
    for seed in range(40):
        torch.manual_seed(seed)
        pictures = torch.rand(5, 3, 12, 20)
        mixed, targets = mix(pictures, torch.eye(5))
        share, before = targets[0, 0].item(), pictures.roll(1, 0)
        assert targets[0, 4].item() == pytest.approx(1 - share, abs=1e-6)
        changed = (mixed != pictures).any(1).any(0)
        if changed.all() and share > 0.01:  # mixup
            torch.testing.assert_close(mixed, share * pictures + (1 - share) * before)
        else:
            rows, columns = changed.any(1).nonzero(), changed.any(0).nonzero()
            if len(rows):
                box = (..., slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
                assert torch.equal(mixed[box], before[box]) and changed[box].all()
            assert 1 - share == pytest.approx(changed.float().mean().item(), abs=1e-6)
