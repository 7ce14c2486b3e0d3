"""Training and testing CLIP by the package, called as the notebook calls it (without its pictures)."""

from peft import PeftModel

from benchmarks.clock import timed
from benchmarks.worlds import inputs
from datadream_utils.backbones.clip import ClipClassifier
from datadream_utils.backbones.load import load_clip, model_identity
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.evaluate import predict
from datadream_utils.classifier.train import clip_image_size, evaluated_set, fit, training_sets
from datadream_utils.data.dataset import check_images, flatten
from datadream_utils.files import digest
from datadream_utils.runs.device import choose_device
from datadream_utils.runs.stage import Stage


def train(p, folder, seconds, synthetic=None):
    """Train CLIP's LoRA on ``synthetic[label]``, lists of paths."""
    data, shots = inputs(p)
    for files in (shots, synthetic):
        check_images(flatten(files)[0])
    device, stage = choose_device(p.device), Stage("train", folder, {})
    with timed(seconds, "load"):
        clip, tokenizer, processor = load_clip(p.clip_model, p.clip_revision, device)
        classifier, size = make_classifier(clip, tokenizer, data, p), clip_image_size(clip)
    with timed(seconds, "work"):
        stage.begin()
        sets = training_sets(p.setting, shots, synthetic, p, size)
        for _ in fit(classifier, processor, sets, p, size, len(data.class_names)):
            pass
        classifier.save(folder / "classifier")
        model = model_identity(p.clip_model, p.clip_revision)
        stage.finish(device, model=model, synthetic_sha256=digest(flatten(synthetic)[0]))


def evaluate(p, folder, seconds, classifier=None):
    """The predicted labels of the test split, (n,)."""
    data, _ = inputs(p)
    check_images(flatten(data.files["test"])[0])
    with timed(seconds, "load"):
        clip, tokenizer, processor = load_clip(p.clip_model, p.clip_revision, choose_device(p.device))
        model = ClipClassifier(PeftModel.from_pretrained(clip, classifier), tokenizer, data).eval()
    with timed(seconds, "work"):
        table = predict(model, *evaluated_set(data, processor, p), p)
    return table["prediction"].to_numpy()
