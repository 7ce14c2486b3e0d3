"""Sampling a labelled data set from the (adapted) model (paper, section 3.3), for every compared system.

All that decides an image comes from (seed, class, index) alone: its noise, its prompt, the shot it starts from, the
adapters that draw it. So any image can be drawn again by itself, and stopping, resuming or splitting the work changes
nothing.
"""

import itertools
import json
import random
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline
from PIL import Image

from datadream_utils.backbones.clip import clip_judge
from datadream_utils.backbones.load import load_clip
from datadream_utils.data.dataset import Dataset, stable_seed
from datadream_utils.data.images import centre_square, read_image, write_png
from datadream_utils.diffusion.adapt import adapter_folder, adapter_names
from datadream_utils.diffusion.lora import fused_lora
from datadream_utils.diffusion.stacked import own_adapters
from datadream_utils.files import atomic_write, inside, read_json
from datadream_utils.methods import Method
from datadream_utils.prompts import generation_prompt
from datadream_utils.runs.device import enough_memory
from datadream_utils.runs.shards import part_of

TOGETHER = 4 * 512**2  # pixels of the examples drawn in one batch: as many as four pictures of a full-size model


@dataclass(frozen=True)
class Draw:
    """What decides one image: noise seed, prompt, the shot it starts from (None: noise), names of its adapters."""

    seed: int
    prompt: str
    start: Path | None
    adapters: tuple[str, ...]


@dataclass(frozen=True)
class Recipe:
    """A method on a data set: what every image of it is drawn from.

    shots: ``shots[label]``, paths; captions: ``{shot path: caption}``, for methods that prompt with captions.
    """

    method: Method
    data: Dataset
    shots: list
    seed: int
    captions: dict | None = None

    def draw(self, label, index, attempt=0):
        """The ``Draw`` of image ``index`` of class ``label``; a rejected one is tried again with other draws.

        Image i starts from shot i, i + 1, ... in turn. The caption is that of another shot of the class (da Costa et
        al. 2023: captions are shuffled among the shots). LoFT goes through all pairs of a class in a shuffled order.
        """
        folder, shots = self.data.folders[label], self.shots[label]
        turn = (index + attempt) % len(shots)
        if self.method.prompt == "caption":
            others = [shot for i, shot in enumerate(shots) if i != turn] or shots
            choice = stable_seed("caption", self.seed, folder, index, attempt) % len(others)
            prompt = self.captions[others[choice]]
        else:
            prompt = class_prompts(self.method, self.data)[label]
        adapters = adapter_names(self.method, self.data, label, len(shots))
        if self.method.adapter == "image":
            pairs = self._pairs[label]
            adapters = [adapters[i] for i in pairs[index % len(pairs)]]
        return Draw(
            seed=image_seed(self.seed, folder, index, attempt),
            prompt=prompt,
            start=shots[turn] if self.method.start == "shot" else None,
            adapters=tuple(adapters),
        )

    @cached_property
    def _pairs(self):
        shuffled = []
        for folder, shots in zip(self.data.folders, self.shots, strict=True):
            pairs = list(itertools.combinations(range(len(shots)), 2)) or [(0,)]
            random.Random(stable_seed("pairs", self.seed, folder)).shuffle(pairs)
            shuffled.append(pairs)
        return shuffled


def image_seed(seed, class_name, index, attempt=0):
    """The seed of one image's initial noise."""
    return stable_seed("generate", seed, class_name, index, *([attempt] if attempt else []))


@torch.no_grad()
def sample(pipe, prompts, seeds, guidance_scale, num_inference_steps, resolution, starts=None, start_step=0):
    """Draw one image per prompt with its own seed: a list of PIL images of ``resolution`` pixels.

    Classifier-free guidance: eps = eps(z, "") + guidance_scale (eps(z, prompt) - eps(z, "")) (Ho & Salimans 2022).
    starts: pictures (PIL, square) to start from, each noised to the time of step ``start_step``, whose predecessors
    are skipped (Meng et al. 2022), by DPM-Solver++ where the model's sampler is PNDM; None: start from noise.
    """
    options = dict(
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
    )
    if starts is None:
        return pipe(list(prompts), height=resolution, width=resolution, **options).images
    parts = dict(pipe.components)
    if isinstance(pipe.scheduler, PNDMScheduler):  # it repeats its second step, so it cannot begin at a later one
        parts["scheduler"] = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    from_image = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    from_image.set_progress_bar_config(disable=True)
    strength = (num_inference_steps - start_step + 0.5) / num_inference_steps  # half a step against rounding down
    return from_image(list(prompts), image=list(starts), strength=min(1.0, strength), **options).images


