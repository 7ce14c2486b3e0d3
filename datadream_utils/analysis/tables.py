"""What the tables of the analysis say to a reader: a sentence, and headings with units and directions.

A csv has the code's names. ↓: lower is nearer to real images; ↑: higher is better.
"""

from datadream_utils.analysis.ablations import ABLATIONS
from datadream_utils.analysis.alignment import KINDS, MEASURES
from datadream_utils.analysis.copies import DRAWS
from datadream_utils.files import table_texts
from datadream_utils.plots.results import label

HEADINGS = {
    "method": "Method",
    "setting": "Trained on",
    "n_shot": "Shots per class",
    "seed": "Seed",
    "label": "Label",
    "class_name": "Class",
    "n_real": "Real images per class",
    "n_synthetic": "Images compared per class",
    "frechet": "Fréchet distance ↓",
    "kid": "Kernel distance (KID) ↓",
    "cmmd": "Gaussian MMD × 1000 ↓",
    "precision": "Precision (fidelity, 0 to 1) ↑",
    "recall": "Recall (diversity, 0 to 1) ↑",
    "density": "Density (fidelity) ↑",
    "coverage": "Coverage (diversity, 0 to 1) ↑",
    "gain": "Gain (points) ↑",
    "gain_mean": "Mean gain over seeds",
    "gain_S": "Gain of S over zero-shot CLIP (points) ↑",
    "gain_R+S": "Gain of R+S over Real-finetune (points) ↑",
    "accuracy": "Accuracy (%) ↑",
    "error": "Calibration error (points) ↓",
    "certainty": "Mean certainty (%)",
    "measure": "Distance",
    "kind": "Correlation",
    "rho": "Spearman's ρ",
    "low": "95 % from",
    "high": "to",
    "p": "p, permuting methods",
    "p_holm": "p (Holm)",
    "verdict": "It is",
    "n_points": "Points",
    "n_classes": "Classes",
    "n_methods": "Methods",
    "n": "Generated images",
    "n_draws": "Draws of real images",
    "feature_nearer": "Nearer to a shot, features (%)",
    "pixel_nearer": "Nearer to a shot, pixels (%)",
    "feature_excess": "That minus FakeIt's, features (points)",
    "pixel_excess": "That minus FakeIt's, pixels (points)",
}
COPIES = {"n_real": "Held-out real images"}
for space, unit in {"feature": "cosine distance", "pixel": "root mean square"}.items():
    COPIES[f"{space}_copies"] = f"Near copies, {space}s (%)"
    COPIES[f"{space}_median"] = f"Median distance to a shot, {space}s ({unit})"
    COPIES[f"{space}_median_real"] = f"The same of held-out real images, {space}s ({unit})"

SENTENCES = {
    "alignment": (
        "Rank correlation of a distance to real test images with the gain in accuracy, resampling classes: below 0, "
        "nearer images bring more. Pooled, it is moved most by classes that gain with every method; within classes it "
        "compares methods, those at hand, then those with an adapter alone; within methods it compares the classes of "
        "each, and is the mean over methods. Between methods' means p is that of a permutation test, without an "
        "interval; Holm's correction is for all such tests of this table, and decides. At 0: an end of the interval "
        "could lie on either side of it by the number of draws alone."
    ),
    "alignment_by_class": (
        "Each class's distance to real test images and its gain in accuracy, means over seeds: the points of the "
        "scatter plots."
    ),
    "measures": (
        "CLIP features of generated images against those of real test images, means over classes. ↓: lower is nearer "
        "to real; ↑: higher is better. Real images: others of the train split."
    ),
    "copies": (
        "Nearer to a shot: than to every one of as many held-out real images of the same classes, mean over up to "
        f"{DRAWS} draws; without copying 50 % on average. Empty: a class has fewer held-out images than shots. Minus "
        "FakeIt's: what it has, which sees no shot, with the same shots and seed. Near copies: nearer than 99 % of all "
        "held-out images; by chance 1 %, but only of images distributed as real ones."
    ),
    "class_gains": (
        "Accuracy of each class, and its gain: S over zero-shot CLIP, R+S over Real-finetune of the same seed. Mean, "
        "95 % interval (Student's t) and verdict are those of all seeds together; one such interval of twenty misses 0 "
        "by chance."
    ),
    "calibration": "How far certainty and accuracy lie apart (calibration error, lower is better); the means of both.",
}
WORDS = {"measure": MEASURES, "kind": KINDS, "setting": {"none": "nothing (zero-shot)"}}


def texts(name, frame):
    """The table called ``name`` as csv with the code's names, and as Markdown with a sentence and headings in words."""
    headings = HEADINGS | (COPIES if name == "copies" else {})
    words = frame.copy()
    for column in words.columns.intersection(["method", *WORDS]):
        words[column] = words[column].map(label if column == "method" else lambda v, of=WORDS[column]: of.get(v, v))
    for column in frame.select_dtypes("float").columns:
        words[column] = [_printed(value) for value in frame[column]]
    shown = table_texts(words.rename(columns=headings))["md"]
    return {"csv": table_texts(frame)["csv"], "md": f"{SENTENCES[name]}\n\n{shown}"}


def _printed(value):
    """Three significant digits of small numbers, one decimal of those from 10 on, whole ones as such; "" for none."""
    if value != value:
        return ""
    if value == round(value):
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"


# Headings of the gallery.
FIGURES = {
    "teaser": "What each method draws",
    "accuracy_bars": "Accuracy of every classifier",
    "order": "The published order",
    "qualitative": "Images from more and more shots",
    "diagram": "How DataDream trains",
    "fidelity": "Fidelity and diversity",
    "copies": "Copies of the shots, by number of shots",
    "nearest_shots": "Distance to the nearest shot",
    "ablation_compute": "What adaptation brings for what it costs",
    "pareto": "Accuracy against seconds",
    "pareto_flops": "Accuracy against operations",
    "worst_copies": "The closest pairs of a drawn picture and a shot",
    "confusion_change": "What is confused more often, and what less",
}
FIGURES |= {f"ablation_{name}": f"Ablation: {words}" for name, words in ABLATIONS.items()}
for end, words in {"S": "synthetic images alone", "RS": "real and synthetic images"}.items():
    FIGURES[f"alignment_{end}"] = f"Nearness to real images and gain: {words}"
    FIGURES[f"class_gains_{end}"] = f"Gain of every class: {words}"
    FIGURES[f"reliability_{end}"] = f"Can its certainty be trusted? {words[0].upper()}{words[1:]}"
