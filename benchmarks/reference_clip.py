"""Training and testing CLIP by the authors' procedure (their released code, of July 2024), written anew: the reference.

The same arithmetic and schedule as the package's. There, pictures are decoded and augmented one by one in every epoch;
evaluation goes in batches of 8, each with all class texts through the text tower again, padded to CLIP's full length.
"""

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from PIL import Image

from benchmarks.clock import timed
from benchmarks.reference_pictures import PictureAugment
from datadream_utils.backbones.clip import ClipClassifier, attach_clip_lora
from datadream_utils.backbones.load import load_clip
from datadream_utils.classifier.augment import mix
from datadream_utils.classifier.train import learning_rate_factor, train_steps
from datadream_utils.data.dataset import flatten
from datadream_utils.prompts import class_prompt
from datadream_utils.runs.device import DTYPES
from datadream_utils.seeds import stable_seed

EVAL_BATCH = 8


class Files(torch.utils.data.Dataset):
    """Pictures read from disk every time, through ``transform(PIL image) -> tensor``."""

    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.transform(Image.open(self.paths[index]).convert("RGB"))


def full_length(classifier, tokenizer, data):
    """The classifier with its class texts padded to CLIP's own length."""
    prompts = [class_prompt(name, data.domain) for name in data.class_names]
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    classifier.tokens = tokens.to(classifier.clip.device)
    return classifier


def load_classifier(run, adapter=None):
    """CLIP with fresh LoRA, or with the one in the folder ``adapter``; class texts at full length."""
    p = run.params
    clip, tokenizer, processor = load_clip(p.clip_model, p.clip_revision, run.device)
    if adapter:
        clip = PeftModel.from_pretrained(clip, adapter)
    else:
        seed = stable_seed("train", p.seed, p.setting)
        clip = attach_clip_lora(clip, p.clip_lora_rank, p.clip_lora_alpha, p.clip_lora_dropout, seed)
    return full_length(ClipClassifier(clip, tokenizer, processor, run.data).eval(), tokenizer, run.data)


def train(run, seconds, synthetic=None):
    """Train CLIP's LoRA on ``synthetic[label]``, lists of paths."""
    p = run.params
    with timed(seconds, "load"):
        classifier = load_classifier(run)
    processor = classifier.processor
    augment = PictureAugment(p, classifier.image_size, processor.image_mean, processor.image_std)
    with timed(seconds, "work"):
        files = flatten([files[: p.images_per_class] for files in synthetic])
        fit(classifier, files, augment, p, len(run.data.class_names))
        classifier.save(run.folder / "classifier")


def fit(classifier, files, augment, p, n_classes):
    """Pictures are decoded and augmented one by one, in every epoch; returns the losses."""
    (paths, labels), losses = files, []
    labels, device = torch.tensor(labels), classifier.clip.device
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    torch.manual_seed(stable_seed("train", p.seed, p.setting))
    order = torch.Generator().manual_seed(stable_seed("batches", p.seed, p.setting))
    optimizer = torch.optim.AdamW(parameters, lr=p.train_lr, weight_decay=p.train_weight_decay)
    per_epoch, _ = train_steps(p, n_classes)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, p, per_epoch))
    dtype = DTYPES[p.mixed_precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    classifier.train()
    for _ in range(p.train_epochs):
        batches = torch.randperm(len(labels), generator=order).split(p.train_batch_size)
        loader = torch.utils.data.DataLoader(
            Files(paths, augment),
            batch_sampler=[batch.tolist() for batch in batches],
            num_workers=p.num_workers,
            generator=torch.Generator(),
        )
        for pictures, batch in zip(loader, batches, strict=True):
            mixing = torch.rand(()) < p.mix_share
            with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                weights = classifier.class_weights()
                pictures, targets = pictures.to(device), F.one_hot(labels[batch].to(device), n_classes).float()
                if mixing:
                    pictures, targets = mix(pictures, targets)
                loss = F.cross_entropy(classifier(pictures, weights), targets)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            losses.append(loss.item())
    return losses


class ClipPicture:
    """CLIP's preprocessing of one PIL picture as plain transforms do it; (3, side, side), normalised."""

    def __init__(self, processor):
        self.side, self.size = processor.crop_size["height"], processor.size["shortest_edge"]
        self.mean, self.std = (np.array(x, np.float32) for x in (processor.image_mean, processor.image_std))

    def __call__(self, image):
        short = min(image.size)
        size = [int(length * self.size / short) for length in image.size]
        image = image.resize(size, Image.Resampling.BICUBIC)
        left, top = ((length - self.side) // 2 for length in image.size)
        image = image.crop((left, top, left + self.side, top + self.side))
        pixels = (np.asarray(image, np.float32) / 255 - self.mean) / self.std
        return torch.from_numpy(pixels).permute(2, 0, 1)


def evaluate(run, seconds, classifier=None):
    """Predict the test split in batches of 8, with the class texts through the text tower in every batch; (n,)."""
    with timed(seconds, "load"):
        model = load_classifier(run, classifier)
    paths, _ = flatten(run.data.files["test"])
    with timed(seconds, "work"), torch.no_grad():
        files = Files(paths, ClipPicture(model.processor))
        loader = torch.utils.data.DataLoader(files, batch_size=EVAL_BATCH, num_workers=run.params.num_workers)
        predictions = [model(x.to(run.device), model.class_weights()).argmax(-1).cpu() for x in loader]
    return torch.cat(predictions)
