"""What the tables of the analysis say to a reader: a sentence, and headings with units and directions.

A csv has the code's names. ↓: lower is nearer to real images; ↑: higher is better.
"""

from datadream_utils.fidelity import KINDS, MEASURES
from datadream_utils.figures import label
from datadream_utils.memorisation import DRAWS
from datadream_utils.texts import table_texts

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
        f"{DRAWS} draws; without copying 50 % on average. Empty: a class has fewer held-out images than shots. Near "
        "copies: nearer than 99 % of all held-out images; by chance 1 %, but only of images distributed as real ones."
    ),
    "class_gains": (
        "Accuracy of each class, and its gain: S over zero-shot CLIP, R+S over Real-finetune of the same seed."
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
