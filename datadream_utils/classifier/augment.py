"""The classifier's augmentations, in batches on the device (kornia); strengths are parameters."""

import warnings

import kornia.augmentation as K
import torch
import torch.nn.functional as F
from kornia.augmentation.auto import RandAugment

RAND_AUGMENT_GROUP = 8  # kornia draws RandAugment's operations once per call: this many images share them


class Augment:
    """Crop, flip, RandAugment, colour jitter, greyscale, blur, solarise (paper, appendix; authors' ``data.py``).

    Takes uint8 pictures (n, 3, H, W), gives float ones (n, 3, image_size, image_size), normalised for CLIP.
    """

    def __init__(self, params, image_size, mean, std, device):
        kernel = max(3, image_size // 10 // 2 * 2 + 1)
        self.crop = K.RandomResizedCrop(
            (image_size, image_size), scale=(params.crop_scale_min, 1.0), resample="bicubic"
        )
        self.flip = K.RandomHorizontalFlip(p=params.flip)
        self.rand_augment = None
        if params.rand_augment_ops and params.rand_augment_magnitude:
            self.rand_augment = RandAugment(n=params.rand_augment_ops, m=params.rand_augment_magnitude)
        self.colour = torch.nn.Sequential(
            K.ColorJitter(0.4, 0.4, 0.2, 0.1, p=params.color_jitter),
            K.RandomGrayscale(p=params.grayscale),
            K.RandomGaussianBlur((kernel, kernel), (0.1, 2.0), p=params.blur),
            K.RandomSolarize(p=params.solarize),
        )
        self.normalise = K.Normalize(torch.tensor(mean, device=device), torch.tensor(std, device=device))
        self.device = device

    @torch.no_grad()
    def __call__(self, pictures):
        x = self.flip(self.crop(pictures.to(self.device).float() / 255)).clamp(0, 1)
        if self.rand_augment is not None:
            x = torch.cat([self.rand_augment(group) for group in x.split(RAND_AUGMENT_GROUP)])
        return self.normalise(self.colour(x.clamp(0, 1)))


class Mix:
    """Mixup or CutMix (one at random) in a share of the batches; labels become soft targets (n, classes)."""

    def __init__(self, share, n_classes):
        self.share, self.n_classes = share, n_classes
        self.mixup = K.RandomMixUpV2(p=1.0, data_keys=["input", "class"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.cutmix = K.RandomCutMixV2(p=1.0, data_keys=["input", "class"], use_correct_lambda=True)

    @torch.no_grad()
    def __call__(self, pictures, labels):
        targets = F.one_hot(labels, self.n_classes).float()
        if torch.rand(()) >= self.share:
            return pictures, targets
        use_mixup = torch.rand(()) < 0.5
        pictures, mixed = (self.mixup if use_mixup else self.cutmix)(pictures, labels)
        first, second, share = mixed.reshape(-1, len(labels), 3)[0].unbind(-1)
        share_of_first = (1 - share if use_mixup else share)[:, None].to(targets)  # kornia's two conventions
        first, second = (F.one_hot(part.long(), self.n_classes).float() for part in (first, second))
        return pictures, share_of_first * first + (1 - share_of_first) * second
