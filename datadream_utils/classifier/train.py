"""Training a classifier on real and synthetic images (paper, section 3.4).

The loss is cross-entropy (CE). Setting S: on synthetic images; R: on the few shots; R+S: lambda CE(real) + (1 - lambda)
CE(synthetic) with lambda = ``real_weight``, 0.8 in the paper (equation 4).
"""

import math
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy

import pandas as pd
import torch
import torch.nn.functional as F

from datadream_utils.classifier.augment import Augment, mix
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import predict, read_results
from datadream_utils.classifier.pictures import evaluation_split, load_batches
from datadream_utils.runs.compiling import compiled, uncompiled
from datadream_utils.runs.device import DTYPES, advise_on_memory
from datadream_utils.runs.plausible import check_loss, check_skipped, check_weights, steps_taken
from datadream_utils.seeds import stable_seed

MIN_LR = 1e-8  # the learning rate at which the warm-up starts and the cosine ends
COMPILE_PAYS = 1000  # training steps from which on compile "auto" compiles: an estimate, not measured
AHEAD = {"cuda"}  # devices that get work before they have done the last: pictures (``ahead``), a step before its loss


def fit(classifier, sets, run):
    """Train ``classifier`` on ``sets`` (``training_sets``); returns the history, a row per step, or None for no sets.

    It always starts from the weights of ``make_classifier(run)``, also after an interruption or an earlier call. If the
    stage is finished, its stored weights are loaded and its stored history is returned.

    protocol "sound": a fixed schedule; validation accuracy is recorded but chooses nothing. protocol "published": as in
    the authors' released code, for comparison only: the epoch that is best *on the test images* is kept.

    InputError for a training that fails: a loss or weights that are not finite, or most steps skipped in fp16.
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
    check_weights(classifier.state_dict().values(), "the classifier", p)
    run.trained = True
    return pd.DataFrame(history)


def train_classifier(classifier, sets, params, watched=None, pays=None):
    """Train with AdamW and a fixed schedule; yields a dict per step: step, loss, learning_rate, val_accuracy.

    watched: the paths ``files[label]`` to evaluate after every ``val_every`` epochs and after the last one; in other
    steps val_accuracy is None. Seeds torch's global generator, which dropout and kornia use. pays: whether compile
    "auto" compiles; None: as ``compile_pays`` says.

    The text tower passes through every step: LoRA trains it in every setting, so its features are never old ones.
    """
    parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    device, n_classes = parameters[0].device, 1 + max(int(labels.max()) for _, labels in sets.values())
    processor = classifier.processor
    torch.manual_seed(stable_seed("train", params.seed, params.setting))
    augment = Augment(params, classifier.image_size, processor.image_mean, processor.image_std, device)
    fused = device.type == "cuda" or None  # with fp16 the others wait for the GPU in every step
    optimizer = torch.optim.AdamW(parameters, lr=params.train_lr, weight_decay=params.train_weight_decay, fused=fused)
    per_epoch, steps = train_steps(params, n_classes)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, params, per_epoch))
    dtype = DTYPES[params.mixed_precision]
    autocast = lambda: torch.autocast(device.type, dtype, enabled=dtype != torch.float32)  # noqa: E731
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    if params.gradient_checkpointing:
        classifier.checkpoint_activations()
    classifier.train()
    pays = compile_pays(device, params, n_classes) if pays is None else pays
    trial, waiting = (lambda: _try(classifier, params, autocast)), deque()
    inputs = ahead(_inputs(sets, params, per_epoch, augment, n_classes, autocast), device)
    with compiled(classifier.blocks(), params.compile, pays, trial) as is_compiled:
        for step, (size, batch) in enumerate(inputs):
            logits, targets = {}, {}
            with autocast(), uncompiled(is_compiled and size != params.train_batch_size):
                weights = classifier.class_weights()
                for kind, pixels, wanted in batch:
                    logits[kind], targets[kind] = classifier(pixels, weights), wanted
                loss = mixed_loss(logits, targets, params.real_weight)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            taken = torch.zeros_like(loss) + steps_taken(optimizer)
            waiting.append((step, schedule.get_last_lr()[0], _send(torch.stack([loss.detach(), taken]))))
            schedule.step()
            epoch, within_epoch = divmod(step + 1, per_epoch)
            looks = watched and not within_epoch and (epoch % params.val_every == 0 or epoch == params.train_epochs)
            while len(waiting) > (0 if looks or step + 1 == steps else device.type in AHEAD):
                done, rate, read = waiting.popleft()
                number, taken = read()
                check_loss([number], ["the classifier"], done, params)
                check_skipped(taken, done + 1, steps, params)
                row = {"step": done, "loss": number, "learning_rate": rate, "val_accuracy": None}
                if looks and done == step:
                    with uncompiled(is_compiled):
                        row["val_accuracy"] = predict(classifier, watched, params)["correct"].mean()
                yield row
    classifier.eval()


def compile_pays(device, params, n_classes):
    """Whether compile "auto" compiles a training of this length."""
    return torch.device(device).type == "cuda" and train_steps(params, n_classes)[1] >= COMPILE_PAYS


def _try(classifier, params, autocast):
    """One step forwards and backwards on black pictures; the classifier and all random numbers stay as they were."""
    state, device = deepcopy(classifier.state_dict()), next(classifier.parameters()).device
    pixels = torch.zeros(params.train_batch_size, 3, classifier.image_size, classifier.image_size, device=device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        with autocast():
            logits = classifier(pixels, classifier.class_weights())
        logits.float().sum().backward()
    classifier.zero_grad(set_to_none=True)
    classifier.load_state_dict(state)


def _inputs(sets, params, per_epoch, augment, n_classes, autocast):
    """For each step ``(size, batch)``: pictures of each kind, and an iterator that gives (kind, pixels, targets).

    The iterator augments a kind when it is asked for it. On a CPU augmentation and dropout draw from one generator, in
    the order: mixing, dropout of the text tower, real pictures, their dropout, synthetic pictures, their dropout.
    """

    def prepare(batch, mixing):
        for kind, (pictures, labels) in batch.items():
            with autocast():
                pixels = augment(pictures)
                targets = F.one_hot(labels.to(pixels.device), n_classes).float()
                if mixing:
                    pixels, targets = mix(pixels, targets)
            yield kind, pixels, targets

    for batch in _batches(sets, params, per_epoch):
        mixing = torch.rand(()) < params.mix_share  # for both kinds, each then with its own operation
        yield len(next(iter(batch.values()))[1]), prepare(batch, mixing)


def ahead(inputs, device):
    """The items of ``inputs`` (of ``_inputs``); on a CUDA GPU each is prepared beside the step before.

    That takes a thread and a stream of its own. Dropout has the GPU's generator there and augmentation the CPU's, so
    all random numbers are what they would be one after the other. On a CPU dropout would get others.
    """
    if device.type not in AHEAD:
        yield from inputs
        return
    stream = torch.cuda.Stream(device) if device.type == "cuda" else None
    if stream:
        stream.wait_stream(torch.cuda.current_stream(device))

    def prepare():
        with torch.cuda.stream(stream):
            for size, batch in inputs:
                return size, list(batch), stream and stream.record_event()

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(prepare)
        while item := coming.result():
            coming = thread.submit(prepare)
            size, batch, ready = item
            if stream:
                torch.cuda.current_stream(device).wait_event(ready)
                for tensor in (tensor for _, *tensors in batch for tensor in tensors):
                    tensor.record_stream(torch.cuda.current_stream(device))  # its memory is kept until this has read it
            yield size, batch


def _send(numbers):
    """Send a tensor to the CPU without waiting for it; returns a function that waits, and gives its list."""
    copy = numbers.to("cpu", non_blocking=True)
    if not numbers.is_cuda:
        return copy.tolist
    sent = torch.cuda.Event()
    sent.record()

    def read():
        sent.synchronize()
        return copy.tolist()

    return read


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
