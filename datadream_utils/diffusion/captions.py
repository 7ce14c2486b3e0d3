"""Captions of the few shots, for methods that prompt with them (DISEF, da Costa et al. 2023, section 3.2).

DISEF asks LLaVA-1.5 what an image shows, naming its class, and generates from such a caption. Any image-to-text model
of transformers serves; the tiny world has none and lets its CLIP choose among colour words instead, and says so.
"""

import json

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from datadream_utils.backbones.clip import class_logits, image_features, text_features, tokenize
from datadream_utils.backbones.load import DTYPES, load_clip, load_whole, opened
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import read_image
from datadream_utils.errors import InputError
from datadream_utils.files import write_json
from datadream_utils.seeds import stable_seed

STAND_IN = "stand-in"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "gray", "black")
MAX_TOKENS = 60  # of a caption; CLIP's text encoder reads 77
TEMPERATURE = 0.2  # DISEF's


def load_captioner(captioner, captioner_revision, device, dtype, stand_in=None):
    """An object with ``note`` (what writes the captions) and ``describe(image, class_name, domain, seed)``.

    captioner: a folder or hub id of an image-to-text model in safetensors, or "stand-in", which needs
    stand_in=(CLIPModel, tokenizer, processor). InputError for a model that cannot be had.
    """
    if captioner == STAND_IN:
        if stand_in is None:
            raise InputError("captioner 'stand-in' needs a CLIP: pass stand_in=(clip, tokenizer, processor).")
        return ColourStandIn(*stand_in)
    return Captioner(captioner, captioner_revision, device, dtype)


class Captioner:
    """An image-to-text model: a chat model (LLaVA) is asked, a caption model (BLIP) goes on from a prefix."""

    def __init__(self, captioner, revision, device, dtype):
        with opened("captioner", captioner, revision) as (place, revision):
            self.processor = AutoProcessor.from_pretrained(place, revision=revision)
            model = load_whole(AutoModelForImageTextToText, place, revision, dtype)
        self.model = model.requires_grad_(False).eval().to(device)
        self.note = captioner + (f" at {revision}" if revision else "")

    @torch.inference_mode()
    def describe(self, image, class_name, domain, seed):
        """One line about ``image`` (PIL, RGB) that names the class; sampled from ``seed`` alone."""
        if self.processor.chat_template:
            inputs = self._question(image, class_name, domain)
        else:
            inputs = self.processor(images=image, text=f"a photo of a {class_name}", return_tensors="pt")
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            tokens = self.model.generate(**inputs, do_sample=True, temperature=TEMPERATURE, max_new_tokens=MAX_TOKENS)
        if self.processor.chat_template:  # its answer follows the question; a caption model's prefix is its beginning
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return one_line(self.processor.decode(tokens[0], skip_special_tokens=True), class_name)

    def _question(self, image, class_name, domain):
        kind = f"{domain} photo" if domain else "photo"
        text = (
            f"This {kind} shows a {class_name}. Describe it in one short sentence that contains the words "
            f'"{class_name}": how it looks, what surrounds it, and the light.'
        )
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.processor(images=image, text=prompt, return_tensors="pt")


class ColourStandIn:
    """No caption model: zero-shot CLIP chooses the colours of a fixed sentence. The same for every seed."""

    note = "stand-in: zero-shot CLIP chooses two colour words; not the caption model that DISEF uses"

    def __init__(self, clip, tokenizer, processor):
        self.clip, self.tokenizer, self.processor = clip, tokenizer, processor

    @torch.inference_mode()
    def describe(self, image, class_name, domain, seed):
        """The likeliest of "a photo of a <ink> <class> on a <background> background" over pairs of two colours."""
        kind = f"a {domain + ' ' if domain else ''}photo of a"
        sentences = [
            f"{kind} {ink} {class_name} on a {background} background"
            for ink in COLOURS
            for background in COLOURS
            if ink != background
        ]
        device = next(self.clip.parameters()).device
        pixels = self.processor(images=image, return_tensors="pt")["pixel_values"].to(device)
        texts = text_features(self.clip, tokenize(self.tokenizer, sentences, device))
        best = class_logits(self.clip, image_features(self.clip, pixels), texts)[0].argmax().item()
        return sentences[best]


def one_line(text, class_name):
    """``text`` with single spaces; the class name goes in front when the text leaves it out."""
    text = " ".join(text.split())
    if class_name.lower() in text.lower():
        return text
    return f"{class_name}, {text}" if text else class_name


def read_captions(method, data, shots, p, stage, device, progress=lambda shots, **_: shots):
    """``{shot path: caption}`` for a method that prompts with captions, else None.

    Kept in ``captions.json`` beside the images, with what wrote them: class by class, so that a run that is killed goes
    on where it was.
    """
    if method.prompt != "caption":
        return None
    path, paths, labels = stage.folder / "captions.json", *flatten(shots)
    names = [str(shot.relative_to(data.root)) for shot in paths]
    by = [p.captioner, p.captioner_revision, p.seed]
    stored = json.loads(path.read_text()) if path.exists() and not stage.damage([path.name]) else {}
    if stored.get("captioner") != by or list(stored["captions"]) != names[: len(stored["captions"])]:
        stored = {"captioner": by, "note": "", "captions": {}}
    done = stored["captions"]
    if len(done) < len(names):
        clip = load_clip(p.filter_model, p.filter_revision, device, "filter_model") if p.captioner == STAND_IN else None
        captioner = load_captioner(p.captioner, p.captioner_revision, device, DTYPES[p.mixed_precision], clip)
        stored["note"] = captioner.note
        for i in progress(range(len(done), len(names)), total=len(names) - len(done), label="captions"):
            seed, name = stable_seed(p.seed, names[i]), data.class_names[labels[i]]
            done[names[i]] = captioner.describe(read_image(paths[i]), name, data.domain, seed)
            if labels[i] != (labels + [None])[i + 1]:
                write_json(path, stored)
    print(f"captions by {stored['note']}")
    return dict(zip(paths, done.values(), strict=True))
