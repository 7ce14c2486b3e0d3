"""Training a classifier on real and synthetic images (paper, section 3.4).

The loss is cross-entropy (CE). Setting S: on synthetic images; R: on the few shots; R+S: lambda CE(real) + (1 - lambda)
CE(synthetic) with lambda = ``real_weight``, 0.8 in the paper (equation 4).
"""

import math
from copy import deepcopy

import pandas as pd
import torch
import torch.nn.functional as F

from datadream_utils.classifier.augment import Augment, mix
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import predict, read_results
from datadream_utils.classifier.pictures import evaluation_split, load_batches
from datadream_utils.runs.device import DTYPES, advise_on_memory
from datadream_utils.seeds import stable_seed

MIN_LR = 1e-8  # the learning rate at which the warm-up starts and the cosine ends


def fit(classifier, sets, run):
    """Train ``classifier`` on ``sets`` (``training_sets``); returns the history, a row per step, or None for no sets.

    It always starts from the weights of ``make_classifier(run)``, also after an interruption or an earlier call. If the
    stage is finished, its stored weights are loaded and its stored history is returned.

    protocol "sound": a fixed schedule; validation accuracy is recorded but chooses nothing. protocol "published": as in
    the authors' released code, for comparison only: the epoch that is best *on the test images* is kept.
    """
    if not run.begin():
        if run.params.setting != "none":
            classifier.load(run.folder / "classifier")
        return read_results(run.stage)[2]
    run.trained = not sets  # without training there is nothing to wait for
    if not sets:
        return None
    p, published = run.params, run.params.protocol == "published"
    split = evaluation_split(run) if published else "val"
    watched = run.data.files.get(split)
    steps, history, best = train_steps(p, len(run.data.class_names))[1], [], {}
    p = p.model_copy(update={"val_every": 1}) if published else p  # every epoch can be the best one
    lower = ("train_batch_size", "eval_batch_size", *(["gradient_checkpointing"] if p.classifier == "clip" else []))
    with advise_on_memory(p, *lower), run.progress(steps, f"training {p.setting}") as advance:
        classifier.load_state_dict(make_classifier(run).state_dict())
        for row in train_classifier(classifier, sets, p, watched):
            if published and row["val_accuracy"] is not None and row["val_accuracy"] > best.get("accuracy", -1):
                best = {"accuracy": row["val_accuracy"], "weights": deepcopy(classifier.state_dict())}
            history.append(row)
            advance()
    if best:
        classifier.load_state_dict(best["weights"])
    run.trained = True
    return pd.DataFrame(history)


def train_classifier(classifier, sets, params, watched=None):
    """Train with AdamW and a fixed schedule; yields a dict per step: step, loss, learning_rate, val_accuracy.

    watched: the paths ``files[label]`` to evaluate after every ``val_every`` epochs and after the last one; in other
    steps val_accuracy is None. Seeds torch's global generator, which dropout and kornia use.
    """
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    device, n_classes = parameters[0].device, 1 + max(int(labels.max()) for _, labels in sets.values())
    processor = classifier.processor
    torch.manual_seed(stable_seed("train", params.seed, params.setting))
    augment = Augment(params, classifier.image_size, processor.image_mean, processor.image_std, device)
    optimizer = torch.optim.AdamW(parameters, lr=params.train_lr, weight_decay=params.train_weight_decay)
    per_epoch, _ = train_steps(params, n_classes)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, params, per_epoch))
    dtype = DTYPES[params.mixed_precision]
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    if params.gradient_checkpointing:
        classifier.checkpoint_activations()
    classifier.train()
    for step, batch in enumerate(_batches(sets, params, per_epoch)):
        logits, targets = {}, {}
        mixing = torch.rand(()) < params.mix_share  # for both kinds, each then with its own operation
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            weights = classifier.class_weights()
            for kind, (pictures, labels) in batch.items():
                pixels, targets[kind] = augment(pictures), F.one_hot(labels.to(device), n_classes).float()
                if mixing:
                    pixels, targets[kind] = mix(pixels, targets[kind])
                logits[kind] = classifier(pixels, weights)
            loss = mixed_loss(logits, targets, params.real_weight)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        row = {"step": step, "loss": loss.item(), "learning_rate": schedule.get_last_lr()[0], "val_accuracy": None}
        schedule.step()
        epoch, within_epoch = divmod(step + 1, per_epoch)
        if watched and not within_epoch and (epoch % params.val_every == 0 or epoch == params.train_epochs):
            row["val_accuracy"] = predict(classifier, watched, params)["correct"].mean()
        yield row
    classifier.eval()


def mixed_loss(logits, targets, real_weight):
    """real_weight CE(real) + (1 - real_weight) CE(synthetic), a scalar; if there is only one set, its CE.

    logits, targets: dicts with "real", "synthetic" or both; each (n, classes), targets as probabilities.
    """
    losses = {kind: F.cross_entropy(logits[kind], targets[kind]) for kind in logits}
    if len(losses) == 1:
        return next(iter(losses.values()))
    return real_weight * losses["real"] + (1 - real_weight) * losses["synthetic"]


def train_steps(params, n_classes):
    """``(steps per epoch, steps in all)``."""
    per_epoch = math.ceil(params.images_per_class * n_classes / params.train_batch_size)
    return per_epoch, per_epoch * params.train_epochs


def learning_rate_factor(step, params, per_epoch):
    """The learning rate of a step as a factor of ``train_lr``: linear warm-up from ``MIN_LR``, then cosine to it."""
    low, warm, total = MIN_LR / params.train_lr, params.train_warmup_epochs * per_epoch, params.train_epochs * per_epoch
    if step < warm:
        return low + (1 - low) * step / warm
    return low + (1 - low) * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm))) / 2


def _batches(sets, params, per_epoch):
    """For each step ``{"real": (pictures, labels), ...}``: ``train_batch_size`` of each kind, freshly shuffled."""
    generator = torch.Generator().manual_seed(stable_seed("batches", params.seed, params.setting))
    order = {kind: [] for kind in sets}
    for _ in range(params.train_epochs):
        for kind, (_, labels) in sets.items():
            order[kind] += torch.randperm(len(labels), generator=generator).split(params.train_batch_size)
    # One loader for all epochs, so that its processes start once and keep the pictures that they have decoded
    loaded = {
        kind: iter(load_batches(pictures, params, batch_sampler=[indices.tolist() for indices in order[kind]]))
        for kind, (pictures, _) in sets.items()
    }
    for step in range(per_epoch * params.train_epochs):
        yield {kind: (next(loaded[kind]), labels[order[kind][step]]) for kind, (_, labels) in sets.items()}
