"""The evaluation of a classifier, and the result files of a train stage.

With protocol "sound" only ``evaluate`` tests on the test split, once, after training.
"""

import json

import pandas as pd
import torch
from scipy.stats import binomtest

from datadream_utils.backbones.load import model_identity
from datadream_utils.classifier.pictures import evaluation_pictures, evaluation_split, load_batches
from datadream_utils.data.dataset import flatten
from datadream_utils.data.shots import write_shots
from datadream_utils.diffusion.generate import read_generated
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, digest, write_json
from datadream_utils.runs.checkpoint import discard_checkpoints
from datadream_utils.runs.device import advise_on_memory
from datadream_utils.runs.plausible import check_finite


@torch.inference_mode()
def class_scores(classifier, paths, params):
    """The logits of the pictures ``paths``, a tensor (pictures, classes); ``softmax(-1)`` makes probabilities of them.

    The class weights are computed once, not once per batch. The classifier's mode (train or eval) is left as it was.
    InputError for logits that are not finite: an accuracy of them would mean nothing.
    """
    was_training = classifier.training
    classifier.eval()
    device = next(classifier.parameters()).device
    weights = classifier.class_weights()
    pictures = evaluation_pictures(paths, classifier.processor)
    batches = load_batches(pictures, params, batch_size=params.eval_batch_size)
    logits = torch.cat([classifier(pixels.to(device), weights).cpu() for pixels in batches])
    classifier.train(was_training)
    fix = "the classifier's weights cannot be used; train it again with another train_lr or clip_model"
    check_finite(logits, pictures.paths, "The logits", fix)
    return logits.float()


def predict(classifier, files, params):
    """A table with a row per picture of ``files[label]``: label, prediction, correct, probability of the prediction."""
    paths, labels = flatten(files)
    probability, prediction = class_scores(classifier, paths, params).softmax(-1).max(-1)
    table = pd.DataFrame({"label": labels, "prediction": prediction.numpy()})
    return table.assign(correct=table["label"] == table["prediction"], probability=probability.numpy())


def evaluate(classifier, run):
    """``predict`` on the tested split (``evaluation_split``), and a column ``file``: the path within the data set.

    If the stage is finished, its stored predictions are returned. With ``protocol: published`` the split is the one
    that the authors' released code tests on; for three data sets that is their training split.
    """
    if run.stage.finished:
        return read_results(run.stage)[1]
    _check_trained(run)
    files = run.data.files[evaluation_split(run)]
    with advise_on_memory(run.params, "eval_batch_size"):
        predictions = predict(classifier, files, run.params)
    return predictions.assign(file=[path.relative_to(run.data.root).as_posix() for path in flatten(files)[0]])


def save_results(run, classifier, history, predictions):
    """Write the classifier and its results, and finish the stage; returns the metrics (accuracies in percent).

    The files are ``classifier/``, ``predictions.parquet``, ``history.csv``, ``metrics.json`` and ``shots.txt``. A
    stage that is finished already is left as it is. InputError when ``fit`` has not come to its end.
    """
    if run.stage.finished:
        return read_results(run.stage)[0]
    _check_trained(run)
    p, data = run.params, run.data
    if p.setting != "none":
        classifier.save(run.folder / "classifier")
        with atomic_write(run.folder / "history.csv") as temporary:
            history.to_csv(temporary, index=False, float_format="%.6g")
    write_shots(data, run.shots, run.folder / "shots.txt")
    with atomic_write(run.folder / "predictions.parquet") as temporary:
        predictions.to_parquet(temporary, index=False)
    metrics = _metrics(run, predictions)
    write_json(run.folder / "metrics.json", metrics)
    discard_checkpoints(run)
    split = evaluation_split(run)
    synthetic = read_generated(run.source, len(run.shots)) if run.source else []
    run.finish(
        model=model_identity(p.clip_model, p.clip_revision),
        class_names=list(data.class_names),  # with them the classifier can be used without the data set
        domain=data.domain,
        evaluated_on=split,
        evaluated_sha256=digest(flatten(data.files[split])[0]),
        synthetic_sha256=digest(flatten(synthetic)[0]),
    )
    return metrics


def read_results(stage):
    """``(metrics, predictions, history)`` of a finished train stage; history is None for zero-shot CLIP."""
    history = stage.folder / "history.csv"
    return (
        json.loads((stage.folder / "metrics.json").read_text(encoding="utf-8")),
        pd.read_parquet(stage.folder / "predictions.parquet"),
        pd.read_csv(history) if history.exists() else None,
    )


def _check_trained(run):
    """InputError when the training was interrupted or not begun: half-trained weights never become a result."""
    if not run.trained:
        raise InputError(f"the training of {run.folder} has not come to its end: run the cell with fit again.")


def wilson_interval(n_correct, n):
    """Wilson's 95 % interval ``(low, high)`` of the proportion ``n_correct / n``, in [0, 1]."""
    interval = binomtest(n_correct, n).proportion_ci(confidence_level=0.95, method="wilson")
    return float(interval.low), float(interval.high)


def _metrics(run, predictions):
    p = run.params
    low, high = wilson_interval(int(predictions["correct"].sum()), len(predictions))
    per_class = predictions.groupby("label")["correct"].mean()
    return {
        "dataset": run.data.name,
        **{name: getattr(p, name) for name in ("method", "setting", "n_shot", "seed", "variant")},
        "classifier": "clip" if p.classifier == "clip" else "resnet",
        "protocol": p.protocol,
        "accuracy": round(100 * float(predictions["correct"].mean()), 4),
        "interval_95": [round(100 * low, 4), round(100 * high, 4)],
        "n_test": len(predictions),
        "per_class": {run.data.class_names[label]: round(100 * mean, 4) for label, mean in per_class.items()},
        "parameters": p.identity(),
    }
