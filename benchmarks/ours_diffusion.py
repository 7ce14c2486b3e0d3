"""Adaptation and generation by the package, called as the notebooks call it (without their pictures)."""

from benchmarks.clock import timed
from benchmarks.worlds import inputs
from datadream_utils.backbones.load import load_stable_diffusion, model_identity
from datadream_utils.data.dataset import check_images, flatten
from datadream_utils.diffusion.adapt import adapt as adapt_all
from datadream_utils.diffusion.adapt import finish_adapt, plan_adapters
from datadream_utils.diffusion.generate import generate as generate_all
from datadream_utils.diffusion.generate import read_generated
from datadream_utils.diffusion.recipe import Recipe
from datadream_utils.files import digest
from datadream_utils.runs.device import choose_device, weight_dtype
from datadream_utils.runs.stage import Stage, check_made


def silent(iterable, total=None, label=""):
    """No progress line."""
    return iterable


def load_pipeline(p, seconds):
    with timed(seconds, "load"):
        device = choose_device(p.device)
        return load_stable_diffusion(p.sd_model, p.sd_revision, device, weight_dtype(p.mixed_precision, device))


def adapt(p, folder, seconds, part=None):
    """All adapters of the run in one process; ``part`` is the reference's."""
    data, shots = inputs(p)
    check_images(flatten(shots)[0])
    pipe, stage = load_pipeline(p, seconds), Stage("adapt", folder, {})
    with timed(seconds, "work"):
        stage.begin()
        adapt_all(pipe, plan_adapters(p.system, data, shots), p, stage, silent)
        finish_adapt(stage, data, shots, p, choose_device(p.device))


def generate(p, folder, seconds, adapters=None):
    data, shots = inputs(p)
    check_images(flatten(shots)[0])
    check_made(adapters.parent, "01_adapt_sd")
    pipe, stage = load_pipeline(p, seconds), Stage("generate", folder, {}, {"shard": p.shard})
    with timed(seconds, "work"):
        stage.begin()
        recipe = Recipe(p.system, data, shots, p.seed)
        generate_all(pipe, recipe, p, stage, Stage("adapt", adapters.parent, {}), None, silent)
        images = [] if p.shard else flatten(read_generated(stage, len(shots)))[0]
        model = model_identity(p.sd_model, p.sd_revision)
        stage.finish(choose_device(p.device), model=model, images_sha256=digest(images))