@lru_cache(maxsize=1024)
def start_picture(path, resolution):
    """A shot as img2img takes it: the middle square, ``resolution`` pixels."""
    return centre_square(read_image(path), resolution)


def class_prompts(method, data):
    """The generation prompt of each class (the template's where captions of shots take its place)."""
    kind = "definition" if method.prompt == "definition" else "template"
    return [generation_prompt(kind, name, data.domain, data.definitions.get(name, "")) for name in data.class_names]


def example_recipe(method, data, shots, seed):
    """The method's recipe from noise and class prompt, for pictures that need neither captions nor a start."""
    method = replace(method, start="noise", prompt="template" if method.prompt == "caption" else method.prompt)
    return Recipe(method, data, shots, seed)


def draw_examples(pipe, method, data, shots, p, adapt_stage, labels, count):
    """``count`` pictures of each class in ``labels`` from noise and class prompt; ``adapt_stage=None``: base model.

    For methods that sample so they are the first that stage 2 draws, up to rounding: as many classes as ``TOGETHER``
    allows are drawn in one batch. Returns ``{class name: [PIL image, ...]}``.
    """
    recipe, examples = example_recipe(method, data, shots, p.seed), {}
    size = max(1, TOGETHER // (count * p.resolution**2))
    for group in (labels[i : i + size] for i in range(0, len(labels), size)):
        draws = [recipe.draw(label, i) for label in group for i in range(count)]
        own = adapt_stage and method.adapter == "class"
        with _each_its_own(pipe, draws, adapt_stage) if own else class_adapters(pipe, recipe, group[0], adapt_stage):
            images = sample_draws(pipe, recipe, draws, p, adapt_stage)
        for i, label in enumerate(group):
            examples[data.class_names[label]] = images[i * count : (i + 1) * count]
    return examples


def _each_its_own(pipe, draws, stage):
    return own_adapters(pipe, [[adapter_folder(stage, name) for name in draw.adapters] for draw in draws])


@contextmanager
def class_adapters(pipe, recipe, label, adapt_stage):
    """Draw class ``label`` with its one adapter fused; with LoFT's pairs ``sample_draws`` attaches each image's own."""
    one = adapt_stage and recipe.method.adapter in ("class", "dataset")
    with fused_lora(pipe, adapter_folder(adapt_stage, recipe.draw(label, 0).adapters[0]) if one else None):
        yield pipe


def sample_draws(pipe, recipe, draws, p, adapt_stage, **changes):
    """Draw what ``draws`` say, with the parameters ``p``, or others as ``changes`` (keywords of ``sample``)."""
    options = {name: getattr(p, name) for name in ("guidance_scale", "num_inference_steps", "resolution")}
    if draws[0].start is not None:
        options |= dict(starts=[start_picture(d.start, p.resolution) for d in draws], start_step=p.start_step)
    own = adapt_stage and recipe.method.adapter == "image"
    with _each_its_own(pipe, draws, adapt_stage) if own else nullcontext():
        return sample(pipe, [d.prompt for d in draws], [d.seed for d in draws], **(options | changes))


def image_path(stage, data, label, index):
    """``images/<class>/00000.png`` of a generate stage."""
    return stage.folder / "images" / data.class_dir(label) / f"{index:05d}.png"


def generate(pipe, recipe, p, stage, adapt_stage, judge, progress):
    """Draw every image that is not on disk yet, class by class, then write ``images/metadata.jsonl``.

    judge: ``judge(images) -> predicted labels`` for a method that keeps what CLIP agrees with, else None.
    The folder is an ImageFolder: ``datasets.load_dataset("imagefolder", data_dir=...)`` reads it as it is. Batches
    are fixed blocks of indices, so a resumed run computes what an undisturbed one would have. ``p.shard``: only that
    part of the classes, and no list.
    """
    path = lambda label, index: image_path(stage, recipe.data, label, index)  # noqa: E731
    size, count = p.generate_batch_size, _images_per_class(recipe, p)
    labels = part_of(range(len(recipe.shots)), p.shard)
    every = [(label, range(i, min(i + size, count))) for label in labels for i in range(0, count, size)]
    blocks = [(label, block) for label, block in every if not all(path(label, i).exists() for i in block)]
    drawn = _draw_blocks(pipe, recipe, p, blocks, path, adapt_stage, judge)
    with closing(drawn), enough_memory(p, "generate_batch_size"):
        for _ in progress(drawn, total=len(blocks), label="batches of images"):
            pass
    if p.shard:
        return
    rows = [
        _metadata_row(recipe, label, index, path(label, index), stage.folder / "images")
        for label, index in itertools.product(range(len(recipe.shots)), range(count))
    ]
    with atomic_write(stage.folder / "images" / "metadata.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def load_judge(p, data, device):
    """Zero-shot CLIP (``filter_model``) as ``judge(images) -> labels``."""
    return clip_judge(*load_clip(p.filter_model, p.filter_revision, device, "filter_model"), data)


def _images_per_class(recipe, p):
    return p.images_per_class if recipe.method.generates else 0


def _draw_blocks(pipe, recipe, p, blocks, path, adapt_stage, judge):
    for label, group in itertools.groupby(blocks, lambda block: block[0]):
        with class_adapters(pipe, recipe, label, adapt_stage):
            for _, block in group:
                _draw_block(pipe, recipe, p, label, block, path, adapt_stage, judge)
                yield label, block


def _draw_block(pipe, recipe, p, label, block, path, adapt_stage, judge):
    """Draw a block; what the judge takes for another class is drawn again, up to ``filter_tries`` times in all."""
    pending, tries = list(block), p.filter_tries if judge else 1
    for attempt in range(tries):
        draws = [recipe.draw(label, index, attempt) for index in pending]
        images = sample_draws(pipe, recipe, draws, p, adapt_stage)
        kept = [judged == label for judged in judge(images)] if judge else [True] * len(images)
        notes = [{"tries": attempt + 1, "kept": "clip" if keep else "gave up"} if judge else None for keep in kept]
        done = [
            (path(label, index), image, note)
            for index, image, note, keep in zip(pending, images, notes, kept, strict=True)
            if keep or attempt == tries - 1
        ]
        with ThreadPoolExecutor() as pool:  # compressing a picture leaves Python's lock free
            list(pool.map(write_png, *zip(*done, strict=True)))
        pending = [index for index, keep in zip(pending, kept, strict=True) if not keep]
        if not pending:
            return


def _metadata_row(recipe, label, index, path, root):
    with Image.open(path) as image:
        notes = dict(getattr(image, "text", {}))
    draw = recipe.draw(label, index, attempt=int(notes.get("tries", 1)) - 1)
    row = {
        "file_name": str(path.relative_to(root)),
        "label": label,
        "class_name": recipe.data.class_names[label],
        "prompt": draw.prompt,
        "seed": draw.seed,
        "adapter": " + ".join(draw.adapters) or None,
        "start": str(draw.start.relative_to(recipe.data.root)) if draw.start else None,
    }
    return row | ({"tries": int(notes["tries"]), "kept": notes["kept"]} if notes else {})


def metadata(stage):
    """The rows of a finished generate stage's ``metadata.jsonl``; InputError when it cannot be read."""
    path = stage.folder / "images" / "metadata.jsonl"
    return read_json(path, f"delete {stage.folder} and run 02_generate again", lines=True)


def generated_files(stage, n_classes):
    """``files[label]``, the pictures of a finished generate stage in order."""
    files = [[] for _ in range(n_classes)]
    for row in metadata(stage):
        files[row["label"]].append(inside(stage.folder / "images", row["file_name"], f"{stage.folder}: metadata.jsonl"))
    return files
