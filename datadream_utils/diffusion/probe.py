"""Looking inside Stable Diffusion: denoising in one step, the steps of a sample, what an adapter changes."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
import torch
from diffusers import StableDiffusionPipeline

from datadream_utils.backbones.clip import image_features
from datadream_utils.backbones.load import load_clip
from datadream_utils.data.images import read_image
from datadream_utils.diffusion.denoising import Shots, noise_scheduler, tokenize
from datadream_utils.diffusion.generate import make_scheduler, with_scheduler
from datadream_utils.diffusion.lora import adapted_layers, adapted_parts, read_lora
from datadream_utils.diffusion.stacked import per_image_adapters
from datadream_utils.errors import InputError

LAST = 999  # the noisiest timestep of Stable Diffusion


@torch.no_grad()
def through_noise(pipe, path, prompt, timesteps, resolution, seed=0):
    """One real picture at each timestep: ``(noised, guesses)``, two lists of arrays (height, width, 3) in [0, 1].

    noised: z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, decoded. guesses: ``clean_guess`` of the U-Net's answer to
    z_t and the prompt, decoded.
    """
    generator = torch.Generator().manual_seed(seed)
    latents = Shots(pipe, [path], resolution).latents([0], generator)
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    scheduler, times = noise_scheduler(pipe), torch.as_tensor(timesteps, device=pipe.device)
    noisy = scheduler.add_noise(*(x.expand(len(times), -1, -1, -1) for x in (latents, noise)), times)
    context = pipe.text_encoder(tokenize(pipe, [prompt])).last_hidden_state.expand(len(times), -1, -1)
    answer = pipe.unet(noisy, times, encoder_hidden_states=context).sample
    return decode(pipe, noisy), decode(pipe, clean_guess(pipe, noisy, answer, times))


def clean_guess(pipe, noisy, answer, times):
    """The z_0 that the U-Net's answer to z_t implies, in one step: all latents (n, c, h, w), times (n,) or (1,).

    From eps it is (z_t - sqrt(1 - abar_t) eps) / sqrt(abar_t), from v it is sqrt(abar_t) z_t - sqrt(1 - abar_t) v.
    """
    scheduler = noise_scheduler(pipe)
    signal = scheduler.alphas_cumprod.to(noisy)[times].reshape(-1, 1, 1, 1)
    return {
        "epsilon": lambda: (noisy - (1 - signal).sqrt() * answer) / signal.sqrt().clamp(min=1e-4),
        "v_prediction": lambda: signal.sqrt() * noisy - (1 - signal).sqrt() * answer,
    }[scheduler.config.prediction_type]()


@torch.no_grad()
def decode(pipe, latents):
    """Latents (n, c, h, w) as a list of n arrays (height, width, 3) in [0, 1]."""
    pictures = [pipe.vae.decode(z[None] / pipe.vae.config.scaling_factor).sample for z in latents]
    return list(pipe.image_processor.postprocess(torch.cat(pictures).float(), output_type="np"))


@contextmanager
def with_adapters(pipe, draw, scale=1.0):
    """While the block runs, ``pipe`` samples with the adapters of ``draw``: W + scale (alpha / rank) B A.

    scale: a number, or a list with one number per image of the batch. If the draw has no adapters, nothing is attached.
    """
    if not draw.adapters:
        yield pipe
        return
    several = isinstance(scale, list)
    scales = torch.tensor(scale, device=pipe.device, dtype=pipe.unet.dtype) if several else scale
    with per_image_adapters(pipe, [draw.adapters] * (len(scale) if several else 1), scales):
        yield pipe


@torch.no_grad()
def trajectory(pipe, draw, params, count=7):
    """One sample after ``count`` of its denoising steps, the first and the last among them: ``{step: picture}``.

    Each picture is the decoded z_t of that step. The last one is the picture that stage 2 would draw.
    """
    latents = []

    def keep(_pipe, _step, _timestep, tensors):
        latents.append(tensors["latents"])
        return tensors

    drawing = with_scheduler(StableDiffusionPipeline, pipe, make_scheduler(pipe, params.sampler))
    drawing(
        [draw.prompt],
        height=params.resolution,
        width=params.resolution,
        generator=[torch.Generator("cpu").manual_seed(draw.seed)],
        guidance_scale=params.guidance_scale,
        num_inference_steps=params.num_inference_steps,
        callback_on_step_end=keep,
        output_type="latent",
    )
    steps = sorted({round(i * (len(latents) - 1) / max(1, count - 1)) for i in range(count)})
    return {step + 1: decode(pipe, latents[step])[0] for step in steps}


def ask_about_noise(pipe, draw, resolution):
    """The U-Net's answers to the initial noise of ``draw`` at timestep ``LAST``: ``(noise, without, with_prompt)``.

    All are latents (1, c, h, w): the noise, the answer for the empty prompt and that for the draw's prompt, both with
    the draw's adapters.
    """
    side = resolution // pipe.vae_scale_factor
    generator = torch.Generator().manual_seed(draw.seed)
    noise = torch.randn(1, pipe.unet.config.in_channels, side, side, generator=generator)
    with torch.no_grad(), with_adapters(pipe, draw):
        contexts = pipe.text_encoder(tokenize(pipe, ["", draw.prompt])).last_hidden_state
        noise = noise.to(contexts)
        time = torch.tensor([LAST], device=pipe.device)
        without, with_prompt = pipe.unet(noise.expand(2, -1, -1, -1), time, contexts).sample
    return noise, without[None], with_prompt[None]


@torch.no_grad()
def guess_pictures(pipe, noise, answers):
    """The clean pictures that ``answers`` (each (1, c, h, w)) to pure ``noise`` imply; arrays as in ``decode``."""
    time = torch.tensor([LAST], device=pipe.device)
    return [decode(pipe, clean_guess(pipe, noise, answer, time))[0] for answer in answers]


def clip_features(run):
    """``features(paths) -> (n, d)``: unit-length features of pictures by the CLIP ``filter_model``.

    None, with a printed reason, if that CLIP cannot be loaded: only the comparison of pictures needs it.
    """
    try:
        clip, _, processor = load_clip(run.params.filter_model, run.params.filter_revision, run.device, "filter_model")
    except InputError as error:
        print(f"No CLIP to compare with: {error}")
        return None

    @torch.inference_mode()
    def features(paths):
        pixels = [torch.from_numpy(processor(images=read_image(path)).pixel_values[0]) for path in paths]
        return torch.cat([image_features(clip, batch) for batch in torch.stack(pixels).to(clip.device).split(64)]).cpu()

    return features


def count_lora(pipe, rank, text_encoder=True):
    """A table with a row per adapted model: its adapted layers, its parameters, those of LoRA and their share."""
    rows = []
    for model, _ in adapted_parts(pipe, text_encoder):
        layers = [layer for owner, _, layer in adapted_layers(pipe, text_encoder) if owner is model]
        size = sum(parameter.numel() for parameter in model.parameters())
        lora = sum(rank * (layer.in_features + layer.out_features) for layer in layers)
        rows.append((type(model).__name__, len(layers), size, lora, f"{lora / size:.1%}"))
    columns = ["part", "adapted layers", "parameters of the part", "LoRA parameters", "share"]
    return pd.DataFrame(rows, columns=columns)


def find_nearest(features, others):
    """For each row of ``features`` (n, d) the nearest of ``others`` (m, d): ``(indices, cosine similarities)``."""
    best = (features @ others.T).max(dim=1)
    return best.indices.tolist(), best.values.tolist()


def lora_spectra(pipe, folder):
    """How an adapter changes each layer W: ``{layer: (singular values of (alpha / rank) B A, its norm over W's)}``.

    InputError if the adapter fits no layer of ``pipe``.

    With B = Q_B R_B and A^T = Q_A R_A the values are those of R_B R_A^T, which has only rank x rank entries.
    """
    spectra, adapter = {}, read_lora(folder)
    for model, name, layer in adapted_layers(pipe):
        key = (model is pipe.unet, name)
        if key in adapter:
            down, up, scale = adapter[key]
            values = torch.linalg.svdvals(torch.linalg.qr(up * scale).R @ torch.linalg.qr(down.T).R.T).numpy()
            norm = float(layer.weight.detach().float().norm())
            title = ("U-Net " if key[0] else "text ") + _short(name)
            spectra[title] = (values, float(np.linalg.norm(values)) / norm)
    if not spectra:
        raise InputError(f"{folder} changes no layer of this model: it was made for another sd_model; use that one.")
    return spectra


def _short(name):
    """``down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q`` as ``down 0.1.0 attn1.to_q``."""
    words = {"encoder.layers.": "", ".self_attn": "", "_blocks.": " ", "_block.": " ", "attentions.": "",
             "transformer ": "", ".attn": " attn"}  # fmt: skip
    for long, short in words.items():
        name = name.replace(long, short)
    return name
