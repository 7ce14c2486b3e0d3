"""Evaluate the tiny world's base models on validation images of handwritten digits; the test images stay unread.

    python -m models.pretraining.evaluate                          the features of CLIP: zero-shot and linear probes
    python -m models.pretraining.evaluate --stages 16 --sheet x.png   also adaptation, pictures and classifiers
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

from datadream_utils.analysis.baselines import predict_nearest, predict_probe
from datadream_utils.backbones.clip import ClipClassifier, image_features
from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import predict
from datadream_utils.classifier.pictures import evaluation_pictures, make_sets
from datadream_utils.classifier.train import train_classifier
from datadream_utils.data.dataset import flatten, load_dataset
from datadream_utils.data.shots import few_shot
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import generate, make_recipe
from datadream_utils.methods import METHODS
from datadream_utils.params import make_params
from datadream_utils.plots.pictures import show_grid
from datadream_utils.runs.progress import no_progress
from datadream_utils.runs.run import Run
from datadream_utils.runs.stage import stage_of
from models.pretraining.pretrain import write_card

SHOTS = (1, 4, 16)
SEEDS = (100, 101)
RESNET = dict(classifier="models/tiny-resnet", train_lr=1e-2, train_epochs=40)  # as in params/tiny-resnet.yaml


@cache
def load_models_clip(models):
    """``(CLIP, its tokenizer, its preprocessing)`` of a models folder."""
    return load_clip(str(models / "tiny-clip"))


@torch.inference_mode()
def compute_features(models, paths):
    """CLIP's unit-length features (n, d) and the pixels (n, 3 h w) of pictures."""
    clip, _, processor = load_models_clip(models)
    pictures = evaluation_pictures(paths, processor)
    pixels = torch.stack(pictures.__getitems__(range(len(paths))))
    return image_features(clip, pixels).numpy(), pixels.flatten(1).numpy()


def evaluate_features(models, data, seed):
    """``{what: accuracy (%)}`` of zero-shot CLIP, of linear probes and of nearest neighbours on pixels."""
    paths, labels = flatten(data.files["val"])
    images, pixels = compute_features(models, paths)
    params = make_params("train", dict(method="clip_zeroshot", setting="none"))
    classifier = ClipClassifier(*load_models_clip(models), data).eval()
    accuracies = {"zero-shot CLIP": predict(classifier, data.files["val"], params)["correct"].mean() * 100}
    for n_shot in SHOTS:
        shot_paths, shot_labels = flatten(few_shot(data, n_shot, seed))
        shots, shot_pixels = compute_features(models, shot_paths)
        predictions = {
            "linear probe": predict_probe(shots, shot_labels, images),
            "nearest neighbour on pixels": predict_nearest(shot_pixels, shot_labels, pixels),
        }
        for name, predicted in predictions.items():
            accuracies[f"{name}, {_shots(n_shot)}"] = (predicted == labels).mean() * 100
    return accuracies


def evaluate_stages(models, data, seed, n_shot, folder, changes=None):
    """``({what: accuracy (%)}, {method: images[label]})``: adapt, generate and train as the notebooks do.

    ``changes``: parameters other than the notebooks' defaults.
    """
    changes = (changes or {}) | dict(
        sd_model=str(models / "tiny-stable-diffusion"), clip_model=str(models / "tiny-clip")
    )
    changes |= dict(n_shot=n_shot, seed=seed, output_root=str(folder))
    images = {method: draw_images(data, changes | dict(method=method)) for method in ("fakeit", "datadream_cls")}
    trainings = [("real", "R", {})] + [(method, setting, {}) for method in images for setting in ("S", "R+S")]
    trainings += [(method, setting, RESNET) for method, setting, _ in trainings]
    accuracies = {}
    for method, setting, classifier in trainings:
        name = f"{METHODS[method].label}, {setting}, {_shots(n_shot)}" + (" (ResNet)" if classifier else "")
        run = open_without_test("train", data, changes | classifier | dict(method=method, setting=setting))
        accuracies[name] = train_and_validate(run, images.get(method))
        print(f"{name}: {accuracies[name]:.1f}", flush=True)
    return accuracies, images


def open_without_test(stage, data, values):
    """A ``Run`` of ``values`` on ``data``, whose test images nobody reads here."""
    params = make_params(stage, values)
    return Run(params, stage_of(params), data, few_shot(data, params.n_shot, params.seed), "cpu", progress=no_progress)


def draw_images(data, values):
    """Adapt where the method does, and generate its images: ``images[label]``."""
    adapted, run = open_without_test("adapt", data, values), open_without_test("generate", data, values)
    pipe = load_stable_diffusion(run.params.sd_model)
    if run.method.adapts:
        adapt(pipe, plan_adapters(adapted), adapted)
        run.source = adapted.stage
    return generate(pipe, make_recipe(run), run)


def train_and_validate(run, images):
    """Train a classifier by the fixed schedule; its accuracy (%) on the validation images."""
    classifier = make_classifier(run)
    for _ in train_classifier(classifier, make_sets(run.params, run.shots, images, classifier.image_size), run.params):
        pass
    return predict(classifier, run.data.files["val"], run.params)["correct"].mean() * 100


def draw_sheet(data, images, path):
    """Ten pictures of every class, methods side by side, as a PNG."""
    rows = [
        [file for method in images for file in images[method][label][:10]] for label in range(len(data.class_names))
    ]
    title = "   |   ".join(METHODS[method].label for method in images)
    show_grid(rows, data.class_names, title=title, side=0.5).savefig(path, dpi=128)


def format_table(seeds, rows):
    """Markdown: a row for each measurement, a column for each seed of the few shots, and the mean."""
    columns = " | ".join(f"seed {seed}" for seed in seeds)
    lines = [f"| validation images of mnist5k, accuracy (%) | {columns} | mean |"]
    lines.append("|---|" + "--:|" * (len(seeds) + 1))
    for name in rows[0]:
        values = [row[name] for row in rows]
        lines.append(f"| {name} | " + " | ".join(f"{value:.1f}" for value in [*values, np.mean(values)]) + " |")
    return "\n".join(lines)


def _shots(n_shot):
    return f"{n_shot} shot" + "s" * (n_shot > 1)


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
        rows.append(evaluate_features(models, data, seed))
        for n_shot in args.stages:
            with tempfile.TemporaryDirectory() as folder:
                accuracies, images = evaluate_stages(models, data, seed, n_shot, folder)
                rows[-1] |= accuracies
                if args.sheet and seed == args.seeds[0] and n_shot == max(args.stages):
                    draw_sheet(data, images, args.sheet)
    print(format_table(args.seeds, rows))
    if args.card:
        stages = " ".join(["", "--stages", *map(str, args.stages)]) if args.stages else ""
        command = f"python -m models.pretraining.evaluate{stages}"
        write_card(args.models, f"`{command}` makes this table.\n\n{format_table(args.seeds, rows)}")


if __name__ == "__main__":
    main()
