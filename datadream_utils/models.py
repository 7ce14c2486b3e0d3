"""Loading Stable Diffusion and CLIP from a folder or a hub id, in safetensors only."""

from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import try_to_load_from_cache
from transformers import CLIPModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from datadream_utils.errors import InputError
from datadream_utils.params import resolve
from datadream_utils.run import digest

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def weight_dtype(mixed_precision, device):
    """The dtype of frozen weights: float32, or half precision; InputError for fp16 on a CPU."""
    if mixed_precision == "fp16" and device == "cpu":
        raise InputError("mixed_precision 'fp16' needs a GPU: use 'no' or 'bf16' on a CPU.")
    return DTYPES[mixed_precision]


def load_stable_diffusion(sd_model, sd_revision="", device="cpu", dtype=torch.float32):
    """A ``StableDiffusionPipeline`` without safety checker, frozen, on ``device``.

    sd_model: a folder (relative to the project or absolute) or a hub id.
    """
    place, revision = _place(sd_model, sd_revision)
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            place,
            revision=revision,
            dtype=dtype,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError) as error:
        raise _not_found("sd_model", sd_model, "models/tiny-stable-diffusion", error) from error
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_clip(clip_model, clip_revision="", device="cpu"):
    """``(CLIPModel, CLIPTokenizer, CLIPImageProcessorPil)``; the model in float32, frozen, on ``device``."""
    place, revision = _place(clip_model, clip_revision)
    try:
        model = CLIPModel.from_pretrained(place, revision=revision, dtype=torch.float32, use_safetensors=True)
        tokenizer = CLIPTokenizer.from_pretrained(place, revision=revision)
        processor = CLIPImageProcessorPil.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        raise _not_found("clip_model", clip_model, "models/tiny-clip", error) from error
    model.name_or_path = clip_model  # what PEFT notes as a classifier's base: no path of this machine
    return model.requires_grad_(False).eval().to(device), tokenizer, processor


def model_identity(model, revision=""):
    """What was loaded, for a manifest: a hub id's commit, or the digest of a folder's weights."""
    place, revision = _place(model, revision)
    if Path(place).is_dir():
        return {"folder": model, "sha256": digest(sorted(Path(place).rglob("*.safetensors")))}
    for name in ("model_index.json", "config.json"):
        cached = try_to_load_from_cache(place, name, revision=revision)
        if isinstance(cached, str):
            return {"hub": place, "commit": Path(cached).parent.name}
    return {"hub": place, "revision": revision}


def _place(model, revision):
    folder = resolve(model)
    return (str(folder), None) if folder.is_dir() else (model, revision or None)


def _not_found(parameter, value, tiny, error):
    reason = str(error).strip().splitlines()[0]
    return InputError(
        f"{parameter} {value!r} is neither a folder with a model nor a hub id that can be read here ({reason}): set "
        f"{parameter} to a downloaded folder, to an id that your machine can reach, or to {tiny!r}."
    )
