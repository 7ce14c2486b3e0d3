"""Training and testing CLIP by the package, called as the notebook calls it (without its pictures)."""

from peft import PeftModel

from benchmarks.clock import timed
from datadream_utils.backbones.load import model_identity
from datadream_utils.classifier.build import make_classifier, zero_shot_clip
from datadream_utils.classifier.evaluate import predict
from datadream_utils.classifier.pictures import make_sets
from datadream_utils.classifier.train import train_classifier
from datadream_utils.data.dataset import flatten
from datadream_utils.data.images import check_images
from datadream_utils.files import digest


def train(run, seconds, synthetic=None):
    """Train CLIP's LoRA on ``synthetic[label]``, lists of paths."""
    for files in (run.shots, synthetic):
        check_images(flatten(files)[0])
    with timed(seconds, "load"):
        classifier = make_classifier(run)
    with timed(seconds, "work"):
        run.begin()
        sets = make_sets(run.params, run.shots, synthetic, classifier.image_size)
        for _ in train_classifier(classifier, sets, run.params):
            pass
        classifier.save(run.folder / "classifier")
        model = model_identity(run.params.clip_model, run.params.clip_revision)
        run.finish(model=model, synthetic_sha256=digest(flatten(synthetic)[0]))


def evaluate(run, seconds, classifier=None):
    """The predicted labels of the test split, (n,)."""
    check_images(flatten(run.data.files["test"])[0])
    with timed(seconds, "load"):
        model = zero_shot_clip(run)
        model.clip = PeftModel.from_pretrained(model.clip, classifier)
        model.eval()
    with timed(seconds, "work"):
        table = predict(model, run.data.files["test"], run.params)
    return table["prediction"].to_numpy()
