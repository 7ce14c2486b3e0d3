"""Stage 1 from parameter files, without a notebook: the way to train one adapter on several GPUs of a machine.

    accelerate launch --multi_gpu --num_processes 2 -m workflow.scripts.launch -f params/paper.yaml -p seed 1 ...
    torchrun --nproc_per_node 2 -m workflow.scripts.launch -p device cpu ...            (on CPUs)

Files and values as papermill takes them; what they leave out is as in the notebook. Every process takes its part of
every batch: choose ``adapt_batch_size`` accordingly. Many small adapters are better divided by ``shard``.
"""

import argparse
import ast
import json
import sys

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, tqdm

from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.data.dataset import check_images, few_shot, flatten, load_dataset
from datadream_utils.diffusion.adapt import adapt, finish_adapt, plan_adapters
from datadream_utils.errors import InputError, suggest
from datadream_utils.params import NOTEBOOKS, ROOT, AdaptParams, parameter_names, read_params_file
from datadream_utils.runs.device import choose_device, set_threads, weight_dtype
from datadream_utils.runs.stage import stage as run_stage
from workflow.scripts.team import Team


def read_command(arguments):
    """The parameters that a command line like papermill's sets: files in order, then single values."""
    parser = argparse.ArgumentParser(prog="workflow.scripts.launch", description=__doc__.splitlines()[0])
    parser.add_argument("-f", "--parameters_file", metavar="FILE", action="append", default=[])
    parser.add_argument("-p", "--parameters", metavar=("NAME", "VALUE"), nargs=2, action="append", default=[])
    command = parser.parse_args(arguments)
    values = _notebook_defaults()
    for path in command.parameters_file:
        values |= read_params_file(path)
    for name, text in command.parameters:
        if name not in parameter_names():
            raise InputError(f"parameter {name!r} is not known.{suggest(name, parameter_names())}")
        values[name] = _value(text)
    return AdaptParams.make(**{name: values[name] for name in AdaptParams.model_fields})


def _notebook_defaults():
    notebook = json.loads((ROOT / "notebooks" / f"{NOTEBOOKS['adapt']}.ipynb").read_text())
    (cell,) = [cell for cell in notebook["cells"] if "parameters" in cell["metadata"].get("tags", ())]
    return {node.target.id: ast.literal_eval(node.value) for node in ast.parse("".join(cell["source"])).body}


def _value(text):
    """A number, true, false, or else the text itself."""
    try:
        return ast.literal_eval(text.title() if text.lower() in ("true", "false") else text)
    except (ValueError, SyntaxError):
        return text


def run(p):
    """Run stage 1 in this process, as one of a team where ``accelerate launch`` has started several."""
    data = load_dataset(p.dataset, p.data_root, p.split_file)
    shots = few_shot(data, p.n_shot, p.seed, p.shots_file)
    check_images(flatten(shots)[0])
    stage = run_stage(p, "adapt")
    accelerator = Accelerator(cpu=choose_device(p.device) == "cpu")
    team, device = Team(accelerator), accelerator.device
    set_threads(p.num_threads)
    (begun,) = broadcast_object_list([stage.begin() if team.leads else None])
    if begun:
        pipe = load_stable_diffusion(p.sd_model, p.sd_revision, device, weight_dtype(p.mixed_precision, device.type))
        adapt(pipe, plan_adapters(p.system, data, shots), p, stage, _progress, team)
        if team.leads:
            finish_adapt(stage, data, shots, p, device, processes=accelerator.num_processes)
    accelerator.end_training()


def _progress(iterable, total=None, label=""):
    return tqdm(iterable, total=total, desc=label)


if __name__ == "__main__":
    try:
        run(read_command(sys.argv[1:]))
    except InputError as error:
        sys.exit(str(error))
