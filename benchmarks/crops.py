"""Random crops of the shots: new ones in every step, or a fixed number encoded once: python -m benchmarks.crops

The tiny world's digits, somewhere in wide pictures. DataDream_cls is adapted with each number of crops, draws its data
set, and CLIP learns from that alone; accuracy is that on validation pictures. What could be gained at full size is
counted on torch's meta device: the share of a step's floating-point operations that the VAE's encoder takes. Writes
``benchmarks/results/crops.json`` and its table in the README.
"""

import argparse
import multiprocessing
import os
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import ours_clip, ours_diffusion
from benchmarks.stages import machine
from benchmarks.tables import write_readme
from benchmarks.worker import pictures
from benchmarks.worlds import SIZES, make_run, prepare, stable_diffusion
from datadream_utils.classifier.build import load_classifier
from datadream_utils.classifier.evaluate import predict
from datadream_utils.data.dataset import load_dataset
from datadream_utils.files import write_json
from datadream_utils.params import ROOT, make_params
from datadream_utils.runs.device import set_threads
from datadream_utils.runs.progress import quiet_libraries
from datadream_utils.runs.stage import Stage

CROPS, SEEDS = (0, 8, 1), (0, 1, 2)
WIDTH, AWAY = 42, 4  # of a picture with a digit of 28 pixels, and how far from its middle that is at most


def write_wide_digits(data, root):
    """The pictures of ``data`` as a folder data set, each somewhere near the middle of a wider black one."""
    rng = np.random.default_rng(0)
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(data.root / "dataset.yaml", root)
    for split, files in data.files.items():
        for label, paths in enumerate(files):
            (folder := root / split / data.folders[label]).mkdir(parents=True)
            for path in paths:
                with Image.open(path) as digit:
                    wide = Image.new("RGB", (WIDTH, digit.height))
                    wide.paste(digit, ((WIDTH - digit.width) // 2 + int(rng.integers(-AWAY, AWAY + 1)), 0))
                wide.save(folder / path.name)


def measure(run, dataset, folder, changes):
    """``{"crops", "seed", "adapt": processor seconds, "accuracy": of validation pictures, %}``; run: the first two."""
    (crops, seed), seconds = run, {}
    quiet_libraries()
    folder = folder / f"{crops}-{seed}"
    changes = changes | {"dataset": str(dataset), "seed": seed, "crops_per_shot": crops, "method": "datadream_cls"}
    adapt, generate, train = (make_params(stage, changes) for stage in ("adapt", "generate", "train"))
    set_threads(adapt.num_threads)
    ours_diffusion.adapt(make_run(adapt, folder / "adapt"), seconds)
    ours_diffusion.generate(make_run(generate, folder / "generate", Stage("adapt", folder / "adapt")), {})
    trained = make_run(train, folder / "train")
    ours_clip.train(trained, {}, pictures(folder / "generate" / "images"))
    table = predict(load_classifier(trained), trained.data.files["val"], train)
    print(f"{crops} crops, seed {seed}: {100 * table['correct'].mean():.1f} %", flush=True)
    return {"crops": crops, "seed": seed, "adapt": seconds["work cpu"], "accuracy": 100 * table["correct"].mean()}


def share_of_encoding(sizes, side):
    """The VAE encoder's share of an adaptation step's floating-point operations, of one picture of ``side`` pixels.

    Counted, not computed. The step: text encoder and U-Net forward, and back to their inputs, as where all weights are
    frozen. LoRA's own products are left out.
    """
    with torch.device("meta"):
        pipe = stable_diffusion(sizes)
        picture, tokens = torch.empty(1, 3, side, side), torch.empty(1, pipe.tokenizer.model_max_length).long()
        time = torch.zeros(1).long()
    for part in (pipe.unet, pipe.vae, pipe.text_encoder):
        part.requires_grad_(False)
    pipe.text_encoder.get_input_embeddings().requires_grad_()  # so that gradients go back to the words
    with FlopCounterMode(display=False) as encoding:
        latents = pipe.vae.encode(picture).latent_dist.mean
    with FlopCounterMode(display=False) as rest:
        context = pipe.text_encoder(tokens).last_hidden_state
        pipe.unet(latents.requires_grad_(), time, context).sample.sum().backward()
    return encoding.get_total_flops() / (encoding.get_total_flops() + rest.get_total_flops())


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder, changes = Path(temporary), prepare("tiny", Path(temporary))
        p = make_params("train", changes)
        write_wide_digits(load_dataset(p.dataset, p.data_root), folder / "wide")
        one = partial(measure, dataset=folder / "wide", folder=folder, changes=changes)
        with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
            runs = list(pool.map(one, product(CROPS, SEEDS)))
    share = share_of_encoding(SIZES, side=512)
    result = {"machine": machine(p), "runs": runs, "share": share}
    write_json(ROOT / "benchmarks" / "results" / "crops.json", result)
    write_readme()


if __name__ == "__main__":
    main()
