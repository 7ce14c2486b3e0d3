"""Samplers by speed and by how near their images are to real ones, in the tiny world: python -m benchmarks.frechet

Adapts DataDream_cls, draws the same images by DDIM's 50 steps (the authors' number) and by DPM-Solver++ with 10 to 20
(12 is the tiny world's own), and compares CLIP features with those of the validation split. Fused adapters either
way: this table is about the sampler alone. Writes ``benchmarks/results/frechet.json`` (on a GPU frechet_gpu.json, with
the clock's seconds) and its table in the README. Other models and data: --set device=cuda sd_model=... dataset=...
"""

import argparse
import tempfile
from pathlib import Path
from time import perf_counter, process_time

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler

from benchmarks.stages import machine, read_own
from benchmarks.tables import write_readme
from benchmarks.worlds import make_run, prepare
from datadream_utils.analysis.alignment import frechet
from datadream_utils.analysis.features import load_encoder
from datadream_utils.backbones.clip import image_features
from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import read_image
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import class_adapter, make_recipe, sample_draws
from datadream_utils.files import write_json
from datadream_utils.params import ROOT, make_params
from datadream_utils.runs.device import set_threads
from datadream_utils.runs.progress import quiet_libraries

SAMPLERS = (
    ("DDIM", DDIMScheduler, 50),
    ("DDIM", DDIMScheduler, 20),
    ("DPM-Solver++", DPMSolverMultistepScheduler, 20),
    ("DPM-Solver++", DPMSolverMultistepScheduler, 15),
    ("DPM-Solver++", DPMSolverMultistepScheduler, 12),
    ("DPM-Solver++", DPMSolverMultistepScheduler, 10),
)


@torch.inference_mode()
def features(encoder, images):
    """CLIP features (n, d) of PIL images."""
    pixels = [torch.from_numpy(encoder.processor(images=image).pixel_values[0]) for image in images]
    batches = torch.stack(pixels).to(encoder.clip.device).split(256)
    return torch.cat([image_features(encoder.clip, batch) for batch in batches]).cpu()


def draw(pipe, recipe, p, scheduler, steps):
    """``(all images, seconds)`` of ``images_per_class`` images of every class: the processor's, on a GPU the wall's."""
    own, clock = pipe.scheduler, process_time if pipe.device.type == "cpu" else perf_counter
    # DDIM's default clips latents to [-1, 1]
    pipe.scheduler = scheduler.from_config({**own.config, "clip_sample": False})
    images, started = [], clock()
    for label in range(len(recipe.shots)):
        draws = [recipe.draw(label, i) for i in range(p.images_per_class)]
        with class_adapter(pipe, recipe, label):
            for block in (draws[i : i + p.generate_batch_size] for i in range(0, len(draws), p.generate_batch_size)):
                images += sample_draws(pipe, recipe, block, p, num_inference_steps=steps)
    pipe.scheduler = own
    return images, clock() - started


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50, help="of each class")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="other parameters than the world's")
    options = parser.parse_args(arguments)
    own = read_own(options.set, parser)
    quiet_libraries()
    with tempfile.TemporaryDirectory() as temporary:
        changes = prepare("tiny", Path(temporary)) | {"images_per_class": options.images} | own
        p, q = make_params("adapt", changes), make_params("generate", changes)
        set_threads(p.num_threads)
        run = make_run(p, Path(temporary) / "adapt")
        pipe = load_stable_diffusion(p.sd_model, p.sd_revision, run.device, run.dtype)
        adapt(pipe, plan_adapters(run), run)
        recipe = make_recipe(make_run(q, Path(temporary) / "generate", run.stage))
        judge = make_params("train", changes)
        encoder, rows = load_encoder(judge.clip_model, judge.clip_revision, run.device), []
        real = features(encoder, [read_image(path) for path in flatten(run.data.files["val"])[0]])
        for name, scheduler, steps in SAMPLERS:
            images, seconds = draw(pipe, recipe, q, scheduler, steps)
            distance = frechet(real, features(encoder, images))
            default = isinstance(pipe.scheduler, scheduler) and steps == q.num_inference_steps
            row = {"sampler": f"{name}, {steps} steps", "default": default}
            row |= {"seconds": 100 * seconds / len(images), "distance": distance}
            rows.append(row | {"n_images": len(images), "n_real": len(real)})
            print(rows[-1], flush=True)
    write_json(
        ROOT / "benchmarks" / "results" / f"frechet{'' if run.device == 'cpu' else '_gpu'}.json",
        {"machine": machine(make_params("train", changes)), "features": encoder.name, "rows": rows},
    )
    write_readme()


if __name__ == "__main__":
    main()
