"""Sampling a labelled data set from the (adapted) model (paper, section 3.3), for every compared system."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import DPMSolverMultistepScheduler, PNDMScheduler, StableDiffusionImg2ImgPipeline

from datadream_utils.backbones.clip import clip_judge
from datadream_utils.backbones.load import load_clip, model_identity
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import centre_square, read_image, write_png
from datadream_utils.diffusion.captions import read_captions
from datadream_utils.diffusion.lora import WEIGHTS, fused_lora
from datadream_utils.diffusion.recipe import Recipe
from datadream_utils.diffusion.stacked import per_image_adapters
from datadream_utils.files import atomic_write, digest, join_inside, read_json
from datadream_utils.methods import METHODS
from datadream_utils.runs.device import advise_on_memory
from datadream_utils.runs.shards import part_of
from datadream_utils.runs.stage import Stage

EXAMPLE_PIXELS = 4 * 512**2  # of the examples drawn in one batch: as many as four pictures of a full-size model


def make_recipe(run):
    """The ``Recipe`` of a run; its adapters are those of the run's own adapt stage."""
    folder = (run.stage if run.stage.name == "adapt" else run.source).folder if run.method.adapts else None
    captions = read_captions(run) if run.method.prompt == "caption" and run.stage.name == "generate" else None
    adapters = folder / "adapters" if folder else None
    return Recipe(run.method, run.data, run.shots, run.params.seed, adapters, captions)


def generate(pipe, recipe, run):
    """Draw every image that is not on disk yet; returns ``images[label]``, their paths in order.

    The folder ``images/`` is an ImageFolder: ``datasets.load_dataset("imagefolder", data_dir=...)`` reads it as it is.
    Batches are fixed blocks of indices, so a resumed run computes what an undisturbed one would have.
    """
    p = run.params
    if run.begin():
        labels = part_of(range(len(recipe.shots)), run.shard)
        rows = {label: _read_rows(run, label) for label in labels}
        missing = [
            (label, block) for label in labels for block in _blocks(run) if not _is_drawn(run, rows, label, block)
        ]
        judge = load_filter(run) if run.method.keep == "clip" else None
        with advise_on_memory(p, "generate_batch_size"), run.progress(len(missing), "batches of images") as advance:
            for label, of_class in itertools.groupby(missing, lambda block: block[0]):
                with class_adapter(pipe, recipe, label):
                    for _, block in of_class:
                        rows[label] |= _draw_block(pipe, recipe, run, label, block, judge)
                        _write_rows(_rows_file(run, label), rows[label])
                        advance()
        facts = {"model": model_identity(p.sd_model, p.sd_revision)}
        if not run.shard:
            _write_rows(run.folder / "images" / "metadata.jsonl", *rows.values())
            weights = sorted(recipe.adapters.glob(f"*/{WEIGHTS}")) if recipe.adapters else []
            images = flatten(read_generated(run.stage, len(recipe.shots)))[0]
            facts |= {"adapters_sha256": digest(weights), "images_sha256": digest(images)}
        run.finish(**facts)
    return read_generated(run.stage, len(recipe.shots))


def read_metadata(stage):
    """The rows of a generate stage's ``images/metadata.jsonl``, a dict per image; [] where a part is missing still."""
    path = stage.folder / "images" / "metadata.jsonl"
    return read_json(path, "run 02_generate again", lines=True) if path.exists() else []


def read_generated(stage, n_classes):
    """``images[label]``, the paths of a generate stage's images in order."""
    images = [[] for _ in range(n_classes)]
    for row in read_metadata(stage):
        source = f"{stage.folder}: metadata.jsonl"
        images[row["label"]].append(join_inside(stage.folder / "images", row["file_name"], source))
    return images


def read_generated_by_method(run):
    """``{method label: images[label]}`` of every method that has generated images from the same shots as ``run``."""
    sets = {}
    for name, method in METHODS.items():
        folder = run.params.model_copy(update={"method": name}).run_folder / "generate"
        if method.generates and Stage("generate", folder).finished:
            sets[method.label] = read_generated(Stage("generate", folder), len(run.shots))
    return sets


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


def sample_draws(pipe, recipe, draws, params, **changes):
    """Draw the images of ``draws`` with the parameters ``params``, or others as ``changes`` (keywords of ``sample``).

    With LoFT each image has adapters of its own, which are attached here. Other methods' adapters are fused by
    ``class_adapter`` beforehand.
    """
    options = {name: getattr(params, name) for name in ("guidance_scale", "num_inference_steps", "resolution")}
    if draws[0].start is not None:
        options["starts"] = [start_picture(draw.start, params.resolution) for draw in draws]
        options["start_step"] = params.start_step
    own = recipe.method.adapter == "image" and recipe.adapters
    with per_image_adapters(pipe, [draw.adapters for draw in draws]) if own else nullcontext():
        prompts, seeds = [draw.prompt for draw in draws], [draw.seed for draw in draws]
        return sample(pipe, prompts, seeds, **(options | changes))


