"""S, R or R+S: the classifiers that learn from different images, tested on the same ones (paper, section 3.4)."""

from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import evaluate, read_results, save_results
from datadream_utils.classifier.pictures import training_sets
from datadream_utils.classifier.train import fit
from datadream_utils.runs.run import start_run


def open_settings(run, namespace):
    """``{setting: run}`` of what notebook 03 compares: none (zero-shot CLIP), R, and the settings of its method.

    Each has the notebook's own parameters (``namespace``, its ``globals()``) but for method and setting: R is the
    method "real". With ``compare_settings`` off, and for protocol "published", ``run`` alone. InputError, before
    anything is trained, for a stage that was made with other parameters.
    """
    p, method = run.params, run.params.method
    if not p.compare_settings or p.protocol == "published":
        return {p.setting: run}
    methods = {"none": "clip_zeroshot", "R": "real"} | dict.fromkeys(run.method.settings, method)
    if p.classifier != "clip":
        del methods["none"]
    changes = {setting: {"method": name, "setting": setting} for setting, name in methods.items()}
    return {
        setting: run if setting == p.setting else start_run("train", namespace | change)
        for setting, change in changes.items()
    }


def train_and_test(run):
    """Train the classifier of ``run`` and test it once, as notebook 03 does; returns its metrics.

    A finished stage is read. InputError when a file of it has vanished or changed.
    """
    if run.stage.finished:
        run.stage.check_files()
        return read_results(run.stage)[0]
    classifier = make_classifier(run)
    history = fit(classifier, training_sets(run, classifier.image_size), run)
    return save_results(run, classifier, history, evaluate(classifier, run))
