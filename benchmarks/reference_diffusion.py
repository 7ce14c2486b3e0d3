"""Adaptation and generation by the authors' procedure (their released code, of July 2024), written anew: the reference.

The arithmetic, the random numbers and the schedule are the package's, so that both must come to the same result; what
differs is the order of work. There, every class is a process that loads all of Stable Diffusion (again when it is
done); pictures are read and encoded by the VAE in every epoch, prompts by the text encoder in every step; sampling
loads the pipeline for every class and keeps LoRA beside the weights.
"""

import math

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_cosine_schedule_with_warmup
from PIL import Image

from benchmarks.clock import timed
from datadream_utils.data.images import to_tensor
from datadream_utils.diffusion.adapt import plan_adapters
from datadream_utils.diffusion.generate import make_recipe
from datadream_utils.diffusion.lora import WEIGHTS, attach_lora, save_lora
from datadream_utils.params import resolve
from datadream_utils.runs.device import DTYPES
from datadream_utils.seeds import stable_seed


def load_pipeline(run, seconds):
    """All of Stable Diffusion from disk."""
    p = run.params
    with timed(seconds, "load"):
        pipe = StableDiffusionPipeline.from_pretrained(
            resolve(p.sd_model), dtype=DTYPES[p.mixed_precision], safety_checker=None, use_safetensors=True
        )
        pipe.set_progress_bar_config(disable=True)
        for part in (pipe.unet, pipe.vae, pipe.text_encoder):
            part.requires_grad_(False)
        return pipe.to(run.device)


def adapt(run, seconds, part=None):
    """Train adapter number ``part`` (None: the data set's only one), save it, load the pipeline once more."""
    p, adapter = run.params, plan_adapters(run)[part or 0]
    pipe = load_pipeline(run, seconds)
    with timed(seconds, "work"):
        train_lora(pipe, adapter, p)
        save_lora(pipe, run.folder / "adapters" / adapter.name, p.train_text_encoder)
    load_pipeline(run, seconds)


def train_lora(pipe, adapter, p):
    """Every step reads its pictures, encodes them and their prompts, and takes one AdamW step."""
    seed = stable_seed("adapt", p.seed, adapter.name)
    generator = torch.Generator().manual_seed(seed)
    parameters = attach_lora(pipe, p.lora_rank, p.lora_alpha, seed, p.train_text_encoder)
    optimizer = torch.optim.AdamW(parameters, lr=p.adapt_lr, weight_decay=p.adapt_weight_decay)
    steps = p.adapt_epochs * math.ceil(len(adapter.paths) / p.adapt_batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, p.adapt_warmup_steps, steps)
    scheduler, dtype = DDPMScheduler.from_config(pipe.scheduler.config), DTYPES[p.mixed_precision]
    scaler = torch.amp.GradScaler(pipe.device.type, enabled=dtype == torch.float16)
    pipe.unet.train(), pipe.text_encoder.train()
    for _ in range(p.adapt_epochs):
        for batch in torch.randperm(len(adapter.paths), generator=generator).split(p.adapt_batch_size):
            with torch.autocast(pipe.device.type, dtype, enabled=dtype != torch.float32):
                loss = _loss(pipe, scheduler, adapter, batch.tolist(), p.resolution, generator)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(parameters, p.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()


def _loss(pipe, scheduler, adapter, batch, resolution, generator):
    pictures = torch.stack([_square(adapter.paths[i], resolution, generator) for i in batch]).to(
        pipe.device, pipe.dtype
    )
    with torch.no_grad():
        posterior = pipe.vae.encode(pictures).latent_dist
    draw = torch.randn(posterior.mean.shape, generator=generator).to(posterior.mean)
    latents = (posterior.mean + posterior.std * draw) * pipe.vae.config.scaling_factor
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    times = torch.randint(0, scheduler.config.num_train_timesteps, (len(batch),), generator=generator).to(pipe.device)
    tokens = pipe.tokenizer(
        [adapter.prompts[i] for i in batch],
        padding="max_length",
        truncation=True,
        max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    )
    context = pipe.text_encoder(tokens.input_ids.to(pipe.device)).last_hidden_state
    predicted = pipe.unet(scheduler.add_noise(latents, noise, times), times, context).sample
    velocity = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, times) if velocity else noise
    return F.mse_loss(predicted.float(), target.float())


def _square(path, side, generator):
    """A picture from disk, its shorter side resized to ``side``, cut at random; (3, side, side) in [-1, 1]."""
    image = Image.open(path).convert("RGB")
    image = image.resize([length * side // min(image.size) for length in image.size], Image.Resampling.BILINEAR)
    top, left = 0, 0
    if image.size != (side, side):
        top, left = (int(torch.randint(0, n - side + 1, (), generator=generator)) for n in (image.height, image.width))
    return to_tensor(image)[:, top : top + side, left : left + side].float() / 127.5 - 1


def generate(run, seconds):
    """Load everything for every class (and once before), put LoRA beside the weights, draw batch by batch, save."""
    p, recipe = run.params, make_recipe(run)
    load_pipeline(run, seconds)
    for label in range(len(run.shots)):
        pipe = load_pipeline(run, seconds)
        with timed(seconds, "work"):
            draws = [recipe.draw(label, i) for i in range(p.images_per_class)]
            pipe.load_lora_weights(draws[0].adapters[0], weight_name=WEIGHTS)
            target = run.folder / "images" / run.data.class_dir(label)
            target.mkdir(parents=True)
            for i in range(0, len(draws), p.generate_batch_size):
                block = draws[i : i + p.generate_batch_size]
                images = pipe(
                    [draw.prompt for draw in block],
                    generator=[torch.Generator("cpu").manual_seed(draw.seed) for draw in block],
                    guidance_scale=p.guidance_scale,
                    num_inference_steps=p.num_inference_steps,
                    height=p.resolution,
                    width=p.resolution,
                ).images
                for k, image in enumerate(images, i):
                    image.resize((p.resolution, p.resolution)).save(target / f"{k:05d}.png")
