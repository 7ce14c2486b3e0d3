"""Looking inside: what the model sees through noise, how a sample comes about, what an adapter changes, who is near."""

from contextlib import contextmanager

import numpy as np
import torch

from datadream_utils.backbones.clip import image_features
from datadream_utils.data.images import read_image
from datadream_utils.diffusion.adapt import adapter_folder
from datadream_utils.diffusion.denoising import Shots, noise_scheduler, tokenize
from datadream_utils.diffusion.lora import adapted_layers, read_lora
from datadream_utils.diffusion.stacked import own_adapters
from datadream_utils.errors import InputError


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
    """The z_0 that the U-Net's answer to z_t amounts to, in one step: all latents (n, c, h, w), times (n,) or (1,).

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
def adapted_as(pipe, draw, adapt_stage, scale=1.0):
    """Sample with the adapters of ``draw`` attached, times ``scale``: W + scale (alpha / rank) B A.

    scale: a number, or a list of one for each image of a batch. ``adapt_stage=None``, or a draw without adapters: the
    base model.
    """
    if adapt_stage is None or not draw.adapters:
        yield pipe
        return
    folders = [adapter_folder(adapt_stage, name) for name in draw.adapters]
    each = torch.tensor(scale, device=pipe.device, dtype=pipe.unet.dtype) if isinstance(scale, list) else scale
    with own_adapters(pipe, [folders] * (len(scale) if isinstance(scale, list) else 1), each):
        yield pipe


@torch.no_grad()
def trajectory(pipe, draw, p, count=7):
    """One sample on its way from noise: ``{step: picture}`` after ``count`` of the denoising steps, first and last too.

    Every step's latents z_t are decoded as they are. The last one is the picture that stage 2 would draw.
    """
    latents = []

    def keep(_pipe, _step, _timestep, tensors):
        latents.append(tensors["latents"])
        return tensors

    pipe(
        [draw.prompt],
        height=p.resolution,
        width=p.resolution,
        generator=[torch.Generator("cpu").manual_seed(draw.seed)],
        guidance_scale=p.guidance_scale,
        num_inference_steps=p.num_inference_steps,
        callback_on_step_end=keep,
        output_type="latent",
    )
    steps = sorted({round(i * (len(latents) - 1) / max(1, count - 1)) for i in range(count)})
    return {step + 1: decode(pipe, latents[step])[0] for step in steps}


def clip_features(clip, processor):
    """``features(paths) -> (n, d)``: unit-length CLIP features of pictures."""

    @torch.inference_mode()
    def features(paths):
        pixels = [torch.from_numpy(processor(images=read_image(path)).pixel_values[0]) for path in paths]
        return torch.cat([image_features(clip, batch) for batch in torch.stack(pixels).to(clip.device).split(64)]).cpu()

    return features


def nearest(features, others):
    """For each row of ``features`` (n, d) the nearest of ``others`` (m, d): ``(indices, cosine similarities)``."""
    best = (features @ others.T).max(dim=1)
    return best.indices.tolist(), best.values.tolist()


def lora_spectra(pipe, folder):
    """What an adapter changes: ``{layer: (singular values of (alpha / rank) B A, its norm over that of W)}``.

    With B = Q_B R_B and A^T = Q_A R_A the values are those of R_B R_A^T, which has only rank x rank entries.
    """
    spectra, adapter = {}, read_lora(folder)
    for model, name, layer in adapted_layers(pipe):
        key = (model is pipe.unet, name)
        if key in adapter:
            down, up = (part.float() for part in adapter[key])
            values = torch.linalg.svdvals(torch.linalg.qr(up).R @ torch.linalg.qr(down.T).R.T).numpy()
            norm = float(layer.weight.detach().float().norm())
            title = ("U-Net " if key[0] else "text ") + _short(name)
            spectra[title] = (values, float(np.linalg.norm(values)) / norm)
    if not spectra:
        raise InputError(f"{folder} changes no layer of this model: it was made for another sd_model; use that one.")
    return spectra


def _short(name):
    """``down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q`` as ``down 0.1.0 attn1.to_q``."""
    name = (
        name.replace("encoder.layers.", "").replace(".self_attn", "").replace("_blocks.", " ").replace("_block.", " ")
    )
    return name.replace("attentions.", "").replace("transformer ", "").replace(".attn", " attn")
