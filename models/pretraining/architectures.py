"""The tiny world's models: stock ``transformers`` and ``diffusers`` classes at toy size, before any training."""

from collections import Counter
from itertools import pairwise

from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, UNet2DConditionModel
from tokenizers import pre_tokenizers
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from models.pretraining import typeset

MAX_TOKENS = 24


def make_tokenizer():
    """CLIP's byte-level BPE in which every caption word is one token and any other text is spelt in letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = learn_merges(typeset.vocabulary())
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def learn_merges(words):
    """Byte-pair merges until every word is one token, the most frequent pair first.

    Ties are broken alphabetically. The ``tokenizers`` library breaks them at random, and so another tokenizer, and
    another CLIP, would come out of every training.
    """
    spelt = [[*word[:-1], f"{word[-1]}</w>"] for word in words]
    merges = []
    while any(len(parts) > 1 for parts in spelt):
        counts = Counter(pair for parts in spelt for pair in pairwise(parts))
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        spelt = [_merge(parts, merges[-1]) for parts in spelt]
    return merges


def _merge(parts, pair):
    """``parts`` with every neighbouring ``pair`` joined, from the left."""
    joined = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def make_clip(tokenizer):
    """A CLIP of 0.97 M parameters: ViT with 4 layers on 8x8 patches of 32x32 pictures, text tower of 2 layers."""
    special = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        **special,
    )
    vision = dict(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        hidden_act="quick_gelu",
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def make_vae():
    """An AutoencoderKL of two downsamplings: 32x32 pictures to 8x8 latents of 4 channels."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def make_unet():
    """A UNet2DConditionModel of 2.8 M parameters on 8x8 latents, cross-attention to the text at both levels."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(64, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler():
    """SD's noise schedule with v-prediction and zero terminal SNR (Lin et al. 2024), sampled by DPM-Solver++.

    With SD 2.1-base's epsilon-prediction the colour of a picture leaks through the last timestep, which at this size
    decides the whole background; SD 2.1 at 768 pixels predicts v as well.
    """
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def tokenize(tokenizer, texts):
    """Token ids (n, 24), padded as Stable Diffusion pads."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids
