"""CLIP as a classifier: picture and text features, logits, LoRA. Hides what transformers 5 returns."""

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, set_peft_model_state_dict
from peft.utils import load_peft_weights
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from datadream_utils.files import atomic_write
from datadream_utils.prompts import class_prompt
from datadream_utils.runs.plausible import check_finite, check_prompts

CLIP_TARGETS = ("q_proj", "v_proj")  # of both towers, all blocks, as in the authors' code


def image_features(clip, pixel_values):
    """Unit-length picture features (n, d) of preprocessed pixels (n, 3, h, w)."""
    return F.normalize(clip.get_image_features(pixel_values=pixel_values).pooler_output, dim=-1)


def text_features(clip, tokens):
    """Unit-length text features (n, d) of a tokenizer's output."""
    features = clip.get_text_features(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
    return F.normalize(features.pooler_output, dim=-1)


def tokenize(tokenizer, prompts, device):
    """Tokens of the class prompts, padded to the longest of them.

    The authors pad to CLIP's 77. The text tower is causal and its output is read at the end-of-text token, so what
    follows changes no feature; it would only be computed, for every class in every step.
    """
    tokens = tokenizer(list(prompts), padding="longest", truncation=True, return_tensors="pt")
    return tokens.to(device)


def class_logits(clip, pictures, texts):
    """exp(logit scale) cos(picture, text): (n, classes) from unit-length features.

    Radford et al. 2021.
    """
    return clip.logit_scale.exp() * pictures @ texts.T


def attach_clip_lora(clip, rank, alpha, dropout, seed):
    """LoRA on the query and value projections of both towers; everything else stays frozen. A PEFT model."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(CLIP_TARGETS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return get_peft_model(clip, config)


class ClipClassifier(torch.nn.Module):
    """CLIP as a classifier of a data set's classes; the weight of a class is its sentence's features.

    ``processor``: its preprocessing; ``image_size``: the side of its square input in pixels. InputError for two classes
    whose sentences are the same to its tokenizer.
    """

    def __init__(self, clip, tokenizer, processor, data):
        super().__init__()
        prompts = [class_prompt(name, data.domain) for name in data.class_names]
        check_prompts(tokenizer, prompts, data.class_names, "CLIP")
        self.clip, self.tokens = clip, tokenize(tokenizer, prompts, next(clip.parameters()).device)
        self.processor, self.image_size = processor, clip.config.vision_config.image_size

    def class_weights(self):
        """(classes, d): one pass through the text tower, to be done once per step or evaluation."""
        return text_features(self.clip, self.tokens)

    def forward(self, pixel_values, class_weights):
        """Logits (n, classes)."""
        return class_logits(self.clip, image_features(self.clip, pixel_values), class_weights)

    def blocks(self):
        """What is compiled: the layers of both towers."""
        return [module for module in self.clip.modules() if isinstance(module, CLIPEncoderLayer)]

    def checkpoint_activations(self):
        """Compute activations twice instead of keeping them: the same gradients in less memory."""
        self.clip.activation_checkpointing_enable()

    def save(self, folder):
        """Write the adapter in PEFT's own format; the same bytes every time (PEFT keeps its targets as a set)."""
        for config in self.clip.peft_config.values():
            config.target_modules = sorted(config.target_modules)
        with atomic_write(folder) as temporary:
            self.clip.save_pretrained(temporary, save_embedding_layers=False)  # "auto" asks the hub

    def load(self, folder):
        """Take the adapter that ``save`` wrote."""
        weights = load_peft_weights(str(folder), device=str(next(self.clip.parameters()).device))
        set_peft_model_state_dict(self.clip, weights)


def clip_judge(clip, tokenizer, processor, data):
    """``judge(images) -> labels``: the class that zero-shot CLIP assigns to each PIL image (DISEF's filter)."""
    classifier = ClipClassifier(clip, tokenizer, processor, data).eval()

    @torch.inference_mode()
    def judge(images):
        pixels = torch.stack([torch.from_numpy(processor(images=image).pixel_values[0]) for image in images])
        logits = classifier(pixels.to(clip.device), weights)
        names = [f"image {i}" for i in range(len(images))]
        check_finite(logits, names, "CLIP's logits", "set filter_model to a model whose weights are whole")
        return logits.argmax(-1).tolist()

    with torch.inference_mode():
        weights = classifier.class_weights()
    return judge
