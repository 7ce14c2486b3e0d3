"""The catalogue: every figure and table of the analysis once, with the notebook that writes it, its title and caption.

The notebooks 04 and 06, the workflow, the gallery and the tests read their names here. A caption is fixed: it says what
a figure or table shows and how to read it; what the data say stands in a figure's finding or in a table's verdicts.
"""

from dataclasses import dataclass

PAPER, BEYOND = "04_analysis", "06_beyond_the_paper"

# Parameter that an ablation changes: its name on axes and in headings.
ABLATIONS = {
    "n_shot": "real images per class",
    "synthetic_per_class": "generated images per class",
    "adapt_epochs": "epochs of adaptation",
    "train_text_encoder": "text encoder",
    "lora_rank": "rank of the adapters",
    "guidance_scale": "guidance scale",
    "real_weight": "weight of the real images' loss",
}
AMOUNTS = ("n_shot", "synthetic_per_class")  # of images: a figure each; the other parameters share one


@dataclass(frozen=True)
class Entry:
    """One figure or table.

    notebook: the stem of the notebook that writes it; formats: the files' suffixes; always: every study has it, even
    if its runs leave it empty (else it is written only where there are such runs); appendix: it stands at the end of
    the gallery.
    """

    notebook: str
    title: str
    caption: str
    formats: tuple[str, ...]
    always: bool = True
    appendix: bool = False


def _figure(notebook, title, caption, always=True, appendix=False):
    return Entry(notebook, title, caption, ("png", "pdf"), always, appendix)


def _table(notebook, title, caption, always=True, formats=("csv", "md")):
    return Entry(notebook, title, caption, formats, always)


GAINS = "S against zero-shot CLIP, R+S against Real-finetune of the same seed"
INTERVAL_OF_TWENTY = "One such interval in twenty excludes 0 by chance."
ON = {"S": "synthetic images alone", "RS": "real and synthetic images"}

FIGURES = {
    "teaser": _figure(
        PAPER,
        "Images of each method",
        "The paper's first figure. Top row: real images; each row below: images of one method.",
    ),
    "accuracy_bars": _figure(
        PAPER,
        "Accuracy of every classifier",
        "Top-1 accuracy on the test images, mean over seeds; whiskers: one standard deviation. Bars whose whiskers "
        "overlap may still differ: all classifiers see the same test images.",
    ),
    "order": _figure(
        PAPER,
        "The published order",
        "One line per pair of systems; the first is better in the published table. On the right: what our runs say of "
        "it. An order is decided where both intervals exclude 0 and a sign test over images agrees.",
    ),
    "gain_by_shots": _figure(
        PAPER,
        "What generated images bring, by number of shots",
        "Accuracy minus that of Real-finetune on the same shots and test images, with 95 % intervals over seeds and "
        "test images: above, with generated images beside the real ones (R+S); below, instead of them (S). Small "
        f"marks: single data sets. {INTERVAL_OF_TWENTY}",
    ),
    "qualitative": _figure(
        PAPER,
        "Images from more and more shots",
        "The paper's qualitative figure. Top: the real images, in nested frames of 1, 4, 8 and 16. Each row below was "
        "generated from the images in the frame of its colour.",
    ),
    "overview": _figure(
        PAPER,
        "The method in one picture",
        "Notebook 01 adapts Stable Diffusion to a few photos, 02 draws with it, 03 trains a classifier, 04 tests it.",
    ),
    "diagram": _figure(
        PAPER,
        "How DataDream trains",
        "Stable Diffusion stays frozen (plain blue). Low-rank adapters in its attention layers (hatched orange) are "
        "trained on the few shots: one for all classes, or one per class.",
    ),
    "ablation_compute": _figure(
        PAPER,
        "Accuracy against the cost of adaptation",
        "Accuracy on synthetic images alone against all images that pass through adaptation (shots times epochs). "
        "Solid: more shots; dashed: more epochs.",
        always=False,
        appendix=True,
    ),
    "fidelity": _figure(
        BEYOND,
        "Fidelity and diversity",
        "Fidelity (precision, density) against diversity (recall, coverage) of CLIP features, means over classes. "
        "Whiskers: one standard deviation over seeds. Real images: others of the train split.",
    ),
    "copies": _figure(
        BEYOND,
        "Copies of the shots, by number of shots",
        "Images that are nearer to a shot, by pixels, than to every one of as many held-out real images; without "
        "copying 50 %. Whiskers: one standard deviation over seeds.",
    ),
    "nearest_shots": _figure(
        BEYOND,
        "Distance to the nearest shot",
        "How many images are nearer to a shot than a distance. Vertical line: 1 % of the held-out real images are "
        "nearer. The comparison holds for generators whose images look as real ones do.",
        appendix=True,
    ),
    "worst_copies": _figure(
        BEYOND,
        "The closest pairs of a generated image and a shot",
        "Top row: generated images; bottom row: the shot nearest to each by pixels. Each shot appears once.",
    ),
    "confusion_change": _figure(
        BEYOND,
        "Which classes are confused more often, which less",
        "Change of the confusion matrix in points of the true class, mean over seeds: " + GAINS + ". Rows sum to 0.",
        appendix=True,
    ),
    "pareto": _figure(
        BEYOND,
        "Accuracy against seconds",
        "Mean accuracy against the seconds of all stages. Below or right of the dashed steps another classifier is "
        "both cheaper and more accurate.",
        appendix=True,
    ),
    "ablations": _figure(
        PAPER,
        "Ablations of single parameters",
        "Runs that differ in one parameter alone: accuracy minus that with the default, of the same seed, with 95 % "
        "intervals over seeds. Filled: S; open: R+S.",
        always=False,
    ),
    "ablation_n_shot": _figure(
        PAPER,
        f"Ablation: {ABLATIONS['n_shot']}",
        "Mean accuracy over the seeds that have every number of shots; whiskers: one standard deviation.",
        always=False,
    ),
    "ablation_synthetic_per_class": _figure(
        PAPER,
        f"Ablation: {ABLATIONS['synthetic_per_class']}",
        "Accuracy minus that of the dashed reference, of the same seed. Dots: single seeds; lines: means.",
        always=False,
    ),
}
for _end, _images in ON.items():
    FIGURES[f"alignment_{_end}"] = _figure(
        BEYOND,
        f"Distance to real images and gain: {_images}",
        "One point per method and class, minus the mean of its class. Falling to the right: nearer images bring more.",
    )
    FIGURES[f"class_gains_{_end}"] = _figure(
        BEYOND,
        f"Gain of every class: {_images}",
        "Gain in accuracy of each class (points), mean over seeds, where its 95 % interval, over seeds and the class's "
        "test images, excludes 0. " + INTERVAL_OF_TWENTY,
    )
    FIGURES[f"reliability_{_end}"] = _figure(
        BEYOND,
        f"Accuracy against certainty: {_images}",
        "Accuracy minus certainty, by certainty. Below 0 a classifier is too sure, above 0 less sure than it is right.",
        appendix=True,
    )

