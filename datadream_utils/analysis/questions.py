"""The questions of the committed study, and what its runs answer; ``params/questions/tiny.yaml`` states the rule.

A comparison has one interval. Two things are random in it: the seed, which draws the shots and everything after them,
and the test images. Their variances add.
"""

import math
from itertools import product
from typing import Annotated

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from scipy.stats import t as student

from datadream_utils.analysis.compare import LEVEL, holm, stack_correct
from datadream_utils.analysis.results import load_predictions
from datadream_utils.errors import InputError
from datadream_utils.files import read_yaml
from datadream_utils.methods import METHODS, SETTINGS, classifier_name, get_method
from datadream_utils.params import ROOT

FILE = ROOT / "params" / "questions" / "tiny.yaml"
CLASSIFIERS = {"clip": "CLIP", "resnet": "ResNet"}
MEAN = "mean"  # of all numbers of shots
GAINS = ("R+S", "S")  # beside the real images, and instead of them

# Of ``compare_sides``, and of ``answer_questions``.
DIFFERENCE = ("difference", "low", "high", "p", "p_by_seed", "per_dataset", "n_seeds")
COLUMNS = ("question", "classifier", "n_shot", "first", "second", *DIFFERENCE, "p_holm", "visible", "answer",
           "also_by_seed")  # fmt: skip


class Question(BaseModel):
    """One question: pairs of sides, each "method setting" or "method setting variant".

    datasets: [] for those of the file.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    ask: str
    pairs: Annotated[list[Annotated[list[str], Field(min_length=2, max_length=2)]], Field(min_length=1)]
    n_shots: list[int] = [16]
    classifiers: list[str] = ["clip"]
    datasets: list[str] = []


class Questions(BaseModel):
    """The content of ``params/questions/tiny.yaml``. smallest: the smallest difference that matters, in points."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    datasets: Annotated[list[str], Field(min_length=1)]
    seeds: Annotated[list[int], Field(min_length=1)]
    smallest: float
    questions: dict[str, Question]


def read_questions(path=FILE):
    """The ``Questions`` in a file. InputError names the file, and the side or key that is wrong."""
    try:
        questions = Questions(**read_yaml(path))
        for question in questions.questions.values():
            for pair in question.pairs:
                for side in pair:
                    parse_side(side)
    except ValidationError as error:
        first = error.errors()[0]
        raise InputError(f"{path}: {'.'.join(map(str, first['loc']))!r} is wrong: {first['msg']}.") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return questions


def parse_side(side):
    """``(method, setting, variant)`` of "datadream_cls S lora-rank=4"; InputError for an unknown method or setting."""
    method, setting, variant = (*side.split(), "", "")[:3]
    get_method(method)
    if setting not in SETTINGS:
        raise InputError(f"{side!r} names no setting: write 'method setting', for instance 'datadream_cls S'.")
    return method, setting, variant


def name_side(side):
    """A side in words: "DataDream_cls (S), lora-rank=4"."""
    method, setting, variant = parse_side(side)
    return ", ".join(filter(None, (classifier_name(method, setting), variant)))


class Correct:
    """Which test images each classifier of ``runs`` (``results.load_results``) gets right; each is read once."""

    def __init__(self, runs):
        self.runs, self.read = runs, {}

    def table(self, side, dataset, n_shot, classifier):
        """(n_images, n_seeds), booleans, of the side's classifiers; None where none was run."""
        method, setting, variant = parse_side(side)
        key = dataset, n_shot, classifier, variant
        if key not in self.read:
            self.read[key] = stack_correct(load_predictions(self.runs, *key))
        return self.read[key].get((method, setting))


