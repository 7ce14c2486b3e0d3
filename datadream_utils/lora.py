"""LoRA on Stable Diffusion: attach, save, load, fuse. The one module that knows the libraries' key formats.

A linear layer W becomes W + (alpha / rank) B A with A (rank, in) drawn from a normal distribution and B (out, rank)
zero, so that training starts at the base model (Hu et al. 2022). Targets as in the authors' code (paper, appendix A).
"""

import json
from contextlib import contextmanager

import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import cast_training_params
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from datadream_utils.images import written_whole

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that load_lora_weights(folder) looks for


def attach_lora(pipe, rank, alpha, seed, text_encoder=True):
    """Put a fresh adapter on the U-Net and, if asked, the text encoder; return its parameters, in float32.

    The initial A matrices come from ``seed`` alone; torch's global generator is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for model, targets in adapted_parts(pipe, text_encoder):
            config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="gaussian", target_modules=list(targets))
            model.add_adapter(config)
    parts = [model for model, _ in adapted_parts(pipe, text_encoder)]
    cast_training_params(parts, dtype=torch.float32)
    return [parameter for model in parts for parameter in model.parameters() if parameter.requires_grad]


def adapted_parts(pipe, text_encoder=True):
    """``[(model, names of its target layers), ...]``."""
    return [(pipe.unet, UNET_TARGETS)] + ([(pipe.text_encoder, TEXT_TARGETS)] if text_encoder else [])


def detach_lora(pipe):
    """Take the adapter off: the base model is back, bit for bit."""
    pipe.unload_lora_weights()


def save_lora(pipe, folder, text_encoder=True):
    """Write the attached adapter so that plain diffusers' ``pipe.load_lora_weights(folder)`` reads it.

    Rank and alpha go into the file's metadata. The text encoder's keys carry ``text_model.``, which old and new
    releases of transformers both read.
    """
    layers = {"unet_lora_layers": _state_dict(pipe.unet), "unet_lora_adapter_metadata": _metadata(pipe.unet)}
    if text_encoder:
        state = {f"text_model.{k.removeprefix('text_model.')}": v for k, v in _state_dict(pipe.text_encoder).items()}
        layers |= {"text_encoder_lora_layers": state}
        layers |= {"text_encoder_lora_adapter_metadata": _metadata(pipe.text_encoder)}
    with written_whole(folder) as temporary:
        StableDiffusionPipeline.save_lora_weights(temporary, weight_name=WEIGHTS, **layers)
        _sort_metadata(temporary / WEIGHTS)


@contextmanager
def fused_lora(pipe, folder):
    """Sample with the adapter in ``folder`` added into the weights (as fast as the base); afterwards the base is back.

    ``folder=None`` leaves the base model as it is. diffusers' ``unfuse_lora`` subtracts, which leaves rounding errors
    behind; here the base's own weights are put back, bit for bit.
    """
    if folder is None:
        yield pipe
        return
    with torch.no_grad():
        before = {
            (model, name): parameter.detach().clone()
            for model, targets in adapted_parts(pipe)
            for name, parameter in model.named_parameters()
            if name.removesuffix(".weight").endswith(targets) and name.endswith(".weight")
        }
        pipe.load_lora_weights(str(folder), weight_name=WEIGHTS)
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        try:
            yield pipe
        finally:
            for (model, name), weight in before.items():
                model.get_parameter(name).copy_(weight)


def _state_dict(model):
    state = convert_state_dict_to_diffusers(get_peft_model_state_dict(model))
    return {name: tensor.contiguous().cpu() for name, tensor in sorted(state.items())}


def _metadata(model):
    """The adapter's configuration, sets as sorted lists and without paths: the same bytes every time, anywhere."""
    config = model.peft_config["default"].to_dict() | {"base_model_name_or_path": None}
    return {k: sorted(v) if isinstance(v, set) else v for k, v in config.items()}


def count_lora(pipe, rank, text_encoder=True):
    """What LoRA would train, as rows of a table: part, layers adapted, their weights' and LoRA's parameters."""
    rows = []
    for model, targets in adapted_parts(pipe, text_encoder):
        layers = [m for name, m in model.named_modules() if name.endswith(targets) and hasattr(m, "in_features")]
        rows.append(
            {
                "part": type(model).__name__,
                "adapted layers": len(layers),
                "parameters of the part": sum(parameter.numel() for parameter in model.parameters()),
                "LoRA parameters": sum(rank * (layer.in_features + layer.out_features) for layer in layers),
            }
        )
    return rows


def _sort_metadata(path):
    """Rewrite a safetensors file's header with sorted metadata: the library writes it in a random order."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
