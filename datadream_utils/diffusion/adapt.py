"""Few-shot adaptation: train LoRA on Stable Diffusion with its own denoising loss (paper, section 3.2, eq. 2).

datadream_cls trains one adapter per class on its shots; datadream_dset one adapter on the shots of all classes; loft
(Kim et al. 2025) one adapter per shot.
"""

import csv
import hashlib
import json
import shutil
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup

from datadream_utils.backbones.load import DTYPES, model_identity
from datadream_utils.data.dataset import flatten
from datadream_utils.data.shots import write_shots
from datadream_utils.diffusion.checkpoint import Checkpoint
from datadream_utils.diffusion.denoising import Batches, adapter_steps, denoising_loss, noise_scheduler, tokenize
from datadream_utils.diffusion.lora import WEIGHTS, attach_lora, detach_lora, save_lora
from datadream_utils.diffusion.stacked import stacked_lora
from datadream_utils.files import atomic_write, digest
from datadream_utils.prompts import class_prompt
from datadream_utils.runs.device import clear, enough_memory, is_full
from datadream_utils.runs.shards import part_of
from datadream_utils.seeds import stable_seed


@dataclass(frozen=True)
class Adapter:
    """One adapter to train: its folder name and the shots it learns from."""

    name: str
    paths: tuple[Path, ...]
    prompts: tuple[str, ...]


def plan_adapters(method, data, shots):
    """The adapters that ``method`` asks for: one per class, one for the data set, one per image, or none."""
    if not method.adapts:
        return []
    paths, labels = flatten(shots)
    prompts = [class_prompt(data.class_names[label], data.domain) for label in labels]
    names = [adapter_names(method, data, label, len(shots[label])) for label in range(len(shots))]
    if method.adapter == "image":
        names = [name for of_class in names for name in of_class]
    else:
        names = [names[label][0] for label in labels]
    groups = {}
    for name, path, prompt in zip(names, paths, prompts, strict=True):
        groups.setdefault(name, []).append((path, prompt))
    return [Adapter(name, *zip(*group, strict=True)) for name, group in groups.items()]


def adapter_names(method, data, label, n_shot):
    """The names of the adapters that know class ``label``: one, or for LoFT one per shot; none without adapters."""
    names = {
        "none": [],
        "class": [data.class_dir(label)],
        "dataset": ["all_classes"],
        "image": [f"{data.class_dir(label)}_{i:03d}" for i in range(n_shot)],
    }
    return names[method.adapter]


class Training:
    """What training changes, and a checkpoint keeps: LoRA's parameters, AdamW with cosine schedule, fp16's scaler.

    rows: (step, loss or losses, learning rate) of the steps so far.
    """

    def __init__(self, pipe, parameters, steps, p):
        self.parameters, self.rows = parameters, []
        self.optimizer = torch.optim.AdamW(parameters, lr=p.adapt_lr, weight_decay=p.adapt_weight_decay)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, p.adapt_warmup_steps, steps)
        self.scaler = torch.amp.GradScaler(pipe.device.type, enabled=p.mixed_precision == "fp16")


def train_adapter(pipe, adapter, p, checkpoint=None, team=None):
    """Train one adapter; yields ``(step, loss, learning_rate)`` and leaves it attached to ``pipe``.

    AdamW, cosine schedule with warm-up, gradient clipping. ``checkpoint``: go on from there; its steps are yielded too.
    ``team``: the processes that share every batch.
    """
    batches, tokens = _batches(pipe, adapter, p, team), tokenize(pipe, adapter.prompts)
    parameters = attach_lora(pipe, p.lora_rank, p.lora_alpha, batches.seed, p.train_text_encoder)
    clip = lambda: torch.nn.utils.clip_grad_norm_(parameters, p.max_grad_norm)  # noqa: E731
    scheduler = noise_scheduler(pipe)

    def loss_of(batch):
        indices, latents, noise, timesteps = batch[0]
        context = pipe.text_encoder(tokens[indices]).last_hidden_state
        return batches.weight * denoising_loss(pipe.unet, scheduler, latents, noise, timesteps, context)

    training = Training(pipe, parameters, adapter_steps(p, len(adapter.paths)), p)
    yield from _optimize(pipe, training, [batches], loss_of, clip, p, checkpoint, team)


