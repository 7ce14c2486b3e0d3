"""Where stages are measured: the tiny world, and random weights at the size of SD 2.1-base and CLIP ViT-B/16.

Both are parameters only (``tiny.yaml``, ``full.yaml``) on top of the notebooks' defaults; "full" writes its models and
pictures first. Random weights cost what trained ones cost.
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.shots import few_shot
from datadream_utils.files import atomic_write
from datadream_utils.params import ROOT, read_params_file
from datadream_utils.runs.device import choose_device
from datadream_utils.runs.progress import no_progress
from datadream_utils.runs.run import Run
from datadream_utils.runs.stage import Stage

WORLDS = ("tiny", "full")
WIDTHS = (320, 640, 1280, 1280)
SIZES = {  # published configurations; the vocabulary is the tiny world's, which changes no arithmetic but a look-up
    "unet": dict(
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
        block_out_channels=WIDTHS,
        attention_head_dim=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
        sample_size=64,
    ),
    "text": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16),
    "vae": dict(block_out_channels=(128, 256, 512, 512), layers_per_block=2, sample_size=512),
    "clip_text": dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8),
    "clip_vision": dict(
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        patch_size=16,
        image_size=224,
    ),
}
TOKENS = 77
CLASSES, TRAIN, TEST = 5, 16, 50  # of the full world's pictures, a class


def prepare(world, folder):
    """A world's parameters as changes of the defaults; writes "full"'s models and pictures under ``folder`` once."""
    changes = read_params_file(ROOT / "benchmarks" / f"{world}.yaml")
    if world == "full":
        changes |= {
            "sd_model": str(folder / "sd"),
            "clip_model": str(folder / "clip"),
            "dataset": str(folder / "noise"),
        }
        if not (folder / "noise").exists():
            write_stable_diffusion(folder / "sd", SIZES)
            write_clip(folder / "clip", SIZES)
            write_pictures(folder / "noise", CLASSES, TRAIN, TEST, changes["resolution"])
    return changes


def make_run(p, folder, source=None, shard=""):
    """The ``Run`` of a stage that writes into ``folder``; source: the finished stage that it reads."""
    data = load_dataset(p.dataset, p.data_root, p.split_file)
    shots = few_shot(data, p.n_shot, p.seed, p.shots_file)
    return Run(p, Stage(p.stage, Path(folder)), data, shots, choose_device(p.device), source, shard, no_progress)


def write_stable_diffusion(folder, sizes, vocabulary=None, dtype=torch.float16):
    """A pipeline with random weights; ``vocabulary``: as in ``stable_diffusion``."""
    torch.manual_seed(0)
    stable_diffusion(sizes, vocabulary).to(dtype=dtype).save_pretrained(folder)


def stable_diffusion(sizes, vocabulary=None):
    """A pipeline with random weights; ``vocabulary``: its number of tokens, None for the tiny world's own."""
    tokenizer = _tokenizer(vocabulary)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), max_position_embeddings=TOKENS, hidden_act="gelu", **_ids(tokenizer), **sizes["text"]
    )
    levels = len(sizes["vae"]["block_out_channels"])
    return StableDiffusionPipeline(
        unet=UNet2DConditionModel(**sizes["unet"]),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        vae=AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            latent_channels=4,
            scaling_factor=0.18215,
            **sizes["vae"],
        ),
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def write_clip(folder, sizes, vocabulary=None):
    """A CLIP with random weights, its tokenizer (of ``vocabulary`` tokens) and its picture processor."""
    torch.manual_seed(0)
    tokenizer = _tokenizer(vocabulary)
    text = dict(vocab_size=len(tokenizer), max_position_embeddings=TOKENS, **_ids(tokenizer), **sizes["clip_text"])
    CLIPModel(CLIPConfig(text_config=text, vision_config=sizes["clip_vision"])).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = sizes["clip_vision"]["image_size"]
    CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side}).save_pretrained(
        folder
    )


def _tokenizer(vocabulary):
    """The tiny world's tokenizer, filled up to ``vocabulary`` tokens with some that no text has."""
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models" / "tiny-clip", model_max_length=TOKENS)
    if vocabulary:
        tokenizer.add_tokens([f"<unused {i}>" for i in range(vocabulary - len(tokenizer))])
    return tokenizer


def _ids(tokenizer):
    return {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}


def write_pictures(root, classes, train, test, side):
    """A folder data set of noise: ``classes`` classes with so many pictures of ``side`` pixels in each split."""
    rng = np.random.default_rng(0)
    with atomic_write(Path(root)) as temporary:
        for split, count in {"train": train, "test": test}.items():
            for label in range(classes):
                folder = temporary / split / f"class {label:04d}"
                folder.mkdir(parents=True)
                for i in range(count):
                    pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
                    Image.fromarray(pixels).save(folder / f"{i:04d}.png", compress_level=1)