def compare_sides(correct, pair, datasets, n_shots, classifier="clip", seeds=None):
    """The difference of two sides in points, mean over data sets and numbers of shots: a dict of ``DIFFERENCE``.

    correct: ``Correct``; seeds: None for all that both sides have. A data set counts if both sides were run with every
    number of shots. low, high: the 95 % interval; p: two-sided, of the same Student's t. With one seed the interval is
    over test images alone, and p is NaN. per_dataset: ``{name: difference}``; n_seeds: the fewest of any data set. None
    if no data set counts. InputError if one was tested on different images.

    Pooling the seeds' spread takes data sets as independent and as noisy as each other. p_by_seed needs neither: the
    data sets are averaged seed by seed first, over the seeds that all of them have (NaN with fewer than two).
    """
    per_seed, image_variances = {}, []
    for dataset in datasets:
        wins = [_wins(correct, pair, dataset, n_shot, classifier, seeds) for n_shot in n_shots]
        if any(table is None for table in wins):
            continue
        for table in wins:
            _check_images(table, wins[0], dataset, f"{name_side(pair[0])} with {' and '.join(map(str, n_shots))} shots")
        common = sorted(set.intersection(*(set(table.columns) for table in wins)))
        if not common:
            continue
        mean = 100 * sum(table[common] for table in wins) / len(wins)  # points (n_images, n_seeds)
        per_seed[dataset] = mean.mean()
        image_variances.append(mean.mean(axis=1).var(ddof=1) / len(mean))
    if not per_seed:
        return None
    n_datasets, freedom = len(per_seed), sum(len(points) - 1 for points in per_seed.values())
    difference = float(np.mean([points.mean() for points in per_seed.values()]))
    squares = sum(((points - points.mean()) ** 2).sum() for points in per_seed.values())
    pooled = squares / freedom if freedom else 0.0  # variance over seeds within data sets
    seed_variances = [pooled / len(points) for points in per_seed.values()]
    error = (sum(seed_variances) + sum(image_variances)) ** 0.5 / n_datasets
    half = float(student(freedom or math.inf).ppf(1 - LEVEL / 2) * error)
    averaged = sum(per_seed.values()).dropna() / n_datasets  # of the seeds that all data sets have
    by_seed = (averaged.var() / max(1, len(averaged)) + sum(image_variances) / n_datasets**2) ** 0.5
    return {
        "difference": difference,
        "low": difference - half,
        "high": difference + half,
        "p": _p_value(difference, error, freedom),
        "p_by_seed": _p_value(averaged.mean(), by_seed, len(averaged) - 1),
        "per_dataset": {name: round(float(points.mean()), 4) for name, points in per_seed.items()},
        "n_seeds": min(map(len, per_seed.values())),
    }


def _p_value(difference, error, freedom):
    """Two-sided, of Student's t; NaN without a degree of freedom."""
    if freedom < 1:
        return float("nan")
    return float(2 * student(freedom).sf(abs(difference) / error)) if error else float(difference == 0)


def _wins(correct, pair, dataset, n_shot, classifier, seeds):
    """1, 0 or -1 for each image and common seed, (n_images, n_seeds); None where a side is missing."""
    first, second = (correct.table(side, dataset, n_shot, classifier) for side in pair)
    if first is None or second is None:
        return None
    _check_images(first, second, dataset, f"{' and '.join(map(name_side, pair))} with {n_shot} shots")
    common = [seed for seed in first.columns if seed in second.columns and (seeds is None or seed in seeds)]
    return first[common].astype(int) - second[common].astype(int)


def _check_images(first, second, dataset, which):
    """InputError if two tables are not of the same test images."""
    if not first.index.equals(second.index):
        raise InputError(
            f"{dataset}: {which} were not tested on the same images in the same order: delete the runs that belong to "
            "an older test split and make them again, or keep them under another output_root."
        )


def gains_by_shots(runs, dataset):
    """What generated images bring beside the real ones and instead of them, by number of shots.

    runs: ``results.load_results``. A row per classifier, method, setting ("R+S" or "S") and number of shots that was
    run on ``dataset`` beside Real-finetune: "classifier", "method", "setting", "n_shot" and ``DIFFERENCE``, in points
    to R. The mean is over ``dataset`` and those that were run with the same numbers of shots, so that along them
    nothing else changes.
    """
    correct, rows = Correct(runs), []
    plain = runs[(runs["protocol"] == "sound") & (runs["variant"] == "")]
    for classifier, method, setting in product(CLASSIFIERS, METHODS, GAINS):
        of_classifier = plain[plain["classifier"] == classifier]
        shots_of = {}
        for name, here in of_classifier.groupby("dataset"):
            shots = {key: set(rows["n_shot"]) for key, rows in here.groupby(["method", "setting"])}
            shots_of[name] = shots.get((method, setting), set()) & shots.get(("real", "R"), set())
        wanted = shots_of.get(dataset, set())
        datasets = [name for name, shots in shots_of.items() if wanted <= shots]
        for n_shot in sorted(wanted):
            if row := compare_sides(correct, (f"{method} {setting}", "real R"), datasets, [n_shot], classifier):
                rows.append({"classifier": classifier, "method": method, "setting": setting, "n_shot": n_shot} | row)
    return pd.DataFrame(rows, columns=["classifier", "method", "setting", "n_shot", *DIFFERENCE])