def train_adapters_together(pipe, adapters, p, stack, checkpoint=None, team=None):
    """Train as many adapters at once; yields ``(step, losses, learning_rate)``. The same as one by one, up to rounding.

    Every adapter has one prompt and the same number of shots; ``stack``: their ``stacked.Stack`` on ``pipe``.
    """
    tokens = tokenize(pipe, [adapter.prompts[0] for adapter in adapters])
    scheduler = noise_scheduler(pipe)

    def losses_of(batch):
        parts = list(zip(*batch, strict=True))[1:]  # latents, noise, timesteps: each as many as adapters
        latents, noise, timesteps = (torch.stack(part, dim=1).flatten(0, 1) for part in parts)
        context = pipe.text_encoder(tokens).last_hidden_state.repeat(len(latents) // len(tokens), 1, 1)
        losses = denoising_loss(pipe.unet, scheduler, latents, noise, timesteps, context, groups=len(tokens))
        return batches[0].weight * losses

    clip = lambda: stack.clip_gradients(p.max_grad_norm)  # noqa: E731
    batches = [_batches(pipe, adapter, p, team) for adapter in adapters]
    training = Training(pipe, stack.parameters(), adapter_steps(p, len(adapters[0].paths)), p)
    yield from _optimize(pipe, training, batches, losses_of, clip, p, checkpoint, team)


def _batches(pipe, adapter, p, team):
    return Batches(pipe, adapter, p, team.share) if team else Batches(pipe, adapter, p)


def _optimize(pipe, training, batches, loss_of, clip_gradients, p, checkpoint, team):
    """The optimization loop; yields ``training.rows`` as they come. Losses of several adapters are summed."""
    optimizer, scaler, dtype = training.optimizer, training.scaler, DTYPES[p.mixed_precision]
    if checkpoint:
        checkpoint.load(training, batches)
    yield from list(training.rows)
    if p.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    pipe.unet.train(), pipe.text_encoder.train()
    try:
        for batch in zip(*batches, strict=True):
            with torch.autocast(pipe.device.type, dtype, enabled=dtype != torch.float32):
                loss = loss_of(batch)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss.sum()).backward()
            if team:
                loss = team.add_up(loss, training.parameters)
            scaler.unscale_(optimizer)
            clip_gradients()
            scaler.step(optimizer)
            scaler.update()
            training.rows.append((len(training.rows), loss.tolist(), training.schedule.get_last_lr()[0]))
            training.schedule.step()
            if checkpoint:
                checkpoint.save_now_and_then(training, batches)
            yield training.rows[-1]
    finally:
        pipe.unet.eval(), pipe.text_encoder.eval()


def adapter_folder(stage, name):
    """Where the adapter ``name`` of a finished or running adapt stage is."""
    return stage.folder / "adapters" / name


def adapt(pipe, adapters, p, stage, progress, team=None):
    """Train and save every adapter that is not there yet; ``progress(iterable, total, label)`` shows the steps.

    Each adapter's folder appears when it is complete, and its losses as ``losses/<adapter>.csv`` just before. Adapters
    of one prompt are trained ``adapters_together`` at a time, in fixed groups, so that resuming changes nothing; the
    group that is being trained goes on from its last checkpoint. A group that does not fit into memory is halved, which
    changes nothing but rounding. ``p.shard``: only that part of the groups. ``team``:
    this process shares every batch with others, and writes only if it leads.
    """
    size = p.adapters_together if p.system.adapter in ("class", "image") else 1
    groups = part_of((adapters[i : i + size] for i in range(0, len(adapters), size)), p.shard)
    missing = [group for group in groups if not all(_saved(stage, adapter) for adapter in group)]
    steps = sum(adapter_steps(p, len(group[0].paths)) for group in missing)
    label = f"{sum(map(len, missing))} adapters, steps"
    lower = ("adapt_batch_size", *(["adapters_together"] if team else []), "gradient_checkpointing")
    with closing(_train_and_save(pipe, missing, p, stage, team)) as training, enough_memory(p, *lower):
        for _ in progress(training, total=steps, label=label):
            pass
    if not p.shard and _writes(team):
        shutil.rmtree(stage.folder / "checkpoints", ignore_errors=True)


