"""Sampling a labelled data set from the (adapted) model (paper, section 3.3), for every compared system."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from diffusers.models.attention import BasicTransformerBlock

from datadream_utils.backbones.clip import clip_judge
from datadream_utils.backbones.load import load_clip, model_identity
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import centre_square, read_image, write_png
from datadream_utils.diffusion.captions import read_captions
from datadream_utils.diffusion.denoising import noise_scheduler
from datadream_utils.diffusion.lora import WEIGHTS, fused_lora
from datadream_utils.diffusion.recipe import Recipe
from datadream_utils.diffusion.stacked import per_image_adapters
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, digest, join_inside, read_json
from datadream_utils.methods import METHODS
from datadream_utils.runs.compiling import compiled, uncompiled
from datadream_utils.runs.device import advise_on_memory
from datadream_utils.runs.plausible import check_drawn, check_pictures, check_prompts
from datadream_utils.runs.shards import part_of
from datadream_utils.runs.stage import Stage

# U-Net passes of an image from which on compile "auto" compiles. On an H100 compiling the whole U-Net of SD 2.1-base
# took 75 s and spared 0.3 s of 20 images in 10 steps with guidance; that pays from 1,000 images in 50 steps on.
COMPILE_PAYS = 100_000
EXAMPLE_PIXELS = 4 * 512**2  # pixels in one batch of examples: four pictures of a full-size model


def make_recipe(run):
    """The ``Recipe`` of a run; its adapters are those of the run's own adapt stage."""
    adapters, captions = None, None
    if run.method.adapts:
        stage = run.stage if run.stage.name == "adapt" else run.source
        adapters = stage.folder / "adapters"
    if run.method.prompt == "caption" and run.stage.name == "generate":
        captions = read_captions(run)
    return Recipe(run.method, run.data, run.shots, run.params.seed, adapters, captions)


def generate(pipe, recipe, run, pays=None):
    """Draw every image that is not on disk yet; returns ``images[label]``, the paths in order.

    ``datasets.load_dataset("imagefolder", data_dir=...)`` reads the folder ``images/`` as it is. Batches are fixed
    blocks of indices, so a resumed run makes the same images as an uninterrupted one. pays: whether compile "auto"
    compiles; None: as ``compile_pays`` says. InputError for what ``runs.plausible`` refuses: classes with the same
    prompt, and images that cannot be right.
    """
    p = run.params
    if run.method.generates and run.method.prompt != "caption":
        check_prompts(pipe.tokenizer, recipe.class_prompts, run.data.class_names, "Stable Diffusion")
    if run.begin():
        labels = part_of(range(len(recipe.shots)), run.shard)
        rows = {label: _read_rows(run, label) for label in labels}
        missing = [
            (label, block) for label in labels for block in _blocks(run) if not _is_drawn(run, rows, label, block)
        ]
        judge = load_filter(run) if run.method.keep == "clip" else None
        pays = compile_pays(pipe, p, len(labels)) if pays is None else pays
        with (
            advise_on_memory(p, "generate_batch_size"),
            _compiled_unet(pipe, recipe, run, missing, pays) as is_compiled,
            run.progress(len(missing), "batches of images") as advance,
        ):
            for label, of_class in itertools.groupby(missing, lambda block: block[0]):
                with class_adapter(pipe, recipe, label):
                    for _, block in of_class:
                        tried = sum(rows[label][index]["tries"] for index in range(block.start)) if judge else 0
                        rows[label] |= _draw_block(pipe, recipe, run, label, block, judge, tried, is_compiled)
                        _check_class(run, label)
                        _write_rows(_rows_file(run, label), rows[label])
                        advance()
        facts = {"model": model_identity(p.sd_model, p.sd_revision), "passes_per_image": passes_per_image(pipe, p)}
        if not run.shard:
            _write_rows(run.folder / "images" / "metadata.jsonl", *rows.values())
            weights = sorted(recipe.adapters.glob(f"*/{WEIGHTS}")) if recipe.adapters else []
            images = flatten(read_generated(run.stage, len(recipe.shots)))[0]
            facts |= {"adapters_sha256": digest(weights), "images_sha256": digest(images)}
        run.finish(**facts)
    return read_generated(run.stage, len(recipe.shots))


