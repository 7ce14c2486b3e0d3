"""Look at the tiny world's base models on validation images of handwritten digits; the test images stay unread.

    python -m models.pretraining.evaluate                          the features of CLIP: zero-shot and linear probes
    python -m models.pretraining.evaluate --stages --sheet x.png   also adaptation, pictures and classifiers
    python -m models.pretraining.evaluate --card                   writes the table into the model card

Few-shot images are those of seeds from 100 on, so that no choice made here touches the seeds that results are
published for.
"""

import argparse
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.worlds import parameters
from datadream_utils.backbones.clip import ClipClassifier, image_features
from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from datadream_utils.classifier.train import (
    clip_image_size,
    evaluation_pictures,
    fit,
    make_classifier,
    predict,
    training_sets,
    validation_set,
)
from datadream_utils.data.dataset import few_shot, flatten, load_dataset
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import Recipe, generate, generated_files
from datadream_utils.methods import METHODS
from datadream_utils.plots.style import show_grid
from datadream_utils.runs.stage import stage
from models.pretraining.pretrain import write_card

SHOTS = (1, 4, 16)
SEEDS = (100, 101)
RESNET = dict(classifier="models/tiny-resnet", train_lr=1e-2)  # as in params/tiny-resnet.yaml


@cache
def clip_of(models):
    """CLIP, its tokenizer and its preprocessing."""
    return load_clip(str(models / "tiny-clip"))


@torch.inference_mode()
def features(models, paths):
    """CLIP's unit-length features (n, d) and the pixels (n, 3 h w) of pictures."""
    clip, _, processor = clip_of(models)
    pictures = evaluation_pictures(paths, processor)
    pixels = torch.stack(pictures.__getitems__(range(len(paths))))
    return image_features(clip, pixels), pixels.flatten(1)


def linear_probe(shots, shot_labels, images, steps=300, weight_decay=1e-2):
    """Predictions of multinomial logistic regression on features that are scaled to the shots' mean and spread."""
    mean, spread = shots.mean(0), shots.std(0) + 1e-6
    shots, images = (shots - mean) / spread, (images - mean) / spread
    weight = torch.zeros(int(shot_labels.max()) + 1, shots.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=steps, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(shots, weight[:, :-1], weight[:, -1]), shot_labels)
        value = value + weight_decay / 2 * weight[:, :-1].pow(2).sum() / len(weight)
        value.backward()
        return value

    optimizer.step(loss)
    return F.linear(images, weight[:, :-1], weight[:, -1]).argmax(1)


def look_at_features(models, data, seed):
    """``{what: accuracy (%)}`` of CLIP as it is, of linear probes and of nearest neighbours on pixels."""
    clip, tokenizer, processor = clip_of(models)
    paths, labels = flatten(data.files["val"])
    labels = torch.tensor(labels)
    images, pixels = features(models, paths)
    p = parameters("train", dict(method="clip_zeroshot", setting="none"))
    classifier = ClipClassifier(clip, tokenizer, data).eval()
    found = {"zero-shot CLIP": predict(classifier, *validation_set(data, processor), p)["correct"].mean() * 100}
    for n_shot in SHOTS:
        shot_paths, shot_labels = flatten(few_shot(data, n_shot, seed))
        shots, shot_pixels = features(models, shot_paths)
        shot_labels = torch.tensor(shot_labels)
        guesses = {
            "linear probe": linear_probe(shots, shot_labels, images),
            "nearest neighbour on pixels": shot_labels[torch.cdist(pixels, shot_pixels).argmin(1)],
        }
        for name, guess in guesses.items():
            found[f"{name}, {_shots(n_shot)}"] = (guess == labels).float().mean().item() * 100
    return found