_RESULTS = (
    "Top-1 accuracy (%), mean ± sample standard deviation over seeds (one seed: none). R, S: trained on real, on "
    "synthetic images. Bold: the highest mean of its block. Averages over data sets are not tested and have no sign."
)
_PUBLISHED_PROTOCOL = (
    " These runs choose the epoch on the test images, as the authors' released code does: their numbers are not "
    "comparable with the main table's."
)
TABLES = {
    "main_results": _table(PAPER, "Main results", _RESULTS, formats=("csv", "md", "tex")),
    "resnet_results": _table(
        PAPER,
        "ResNet trained from scratch",
        _RESULTS + " The classifier is a ResNet without pre-training.",
        always=False,
        formats=("csv", "md", "tex"),
    ),
    "published_protocol": _table(
        PAPER,
        "Evaluated as the authors' released code does",
        _RESULTS + _PUBLISHED_PROTOCOL,
        always=False,
        formats=("csv", "md", "tex"),
    ),
    "resnet_published_protocol": _table(
        PAPER,
        "ResNet, evaluated as the authors' released code does",
        _RESULTS + _PUBLISHED_PROTOCOL,
        always=False,
        formats=("csv", "md", "tex"),
    ),
    "published": _table(
        PAPER,
        "The authors' main table",
        "As printed by the authors (Kim et al., ECCV 2024: CLIP ViT-B/16, 16 shots); not results of this project. "
        "Averages are recomputed.",
        formats=("csv", "md", "tex"),
    ),
    "beside": _table(
        PAPER,
        "Ours and the authors'",
        "Our results on the paper's data sets with the published ones; difference: ours minus theirs.",
        always=False,
        formats=("csv", "md", "tex"),
    ),
    "order": _table(
        PAPER,
        "The published order",
        "Pairs of systems whose first is better in the published table (in the data set's own column where it has one, "
        "else in the averages), and our paired difference (points). A pair holds or is reversed only if the difference "
        "exceeds the noise of test images and of seeds. An arrow: reversed in the averages without the three data sets "
        "that the authors test on training images.",
    ),
    "pairs": _table(
        BEYOND,
        "All pairs of classifiers",
        "Paired differences on the same test images (points). Above or below: both 95 % intervals (over test images "
        "and over seeds) exclude 0 and a sign test over images agrees after Holm's correction.",
    ),
    "alignment": _table(
        BEYOND,
        "Correlation of distance and gain",
        "Spearman's rank correlation of the Fréchet distance to real test images with the gain in accuracy; below 0, "
        "nearer images bring more. Within classes: the mean of its class is taken from each point; the 95 % interval "
        "resamples classes. Between methods' means: p is that of a permutation test, corrected by Holm.",
    ),
    "alignment_by_class": _table(
        BEYOND,
        "Distance and gain of every class",
        "Each class's distance to real test images and its gain in accuracy, means over seeds: the points of the "
        "scatter plots.",
    ),
    "measures": _table(
        BEYOND,
        "Distances, fidelity and diversity",
        "CLIP features of generated images against those of real test images, means over classes. ↓: lower is nearer "
        "to real; ↑: higher is better. Real images: others of the train split.",
    ),
    "copies": _table(
        BEYOND,
        "Copies of the shots",
        "Nearer to a shot: than to every one of as many held-out real images; without copying 50 %. Minus FakeIt's: "
        "the share above that of FakeIt, which sees no shot. Near copies: nearer than 99 % of held-out images; by "
        "chance 1 %.",
    ),
    "copies_by_shots": _table(
        BEYOND,
        "Copies of the shots: verdicts",
        "Means over seeds. Difference: to the share of FakeIt, which sees no shot, or to 50 % where it was not run, "
        "with its 95 % interval over seeds (Student's t). Recreated: surely more than half are near copies.",
    ),
    "class_gains": _table(
        BEYOND,
        "Gain of every class",
        f"Accuracy of each class and its gain, means over seeds: {GAINS}. 95 % interval over seeds and the class's "
        f"test images. {INTERVAL_OF_TWENTY}",
    ),
    "calibration": _table(
        BEYOND,
        "Calibration",
        "How far certainty and accuracy lie apart (calibration error, lower is better), and the means of both.",
    ),
    "cost": _table(
        BEYOND,
        "Cost of every classifier",
        "Means over seeds. Seconds are those of the machine that made the runs: of its processors on a CPU, by the "
        "clock on a GPU; without stages that were interrupted. Image-steps and operations are those of the networks "
        "that are trained or sampled. Memory is the GPU's, else the whole process's.",
    ),
    "answers": _table(
        BEYOND,
        "Questions and answers",
        "Every comparison that params/questions/tiny.yaml lists. That file, which also states the rule, was written "
        "before the runs, but for questions that say they were asked later. Difference: first minus second (points), "
        "mean over data sets. Interval: 95 % over seeds and test images. Visible: half its width; a smaller "
        "difference, had these runs shown it, would not have counted. Also by seed: whether the answer stays when "
        "data sets are averaged seed by seed, which needs no assumption that their noise is independent and alike.",
        always=False,
    ),
    "baselines": _table(
        BEYOND,
        "Plain baselines",
        "Top-1 accuracy (%) from the same shots, by number of shots per class: mean ± sample standard deviation over "
        "seeds.",
    ),
    "conclusion": _table(PAPER, "In short", "The results in a few sentences.", formats=("md",)),
    "gallery": _table(PAPER, "Gallery of the paper's figures", "Every figure of 04_analysis.", formats=("md",)),
    "gallery_beyond": _table(
        BEYOND, "Gallery beyond the paper", "Every figure of 06_beyond_the_paper.", formats=("md",)
    ),
}
for _parameter, _name in ABLATIONS.items():
    TABLES[f"ablation_{_parameter}"] = _table(
        PAPER,
        f"Ablation: {_name}",
        "Difference: to the row called reference, of the same seeds, with its 95 % interval over seeds (Student's t). "
        + INTERVAL_OF_TWENTY,
        always=False,
    )


def files(entries, notebook=None):
    """The files that every study has of ``entries`` (``FIGURES`` or ``TABLES``), as ``["teaser.png", "teaser.pdf"]``.

    notebook: those of one notebook.
    """
    return [
        f"{name}.{suffix}"
        for name, entry in entries.items()
        if entry.always and notebook in (None, entry.notebook)
        for suffix in entry.formats
    ]