@contextmanager
def class_adapter(pipe, recipe, label):
    """Draw class ``label`` with its one adapter fused into the weights, where the method has one per class or set."""
    adapters = recipe.draw(label, 0).adapters if recipe.method.adapter in ("class", "dataset") else ()
    with fused_lora(pipe, adapters[0] if adapters else None):
        yield pipe


def draw_examples(pipe, recipe, params, labels, count):
    """``count`` pictures of each class in ``labels`` from noise and class prompt: ``{class name: [PIL image, ...]}``.

    They are the first that stage 2 draws, up to rounding, for methods that sample from noise and class prompt. Several
    classes are drawn in one batch (``EXAMPLE_PIXELS``).
    """
    recipe, examples = recipe.from_noise(), {}
    size = max(1, EXAMPLE_PIXELS // (count * params.resolution**2))
    for group in (labels[i : i + size] for i in range(0, len(labels), size)):
        draws = [recipe.draw(label, i) for label in group for i in range(count)]
        own = recipe.method.adapter == "class" and recipe.adapters
        adapters = [draw.adapters for draw in draws]
        with per_image_adapters(pipe, adapters) if own else class_adapter(pipe, recipe, group[0]):
            images = sample_draws(pipe, recipe, draws, params)
        for i, label in enumerate(group):
            examples[recipe.data.class_names[label]] = images[i * count : (i + 1) * count]
    return examples


@lru_cache(maxsize=1024)
def start_picture(path, resolution):
    """A shot as image-to-image takes it: the middle square, ``resolution`` pixels."""
    return centre_square(read_image(path), resolution)


def load_filter(run):
    """Zero-shot CLIP (``filter_model``) as ``judge(images) -> labels``, for methods that keep what CLIP agrees with."""
    p = run.params
    return clip_judge(*load_clip(p.filter_model, p.filter_revision, run.device, "filter_model"), run.data)


def _image_path(run, label, index):
    """``images/<class>/00000.png`` of a generate stage."""
    return run.folder / "images" / run.data.class_dir(label) / f"{index:05d}.png"


def _blocks(run):
    """The indices of a class's images in fixed batches."""
    count, size = run.params.images_per_class if run.method.generates else 0, run.params.generate_batch_size
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def _is_drawn(run, rows, label, block):
    return all(index in rows[label] and _image_path(run, label, index).exists() for index in block)


def _draw_block(pipe, recipe, run, label, block, judge):
    """Draw a block of images; returns their rows of ``metadata.jsonl``, ``{index: row}``.

    What the judge assigns to another class is drawn again, up to ``filter_tries`` times in all.
    """
    pending, rows, tries = list(block), {}, run.params.filter_tries if judge else 1
    for attempt in range(tries):
        draws = [recipe.draw(label, index, attempt) for index in pending]
        images = sample_draws(pipe, recipe, draws, run.params)
        agrees = [judged == label for judged in judge(images)] if judge else [True] * len(images)
        accepted = {}
        for index, draw, image, agree in zip(pending, draws, images, agrees, strict=True):
            if agree or attempt == tries - 1:
                accepted[_image_path(run, label, index)] = image
                note = {"tries": attempt + 1, "kept": "clip" if agree else "gave up"} if judge else {}
                rows[index] = _row(run, label, index, draw) | note
        with ThreadPoolExecutor() as pool:  # compressing a picture leaves Python's lock free
            list(pool.map(write_png, accepted.keys(), accepted.values()))
        pending = [index for index, agree in zip(pending, agrees, strict=True) if not agree]
        if not pending:
            break
    return {index: rows[index] for index in block}


def _row(run, label, index, draw):
    """What ``metadata.jsonl`` says of an image."""
    return {
        "file_name": str(_image_path(run, label, index).relative_to(run.folder / "images")),
        "label": label,
        "class_name": run.data.class_names[label],
        "prompt": draw.prompt,
        "seed": draw.seed,
        "adapter": " + ".join(folder.name for folder in draw.adapters) or None,
        "start": str(draw.start.relative_to(run.data.root)) if draw.start else None,
    }


def _rows_file(run, label):
    """Where the rows of a class are kept while its images are drawn."""
    return run.folder / "rows" / f"{run.data.class_dir(label)}.jsonl"


def _read_rows(run, label):
    """The rows of a class's images that are drawn already, ``{index: row}``."""
    path = _rows_file(run, label)
    rows = read_json(path, "delete it and run 02_generate again", lines=True) if path.exists() else []
    return {int(Path(row["file_name"]).stem): row for row in rows}


def _write_rows(path, *rows_of_classes):
    """Write the rows of one class or several, each ``{index: row}``, by index."""
    rows = [rows[index] for rows in rows_of_classes for index in sorted(rows)]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
