"""Captions of the few shots, for methods that prompt with them (DISEF, da Costa et al. 2023, section 3.2).

DISEF asks LLaVA-1.5 to describe an image of a known class, and generates from that caption. Here any image-to-text
model of transformers can do so. The tiny world has none: its CLIP chooses two colour words, and the run prints that.
"""

import torch
from filelock import FileLock
from transformers import AutoModelForImageTextToText, AutoProcessor

from datadream_utils.backbones.clip import class_logits, image_features, text_features, tokenize
from datadream_utils.backbones.load import load_clip, load_whole, opened
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import read_image
from datadream_utils.files import read_json, write_json
from datadream_utils.prompts import class_prompt
from datadream_utils.runs.device import DTYPES, advise_on_memory
from datadream_utils.runs.shards import part_of
from datadream_utils.seeds import stable_seed

STAND_IN = "stand-in"
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "gray", "black")
MAX_TOKENS = 60  # of a caption; CLIP's text encoder reads 77
TEMPERATURE = 0.2  # DISEF's


def load_captioner(run):
    """The captioner of a run: ``describe(image, class_name, domain, seed)`` gives a caption, ``note`` names the model.

    ``captioner`` is a folder or hub id of an image-to-text model in safetensors, or "stand-in", which uses the CLIP
    ``filter_model``. InputError for a model that cannot be loaded.
    """
    p = run.params
    if p.captioner == STAND_IN:
        return ColourStandIn(*load_clip(p.filter_model, p.filter_revision, run.device, "filter_model"))
    return Captioner(p.captioner, p.captioner_revision, run.device, DTYPES[p.mixed_precision])


class Captioner:
    """An image-to-text model: a chat model (LLaVA) gets a question, a caption model (BLIP) a prefix to continue."""

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
            inputs = self.processor(images=image, text=class_prompt(class_name, domain), return_tensors="pt")
        inputs = inputs.to(self.model.device, dtype=self.model.dtype)
        devices = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            tokens = self.model.generate(**inputs, do_sample=True, temperature=TEMPERATURE, max_new_tokens=MAX_TOKENS)
        if self.processor.chat_template:  # cut the question off; a prefix is part of the caption
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        return one_line(self.processor.decode(tokens[0], skip_special_tokens=True), class_name)

    def _question(self, image, class_name, domain):
        photo = f"{domain} photo" if domain else "photo"
        text = (
            f"This {photo} shows a {class_name}. Describe it in one short sentence that contains the words "
            f'"{class_name}": how it looks, what surrounds it, and the light.'
        )
        content = [{"type": "image"}, {"type": "text", "text": text}]
        prompt = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        return self.processor(images=image, text=prompt, return_tensors="pt")


class ColourStandIn:
    """Replaces a caption model: zero-shot CLIP chooses the two colours of a fixed sentence, whatever the seed."""

    note = "stand-in: zero-shot CLIP chooses two colour words; not the caption model that DISEF uses"

    def __init__(self, clip, tokenizer, processor):
        self.clip, self.tokenizer, self.processor = clip, tokenizer, processor

    @torch.inference_mode()
    def describe(self, image, class_name, domain, seed):
        """The likeliest of "a photo of a <ink> <class> on a <background> background" over pairs of two colours."""
        sentences = [
            f"{class_prompt(f'{ink} {class_name}', domain)} on a {background} background"
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
    """``text`` with single spaces; the class name is put in front if the text does not contain it."""
    text = " ".join(text.split())
    if class_name.lower() in text.lower():
        return text
    return f"{class_name}, {text}" if text else class_name


def read_captions(run):
    """``{shot path: caption}`` of the run's shots, for methods that prompt with captions.

    They are kept in ``captions.json`` in the stage's folder, with captioner and seed. The file is written after every
    class, so a killed run continues there. A shard captions the shots of its own classes; all write one file.
    """
    labels = part_of(range(len(run.shots)), run.shard)
    shots = {label: {_name(run, path): path for path in run.shots[label]} for label in labels}
    known = _read_stored(run)["captions"].keys()
    missing = {label: paths for label, paths in shots.items() if not paths.keys() <= known}
    if missing:
        _describe(run, missing)
    stored = _read_stored(run)
    print(f"captions by {stored['note']}")
    return {path: stored["captions"][name] for paths in shots.values() for name, path in paths.items()}


def _read_stored(run):
    """The content of the run's ``captions.json``, without captions where it is missing, damaged or of other shots."""
    p, path = run.params, run.folder / "captions.json"
    stored = {"captioner": [p.captioner, p.captioner_revision, p.seed], "note": "", "captions": {}}
    if path.exists() and not run.stage.damaged_files([path.name]):
        before, names = read_json(path, "delete it and run 02_generate again"), _names(run)
        if before.get("captioner") == stored["captioner"] and {*before.get("captions", ())} <= {*names}:
            stored |= before
    return stored


def _describe(run, missing):
    """Add the captions of the shots ``missing[label]``, ``{name: path}``, to the file, class by class."""
    with advise_on_memory(run.params):
        captioner = load_captioner(run)
    run.folder.mkdir(parents=True, exist_ok=True)
    with run.progress(sum(map(len, missing.values())), "captions") as advance:
        for label, paths in missing.items():
            captions, class_name = {}, run.data.class_names[label]
            for name, path in paths.items():
                seed = stable_seed(run.params.seed, name)
                captions[name] = captioner.describe(read_image(path), class_name, run.data.domain, seed)
                advance()
            with FileLock(run.folder / ".captions.lock"):  # other shards write theirs
                stored = _read_stored(run)
                known = stored["captions"] | captions
                stored["captions"] = {name: known[name] for name in _names(run) if name in known}
                write_json(run.folder / "captions.json", stored | {"note": captioner.note})


def _name(run, path):
    """A shot's path within the data set: the key of its caption."""
    return path.relative_to(run.data.root).as_posix()


def _names(run):
    return [_name(run, path) for path in flatten(run.shots)[0]]
