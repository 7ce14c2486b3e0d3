"""Few-shot adaptation: train LoRA on Stable Diffusion with its own denoising loss (paper, section 3.2, eq. 2).

datadream_cls trains one adapter per class on its shots; datadream_dset one adapter on the shots of all classes.
"""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.optimization import get_cosine_schedule_with_warmup

from datadream_utils.datasets import flatten, stable_seed
from datadream_utils.images import read_image, resize_shortest, to_tensor, written_whole
from datadream_utils.lora import WEIGHTS, attach_lora, detach_lora, save_lora
from datadream_utils.models import DTYPES
from datadream_utils.prompts import class_prompt


@dataclass(frozen=True)
class Adapter:
    """One adapter to train: its folder name and the shots it learns from."""

    name: str
    paths: tuple[Path, ...]
    prompts: tuple[str, ...]


def plan_adapters(method, data, shots):
    """The adapters that ``method`` asks for: one per class, one for the data set, or none."""
    paths, labels = flatten(shots)
    prompts = [class_prompt(data.class_names[label], data.domain) for label in labels]
    if method.adapter == "class":
        names = [data.class_dir(label) for label in labels]
    elif method.adapter == "dataset":
        names = ["all_classes"] * len(paths)
    else:
        return []
    return [
        Adapter(name, *zip(*((p, t) for p, t, n in zip(paths, prompts, names, strict=True) if n == name), strict=True))
        for name in dict.fromkeys(names)
    ]


def adapter_steps(p, n_images):
    """Optimizer steps of one adapter: epochs times batches."""
    return p.adapt_epochs * math.ceil(n_images / p.adapt_batch_size)


def noise_scheduler(pipe):
    """The forward process the base model was trained with, from the pipeline's own scheduler configuration."""
    return DDPMScheduler.from_config(pipe.scheduler.config)


def denoising_loss(unet, scheduler, latents, noise, timesteps, context):
    """The diffusion loss || target - model(z_t, t, text) ||^2, averaged over everything.

    latents, noise: (n, c, h, w); timesteps: (n,); context: text encoder states (n, tokens, width).
    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise. The target is the noise, or for a v-prediction model
    v = sqrt(abar_t) noise - sqrt(1 - abar_t) z_0.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    targets = {"epsilon": lambda: noise, "v_prediction": lambda: scheduler.get_velocity(latents, noise, timesteps)}
    target = targets[scheduler.config.prediction_type]()
    predicted = unet(noisy, timesteps, encoder_hidden_states=context).sample
    return F.mse_loss(predicted.float(), target.float())


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


def train_adapter(pipe, adapter, p):
    """Train one adapter, already seeded by (seed, adapter name); yields ``(step, loss, learning_rate)``.

    AdamW, cosine schedule with warm-up, gradient clipping; leaves the trained adapter attached to ``pipe``.
    """
    seed = stable_seed("adapt", p.seed, adapter.name)
    generator = torch.Generator().manual_seed(seed)
    scheduler = noise_scheduler(pipe)
    shots, tokens = Shots(pipe, adapter.paths, p.resolution), tokenize(pipe, adapter.prompts)
    parameters = attach_lora(pipe, p.lora_rank, p.lora_alpha, seed, p.train_text_encoder)
    optimizer = torch.optim.AdamW(parameters, lr=p.adapt_lr, weight_decay=p.adapt_weight_decay)
    schedule = get_cosine_schedule_with_warmup(optimizer, p.adapt_warmup_steps, adapter_steps(p, len(shots)))
    device, dtype = pipe.device.type, DTYPES[p.mixed_precision]
    scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)
    if p.gradient_checkpointing:
        pipe.unet.enable_gradient_checkpointing()
    pipe.unet.train(), pipe.text_encoder.train()
    step = 0
    for _ in range(p.adapt_epochs):
        for batch in torch.randperm(len(shots), generator=generator).split(p.adapt_batch_size):
            latents = shots.latents(batch, generator)
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(batch),), generator=generator)
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                context = pipe.text_encoder(tokens[batch]).last_hidden_state
                loss = denoising_loss(pipe.unet, scheduler, latents, noise, timesteps.to(pipe.device), context)
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, p.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            yield step, loss.item(), schedule.get_last_lr()[0]
            schedule.step()
            step += 1
    pipe.unet.eval(), pipe.text_encoder.eval()


def adapter_folder(stage, name):
    """Where the adapter ``name`` of a finished or running adapt stage is."""
    return stage.folder / "adapters" / name


def adapt(pipe, adapters, p, stage, progress):
    """Train and save every adapter that is not there yet; ``progress(iterable, total, label)`` shows the steps.

    Each adapter's folder appears when it is complete, and its losses as ``losses/<adapter>.csv`` just before.
    """
    missing = [adapter for adapter in adapters if not (adapter_folder(stage, adapter.name) / WEIGHTS).exists()]
    steps = sum(adapter_steps(p, len(adapter.paths)) for adapter in missing)
    for _ in progress(_train_and_save(pipe, missing, p, stage), total=steps, label=f"{len(missing)} adapters, steps"):
        pass


def _train_and_save(pipe, adapters, p, stage):
    for adapter in adapters:
        rows = []
        for row in train_adapter(pipe, adapter, p):
            rows.append(row)
            yield row
        with written_whole(stage.folder / "losses" / f"{adapter.name}.csv") as temporary, open(temporary, "w") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["step", "loss", "learning_rate"])
            writer.writerows([step, f"{loss:.6f}", f"{rate:.3e}"] for step, loss, rate in rows)
        save_lora(pipe, adapter_folder(stage, adapter.name), p.train_text_encoder)
        detach_lora(pipe)


def read_losses(stage):
    """``{adapter name: [loss, ...]}`` of a finished adapt stage."""
    return {
        path.stem: [float(row["loss"]) for row in csv.DictReader(path.open())]
        for path in sorted((stage.folder / "losses").glob("*.csv"))
    }
