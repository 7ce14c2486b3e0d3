"""Few-shot adaptation: train LoRA on Stable Diffusion with its own denoising loss (paper, section 3.2, equation 2).

datadream_cls trains one adapter per class on the shots of that class; datadream_dset trains one adapter on the shots of
all classes; loft (Kim et al. 2025) trains one adapter per shot.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers.optimization import get_cosine_schedule_with_warmup

from datadream_utils.backbones.load import model_identity
from datadream_utils.data.shots import write_shots
from datadream_utils.diffusion.denoising import (
    Batches,
    adapter_seed,
    adapter_steps,
    denoising_loss,
    noise_scheduler,
    tokenize,
)
from datadream_utils.diffusion.lora import WEIGHTS, attached_lora, save_lora
from datadream_utils.diffusion.stacked import stacked_lora
from datadream_utils.files import atomic_write
from datadream_utils.prompts import class_prompt
from datadream_utils.runs.checkpoint import discard_checkpoints, open_checkpoint
from datadream_utils.runs.device import DTYPES, advise_on_memory, free_memory, is_out_of_memory
from datadream_utils.runs.plausible import check_loss, check_prompts, check_skipped, check_weights, steps_taken
from datadream_utils.runs.shards import part_of


@dataclass(frozen=True)
class Adapter:
    """One adapter to train: its folder's name and the shots it learns from, each with its prompt."""

    name: str
    paths: tuple[Path, ...]
    prompts: tuple[str, ...]


def plan_adapters(run):
    """The adapters that the run's method needs: one per class, one for the data set, one per image, or none."""
    if not run.method.adapts:
        return []
    shots_of = {}
    for label, paths in enumerate(run.shots):
        names = adapter_names(run.method, run.data, label, len(paths))
        names = names if run.method.adapter == "image" else names * len(paths)
        prompt = class_prompt(run.data.class_names[label], run.data.domain)
        for name, path in zip(names, paths, strict=True):
            shots_of.setdefault(name, []).append((path, prompt))
    return [Adapter(name, *zip(*shots, strict=True)) for name, shots in shots_of.items()]


def adapter_names(method, data, label, n_shot):
    """The names of the adapters trained on class ``label``: one; one per shot for LoFT; none if the method has none."""
    names = {
        "none": [],
        "class": [data.class_dir(label)],
        "dataset": ["all_classes"],
        "image": [f"{data.class_dir(label)}_{i:03d}" for i in range(n_shot)],
    }
    return names[method.adapter]


def adapt(pipe, adapters, run, team=None):
    """Train and save every adapter that is not on disk yet; returns ``{adapter name: [loss of each step]}``.

    An adapter's folder appears when it is complete; its losses appear just before, as ``losses/<adapter>.csv``.
    ``adapters_together`` adapters are trained at once, in fixed groups, so resuming changes no result. An interrupted
    group continues from its last checkpoint. A group that does not fit into memory is halved, which changes results
    only by rounding. ``team`` (``workflow.scripts.launch.Team``): processes that share every batch; its leader writes.
    InputError for what ``runs.plausible`` refuses: a training that fails, and classes with the same prompt.
    """
    p, leads = run.params, team is None or team.leads
    if adapters:
        prompts = [class_prompt(name, run.data.domain) for name in run.data.class_names]
        check_prompts(pipe.tokenizer, prompts, run.data.class_names, "Stable Diffusion")
    if team.begin(run) if team else run.begin():
        groups = part_of(_group(adapters, p), run.shard)
        missing = [group for group in groups if not all(_is_saved(run, adapter) for adapter in group)]
        steps = sum(len(group) * adapter_steps(p, len(group[0].paths)) for group in missing)
        # Without a team a group that does not fit is halved, so lowering adapters_together would not help.
        lower = ("adapt_batch_size", *(["adapters_together"] if team else []), "gradient_checkpointing")
        label = f"{sum(map(len, missing))} adapters, steps"
        with advise_on_memory(p, *lower), run.progress(steps, label) as advance:
            _train_groups(pipe, missing, run, advance, team)
        if leads:
            if not run.shard:
                discard_checkpoints(run)
            write_shots(run.data, run.shots, run.folder / "shots.txt")
            facts = {"processes": team.size} if team else {}
            run.finish(model=model_identity(p.sd_model, p.sd_revision), **facts)
    return read_losses(run.stage)


def read_losses(stage):
    """``{adapter name: [loss of each step]}`` of an adapt stage."""
    losses = {}
    for path in sorted((stage.folder / "losses").glob("*.csv")):
        with path.open(encoding="utf-8") as file:
            losses[path.stem] = [float(row["loss"]) for row in csv.DictReader(file)]
    return losses


