"""CLIP with LoRA on real and synthetic images (paper, section 3.4), and its one evaluation on the test split.

S: cross-entropy on synthetic images. R: on the few shots. R+S: 0.8 CE(real) + 0.2 CE(synthetic) (eq. 4).
An epoch shows ``images_per_class`` pictures of every class of each kind; the shots are repeated to that number, so
that every setting takes the same number of optimizer steps.
"""

import math

import pandas as pd
import torch
import torch.nn.functional as F

from datadream_utils.augment import Augment, Mix
from datadream_utils.clip import attach_clip_lora, class_logits, image_features, text_features, tokenize
from datadream_utils.datasets import flatten, stable_seed
from datadream_utils.errors import InputError
from datadream_utils.images import centre_square, read_image, to_tensor
from datadream_utils.models import DTYPES
from datadream_utils.prompts import class_prompt

CACHE_BYTES = 4 * 2**30  # decoded pictures are kept in memory up to this size


class Pictures(torch.utils.data.Dataset):
    """Pictures by index, through ``transform(PIL image) -> tensor``; kept in memory once decoded, if they fit."""

    def __init__(self, paths, transform):
        self.paths, self.transform, self.kept = list(paths), transform, {}
        self.room = None

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        if index in self.kept:
            return self.kept[index]
        tensor = self.transform(read_image(self.paths[index]))
        self.room = CACHE_BYTES // tensor.nbytes if self.room is None else self.room
        if len(self.kept) < self.room:
            self.kept[index] = tensor
        return tensor


def training_pictures(paths, image_size):
    """For augmentation: the middle square, an eighth larger than CLIP's input, uint8."""
    side = image_size * 8 // 7
    return Pictures(paths, lambda image: to_tensor(centre_square(image, side)))


def evaluation_pictures(paths, processor):
    """Exactly CLIP's own preprocessing (PIL bicubic), float32."""
    return Pictures(paths, lambda image: torch.from_numpy(processor(images=image).pixel_values[0]))


def mixed_loss(logits, targets, real_weight):
    """``real_weight`` CE(real) + (1 - ``real_weight``) CE(synthetic); one kind alone counts whole.

    logits, targets: dicts with "real" and/or "synthetic"; each (n, classes), targets as probabilities.
    """
    losses = {kind: F.cross_entropy(logits[kind], targets[kind]) for kind in logits}
    if len(losses) == 1:
        return next(iter(losses.values()))
    return real_weight * losses["real"] + (1 - real_weight) * losses["synthetic"]


def training_sets(setting, shots, synthetic, p, image_size):
    """``{"real": (pictures, labels), "synthetic": ...}`` of a setting, the shots repeated to ``images_per_class``.

    shots, synthetic: ``files[label]``; synthetic may be None for R.
    """
    sets = {}
    if "R" in setting:
        sets["real"] = [[files[i % len(files)] for i in range(p.images_per_class)] for files in shots]
    if "S" in setting:
        fewest = min(len(files) for files in synthetic)
        if fewest < p.images_per_class:
            raise InputError(
                f"images_per_class={p.images_per_class}, but a class has {fewest} generated images: set it to "
                f"{fewest}, or run 02_generate with more in another variant."
            )
        sets["synthetic"] = [files[: p.images_per_class] for files in synthetic]
    return {
        kind: (training_pictures(paths, image_size), torch.tensor(labels))
        for kind, (paths, labels) in ((kind, flatten(files)) for kind, files in sets.items())
    }


def train_steps(p, n_classes):
    """``(steps per epoch, steps in all)``."""
    per_epoch = math.ceil(p.images_per_class * n_classes / p.train_batch_size)
    return per_epoch, per_epoch * p.train_epochs


def learning_rate_factor(step, p, per_epoch):
    """Linear warm-up from ``train_min_lr``, then cosine down to it, as a factor of ``train_lr``."""
    low, warm, total = p.train_min_lr / p.train_lr, p.train_warmup_epochs * per_epoch, p.train_epochs * per_epoch
    if step < warm:
        return low + (1 - low) * step / warm
    return low + (1 - low) * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2


