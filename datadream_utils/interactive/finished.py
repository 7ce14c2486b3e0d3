"""A finished run, opened by its folder: how the solutions to the exercises begin."""

from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.diffusion.generate import make_recipe
from datadream_utils.runs.run import open_run, params_of


def open_finished(run_folder, stage, data_root, **changes):
    """The ``Run`` of a stage ("adapt", "generate", "train-R+S", ...) of the run in ``run_folder``.

    changes: parameters with other values; the stage is then another one, finished or not. InputError when the run has
    no such stage.
    """
    return open_run(params_of(run_folder, stage, data_root=data_root, **changes))


def open_generator(run_folder, stage, data_root):
    """``(run, pipe, recipe)``: the opened stage, its Stable Diffusion, and what decides each of its images."""
    run = open_finished(run_folder, stage, data_root)
    p = run.params
    return run, load_stable_diffusion(p.sd_model, p.sd_revision, run.device, run.dtype), make_recipe(run)