class Training:
    """The optimization of one adapter, or of several at once, with AdamW and a cosine schedule with warm-up.

    ``batches``: the ``Batches`` of each adapter. ``rows``: (step, loss or list of the adapters' losses, learning rate)
    of the steps so far. A checkpoint keeps all that the next step depends on. A subclass has ``losses(batch)`` and
    ``clip_gradients()``.
    """

    def __init__(self, pipe, adapters, parameters, params, team=None):
        self.pipe, self.parameters, self.params, self.team, self.rows = pipe, parameters, params, team, []
        self.names = [f"adapter {adapter.name!r}" for adapter in adapters]
        share = {"share": team.share} if team else {}
        self.batches = [Batches(pipe, adapter, params, **share) for adapter in adapters]
        self.scheduler = noise_scheduler(pipe)
        self.optimizer = torch.optim.AdamW(parameters, lr=params.adapt_lr, weight_decay=params.adapt_weight_decay)
        self.steps = adapter_steps(params, len(adapters[0].paths))
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, params.adapt_warmup_steps, self.steps)
        self.scaler = torch.amp.GradScaler(pipe.device.type, enabled=params.mixed_precision == "fp16")

    def run(self, checkpoint=None, advance=lambda n: None):
        """Train to the end; returns ``rows``. ``checkpoint``: where to continue from and where to save, or None.

        InputError for losses or weights that are not finite, and when fp16 skips most steps.
        """
        if checkpoint:
            checkpoint.load(self)
            advance(len(self.batches) * len(self.rows))
        if self.params.gradient_checkpointing:
            self.pipe.unet.enable_gradient_checkpointing()
        self.pipe.unet.train(), self.pipe.text_encoder.train()
        try:
            for batch in zip(*self.batches, strict=True):
                self._step(batch)
                if checkpoint:
                    checkpoint.save_if_due(self)
                advance(len(self.batches))
        finally:
            self.pipe.unet.eval(), self.pipe.text_encoder.eval()
        check_weights(self.parameters, ", ".join(self.names), self.params)
        return self.rows

    def state(self):
        """What a checkpoint keeps beside parameters, optimizer, schedule and scaler: rows and the state of batches."""
        _, losses, rates = zip(*self.rows, strict=True)
        tensors = {"losses": torch.tensor(losses, dtype=torch.float64)}
        tensors |= {"rates": torch.tensor(rates, dtype=torch.float64)}
        for k, of_adapter in enumerate(self.batches):
            tensors |= {f"generator.{k}": of_adapter.generator.get_state(), f"order.{k}": of_adapter.order}
        return tensors

    def restore(self, tensors):
        """Take what ``state`` gave."""
        losses, rates = tensors["losses"].tolist(), tensors["rates"].tolist()
        self.rows = [(step, *row) for step, row in enumerate(zip(losses, rates, strict=True))]
        for k, of_adapter in enumerate(self.batches):
            of_adapter.generator.set_state(tensors[f"generator.{k}"])
            of_adapter.order, of_adapter.step = tensors[f"order.{k}"], len(rates)

    def _step(self, batch):
        """One optimizer step. Losses of several adapters are summed, which mixes nothing: they share no parameters."""
        dtype = DTYPES[self.params.mixed_precision]
        with torch.autocast(self.pipe.device.type, dtype, enabled=dtype != torch.float32):
            losses = self.batches[0].weight * self.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses.sum()).backward()
        if self.team:
            losses = self.team.add_up(losses, self.parameters)
        self.scaler.unscale_(self.optimizer)
        self.clip_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.rows.append((len(self.rows), losses.tolist(), self.schedule.get_last_lr()[0]))
        self.schedule.step()
        check_loss(losses.flatten().tolist(), self.names, len(self.rows) - 1, self.params)
        check_skipped(steps_taken(self.optimizer), len(self.rows), self.steps, self.params)


class SingleTraining(Training):
    """Trains one adapter, attached by PEFT. Its images may have different prompts."""

    def __init__(self, pipe, adapter, parameters, params, team=None):
        super().__init__(pipe, [adapter], parameters, params, team)
        self.tokens = tokenize(pipe, adapter.prompts)

    def losses(self, batch):
        """The mean loss of the batch, a scalar."""
        ((indices, latents, noise, timesteps),) = batch
        context = self.pipe.text_encoder(self.tokens[indices]).last_hidden_state
        return denoising_loss(self.pipe.unet, self.scheduler, latents, noise, timesteps, context).mean()

    def clip_gradients(self):
        torch.nn.utils.clip_grad_norm_(self.parameters, self.params.max_grad_norm)