def compile_pays(pipe, params, n_classes):
    """Whether compile "auto" compiles for the images of ``n_classes`` classes, also of those that are drawn already."""
    passes = n_classes * params.images_per_class * passes_per_image(pipe, params)
    return pipe.device.type == "cuda" and passes >= COMPILE_PAYS


def _compiled_unet(pipe, recipe, run, missing, pays):
    """``compiled`` for the U-Net's transformer blocks, if images are ``missing``; tried on a batch in two steps."""

    def trial():
        draws = [recipe.draw(missing[0][0], index) for index in _blocks(run)[0]]
        sample_draws(pipe, recipe, draws, run.params, num_inference_steps=2)

    blocks = [module for module in pipe.unet.modules() if isinstance(module, BasicTransformerBlock)]
    return compiled(blocks, run.params.compile if missing else "no", pays, trial)


def read_metadata(stage):
    """The rows of a generate stage's ``images/metadata.jsonl``, a dict per image; [] while there is no such file."""
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
    """``{method's label: images[label]}`` of every method whose run of the same name has generated images.

    Same name: same data set, n_shot, seed and variant as ``run``, under the same ``output_root``.
    """
    images = {}
    for name, method in METHODS.items():
        stage = Stage("generate", run.params.model_copy(update={"method": name}).run_folder / "generate")
        if method.generates and stage.finished:
            images[method.label] = read_generated(stage, len(run.shots))
    return images


@torch.no_grad()
def sample(
    pipe,
    prompts,
    seeds,
    guidance_scale,
    num_inference_steps,
    resolution,
    starts=None,
    start_noise=None,
    sampler="model",
):
    """Draw one image per prompt with its own seed: a list of PIL images of ``resolution`` pixels.

    Classifier-free guidance: eps = eps(z, "") + guidance_scale (eps(z, prompt) - eps(z, "")) (Ho & Salimans 2022);
    with guidance_scale 1 only eps(z, prompt) is computed.
    InputError for a picture that is not finite or that a safety checker has blacked out.
    starts: square PIL pictures to start from, None: noise. Each is noised to the amplitude ``start_noise``, and the
    steps before it are skipped (Meng et al. 2022). DPM-Solver++ then replaces PNDM, if that is the model's sampler.
    sampler: "model" or "dpmsolver++", see ``GenerateParams``.
    """
    scheduler, first = _schedule(pipe, num_inference_steps, start_noise, sampler)
    options = dict(
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        output_type="np",
    )
    if starts is None:
        drawing = with_scheduler(StableDiffusionPipeline, pipe, scheduler)
        options |= {"height": resolution, "width": resolution}
    else:
        drawing = with_scheduler(StableDiffusionImg2ImgPipeline, pipe, scheduler)
        strength = (num_inference_steps - first + 0.5) / num_inference_steps  # half a step against rounding down
        options |= {"image": list(starts), "strength": min(1.0, strength)}
    drawn = drawing(list(prompts), **options)
    check_drawn(drawn.images, drawn.nsfw_content_detected, prompts)
    return pipe.image_processor.numpy_to_pil(drawn.images)


