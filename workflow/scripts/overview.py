"""Draw the method in one picture, with the shots and the generated images of a finished run.

    python -m workflow.scripts.overview outputs/demo/mnist5k_datadream_cls_1shot_seed20 figures/overview.png

04_analysis draws the same picture of the runs that it reads. The committed one, which README and docs show, was made by
this command.
"""

import argparse
import sys
from pathlib import Path

from datadream_utils.analysis.results import CLASSES_SHOWN, list_pictures, load_stages
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.shots import few_shot
from datadream_utils.errors import InputError
from datadream_utils.params import resolve
from datadream_utils.plots.diagram import overview
from datadream_utils.plots.gallery import save_figure


def draw_run(run, data_root="data"):
    """``plots.diagram.overview`` of a run's folder. InputError if its images have not been generated."""
    run = resolve(run)
    stages = load_stages(run.parent)
    stage = next(stages[(stages["run"] == run.name) & (stages["stage"] == "generate")].itertuples(), None)
    if stage is None:
        raise InputError(f"{run} has no generated images: run 02_generate first.")
    data = load_dataset(stage.parameters["dataset"], data_root, stage.parameters["split_file"])
    shots = few_shot(data, stage.n_shot, stage.seed, stage.parameters["shots_file"])
    drawn = [list_pictures(stage, label, 2) for label in range(min(len(data.class_names), CLASSES_SHOWN))]
    return overview(shots, drawn, data.files["test"])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a run")
    parser.add_argument("picture", type=Path, help="the png file to write; a pdf is written beside it")
    parser.add_argument("--data-root", default="data", help="where named data sets are")
    args = parser.parse_args()
    try:
        figure = draw_run(args.run, args.data_root)
        print(save_figure(figure, resolve(args.picture.parent), args.picture.stem))
    except InputError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
