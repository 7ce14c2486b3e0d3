"""Adaptation and generation by the package, called as the notebooks call it (without their pictures)."""

from benchmarks.clock import timed
from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import check_images
from datadream_utils.diffusion.adapt import adapt as adapt_all
from datadream_utils.diffusion.adapt import plan_adapters
from datadream_utils.diffusion.generate import generate as generate_all
from datadream_utils.diffusion.generate import make_recipe


def load_pipeline(run, seconds):
    with timed(seconds, "load"):
        return load_stable_diffusion(run.params.sd_model, run.params.sd_revision, run.device, run.dtype)


def adapt(run, seconds, part=None):
    """All adapters of the run in one process; ``part`` is the reference's."""
    check_images(flatten(run.shots)[0])
    pipe = load_pipeline(run, seconds)
    with timed(seconds, "work"):
        adapt_all(pipe, plan_adapters(run), run)


def generate(run, seconds):
    """All images of the run, or those of its shard."""
    check_images(flatten(run.shots)[0])
    run.source.check_files()
    pipe = load_pipeline(run, seconds)
    with timed(seconds, "work"):
        generate_all(pipe, make_recipe(run), run)