def look_at_stages(models, data, seed, n_shot, folder):
    """``({what: accuracy (%)}, {method: files per class})``: adapt, generate and train as the notebooks do."""
    changes = dict(sd_model=str(models / "tiny-stable-diffusion"), clip_model=str(models / "tiny-clip"))
    changes |= dict(n_shot=n_shot, seed=seed, output_root=str(folder))
    shots, drawn, found = few_shot(data, n_shot, seed), {}, {}
    for method in ("fakeit", "datadream_cls"):
        drawn[method] = draw(data, shots, changes | dict(method=method))
    runs = [("real", "R", {})] + [(method, setting, {}) for method in drawn for setting in ("S", "R+S")]
    runs += [("real", "R", RESNET), *((method, setting, RESNET) for method, setting, _ in runs[1:])]
    for method, setting, classifier in runs:
        p = parameters("train", changes | classifier | dict(method=method, setting=setting))
        name = f"{METHODS[method].label}, {setting}, {_shots(n_shot)}" + (" (ResNet)" if classifier else "")
        found[name] = validation_accuracy(models, data, shots, drawn.get(method), p)
        print(f"{name}: {found[name]:.1f}", flush=True)
    return found, drawn


def draw(data, shots, changes):
    """Adapt where the method does and generate its images: the files of each class."""
    p_adapt, p = parameters("adapt", changes), parameters("generate", changes)
    pipe, adapted, drawn = load_stable_diffusion(p.sd_model), stage(p_adapt, "adapt"), stage(p, "generate")
    if p.system.adapts:
        adapt(pipe, plan_adapters(p.system, data, shots), p_adapt, adapted, _silently)
    generate(pipe, Recipe(p.system, data, shots, p.seed), p, drawn, adapted, None, _silently)
    return generated_files(drawn, len(data.class_names))


def validation_accuracy(models, data, shots, drawn, p):
    """Train a classifier by the fixed schedule; its accuracy (%) on the validation images."""
    clip, tokenizer, processor = clip_of(models)
    size = clip_image_size(clip)
    classifier = make_classifier(clip, tokenizer, data, p)
    for _ in fit(
        classifier, processor, training_sets(p.setting, shots, drawn, p, size), p, size, len(data.class_names)
    ):
        pass
    return predict(classifier, *validation_set(data, processor), p)["correct"].mean() * 100


def contact_sheet(data, drawn, path):
    """Ten pictures of every class, methods side by side, as a PNG."""
    rows = [[file for method in drawn for file in drawn[method][label][:10]] for label in range(len(data.class_names))]
    title = "   |   ".join(METHODS[method].label for method in drawn)
    show_grid(rows, data.class_names, title=title, side=0.5).savefig(path, dpi=128)


def table(seeds, rows):
    """Markdown: a row for each measurement, a column for each seed of the few shots, and the mean."""
    lines = ["| validation images, accuracy (%) | " + " | ".join(f"seed {seed}" for seed in seeds) + " | mean |"]
    lines.append("|---|" + "--:|" * (len(seeds) + 1))
    for name in rows[0]:
        values = [row[name] for row in rows]
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in [*values, np.mean(values)]) + " |")
    return "\n".join(lines)


def _shots(n_shot):
    return f"{n_shot} shot" + "s" * (n_shot > 1)


def _silently(iterable, total=None, label=""):
    return iterable


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", type=Path, default=Path("models"), help="folder with tiny-clip and the others")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="of the few shots, 100 or above")
    parser.add_argument(
        "--stages", type=int, nargs="*", default=[], help="also adapt, generate and train, with so many shots"
    )
    parser.add_argument("--sheet", type=Path, help="PNG of the generated pictures of the first seed")
    parser.add_argument("--card", action="store_true", help="write the table into the models' README.md")
    args = parser.parse_args()
    if min(args.seeds) < 100:
        parser.error("seeds below 100 are those that results are published for")
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    models, data, rows = args.models.resolve(), load_dataset("mnist5k"), []
    for seed in args.seeds:
        rows.append(look_at_features(models, data, seed))
        for n_shot in args.stages:
            with tempfile.TemporaryDirectory() as folder:
                found, drawn = look_at_stages(models, data, seed, n_shot, folder)
                rows[-1] |= found
                if args.sheet and seed == args.seeds[0] and n_shot == max(args.stages):
                    contact_sheet(data, drawn, args.sheet)
    print(table(args.seeds, rows))
    if args.card:
        write_card(args.models, table(args.seeds, rows))


if __name__ == "__main__":
    main()