class StackedTraining(Training):
    """Trains K adapters at once (``stacked``). Each has one prompt, and all have the same number of shots."""

    def __init__(self, pipe, adapters, stack, params, team=None):
        super().__init__(pipe, adapters, stack.parameters(), params, team)
        self.stack, self.tokens = stack, tokenize(pipe, [adapter.prompts[0] for adapter in adapters])

    def losses(self, batch):
        """The mean loss of each adapter, (K,). Image i of the stacked batch belongs to adapter i mod K."""
        _, *parts = zip(*batch, strict=True)
        latents, noise, timesteps = (torch.stack(part, dim=1).flatten(0, 1) for part in parts)
        per_adapter = len(latents) // len(self.tokens)
        context = self.pipe.text_encoder(self.tokens).last_hidden_state.repeat(per_adapter, 1, 1)
        losses = denoising_loss(self.pipe.unet, self.scheduler, latents, noise, timesteps, context)
        return losses.unflatten(0, (per_adapter, len(self.tokens))).mean(0)

    def clip_gradients(self):
        self.stack.clip_gradients(self.params.max_grad_norm)


def _group(adapters, params):
    """Lists of adapters that are trained at once. An adapter of the whole data set has many prompts and is alone."""
    size = params.adapters_together if params.system.adapter in ("class", "image") else 1
    return [adapters[i : i + size] for i in range(0, len(adapters), size)]


def _train_groups(pipe, groups, run, advance, team):
    """Train and save one group after the other. If one does not fit into memory, continue with half as many at once.

    The processes of a team would have to agree on that, so with a team the out-of-memory error is raised.
    """
    together = max(map(len, groups), default=1)
    for group in groups:
        waiting = list(group)
        while waiting:
            part, counted = waiting[:together], []
            if len(part) < len(group) and all(_is_saved(run, adapter) for adapter in part):
                advance(len(part) * adapter_steps(run.params, len(part[0].paths)))
                waiting = waiting[together:]
                continue

            def count(n, counted=counted):
                counted.append(n)
                advance(n)

            try:
                _train_and_save(pipe, part, run, count, team)
                waiting = waiting[together:]
            except (RuntimeError, MemoryError) as error:
                if len(part) == 1 or team or not is_out_of_memory(error):
                    raise
                free_memory(error)
                advance(-sum(counted))  # take the steps of the failed attempt back
                together = len(part) // 2
                print(f"{len(part)} adapters at once do not fit into memory: going on with {together}.")


def _train_and_save(pipe, group, run, advance, team):
    """Train one group and write the losses and weights of each adapter that is not saved yet."""
    p, writes = run.params, team is None or team.leads
    made_from = [[adapter.name, [path.name for path in adapter.paths], adapter.prompts] for adapter in group]
    checkpoint = open_checkpoint(run, group[0].name, made_from, writes)
    if len(group) == 1:
        (adapter,) = group
        seed = adapter_seed(adapter, p)
        with attached_lora(pipe, p.lora_rank, p.lora_alpha, seed, p.train_text_encoder) as parameters:
            rows = SingleTraining(pipe, adapter, parameters, p, team).run(checkpoint, advance)
            if writes:
                _write_losses(run, adapter, rows)
                save_lora(pipe, run.folder / "adapters" / adapter.name, p.train_text_encoder)
    else:
        seeds = [adapter_seed(adapter, p) for adapter in group]
        with stacked_lora(pipe, p.lora_rank, p.lora_alpha, seeds, p.train_text_encoder) as stack:
            rows = StackedTraining(pipe, group, stack, p, team).run(checkpoint, advance)
            for k, adapter in enumerate(group):
                if writes and not _is_saved(run, adapter):
                    _write_losses(run, adapter, [(step, losses[k], rate) for step, losses, rate in rows])
                    stack.save(pipe, k, run.folder / "adapters" / adapter.name)
    if writes:
        checkpoint.path.unlink(missing_ok=True)


def _losses_file(run, adapter):
    return run.folder / "losses" / f"{adapter.name}.csv"


def _is_saved(run, adapter):
    return (run.folder / "adapters" / adapter.name / WEIGHTS).exists() and _losses_file(run, adapter).exists()


def _write_losses(run, adapter, rows):
    with atomic_write(_losses_file(run, adapter)) as temporary, open(temporary, "w", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss", "learning_rate"])
        writer.writerows([step, f"{loss:.6f}", f"{rate:.3e}"] for step, loss, rate in rows)
