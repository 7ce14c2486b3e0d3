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
from datadream_utils.runs.checkpoint import open_checkpoint
from datadream_utils.runs.compiling import compiled, uncompiled
from datadream_utils.runs.device import DTYPES, advise_on_memory
from datadream_utils.runs.plausible import check_loss, check_skipped, check_weights, steps_taken
from datadream_utils.seeds import stable_seed

MIN_LR = 1e-8  # the learning rate at which the warm-up starts and the cosine ends
COMPILE_PAYS = 1000  # training steps from which on compile "auto" compiles: an estimate, not measured
COLUMNS = ["loss", "learning_rate", "val_accuracy"]  # of a training's rows
AHEAD = {"cuda"}  # devices that get work before they have done the last: pictures (``ahead``), a step before its loss


def fit(classifier, sets, run):
    """Train ``classifier`` on ``sets`` (``training_sets``); returns the history, a row per step, or None for no sets.

    It starts from the weights of ``make_classifier(run)``, whatever ``classifier`` has learnt before, or continues from
    the last checkpoint of an interrupted call. If the stage is finished, its stored weights are loaded and its stored
    history is returned.

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
    p = p.model_copy(update={"val_every": 1}) if published else p  # every epoch can be the best one
    files = {kind: [path.name for path in pictures.paths] for kind, (pictures, _) in sets.items()}
    checkpoint = open_checkpoint(run, "classifier", [torch.device(run.device).type, files])
    lower = ("train_batch_size", "eval_batch_size", *(["gradient_checkpointing"] if p.classifier == "clip" else []))
    with advise_on_memory(p, *lower):
        classifier.load_state_dict(make_classifier(run).state_dict())
        training = Training(classifier, sets, p, watched, keep_best=published)
        with run.progress(training.steps, f"training {p.setting}") as advance:
            for _ in training.run(checkpoint):
                advance()
    training.take_best()
    check_weights(classifier.state_dict().values(), "the classifier", p)
    run.trained = True
    return pd.DataFrame(training.rows)


def train_classifier(classifier, sets, params, watched=None, pays=None):
    """Train without a stage and its checkpoints; yields the rows of ``Training``, one per step."""
    yield from Training(classifier, sets, params, watched).run(pays=pays)


class Training:
    """The training of a classifier on ``sets``, with AdamW and a fixed schedule.

    watched: the paths ``files[label]`` to evaluate after every ``val_every`` epochs and after the last one. keep_best:
    keep the weights that were best on them, in ``best``.

    ``rows``: a dict per step so far: step, loss, learning_rate, val_accuracy; in steps without an evaluation
    val_accuracy is None. A checkpoint keeps all that the next step depends on: also torch's global generators, which
    augmentation and dropout use.

    The text tower passes through every step: LoRA trains it in every setting, so its features are never old ones.
    """

    def __init__(self, classifier, sets, params, watched=None, keep_best=False):
        self.classifier, self.sets, self.params = classifier, sets, params
        self.watched, self.keep_best = watched, keep_best
        self.parameters = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
        self.device = self.parameters[0].device
        self.n_classes = 1 + max(int(labels.max()) for _, labels in sets.values())
        self.per_epoch, self.steps = train_steps(params, self.n_classes)
        fused = self.device.type == "cuda" or None  # with fp16 the others wait for the GPU in every step
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=params.train_lr, weight_decay=params.train_weight_decay, fused=fused
        )
        factor = lambda step: learning_rate_factor(step, params, self.per_epoch)  # noqa: E731
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, factor)
        self.dtype = DTYPES[params.mixed_precision]
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.rows, self.best, self.random_state = [], None, None

    def run(self, checkpoint=None, pays=None):
        """Train to the end; yields every row, also those that a checkpoint brings back.

        checkpoint: where to continue from and where to save, or None. pays: whether compile "auto" compiles; None: as
        ``compile_pays`` says. InputError for losses that are not finite, and when fp16 skips most steps.
        """
        classifier, params, processor = self.classifier, self.params, self.classifier.processor
        torch.manual_seed(stable_seed("train", params.seed, params.setting))
        if checkpoint:
            checkpoint.load(self)
            yield from list(self.rows)
        begin = len(self.rows)
        augment = Augment(params, classifier.image_size, processor.image_mean, processor.image_std, self.device)
        if params.gradient_checkpointing:
            classifier.checkpoint_activations()
        classifier.train()
        pays = compile_pays(self.device, params, self.n_classes) if pays is None else pays
        trial, waiting = (lambda: _try(classifier, params, self._autocast)), deque()
        inputs = _inputs(self.sets, params, self.per_epoch, augment, self.n_classes, self._autocast, begin)
        with compiled(classifier.blocks(), params.compile, pays, trial) as is_compiled:
            for step, (size, random_state, batch) in enumerate(ahead(inputs, self.device), begin):
                self.random_state = random_state
                if checkpoint and begin < step == len(self.rows):  # none is waiting
                    checkpoint.save_if_due(self)
                with uncompiled(is_compiled and size != params.train_batch_size):
                    loss = self._forward(batch)
                rate = self.schedule.get_last_lr()[0]
                waiting.append((step, rate, _send(torch.stack([loss.detach(), self._step(loss)]))))
                looks, is_last = self._looks(step + 1), step + 1 == self.steps
                saves = checkpoint and checkpoint.is_due(step + 1)
                while len(waiting) > (0 if looks or saves or is_last else self.device.type in AHEAD):
                    done, rate, read = waiting.popleft()
                    number, taken = read()
                    check_loss([number], ["the classifier"], done, params)
                    check_skipped(taken, done + 1, self.steps, params)
                    row = {"step": done, "loss": number, "learning_rate": rate, "val_accuracy": None}
                    if looks and done == step:
                        with uncompiled(is_compiled):
                            row["val_accuracy"] = self._validate()
                    self.rows.append(row)
                    yield row
        classifier.eval()

    def take_best(self):
        """Give the classifier the weights that were best on the watched images, if they were kept."""
        if self.best:
            _, weights = self.best
            with torch.no_grad():
                for tensor, value in zip(self._changing(), weights, strict=True):
                    tensor.copy_(value)

    def state(self):
        """What a checkpoint keeps beside parameters, optimizer, schedule and scaler.

        On a GPU the CPU's generator is a step further already (``ahead``); ``random_state`` is what the next step
        begins with.
        """
        columns = pd.DataFrame(self.rows)[COLUMNS].astype(float)  # None becomes nan
        tensors = {name: torch.tensor(columns[name].to_numpy()) for name in COLUMNS}
        tensors["random"] = self.random_state
        if self.device.type != "cpu":  # dropout has the device's own generator
            tensors["random_device"] = torch.get_device_module(self.device).get_rng_state(*self._device_argument())
        tensors |= {f"buffers.{i}": buffer for i, buffer in enumerate(self.classifier.buffers())}
        if self.best:
            accuracy, weights = self.best
            tensors["best"] = torch.tensor(accuracy, dtype=torch.float64)
            tensors |= {f"best.{i}": weight for i, weight in enumerate(weights)}
        return tensors

    def restore(self, tensors):
        """Take what ``state`` gave."""
        columns = (tensors[name].tolist() for name in COLUMNS)
        for step, (loss, rate, accuracy) in enumerate(zip(*columns, strict=True)):
            accuracy = None if math.isnan(accuracy) else accuracy
            self.rows.append({"step": step, "loss": loss, "learning_rate": rate, "val_accuracy": accuracy})
        with torch.no_grad():
            for i, buffer in enumerate(self.classifier.buffers()):
                buffer.copy_(tensors[f"buffers.{i}"])
        if "best" in tensors:
            weights = [tensors[f"best.{i}"].to(self.device) for i in range(len(self._changing()))]
            self.best = tensors["best"].item(), weights
        torch.set_rng_state(tensors["random"])
        if self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(tensors["random_device"], *self._device_argument())

    def _device_argument(self):
        """The device, as an argument where there may be several of its kind."""
        return [self.device] if self.device.type == "cuda" else []

    def _autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _forward(self, batch):
        """The loss of a batch of ``_inputs``."""
        logits, targets = {}, {}
        with self._autocast():
            weights = self.classifier.class_weights()
            for kind, pixels, wanted in batch:
                logits[kind], targets[kind] = self.classifier(pixels, weights), wanted
            return mixed_loss(logits, targets, self.params.real_weight)

    def _step(self, loss):
        """One step of the optimizer and of the schedule; returns how many were taken so far, a tensor."""
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.schedule.step()
        return torch.zeros_like(loss) + steps_taken(self.optimizer)

    def _looks(self, steps):
        """Whether the watched images are evaluated after so many steps."""
        epoch, within_epoch = divmod(steps, self.per_epoch)
        due = epoch % self.params.val_every == 0 or epoch == self.params.train_epochs
        return bool(self.watched) and not within_epoch and due

    def _validate(self):
        """The accuracy on the watched images."""
        accuracy = predict(self.classifier, self.watched, self.params)["correct"].mean()
        if self.keep_best and (not self.best or accuracy > self.best[0]):
            self.best = accuracy, [tensor.detach().clone() for tensor in self._changing()]
        return accuracy

    def _changing(self):
        """The tensors that training changes: parameters, and the statistics of batch normalisation."""
        return [*self.parameters, *self.classifier.buffers()]


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


def _inputs(sets, params, per_epoch, augment, n_classes, autocast, begin=0):
    """For each step from ``begin`` on ``(size, random_state, batch)``.

    size: pictures of each kind; random_state: of torch's generator before the step; batch: an iterator that gives
    (kind, pixels, targets). It augments a kind when it is asked for it. On a CPU augmentation and dropout draw from one
    generator, in the order: mixing, dropout of the text tower, real pictures, their dropout, synthetic pictures, their
    dropout.
    """

    def prepare(batch, mixing):
        for kind, (pictures, labels) in batch.items():
            with autocast():
                pixels = augment(pictures)
                targets = F.one_hot(labels.to(pixels.device), n_classes).float()
                if mixing:
                    pixels, targets = mix(pixels, targets)
            yield kind, pixels, targets

    for batch in _batches(sets, params, per_epoch, begin):
        random_state = torch.get_rng_state()
        mixing = torch.rand(()) < params.mix_share  # for both kinds, each then with its own operation
        yield len(next(iter(batch.values()))[1]), random_state, prepare(batch, mixing)


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
            for size, random_state, batch in inputs:
                return size, random_state, list(batch), stream and stream.record_event()

    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(prepare)
        while item := coming.result():
            coming = thread.submit(prepare)
            size, random_state, batch, ready = item
            if stream:
                torch.cuda.current_stream(device).wait_event(ready)
                for tensor in (tensor for _, *tensors in batch for tensor in tensors):
                    tensor.record_stream(torch.cuda.current_stream(device))  # its memory is kept until this has read it
            yield size, random_state, batch


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


def _batches(sets, params, per_epoch, begin=0):
    """For each step from ``begin`` on ``{"real": (pictures, labels), ...}``: ``train_batch_size`` of each, shuffled."""
    generator = torch.Generator().manual_seed(stable_seed("batches", params.seed, params.setting))
    order = {kind: [] for kind in sets}
    for _ in range(params.train_epochs):
        for kind, (_, labels) in sets.items():
            order[kind] += torch.randperm(len(labels), generator=generator).split(params.train_batch_size)
    # One loader for all epochs, so that its processes start once and keep the pictures that they have decoded
    loaded = {
        kind: iter(load_batches(pictures, params, batch_sampler=[indices.tolist() for indices in order[kind][begin:]]))
        for kind, (pictures, _) in sets.items()
    }
    for step in range(begin, per_epoch * params.train_epochs):
        yield {kind: (next(loaded[kind]), labels[order[kind][step]]) for kind, (_, labels) in sets.items()}
