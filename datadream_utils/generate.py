"""Sampling a labelled data set from the (adapted) model (paper, section 3.3).

The noise of an image comes from (seed, class, index) alone: any image can be drawn again by itself, and stopping,
resuming or splitting the work changes nothing.
"""

import json

import torch

from datadream_utils.adapt import adapter_folder
from datadream_utils.datasets import stable_seed
from datadream_utils.images import written_whole
from datadream_utils.lora import fused_lora
from datadream_utils.prompts import generation_prompt


def image_seed(seed, class_name, index):
    """The seed of one image's initial noise."""
    return stable_seed("generate", seed, class_name, index)


@torch.no_grad()
def sample(pipe, prompts, seeds, guidance_scale, num_inference_steps, resolution):
    """Draw one image per prompt with its own seed: a list of PIL images of ``resolution`` pixels.

    Classifier-free guidance: eps = eps(z, "") + guidance_scale (eps(z, prompt) - eps(z, "")) (Ho & Salimans 2022).
    """
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    return pipe(
        list(prompts),
        generator=generators,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        height=resolution,
        width=resolution,
    ).images


def class_prompts(method, data):
    """The generation prompt of each class (the template's for a method that generates nothing)."""
    return [
        generation_prompt(method.prompt or "template", name, data.domain, data.definitions.get(name, ""))
        for name in data.class_names
    ]


def draw_examples(pipe, method, data, p, adapt_stage, labels, count):
    """``count`` pictures of each class in ``labels``, the first that stage 2 draws; ``adapt_stage=None``: base model.

    Returns ``{class name: [PIL image, ...]}``.
    """
    prompts, examples = class_prompts(method, data), {}
    for label in labels:
        seeds = [image_seed(p.seed, data.folders[label], i) for i in range(count)]
        folder = class_adapter(method, data, label, adapt_stage) if adapt_stage else None
        with fused_lora(pipe, folder):
            texts = [prompts[label]] * count
            pictures = sample(pipe, texts, seeds, p.guidance_scale, p.num_inference_steps, p.resolution)
        examples[data.class_names[label]] = pictures
    return examples


def class_adapter(method, data, label, adapt_stage):
    """The folder of the adapter that draws class ``label``, or None for the base model."""
    if method.adapter is None:
        return None
    name = data.class_dir(label) if method.adapter == "class" else "all_classes"
    return adapter_folder(adapt_stage, name)


def image_path(stage, data, label, index):
    """``images/<class>/00000.png`` of a generate stage."""
    return stage.folder / "images" / data.class_dir(label) / f"{index:05d}.png"


def generate(pipe, method, data, p, stage, adapt_stage, progress):
    """Draw every image that is not on disk yet, class by class, then write ``images/metadata.jsonl``.

    The folder is an ImageFolder: ``datasets.load_dataset("imagefolder", data_dir=...)`` reads it as it is. Batches
    are fixed blocks of indices, so a resumed run computes what an undisturbed one would have.
    """
    prompts = class_prompts(method, data)
    images_per_class = p.images_per_class if method.generates else 0
    blocks = []
    for label in range(len(data.class_names)):
        for start in range(0, images_per_class, p.generate_batch_size):
            block = range(start, min(start + p.generate_batch_size, images_per_class))
            if not all(image_path(stage, data, label, i).exists() for i in block):
                blocks.append((label, block))
    drawn = _draw(pipe, method, data, p, stage, adapt_stage, prompts, blocks)
    for _ in progress(drawn, total=len(blocks), label="batches of images"):
        pass
    rows = [
        _metadata_row(method, data, p, stage, prompts, label, index)
        for label in range(len(data.class_names))
        for index in range(images_per_class)
    ]
    with written_whole(stage.folder / "images" / "metadata.jsonl") as temporary:
        temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def _draw(pipe, method, data, p, stage, adapt_stage, prompts, blocks):
    for label in dict.fromkeys(label for label, _ in blocks):
        with fused_lora(pipe, class_adapter(method, data, label, adapt_stage)):
            for block in (block for other, block in blocks if other == label):
                seeds = [image_seed(p.seed, data.folders[label], i) for i in block]
                texts = [prompts[label]] * len(seeds)
                images = sample(pipe, texts, seeds, p.guidance_scale, p.num_inference_steps, p.resolution)
                for index, image in zip(block, images, strict=True):
                    with written_whole(image_path(stage, data, label, index)) as temporary:
                        image.save(temporary, format="PNG")
                yield label, block


def _metadata_row(method, data, p, stage, prompts, label, index):
    path = image_path(stage, data, label, index)
    return {
        "file_name": str(path.relative_to(stage.folder / "images")),
        "label": label,
        "class_name": data.class_names[label],
        "prompt": prompts[label],
        "seed": image_seed(p.seed, data.folders[label], index),
        "adapter": method.adapter,
    }


def metadata(stage):
    """The rows of a finished generate stage's ``metadata.jsonl``."""
    return [json.loads(line) for line in (stage.folder / "images" / "metadata.jsonl").read_text().splitlines()]


def generated_files(stage, n_classes):
    """``files[label]``, the pictures of a finished generate stage in order."""
    files = [[] for _ in range(n_classes)]
    for row in metadata(stage):
        files[row["label"]].append(stage.folder / "images" / row["file_name"])
    return files
