"""The stages by the package, called as the notebooks call them (without their pictures)."""

from peft import PeftModel

from benchmarks.clock import timed
from benchmarks.worlds import inputs
from datadream_utils.adapt import adapt as adapt_all
from datadream_utils.adapt import plan_adapters
from datadream_utils.clip import ClipClassifier
from datadream_utils.datasets import check_images, flatten
from datadream_utils.generate import Recipe
from datadream_utils.generate import generate as generate_all
from datadream_utils.models import load_clip, load_stable_diffusion, weight_dtype
from datadream_utils.run import Stage, choose_device
from datadream_utils.train import clip_image_size, evaluated_set, fit, make_classifier, predict, training_sets


def silent(iterable, total=None, label=""):
    """No progress line."""
    return iterable


def load_pipeline(p, seconds):
    with timed(seconds, "load"):
        device = choose_device(p.device)
        return load_stable_diffusion(p.sd_model, p.sd_revision, device, weight_dtype(p.mixed_precision, device))


def adapt(p, folder, seconds, part=None):
    """All adapters of the run in one process; ``part`` is the reference's."""
    data, shots = inputs(p)
    check_images(flatten(shots)[0])
    pipe = load_pipeline(p, seconds)
    with timed(seconds, "work"):
        adapt_all(pipe, plan_adapters(p.system, data, shots), p, Stage("adapt", folder, {}), silent)


def generate(p, folder, seconds, adapters=None):
    data, shots = inputs(p)
    check_images(flatten(shots)[0])
    pipe = load_pipeline(p, seconds)
    with timed(seconds, "work"):
        recipe = Recipe(p.system, data, shots, p.seed)
        generate_all(pipe, recipe, p, Stage("generate", folder, {}), Stage("adapt", adapters.parent, {}), None, silent)


def load_classifier(p, seconds):
    with timed(seconds, "load"):
        return load_clip(p.clip_model, p.clip_revision, choose_device(p.device))


def train(p, folder, seconds, synthetic=None):
    data, shots = inputs(p)
    check_images(flatten(synthetic)[0])
    clip, tokenizer, processor = load_classifier(p, seconds)
    with timed(seconds, "work"):
        classifier, size = make_classifier(clip, tokenizer, data, p), clip_image_size(clip)
        sets = training_sets(p.setting, shots, synthetic, p, size)
        for _ in fit(classifier, processor, sets, p, size, len(data.class_names)):
            pass
        classifier.save(folder / "classifier")


def evaluate(p, folder, seconds, classifier=None):
    """The predicted labels of the test split, (n,)."""
    data, _ = inputs(p)
    clip, tokenizer, processor = load_classifier(p, seconds)
    with timed(seconds, "load"):
        model = ClipClassifier(PeftModel.from_pretrained(clip, classifier), tokenizer, data).eval()
    with timed(seconds, "work"):
        table = predict(model, *evaluated_set(data, processor, p), p)
    return table["prediction"].to_numpy()