def finish_adapt(stage, data, shots, p, device, **facts):
    """Note the few shots, also as ``shots.txt``, and finish the stage, or this part of it, with more ``facts``."""
    files = flatten(shots)[0]
    write_shots(data, shots, stage.folder / "shots.txt")
    return stage.finish(
        device,
        model=model_identity(p.sd_model, p.sd_revision),
        split=data.split,
        shots_sha256=digest(files),
        shots=[str(path.relative_to(data.root)) for path in files],
        **facts,
    )


def _saved(stage, adapter):
    return (adapter_folder(stage, adapter.name) / WEIGHTS).exists() and _losses_file(stage, adapter).exists()


def _losses_file(stage, adapter):
    return stage.folder / "losses" / f"{adapter.name}.csv"


def _writes(team):
    return team is None or team.leads


def _checkpoint(stage, group, p, team):
    """A group's checkpoint, in a file named for its first adapter."""
    made_from = [p.identity(), [[a.name, [path.name for path in a.paths], a.prompts] for a in group]]
    key = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()
    path = stage.folder / "checkpoints" / f"{group[0].name}.safetensors"
    return Checkpoint(path, key, p.checkpoint_every if _writes(team) else 0)


def _train_and_save(pipe, groups, p, stage, team):
    """Train and save one group after the other; yields once for every step of a group.

    One for which memory is too small is halved, and so are those after it; its parts together yield as often as it.
    A team's processes would have to agree on that: there the error is the user's.
    """
    together = max(map(len, groups), default=1)
    for group in groups:
        waiting, steps = list(group), 0
        while waiting:
            part = waiting[:together]
            try:
                for _ in _train_part(pipe, part, p, stage, team):
                    steps += len(part)
                    if steps >= len(group):
                        steps -= len(group)
                        yield
                waiting = waiting[together:]
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or team or not is_full(error):
                    raise
                clear(error)
                together = len(part) // 2
                print(f"{len(part)} adapters at once do not fit into memory: going on with {together}.")


def _train_part(pipe, part, p, stage, team):
    checkpoint = _checkpoint(stage, part, p, team)
    yield from (_train_one if len(part) == 1 else _train_group)(pipe, part, p, stage, checkpoint, team)
    if _writes(team):
        checkpoint.path.unlink(missing_ok=True)


def _train_one(pipe, group, p, stage, checkpoint, team):
    (adapter,), rows = group, []
    try:
        for row in train_adapter(pipe, adapter, p, checkpoint, team):
            rows.append(row)
            yield
        if _writes(team):
            _write_losses(stage, adapter, rows)
            save_lora(pipe, adapter_folder(stage, adapter.name), p.train_text_encoder)
    finally:
        detach_lora(pipe)


def _train_group(pipe, group, p, stage, checkpoint, team):
    seeds, rows = [stable_seed("adapt", p.seed, adapter.name) for adapter in group], []
    with stacked_lora(pipe, p.lora_rank, p.lora_alpha, seeds, p.train_text_encoder) as stack:
        for row in train_adapters_together(pipe, group, p, stack, checkpoint, team):
            rows.append(row)
            yield
        for k, adapter in enumerate(group):
            if _writes(team) and not _saved(stage, adapter):
                _write_losses(stage, adapter, [(step, losses[k], rate) for step, losses, rate in rows])
                stack.save(pipe, k, adapter_folder(stage, adapter.name))


def _write_losses(stage, adapter, rows):
    with atomic_write(_losses_file(stage, adapter)) as temporary, open(temporary, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss", "learning_rate"])
        writer.writerows([step, f"{loss:.6f}", f"{rate:.3e}"] for step, loss, rate in rows)


def read_losses(stage):
    """``{adapter name: [loss, ...]}`` of a finished adapt stage."""
    return {
        path.stem: [float(row["loss"]) for row in csv.DictReader(path.open())]
        for path in sorted((stage.folder / "losses").glob("*.csv"))
    }
