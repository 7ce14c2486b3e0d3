"""A classifier on real and synthetic images (paper, section 3.4), and its one evaluation on the test split.

CLIP with LoRA, or a ResNet from scratch.

S: cross-entropy on synthetic images. R: on the few shots. R+S: 0.8 CE(real) + 0.2 CE(synthetic) (eq. 4).
An epoch shows ``images_per_class`` pictures of every class of each kind; the shots are repeated to that number, so
that every setting takes the same number of optimizer steps. So are the first ``synthetic_per_class`` generated images
where only these are used.
"""

import math
from copy import deepcopy

import pandas as pd
import torch
import torch.nn.functional as F
from peft import PeftModel

from datadream_utils.backbones.clip import ClipClassifier, attach_clip_lora
from datadream_utils.backbones.load import DTYPES, load_clip
from datadream_utils.classifier.augment import Augment, Mix
from datadream_utils.classifier.resnet import ResNetClassifier, resnet_config
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import centre_square, read_image, to_tensor
from datadream_utils.errors import InputError
from datadream_utils.runs.device import begun_again, enough_memory
from datadream_utils.seeds import stable_seed

MIN_LR = 1e-8  # where the warm-up starts and the cosine ends
CACHE_BYTES = 4 * 2**30  # decoded pictures are kept in memory up to this size


class Pictures(torch.utils.data.Dataset):
    """Pictures by index, through ``transform([PIL image, ...]) -> [tensor, ...]``; kept in memory, as far as they fit.

    A file that stands in several places (the shots, repeated) is decoded and kept once.
    """

    def __init__(self, paths, transform):
        self.paths, self.transform, self.kept, self.room = list(paths), transform, {}, None

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """Several at once: what torch's loader asks for a batch with."""
        paths = [self.paths[index] for index in indices]
        new = [path for path in dict.fromkeys(paths) if path not in self.kept]
        decoded = dict(zip(new, self.transform([read_image(path) for path in new]), strict=True)) if new else {}
        for path, tensor in decoded.items():
            if self.room is None:
                worker = torch.utils.data.get_worker_info()  # every process of a loader keeps its own
                self.room = CACHE_BYTES // tensor.nbytes // (worker.num_workers if worker else 1)
            if len(self.kept) < self.room:
                self.kept[path] = tensor
        return [decoded[path] if path in decoded else self.kept[path] for path in paths]


def training_pictures(paths, image_size):
    """For augmentation: the middle square, a seventh larger than CLIP's input, uint8."""
    side = image_size * 8 // 7
    return Pictures(paths, lambda images: [to_tensor(centre_square(image, side)) for image in images])


def evaluation_pictures(paths, processor):
    """Exactly CLIP's own preprocessing (PIL bicubic), float32."""
    return Pictures(paths, lambda images: [torch.from_numpy(x) for x in processor(images=images).pixel_values])


def mixed_loss(logits, targets, real_weight):
    """real_weight CE(real) + (1 - real_weight) CE(synthetic); one kind alone counts whole.

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
        name = "synthetic_per_class" if p.synthetic_per_class else "images_per_class"
        if fewest < getattr(p, name):
            raise InputError(
                f"{name}={getattr(p, name)}, but a class has {fewest} generated images: set it to {fewest}, or run "
                "02_generate with more in another variant."
            )
        used = p.synthetic_per_class or p.images_per_class
        sets["synthetic"] = [[files[i % used] for i in range(p.images_per_class)] for files in synthetic]
    return {
        kind: (training_pictures(paths, image_size), torch.tensor(labels))
        for kind, (paths, labels) in ((kind, flatten(files)) for kind, files in sets.items())
    }


def train_steps(p, n_classes):
    """``(steps per epoch, steps in all)``."""
    per_epoch = math.ceil(p.images_per_class * n_classes / p.train_batch_size)
    return per_epoch, per_epoch * p.train_epochs


def learning_rate_factor(step, p, per_epoch):
    """Linear warm-up from ``MIN_LR``, then cosine down to it, as a factor of ``train_lr``."""
    low, warm, total = MIN_LR / p.train_lr, p.train_warmup_epochs * per_epoch, p.train_epochs * per_epoch
    if step < warm:
        return low + (1 - low) * step / warm
    return low + (1 - low) * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2


def make_classifier(clip, tokenizer, data, p):
    """The classifier to train: a copy of ``clip`` with fresh LoRA (itself, for setting "none"), or a fresh ResNet.

    What is random in it comes from (seed, setting) alone.
    """
    seed = stable_seed("train", p.seed, p.setting)
    if p.classifier != "clip":
        return ResNetClassifier(resnet_config(p.classifier, data.class_names), seed).to(clip.device).eval()
    if p.setting != "none":
        clip = attach_clip_lora(deepcopy(clip), p.clip_lora_rank, p.clip_lora_alpha, p.clip_lora_dropout, seed)
    return ClipClassifier(clip, tokenizer, data).eval()


def load_classifier(stage, data, p, device="cpu"):
    """The classifier that a finished train stage left, and CLIP's preprocessing: ``(classifier, processor)``."""
    clip, tokenizer, processor = load_clip(p.clip_model, p.clip_revision, device)
    folder = stage.folder / "classifier"
    if p.classifier != "clip":
        classifier = make_classifier(clip, tokenizer, data, p)
        classifier.resnet = type(classifier.resnet).from_pretrained(folder, use_safetensors=True).to(device)
        return classifier.eval(), processor
    if p.setting != "none":
        clip = PeftModel.from_pretrained(clip, folder)
    return ClipClassifier(clip, tokenizer, data).eval(), processor


