"""Classify a folder of new pictures with a finished run.

    python -m workflow.scripts.classify outputs/mnist5k_datadream_cls_16shot_seed0/train-R+S ~/new --output new.csv

The CSV has a row per picture: file, class, probability, problem. A picture that cannot be read has its problem there,
and the others are classified. Files that are no pictures by their names are counted at the end. The data set that the
run learnt from is not needed.
"""

import argparse
import sys
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from datadream_utils.classifier.use import classify_folder, open_classifier
from datadream_utils.data.folders import count_files
from datadream_utils.data.images import SUFFIXES
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write
from datadream_utils.runs.progress import quiet_libraries


@contextmanager
def _show_bar(total, label):
    with tqdm(total=total, desc=label, unit="picture") as bar:
        yield bar.update


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("classifier", type=Path, help="the folder of a finished train stage")
    parser.add_argument("folder", type=Path, help="the folder of pictures")
    parser.add_argument("--output", type=Path, default=Path("predictions.csv"))
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    args = parser.parse_args()
    quiet_libraries()
    try:
        classifier, class_names = open_classifier(args.classifier.expanduser().absolute(), args.device)
        table = classify_folder(classifier, class_names, args.folder, _show_bar)
        others = count_files(args.folder.expanduser()) - len(table)
        with atomic_write(args.output) as temporary:
            table.to_csv(temporary, index=False)
    except InputError as error:
        sys.exit(str(error))
    unread = int((table["problem"] != "").sum())
    print(f"{len(table) - unread} pictures classified, {unread} could not be read: {args.output}")
    if others > 0:
        print(f"{others} other files were left out: their names end otherwise than {', '.join(SUFFIXES)}.")
    print(table.loc[table["problem"] == "", "class"].value_counts().to_string(header=False))


if __name__ == "__main__":
    main()
