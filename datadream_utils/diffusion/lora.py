"""LoRA on Stable Diffusion: attach, save, load, fuse. The one module that knows the libraries' key formats.

A linear layer W becomes W + (alpha / rank) B A with A (rank, in) drawn from a normal distribution and B (out, rank)
zero, so that training starts at the base model (Hu et al. 2022). Targets as in the authors' code (paper, appendix A).
"""

import json
import re
from contextlib import contextmanager

import torch
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import save_file

from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
DOWN_TO_UP = {"lora_A": "lora_B", "lora.down": "lora.up", "lora_linear_layer.down": "lora_linear_layer.up"}
DOWN = re.compile(rf"(unet|text_encoder)\.(.+)\.({'|'.join(map(re.escape, DOWN_TO_UP))})(\.weight)")
WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights(folder) looks for


def attach_lora(pipe, rank, alpha, seed, text_encoder=True):
    """Put a fresh adapter on the U-Net and, if asked, the text encoder; return its parameters, in float32.

    The initial A matrices come from ``seed`` alone; torch's global generator is left as it was.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        for model, targets in adapted_parts(pipe, text_encoder):
            model.add_adapter(lora_config(rank, alpha, targets))
    parts = [model for model, _ in adapted_parts(pipe, text_encoder)]
    cast_training_params(parts, dtype=torch.float32)
    for model in parts:
        for name, parameter in model.named_parameters():
            if ".lora_A." in name:
                parameter.data.copy_(first_lora_a(*parameter.shape, generator))
    return [parameter for model in parts for parameter in model.parameters() if parameter.requires_grad]


def lora_config(rank, alpha, targets):
    """PEFT's configuration of an adapter."""
    return LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets))


def first_lora_a(rank, in_features, generator):
    """A before training, (rank, in): normal with standard deviation 1 / rank, PEFT's "gaussian"."""
    return torch.randn(rank, in_features, generator=generator) / rank


def adapted_parts(pipe, text_encoder=True):
    """``[(model, names of its target layers), ...]``."""
    return [(pipe.unet, UNET_TARGETS)] + ([(pipe.text_encoder, TEXT_TARGETS)] if text_encoder else [])


def adapted_layers(pipe, text_encoder=True):
    """``[(model, layer name, linear layer), ...]`` of a pipeline without adapters."""
    return [
        (model, name, layer)
        for model, targets in adapted_parts(pipe, text_encoder)
        for name, layer in model.named_modules()
        if name.endswith(targets) and hasattr(layer, "in_features")
    ]


@contextmanager
def attached_lora(pipe, rank, alpha, seed, text_encoder=True):
    """Attach a fresh adapter while the block runs, and give its parameters; then the base is back, bit for bit."""
    try:
        yield attach_lora(pipe, rank, alpha, seed, text_encoder)
    finally:
        pipe.unload_lora_weights()


def save_lora(pipe, folder, text_encoder=True):
    """Write the attached adapter so that plain diffusers' ``pipe.load_lora_weights(folder)`` reads it."""
    parts = [model for model, _ in adapted_parts(pipe, text_encoder)]
    states = [get_peft_model_state_dict(model) for model in parts]
    write_lora(folder, states, [model.peft_config["default"] for model in parts])


def write_lora(folder, states, configs):
    """Write PEFT's state dicts and configurations of [U-Net, text encoder or nothing] as diffusers' LoRA file.

    Rank and alpha go into the file's metadata, under the one key that diffusers reads: with a second key the library
    would write them in a random order, and the same adapter would not be the same bytes. The text encoder's keys carry
    ``text_model.``, which old and new releases of transformers both read.
    """
    tensors, metadata = {}, {}
    for part, state, config in zip(("unet", "text_encoder"), states, configs, strict=False):
        inner = "" if part == "unet" else "text_model."
        for key, value in convert_state_dict_to_diffusers(state).items():
            tensors[f"{part}.{inner}{key.removeprefix(inner)}"] = value.contiguous().cpu()
        metadata |= {f"{part}.{key}": value for key, value in _plain_values(config).items()}
    text = json.dumps(metadata, indent=2, sort_keys=True)
    with atomic_write(folder) as temporary:
        temporary.mkdir()
        save_file(tensors, temporary / WEIGHTS, {"lora_adapter_metadata": text})


def read_lora(folder):
    """An adapter's matrices, ``{(of the U-Net, layer name): (A (rank, in), B (out, rank), alpha / rank)}``."""
    layers = {}
    with safe_open(folder / WEIGHTS, "pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
        for key in file.keys():  # noqa: SIM118 - not a dict
            if found := DOWN.fullmatch(key):
                part, name, down, end = found.groups()
                scale = config[f"{part}.lora_alpha"] / config[f"{part}.r"]
                up = file.get_tensor(f"{part}.{name}.{DOWN_TO_UP[down]}{end}")
                layers[part == "unet", name.removeprefix("text_model.")] = (file.get_tensor(key), up, scale)
    return layers


@contextmanager
def fused_lora(pipe, folder):
    """Sample with the adapter in ``folder`` added into the weights (as fast as the base); afterwards the base is back.

    ``folder=None`` leaves the base model as it is. The weights are those of diffusers' ``load_lora_weights`` and
    ``fuse_lora``, bit for bit, but they change in place: no module is replaced, so a compiled model stays compiled.
    Afterwards the base's own weights are copied back; diffusers' ``unfuse_lora`` subtracts, which leaves rounding
    errors. InputError for an adapter of another model.
    """
    if folder is None:
        yield pipe
        return
    weights = {(model is pipe.unet, name): layer.weight for model, name, layer in adapted_layers(pipe)}
    adapter = read_lora(folder)
    _check_fit(folder, adapter, weights)
    before = {key: weights[key].detach().clone() for key in adapter}
    try:
        with torch.no_grad():
            for key, matrices in adapter.items():
                weights[key] += _change(weights[key], *matrices)
        yield pipe
    finally:
        with torch.no_grad():
            for key, weight in before.items():
                weights[key].copy_(weight)


def _check_fit(folder, adapter, weights):
    """InputError unless every layer of ``adapter`` (of ``read_lora``) is in ``weights`` and has the same shape."""
    for key, (down, up, _) in adapter.items():
        wanted, found = (len(up), down.shape[1]), key in weights and tuple(weights[key].shape)
        if wanted != found:
            part, name = "U-Net" if key[0] else "text encoder", key[1]
            has = f"is {found[0]} x {found[1]} there" if found else "is not there"
            raise InputError(
                f"{folder / WEIGHTS} does not fit sd_model: it changes the layer {name} of the {part}, "
                f"{wanted[0]} x {wanted[1]}, which {has}. Set sd_model to the model that it was trained on."
            )
    if not adapter:
        raise InputError(f"{folder / WEIGHTS} changes no layer of U-Net or text encoder: it is no adapter of theirs.")


def _change(weight, down, up, scale):
    """(alpha / rank) B A as PEFT merges it: of A and B in the weight's dtype, on a CPU multiplied in float32."""
    down, up = (part.to(weight.device, weight.dtype) for part in (down, up))
    if weight.device.type == "cpu":
        down, up = down.float(), up.float()
    return (up @ down * scale).to(weight.dtype)


def _plain_values(config):
    """An adapter's configuration with sets as sorted lists and without paths: the same bytes every time, anywhere."""
    values = config.to_dict() | {"base_model_name_or_path": None}
    return {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
