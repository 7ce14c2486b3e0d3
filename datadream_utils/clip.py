"""CLIP as a classifier: picture and text features, logits, LoRA. Hides what transformers 5 returns."""

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model

CLIP_TARGETS = ("q_proj", "v_proj")  # of both towers, all blocks, as in the authors' code


def image_features(clip, pixel_values):
    """Unit-length picture features (n, d) of preprocessed pixels (n, 3, h, w)."""
    return F.normalize(clip.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)


def text_features(clip, tokens):
    """Unit-length text features (n, d) of a tokenizer's output."""
    features = clip.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return F.normalize(features.pooler_output, dim=-1)


def tokenize(tokenizer, prompts, device):
    """Tokens of the class prompts, padded to CLIP's own length."""
    tokens = tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt")
    return tokens.to(device)


def class_logits(clip, pictures, texts):
    """exp(logit scale) cos(picture, text): (n, classes) from unit-length features (Radford et al. 2021)."""
    return clip.logit_scale.exp() * pictures @ texts.T


def attach_clip_lora(clip, rank, alpha, dropout, seed):
    """LoRA on the query and value projections of both towers; everything else stays frozen. A PEFT model."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(CLIP_TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(clip, config)