def with_scheduler(kind, pipe, scheduler):
    """A pipeline of class ``kind`` with the models of ``pipe`` and this scheduler."""
    other = kind(**pipe.components | {"scheduler": scheduler}, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    return other


def count_passes(pipe, num_inference_steps, start_noise=None, sampler="model"):
    """U-Net passes of ``sample`` per image, without guidance, which doubles them. PNDM repeats its second step."""
    scheduler, first = _schedule(pipe, num_inference_steps, start_noise, sampler)
    return len(scheduler.timesteps) - first * scheduler.order


def passes_per_image(pipe, params):
    """U-Net passes of an image of stage 2; guidance needs two for each step."""
    noise = params.start_noise if params.system.start == "shot" else None
    passes = count_passes(pipe, params.num_inference_steps, noise, params.sampler)
    return passes * (2 if params.guidance_scale > 1 else 1)


def make_scheduler(pipe, sampler):
    """A fresh scheduler of the model's own configuration: of its own kind, or DPM-Solver++."""
    kind = DPMSolverMultistepScheduler if sampler == "dpmsolver++" else type(pipe.scheduler)
    return kind.from_config(pipe.scheduler.config)


def _schedule(pipe, num_inference_steps, start_noise, sampler):
    """``(scheduler, first step)``: the step whose noise amplitude sqrt(1 - abar_t) is nearest to ``start_noise``.

    Without ``start_noise``: the first one.
    """
    if start_noise is not None and type(pipe.scheduler) is PNDMScheduler:
        sampler = "dpmsolver++"  # PNDM repeats its second step, so it cannot begin later
    scheduler = make_scheduler(pipe, sampler)
    scheduler.set_timesteps(num_inference_steps)
    if start_noise is None:
        return scheduler, 0
    times = scheduler.timesteps[:: scheduler.order].long()
    amplitudes = (1 - noise_scheduler(pipe).alphas_cumprod[times]).sqrt()
    return scheduler, int((amplitudes - start_noise).abs().argmin())


def sample_draws(pipe, recipe, draws, params, **changes):
    """Draw the images of ``draws`` with the values of ``params``; ``changes`` (keywords of ``sample``) override them.

    For LoFT this attaches each image's own adapters. For other methods the caller fuses the adapter beforehand, with
    ``class_adapter``.
    """
    names = ("guidance_scale", "num_inference_steps", "resolution", "sampler")
    options = {name: getattr(params, name) for name in names}
    if draws[0].start is not None:
        options["starts"] = [start_picture(draw.start, params.resolution) for draw in draws]
        options["start_noise"] = params.start_noise
    own = recipe.method.adapter == "image" and recipe.adapters
    with per_image_adapters(pipe, [draw.adapters for draw in draws]) if own else nullcontext():
        prompts, seeds = [draw.prompt for draw in draws], [draw.seed for draw in draws]
        return sample(pipe, prompts, seeds, **(options | changes))


@contextmanager
def class_adapter(pipe, recipe, label):
    """While the block runs, the adapter of class ``label`` is fused into the weights.

    It is the adapter of the class or of the data set. Without one, and for LoFT, the pipeline stays as it is.
    """
    adapters = recipe.draw(label, 0).adapters if recipe.method.adapter in ("class", "dataset") else ()
    with fused_lora(pipe, adapters[0] if adapters else None):
        yield pipe


def draw_examples(pipe, recipe, params, labels, count):
    """``count`` pictures of each class in ``labels`` from noise and class prompt: ``{class name: [PIL image, ...]}``.

    For methods that sample like this they are the first images of stage 2, up to rounding. A batch holds several
    classes (``EXAMPLE_PIXELS``).
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
    """Zero-shot CLIP (``filter_model``) as ``judge(images) -> labels``, for methods with keep "clip"."""
    p = run.params
    with advise_on_memory(p):
        return clip_judge(*load_clip(p.filter_model, p.filter_revision, run.device, "filter_model"), run.data)


def _image_path(run, label, index):
    """``images/<class>/00000.png`` of a generate stage."""
    return run.folder / "images" / run.data.class_dir(label) / f"{index:05d}.png"


def _blocks(run):
    """The indices of a class's images, as ranges: one per batch."""
    count, size = run.params.images_per_class if run.method.generates else 0, run.params.generate_batch_size
    return [range(i, min(i + size, count)) for i in range(0, count, size)]


def _is_drawn(run, rows, label, block):
    """Whether all images of a block and their rows are on disk."""
    return all(index in rows[label] and _image_path(run, label, index).exists() for index in block)


def _draw_block(pipe, recipe, run, label, block, judge, tried, is_compiled):
    """Draw a block of images; returns their rows of ``metadata.jsonl``, ``{index: row}``.

    An image that the judge assigns to another class is drawn again while its class has draws left, ``filter_tries`` per
    image; then it is kept as it is. tried: draws of the class for the blocks before; each image after gets one.
    """
    count = run.params.images_per_class
    pending, rows, left = list(block), {}, run.params.filter_tries * count - tried - (count - block.stop)
    for attempt in itertools.count():
        draws = [recipe.draw(label, index, attempt) for index in pending]
        with uncompiled(is_compiled and len(draws) != len(_blocks(run)[0])):
            images = sample_draws(pipe, recipe, draws, run.params)
        agrees = [judged == label for judged in judge(images)] if judge else [True] * len(images)
        left -= len(pending)
        gives_up, accepted = agrees.count(False) > left, {}
        for index, draw, image, agree in zip(pending, draws, images, agrees, strict=True):
            if agree or gives_up:
                accepted[_image_path(run, label, index)] = image
                note = {"tries": attempt + 1, "kept": "clip" if agree else "gave up"} if judge else {}
                rows[index] = _row(run, label, index, draw) | note
        with ThreadPoolExecutor() as pool:  # compressing a picture releases Python's global lock
            list(pool.map(write_png, accepted.keys(), accepted.values()))
        pending = [index for index in pending if index not in rows]
        if not pending:
            return {index: rows[index] for index in block}


def _check_class(run, label):
    """Refuse a class whose images are all on disk and cannot be right; all of them are then drawn again next time."""
    paths = [_image_path(run, label, index) for index in range(run.params.images_per_class)]
    if not all(path.exists() for path in paths):
        return
    try:
        check_pictures(paths, run.data.class_names[label], _other_images(run))
    except InputError:
        _rows_file(run, label).unlink(missing_ok=True)
        raise


def _other_images(run):
    """What can give other images, as the end of a sentence."""
    p, changes = run.params, []
    if p.mixed_precision == "fp16":
        changes.append("set mixed_precision to 'bf16' or 'no' instead of 'fp16'")
    if run.method.adapts:
        changes.append("train the adapters again with a lower adapt_lr")
    changes.append(f"lower guidance_scale ({p.guidance_scale:g}) or change sd_model")
    return f"{', or '.join(changes)}, and set 'variant' to a word of your own or delete {run.folder}"


def _row(run, label, index, draw):
    """The row of an image in ``metadata.jsonl``."""
    return {
        "file_name": _image_path(run, label, index).relative_to(run.folder / "images").as_posix(),
        "label": label,
        "class_name": run.data.class_names[label],
        "prompt": draw.prompt,
        "seed": draw.seed,
        "adapter": " + ".join(folder.name for folder in draw.adapters) or None,
        "start": draw.start.relative_to(run.data.root).as_posix() if draw.start else None,
    }


def _rows_file(run, label):
    """The file of a class's rows while its images are drawn."""
    return run.folder / "rows" / f"{run.data.class_dir(label)}.jsonl"


def _read_rows(run, label):
    """The rows of a class's images that have been drawn, ``{index: row}``."""
    path = _rows_file(run, label)
    rows = read_json(path, "delete it and run 02_generate again", lines=True) if path.exists() else []
    return {int(Path(row["file_name"]).stem): row for row in rows}


def _write_rows(path, *rows_of_classes):
    """Write the rows of one or several classes, each ``{index: row}``, sorted by index within a class."""
    rows = [rows[index] for rows in rows_of_classes for index in sorted(rows)]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
