"""Run stage 1 or 2 without a notebook: a part of the work, or one adapter on several GPUs.

    python -m workflow.scripts.launch generate --shard 2/4 -f params/paper.yaml -p dataset eurosat
    accelerate launch --multi_gpu --num_processes 2 -m workflow.scripts.launch adapt -f params/paper.yaml -p dataset dtd
    torchrun --nproc_per_node 2 -m workflow.scripts.launch adapt -p device cpu            (on CPUs)

Parameters are given as for papermill; a parameter that is not given has the notebook's default. ``--shard 2/4`` makes
the second quarter of the classes (generate) or of the groups of adapters (adapt). After all parts, the notebook or this
command without ``--shard`` finishes the stage. If several processes are started, each computes its part of every batch
of ``adapt``, so choose ``adapt_batch_size`` accordingly. Many small adapters are divided better with ``--shard``.
"""

import argparse
import ast
import sys
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, tqdm

from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import generate, make_recipe
from datadream_utils.errors import InputError
from datadream_utils.params import make_params, read_params_file
from datadream_utils.runs.device import choose_device
from datadream_utils.runs.run import open_run


def read_command(arguments):
    """The checked parameters and the shard ("2/4", or "" for all) of a command line.

    Values override files, and later files override earlier ones, as in papermill. InputError for an unknown name or a
    value that the stage does not take.
    """
    parser = argparse.ArgumentParser(prog="python -m workflow.scripts.launch", description=__doc__.splitlines()[0])
    parser.add_argument("stage", choices=["adapt", "generate"])
    parser.add_argument("-f", "--parameters_file", metavar="FILE", action="append", default=[])
    pairs = {"metavar": ("NAME", "VALUE"), "nargs": 2, "action": "append", "default": []}
    parser.add_argument("-p", "--parameters", **pairs)
    parser.add_argument("-r", "--parameters_raw", help="a value that stays text", **pairs)
    parser.add_argument("--shard", default="", metavar="K/N", help="the K-th of N parts of the work (default: all)")
    command = parser.parse_args(arguments)
    values = {}
    for path in command.parameters_file:
        values |= read_params_file(path)
    values |= {name: _read_value(text) for name, text in command.parameters} | dict(command.parameters_raw)
    return make_params(command.stage, values), command.shard


def _read_value(text):
    """A number, true or false; any other text as it is."""
    try:
        return ast.literal_eval(text.title() if text.lower() in ("true", "false") else text)
    except (ValueError, SyntaxError):
        return text


def run_stage(params, shard=""):
    """Run stage 1 or 2, or a part of it, in this process: in a ``Team`` if the launcher has started several."""
    accelerator = Accelerator(cpu=choose_device(params.device) == "cpu")
    team = Team(accelerator) if accelerator.num_processes > 1 else None
    if team and params.stage != "adapt":
        raise InputError("several processes can share the batches of adapt only: divide generate with --shard.")
    run = open_run(params, shard, show_bar)
    if team:
        run.device = str(accelerator.device)  # this process's own GPU
    pipe = load_stable_diffusion(params.sd_model, params.sd_revision, run.device, run.dtype)
    if params.stage == "adapt":
        adapt(pipe, plan_adapters(run), run, team)
    else:
        generate(pipe, make_recipe(run), run)
    accelerator.end_training()


class Team:
    """Several processes, each with its own GPU, that train the same adapter: each computes its part of every batch.

    The images, noise and timesteps are those of one process, and the gradients are summed, so the adapter is the same
    as that of one process, up to rounding. ``leads`` is true for the one process that writes the files.
    """

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.size, self.leads = accelerator.num_processes, accelerator.is_main_process

    def begin(self, run):
        """Whether there is work to do; only the leader locks the run's folder."""
        (begun,) = broadcast_object_list([run.begin() if self.leads else None])
        return begun

    def share(self, n):
        """This process's slice of a batch of n, and the weight of the slice's mean loss in the loss of the batch.

        If there are fewer images than processes, every process computes the whole batch.
        """
        if n < self.size:
            return slice(None), 1 / self.size
        rank = self.accelerator.process_index
        part = slice(rank * n // self.size, (rank + 1) * n // self.size)
        return part, (part.stop - part.start) / n

    def add_up(self, losses, parameters):
        """Sum the gradients (in place) and the losses over all processes, in one message; returns the losses."""
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        tensors = [losses.detach(), *gradients]
        flat = self.accelerator.reduce(torch.cat([tensor.flatten() for tensor in tensors]), "sum")
        pieces = flat.split([tensor.numel() for tensor in tensors])
        losses, *sums = (piece.view_as(tensor) for piece, tensor in zip(pieces, tensors, strict=True))
        for gradient, total in zip(gradients, sums, strict=True):
            gradient.copy_(total)
        return losses


@contextmanager
def show_bar(total, label):
    """A progress bar in the terminal, of the leading process only."""
    with tqdm(total=total, desc=label) as bar:
        yield bar.update


if __name__ == "__main__":
    try:
        run_stage(*read_command(sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("Interrupted. What is finished is kept: give the same command again to go on.")