def fit(clip, tokenizer, processor, data, sets, p, validation=None):
    """Train CLIP's LoRA; yields a row per step, with ``val_accuracy`` after every ``val_every`` epochs.

    clip: the frozen base. The first row's "model" is the PEFT model being trained. The schedule is fixed: validation
    is shown, never used to choose. Seeds torch's global generator (dropout and kornia draw from it).
    """
    device = next(clip.parameters()).device
    seed = stable_seed("train", p.seed, p.setting)
    model = attach_clip_lora(clip, p.clip_lora_rank, p.clip_lora_alpha, p.clip_lora_dropout, seed)
    torch.manual_seed(seed)
    augment = Augment(p, clip_image_size(clip), processor.image_mean, processor.image_std, device)
    mix = Mix(p.mix_share, len(data.class_names))
    tokens = class_tokens(tokenizer, data, device)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=p.train_lr, weight_decay=p.train_weight_decay)
    per_epoch, _ = train_steps(p, len(data.class_names))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, p, per_epoch))
    dtype = DTYPES[p.mixed_precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    model.train()
    for step, batch in enumerate(_batches(sets, p, per_epoch)):
        logits, targets = {}, {}
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            texts = text_features(model, tokens)
            for kind, (pictures, labels) in batch.items():
                pixels, targets[kind] = mix(augment(pictures), labels.to(device))
                logits[kind] = class_logits(model, image_features(model, pixels), texts)
            loss = mixed_loss(logits, targets, p.real_weight)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        row = {"step": step, "loss": loss.item(), "learning_rate": schedule.get_last_lr()[0], "val_accuracy": None}
        schedule.step()
        epoch, at_end = divmod(step + 1, per_epoch)
        if validation is not None and not at_end and (epoch % p.val_every == 0 or epoch == p.train_epochs):
            row["val_accuracy"] = (predict(model, tokens, *validation, p)["correct"]).mean()
        yield row | ({"model": model} if step == 0 else {})
    model.eval()


def train(clip, tokenizer, processor, data, sets, p, validation, progress):
    """Run ``fit`` to its end under ``progress``: ``(trained model, [row, ...])``.

    Without training sets (setting "none") the model is the zero-shot CLIP itself, and there are no rows.
    """
    model, history = clip, []
    if sets:
        rows = fit(clip, tokenizer, processor, data, sets, p, validation)
        for row in progress(rows, total=train_steps(p, len(data.class_names))[1], label=f"training {p.setting}"):
            model = row.pop("model", model)
            history.append(row)
    return model, history


def class_tokens(tokenizer, data, device):
    """The tokens of every class's prompt, in label order."""
    return tokenize(tokenizer, [class_prompt(name, data.domain) for name in data.class_names], device)


def _batches(sets, p, per_epoch):
    """For each step ``{"real": (pictures, labels), ...}``: ``train_batch_size`` of each kind, freshly shuffled."""
    generator = torch.Generator().manual_seed(stable_seed("batches", p.seed, p.setting))
    for _ in range(p.train_epochs):
        epoch = {}
        for kind, (pictures, labels) in sets.items():
            indices = torch.randperm(len(labels), generator=generator).split(p.train_batch_size)
            loader = _loader(pictures, p, batch_sampler=[i.tolist() for i in indices])
            epoch[kind] = zip(loader, [labels[i] for i in indices], strict=True)
        for _ in range(per_epoch):
            yield {kind: next(batches) for kind, batches in epoch.items()}


def _loader(pictures, p, **options):
    """A DataLoader that leaves torch's global generator alone, so that looking at validation data changes nothing."""
    return torch.utils.data.DataLoader(pictures, num_workers=p.num_workers, generator=torch.Generator(), **options)


def clip_image_size(clip):
    """The side of CLIP's square input in pixels."""
    return clip.config.vision_config.image_size


@torch.inference_mode()
def predict(clip, tokens, pictures, labels, p):
    """A table with a row per picture: label, prediction, correct, probability of the prediction.

    The class texts go through the text tower once, not once per batch.
    """
    was_training = clip.training
    clip.eval()
    device = next(clip.parameters()).device
    texts = text_features(clip, tokens)
    loader = _loader(pictures, p, batch_size=p.eval_batch_size)
    logits = torch.cat([class_logits(clip, image_features(clip, x.to(device)), texts).cpu() for x in loader])
    clip.train(was_training)
    probability, prediction = logits.float().softmax(-1).max(-1)
    table = pd.DataFrame({"label": list(labels), "prediction": prediction.numpy()})
    return table.assign(correct=table["label"] == table["prediction"], probability=probability.numpy())


def validation_set(data, processor):
    """``(pictures, labels)`` of the val split, or None when the data set has none."""
    if "val" not in data.files:
        return None
    paths, labels = flatten(data.files["val"])
    return evaluation_pictures(paths, processor), labels


def evaluate_on_test(clip, tokenizer, processor, data, p):
    """The only place that reads the test split: predictions of the finished classifier, with the file names."""
    device = next(clip.parameters()).device
    tokens = class_tokens(tokenizer, data, device)
    paths, labels = flatten(data.files["test"])
    table = predict(clip, tokens, evaluation_pictures(paths, processor), labels, p)
    return table.assign(file=[str(path.relative_to(data.root)) for path in paths])