@torch.inference_mode()
def classify(classifier, processor, image):
    """``(what the classifier sees (height, width, 3), in [0, 1], probabilities (classes,))`` of one PIL image."""
    pixels = torch.from_numpy(processor(images=image).pixel_values[0])
    logits = classifier(pixels[None].to(next(classifier.parameters()).device), classifier.class_weights())
    mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    seen = (pixels * std + mean).clamp(0, 1).permute(1, 2, 0)
    return seen.numpy(), logits[0].float().softmax(-1).cpu().numpy()


def fit(classifier, processor, sets, p, image_size, n_classes, watch=None):
    """Train; yields a row per step. The schedule is fixed.

    watch: ``(pictures, labels)`` to look at after every ``val_every`` epochs; the row then has "val_accuracy" and
    "predictions". Seeds torch's global generator (dropout and kornia draw from it).
    """
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    device = parameters[0].device
    torch.manual_seed(stable_seed("train", p.seed, p.setting))
    augment = Augment(p, image_size, processor.image_mean, processor.image_std, device)
    mix = Mix(p.mix_share, n_classes)
    optimizer = torch.optim.AdamW(parameters, lr=p.train_lr, weight_decay=p.train_weight_decay)
    per_epoch, _ = train_steps(p, n_classes)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, p, per_epoch))
    dtype = DTYPES[p.mixed_precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    classifier.train()
    for step, batch in enumerate(_batches(sets, p, per_epoch)):
        logits, targets = {}, {}
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            weights = classifier.class_weights()
            for kind, (pictures, labels) in batch.items():
                pixels, targets[kind] = mix(augment(pictures), labels.to(device))
                logits[kind] = classifier(pixels, weights)
            loss = mixed_loss(logits, targets, p.real_weight)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        row = {"step": step, "loss": loss.item(), "learning_rate": schedule.get_last_lr()[0], "val_accuracy": None}
        schedule.step()
        epoch, at_end = divmod(step + 1, per_epoch)
        if watch is not None and not at_end and (epoch % p.val_every == 0 or epoch == p.train_epochs):
            row["predictions"] = predict(classifier, *watch, p)
            row["val_accuracy"] = row["predictions"]["correct"].mean()
        yield row
    classifier.eval()


def train_and_test(classifier, processor, data, sets, p, image_size, progress):
    """Train ``classifier`` under ``progress`` and test it: ``(predictions, history)``, a row per picture and per step.

    protocol "sound": a fixed schedule, validation images are shown and never choose, the test split is read once, when
    training is over. "published": the authors' released code, for comparison only: the epoch that is best *on the
    test images*, which for three data sets are its training split (``data.published_test``).
    """
    published = p.protocol == "published"
    watch = evaluated_set(data, processor, p) if published else validation_set(data, processor)
    with enough_memory(p, "train_batch_size", "eval_batch_size"):
        history, predictions = _train(classifier, processor, data, sets, p, image_size, watch, progress)
        if predictions is None:
            predictions = predict(classifier, *evaluated_set(data, processor, p), p)
    paths = flatten(data.files[evaluated_split(data, p)])[0]
    return predictions.assign(file=[str(path.relative_to(data.root)) for path in paths]), history


def _train(classifier, processor, data, sets, p, image_size, watch, progress):
    """``(history, predictions)``; predictions are those of the best epoch under protocol "published", else None."""
    published = p.protocol == "published"
    history, predictions = [], None
    if sets:
        p_watch = p.model_copy(update={"val_every": 1}) if published else p
        n = len(data.class_names)
        start = lambda: fit(classifier, processor, sets, p_watch, image_size, n, watch)  # noqa: E731
        rows = begun_again(start, classifier.parameters(), classifier.spare_memory)
        for row in progress(rows, total=train_steps(p, n)[1], label=f"training {p.setting}"):
            looked = row.pop("predictions", None)
            if published and looked is not None and row["val_accuracy"] > max(_accuracies(history), default=-1):
                predictions = looked
            history.append(row)
    return history, predictions


def _accuracies(history):
    return [row["val_accuracy"] for row in history if row["val_accuracy"] is not None]


def _batches(sets, p, per_epoch):
    """For each step ``{"real": (pictures, labels), ...}``: ``train_batch_size`` of each kind, freshly shuffled."""
    generator = torch.Generator().manual_seed(stable_seed("batches", p.seed, p.setting))
    order = {kind: [] for kind in sets}
    for _ in range(p.train_epochs):
        for kind, (_, labels) in sets.items():
            order[kind] += torch.randperm(len(labels), generator=generator).split(p.train_batch_size)
    # One loader for all epochs: its processes start once and keep what they have decoded
    loaded = {
        kind: iter(_loader(pictures, p, batch_sampler=map(torch.Tensor.tolist, order[kind])))
        for kind, (pictures, _) in sets.items()
    }
    for step in range(per_epoch * p.train_epochs):
        yield {kind: (next(loaded[kind]), labels[order[kind][step]]) for kind, (_, labels) in sets.items()}


def _loader(pictures, p, **options):
    """A DataLoader that leaves torch's global generator alone, so that looking at validation data changes nothing."""
    return torch.utils.data.DataLoader(pictures, num_workers=p.num_workers, generator=torch.Generator(), **options)


def clip_image_size(clip):
    """The side of CLIP's square input in pixels."""
    return clip.config.vision_config.image_size


@torch.inference_mode()
def predict(classifier, pictures, labels, p):
    """A table with a row per picture: label, prediction, correct, probability of the prediction.

    The class texts go through the text tower once, not once per batch.
    """
    was_training = classifier.training
    classifier.eval()
    device = next(classifier.parameters()).device
    weights = classifier.class_weights()
    loader = _loader(pictures, p, batch_size=p.eval_batch_size)
    logits = torch.cat([classifier(x.to(device), weights).cpu() for x in loader])
    classifier.train(was_training)
    probability, prediction = logits.float().softmax(-1).max(-1)
    table = pd.DataFrame({"label": list(labels), "prediction": prediction.numpy()})
    return table.assign(correct=table["label"] == table["prediction"], probability=probability.numpy())


def validation_set(data, processor):
    """``(pictures, labels)`` of the val split, or None when the data set has none."""
    if "val" not in data.files:
        return None
    paths, labels = flatten(data.files["val"])
    return evaluation_pictures(paths, processor), labels


def stage_name(p):
    """The folder of a classifier within its run: ``train-R+S``, ``train-S-resnet``, ``train-R-published``."""
    kind = "" if p.classifier == "clip" else "-resnet"
    return f"train-{p.setting}{kind}" + ("-published" if p.protocol == "published" else "")


def evaluated_split(data, p):
    """The split that accuracy is measured on: "test", whatever the data set; see ``train_and_test`` for "published"."""
    return data.published_test if p.protocol == "published" else "test"


def evaluated_set(data, processor, p):
    """The one place that reads the test split: ``(pictures, labels)``."""
    paths, labels = flatten(data.files[evaluated_split(data, p)])
    return evaluation_pictures(paths, processor), labels