def write_gain(table, n_shot):
    """The gain of DataDream_cls beside ``n_shot`` real images per class in a sentence; "" where it was not run.

    table: ``gains_by_shots``.
    """
    rows = table[(table["n_shot"] == n_shot) & (table["method"] == "datadream_cls") & (table["setting"] == "R+S")]
    if rows.empty:
        return ""
    learners = {"clip": "CLIP", "resnet": "a ResNet from scratch"}
    gains = [
        f"{learners[row.classifier]} {row.difference:+z.1f} points ({row.low:+z.1f} to {row.high:+z.1f})"
        for row in rows.itertuples()
    ]
    several = rows["p"].notna()
    noise = "seeds and test images" if several.all() else "test images alone, one seed"
    noise = "test images, and over seeds where there are several" if several.any() and not several.all() else noise
    images = "1 real image" if n_shot == 1 else f"{n_shot} real images"
    names = sorted({name for row in rows["per_dataset"] for name in row})
    where = f", mean of {' and '.join(names)}" if len(names) > 1 else ""
    return (
        f"With {images} per class, adding images of DataDream_cls brings {' and '.join(gains)}{where}; 95 % "
        f"intervals over {noise}."
    )


def answer_questions(questions, runs):
    """A row of ``COLUMNS`` for every comparison of ``Questions``, also where it was not run.

    runs: ``results.load_results``. visible: half the interval's width, the size of difference that would have been
    seen. p_holm: p corrected for all comparisons of its question; one that was not run counts with p = 1. answer:
    "yes", "reversed", "no difference that matters", "cannot tell", "one seed", "seeds missing" or "not run".
    also_by_seed: of "yes" and "reversed", whether p_by_seed, corrected likewise, is below ``LEVEL`` too: "yes" or "no".
    """
    correct, tables = Correct(runs), []
    for question in questions.questions.values():
        rows = []
        shots = [[n_shot] for n_shot in question.n_shots] + [question.n_shots] * (len(question.n_shots) > 1)
        for classifier, pair, n_shots in product(question.classifiers, question.pairs, shots):
            datasets = question.datasets or questions.datasets
            row = compare_sides(correct, pair, datasets, n_shots, classifier, questions.seeds)
            complete = row is not None and len(row["per_dataset"]) == len(datasets)
            row = row if complete else dict.fromkeys(DIFFERENCE, float("nan")) | {"per_dataset": {}, "n_seeds": 0}
            names = {"first": name_side(pair[0]), "second": name_side(pair[1])}
            n_shot = str(n_shots[0]) if len(n_shots) == 1 else MEAN
            about = {"question": question.ask, "classifier": CLASSIFIERS[classifier], "n_shot": n_shot}
            rows.append(about | names | row)
        tables.append(_judge(pd.DataFrame(rows), questions))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)]


def _judge(rows, questions):
    """The rows of one question with "p_holm", "visible" and "answer"."""
    tested = rows["p"].notna()
    rows["p_holm"] = pd.Series(holm(rows["p"].fillna(1.0)), rows.index).where(tested)
    rows["visible"] = (rows["high"] - rows["low"]) / 2
    rows["answer"] = [_answer(row, questions.smallest, len(questions.seeds)) for row in rows.itertuples()]
    by_seed = pd.Series(holm(rows["p_by_seed"].fillna(1.0)), rows.index) < LEVEL
    decided = rows["answer"].isin(["yes", "reversed"])
    rows["also_by_seed"] = by_seed.map({True: "yes", False: "no"}).where(decided, "")
    return rows


def _answer(row, smallest, n_seeds):
    if row.n_seeds < 2:
        return "one seed" if row.n_seeds else "not run"
    if row.n_seeds < n_seeds:
        return "seeds missing"
    if row.p_holm < LEVEL:
        return "yes" if row.low > 0 else "reversed"
    return "no difference that matters" if max(-row.low, row.high) <= smallest else "cannot tell"
