"""Few-shot adaptation: train LoRA on Stable Diffusion with its own denoising loss (paper, section 3.2, eq. 2).

datadream_cls trains one adapter per class on its shots; datadream_dset one adapter on the shots of all classes; loft
(Kim et al. 2025) one adapter per shot.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.optimization import get_cosine_schedule_with_warmup

from datadream_utils.datasets import flatten, stable_seed
from datadream_utils.images import read_image, resize_shortest, to_tensor, written_whole
from datadream_utils.lora import WEIGHTS, attach_lora, detach_lora, save_lora
from datadream_utils.models import DTYPES
from datadream_utils.prompts import class_prompt
from datadream_utils.stacked import stacked_lora


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
    return [
        Adapter(name, *zip(*((p, t) for p, t, n in zip(paths, prompts, names, strict=True) if n == name), strict=True))
        for name in dict.fromkeys(names)
    ]


def adapter_names(method, data, label, n_shot):
    """The names of the adapters that know class ``label``: one, or for LoFT one per shot; none without adapters."""
    names = {
        "none": [],
        "class": [data.class_dir(label)],
        "dataset": ["all_classes"],
        "image": [f"{data.class_dir(label)}_{i:03d}" for i in range(n_shot)],
    }
    return names[method.adapter]


def adapter_steps(p, n_images):
    """Optimizer steps of one adapter: epochs times batches."""
    return p.adapt_epochs * math.ceil(n_images / p.adapt_batch_size)


def noise_scheduler(pipe):
    """The forward process the base model was trained with, from the pipeline's own scheduler configuration."""
    return DDPMScheduler.from_config(pipe.scheduler.config)


def denoising_loss(unet, scheduler, latents, noise, timesteps, context, groups=1):
    """The diffusion loss || target - model(z_t, t, text) ||^2, averaged over everything.

    With ``groups`` K > 1 the batch holds images of K adapters in turn, and the result is a loss for each (K,).

    latents, noise: (n, c, h, w); timesteps: (n,); context: text encoder states (n, tokens, width).
    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise. The target is the noise, or for a v-prediction model
    v = sqrt(abar_t) noise - sqrt(1 - abar_t) z_0.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    targets = {"epsilon": lambda: noise, "v_prediction": lambda: scheduler.get_velocity(latents, noise, timesteps)}
    target = targets[scheduler.config.prediction_type]()
    predicted = unet(noisy, timesteps, encoder_hidden_states=context).sample
    error = (predicted.float() - target.float()).pow(2)
    return error.unflatten(0, (-1, groups)).flatten(2).mean((0, 2)).squeeze(0)


def tokenize(pipe, prompts):
    """Token ids (n, tokens) as Stable Diffusion's pipeline makes them."""
    tokens = pipe.tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    )
    return tokens.input_ids.to(pipe.device)


class Shots:
    """The few images as latents: resized, cropped at random, encoded by the VAE.

    Where every picture is square a crop has nothing to choose, and the VAE runs once for all of training.
    """

    def __init__(self, pipe, paths, resolution):
        self.vae, self.resolution = pipe.vae, resolution
        self.pictures = [to_tensor(resize_shortest(read_image(path), resolution)) for path in paths]
        square = all(picture.shape[1:] == (resolution, resolution) for picture in self.pictures)
        self.moments = self._encode(torch.stack(self.pictures)) if square else None

    def __len__(self):
        return len(self.pictures)

    def latents(self, indices, generator):
        """Latents (n, c, h, w) of these shots, sampled from the VAE's posterior with ``generator``."""
        if self.moments is None:
            moments = self._encode(torch.stack([self._random_crop(i, generator) for i in indices]))
        else:
            moments = self.moments[indices]
        posterior = DiagonalGaussianDistribution(moments)
        noise = torch.randn(posterior.mean.shape, generator=generator).to(moments)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def _random_crop(self, index, generator):
        picture, size = self.pictures[index], self.resolution
        top, left = (int(torch.randint(0, side - size + 1, (), generator=generator)) for side in picture.shape[1:])
        return picture[:, top : top + size, left : left + size]

    @torch.no_grad()
    def _encode(self, pictures):
        device, dtype = self.vae.device, self.vae.dtype
        chunks = [
            self.vae.encode((chunk / 127.5 - 1).to(device, dtype)).latent_dist.parameters
            for chunk in pictures.float().split(8)
        ]
        return torch.cat(chunks)


class Batches:
    """What one adapter sees: its shots in random order, noised to random times; all of it from (seed, adapter name)."""

    def __init__(self, pipe, adapter, p):
        self.seed = stable_seed("adapt", p.seed, adapter.name)
        self.generator = torch.Generator().manual_seed(self.seed)
        self.shots, self.p = Shots(pipe, adapter.paths, p.resolution), p
        self.times = noise_scheduler(pipe).config.num_train_timesteps

    def __iter__(self):
        """Yields (indices, latents, noise, timesteps) for every step of every epoch."""
        for _ in range(self.p.adapt_epochs):
            for batch in torch.randperm(len(self.shots), generator=self.generator).split(self.p.adapt_batch_size):
                latents = self.shots.latents(batch, self.generator)
                noise = torch.randn(latents.shape, generator=self.generator).to(latents)
                timesteps = torch.randint(0, self.times, (len(batch),), generator=self.generator)
                yield batch, latents, noise, timesteps.to(latents.device)


def train_adapter(pipe, adapter, p):
    """Train one adapter; yields ``(step, loss, learning_rate)`` and leaves it attached to ``pipe``.

    AdamW, cosine schedule with warm-up, gradient clipping.
    """
    batches, tokens = Batches(pipe, adapter, p), tokenize(pipe, adapter.prompts)
    parameters = attach_lora(pipe, p.lora_rank, p.lora_alpha, batches.seed, p.train_text_encoder)
    clip = lambda: torch.nn.utils.clip_grad_norm_(parameters, p.max_grad_norm)  # noqa: E731
    scheduler = noise_scheduler(pipe)

    def loss_of(batch):
        indices, latents, noise, timesteps = batch
        context = pipe.text_encoder(tokens[indices]).last_hidden_state
        return denoising_loss(pipe.unet, scheduler, latents, noise, timesteps, context)

    steps = adapter_steps(p, len(adapter.paths))
    for step, (loss, rate) in enumerate(_optimize(pipe, parameters, clip, batches, loss_of, steps, p)):
        yield step, loss.item(), rate


def train_adapters_together(pipe, adapters, p, stack):
    """Train as many adapters at once; yields ``(step, losses, learning_rate)``. The same as one by one, up to rounding.

    Every adapter has one prompt and the same number of shots; ``stack``: their ``stacked.Stack`` on ``pipe``.
    """
    tokens = tokenize(pipe, [adapter.prompts[0] for adapter in adapters])
    scheduler = noise_scheduler(pipe)

    def losses_of(batches):
        parts = list(zip(*batches, strict=True))[1:]  # latents, noise, timesteps: each as many as adapters
        latents, noise, timesteps = (torch.stack(part, dim=1).flatten(0, 1) for part in parts)
        context = pipe.text_encoder(tokens).last_hidden_state.repeat(len(latents) // len(tokens), 1, 1)
        return denoising_loss(pipe.unet, scheduler, latents, noise, timesteps, context, groups=len(tokens))

    clip = lambda: stack.clip_gradients(p.max_grad_norm)  # noqa: E731
    batches = zip(*(Batches(pipe, adapter, p) for adapter in adapters), strict=True)
    steps = adapter_steps(p, len(adapters[0].paths))
    for step, (loss, rate) in enumerate(_optimize(pipe, stack.parameters(), clip, batches, losses_of, steps, p)):
        yield step, loss.tolist(), rate


def _optimize(pipe, parameters, clip_gradients, batches, loss_of, steps, p):
    """The optimization loop; yields (detached loss, learning rate) per step. Losses of several adapters are summed."""
    optimizer = torch.optim.AdamW(parameters, lr=p.adapt_lr, weight_decay=p.adapt_weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, p.adapt_warmup_steps, steps)
    device, dtype = pipe.device.type, DTYPES[p.mixed_precision]
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    if p.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    pipe.unet.train(), pipe.text_encoder.train()
    for batch in batches:
        with torch.autocast(device, dtype, enabled=dtype != torch.float32):
            loss = loss_of(batch)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(loss.sum()).backward()
        scaler.unscale_(optimizer)
        clip_gradients()
        scaler.step(optimizer)
        scaler.update()
        yield loss.detach(), schedule.get_last_lr()[0]
        schedule.step()
    pipe.unet.eval(), pipe.text_encoder.eval()


def adapter_folder(stage, name):
    """Where the adapter ``name`` of a finished or running adapt stage is."""
    return stage.folder / "adapters" / name


def adapt(pipe, adapters, p, stage, progress):
    """Train and save every adapter that is not there yet; ``progress(iterable, total, label)`` shows the steps.

    Each adapter's folder appears when it is complete, and its losses as ``losses/<adapter>.csv`` just before. Adapters
    of one prompt are trained ``adapters_together`` at a time, in fixed groups, so that resuming changes nothing.
    """
    size = p.adapters_together if p.system.adapter in ("class", "image") else 1
    groups = [adapters[i : i + size] for i in range(0, len(adapters), size)]
    missing = [group for group in groups if not all(_saved(stage, adapter) for adapter in group)]
    steps = sum(adapter_steps(p, len(group[0].paths)) for group in missing)
    label = f"{sum(map(len, missing))} adapters, steps"
    for _ in progress(_train_and_save(pipe, missing, p, stage), total=steps, label=label):
        pass


def _saved(stage, adapter):
    return (adapter_folder(stage, adapter.name) / WEIGHTS).exists()


def _train_and_save(pipe, groups, p, stage):
    for group in groups:
        if len(group) == 1:
            rows = []
            for step, loss, rate in train_adapter(pipe, group[0], p):
                rows.append((step, loss, rate))
                yield
            _write_losses(stage, group[0], rows)
            save_lora(pipe, adapter_folder(stage, group[0].name), p.train_text_encoder)
            detach_lora(pipe)
            continue
        seeds = [stable_seed("adapt", p.seed, adapter.name) for adapter in group]
        with stacked_lora(pipe, p.lora_rank, p.lora_alpha, seeds, p.train_text_encoder) as stack:
            rows = []
            for row in train_adapters_together(pipe, group, p, stack):
                rows.append(row)
                yield
            lost = [k for k, adapter in enumerate(group) if not _saved(stage, adapter)]
            for k, adapter in ((k, group[k]) for k in lost):
                _write_losses(stage, adapter, [(step, losses[k], rate) for step, losses, rate in rows])
                stack.save(pipe, k, adapter_folder(stage, adapter.name))


def _write_losses(stage, adapter, rows):
    with written_whole(stage.folder / "losses" / f"{adapter.name}.csv") as temporary, open(temporary, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", "loss", "learning_rate"])
        writer.writerows([step, f"{loss:.6f}", f"{rate:.3e}"] for step, loss, rate in rows)


def read_losses(stage):
    """``{adapter name: [loss, ...]}`` of a finished adapt stage."""
    return {
        path.stem: [float(row["loss"]) for row in csv.DictReader(path.open())]
        for path in sorted((stage.folder / "losses").glob("*.csv"))
    }
