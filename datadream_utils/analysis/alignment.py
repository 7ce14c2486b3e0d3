"""How near generated images are to real ones, as distributions of CLIP features; and fidelity apart from diversity.

Few images bias the Fréchet distance, precision, recall, density and coverage, not of each method alike; the kernel
distance and the Gaussian MMD are unbiased. So sizes stand in each row, and a row of *other real images* (from the train
split, without the shots) shows what real images would score. They are no FID: that has Inception's features.
"""

import contextlib
import io
import warnings

import numpy as np
import pandas as pd
import torch
from joblib import parallel_config
from prdc import compute_prdc
from scipy.spatial.distance import cdist
from scipy.stats import permutation_test, rankdata
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from datadream_utils.analysis.compare import LEVEL, holm
from datadream_utils.analysis.features import encode_generated, encode_real
from datadream_utils.data.shots import few_shot
from datadream_utils.methods import METHODS

NEAREST = 5  # neighbours that make up a manifold, as in Naeem et al. 2020
SIGMA = 10.0  # of the Gaussian kernel, as in Jayasumana et al. 2024
REAL = "real images"  # the method's name of rows that compare real with real
MEASURES = {
    "frechet": "Fréchet distance",
    "kid": "kernel distance (KID)",
    "cmmd": "Gaussian MMD × 1000",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
DISTANCES = ("frechet", "kid", "cmmd")
RESAMPLES = 10_000
SUBSETS = 10
KINDS = {
    "pooled": "all points",
    "within": "methods, within classes",
    "adapted": "methods with an adapter alone, within classes",
    "classes": "classes, within methods",
    "between": "between methods' means",
}


class _AsTheyAre(torch.nn.Module):
    """Stands where torchmetrics has Inception: the features are there already."""

    def __init__(self, width):
        super().__init__()
        self.num_features = width

    def forward(self, features):
        return features


def frechet(real, fake):
    """Fréchet distance of two sets of features (n, d), (m, d): |mean - mean'|² + tr(S + S' - 2 (S S')^½)."""
    metric = FrechetInceptionDistance(feature=_AsTheyAre(real.shape[1])).set_dtype(torch.float64)
    return _updated(metric, real, fake).compute().item()


def kid(real, fake, subsets=50, seed=0):
    """Kernel distance (Bińkowski et al. 2018): the mean over random subsets of up to 50 features, drawn by ``seed``."""
    size = min(50, len(real), len(fake))
    with warnings.catch_warnings():  # of the memory that large sets would take
        warnings.simplefilter("ignore", UserWarning)
        metric = KernelInceptionDistance(feature=_AsTheyAre(real.shape[1]), subsets=subsets, subset_size=size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _updated(metric, real, fake).compute()[0].item()


def cmmd(real, fake):
    """1000 × squared MMD with a Gaussian kernel of width ``SIGMA``, unbiased: 0 on average for equal distributions."""
    kernel = lambda a, b: np.exp(-cdist(a, b, "sqeuclidean") / (2 * SIGMA**2))  # noqa: E731
    within = sum((kernel(x, x).sum() - len(x)) / (len(x) * (len(x) - 1)) for x in (real, fake))  # k(x, x) = 1 left out
    return 1000 * float(within - 2 * kernel(real, fake).mean())


def prdc(real, fake, nearest=NEAREST):
    """Precision, recall, density, coverage (Kynkäänniemi et al. 2019; Naeem et al. 2020) of equally many of each.

    Equally many, because the manifolds grow with the number of points: of the larger set ``SUBSETS`` draws, and the
    mean over them.
    """
    n, rng = min(len(real), len(fake)), np.random.default_rng(0)
    if n < nearest + 2:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), float("nan"))
    draws = SUBSETS if len(real) != len(fake) else 1
    sets = [[x[np.sort(rng.permutation(len(x))[:n])] for x in (real, fake)] for _ in range(draws)]
    # It prints the sizes; its threads would warn, and leave other warning filters behind.
    with contextlib.redirect_stdout(io.StringIO()), parallel_config(backend="sequential"):
        found = pd.DataFrame([compute_prdc(*two, nearest) for two in sets])
    return {name: float(value) for name, value in found.mean().items()}


def _updated(metric, real, fake):
    metric.update(torch.as_tensor(real), real=True)
    metric.update(torch.as_tensor(fake), real=False)
    return metric


def measures(real, fake):
    """``MEASURES`` of two sets of features, and their sizes; not a number where a set has fewer than two."""
    sizes = {"n_real": len(real), "n_synthetic": len(fake)}
    if min(sizes.values()) < 2:
        return sizes | dict.fromkeys(MEASURES, float("nan"))
    distances = {"frechet": frechet(real, fake), "kid": kid(real, fake), "cmmd": cmmd(real, fake)}
    return sizes | distances | prdc(real, fake)


def per_class(real, fake, class_names):
    """A row of ``measures`` per class of two ``Encoded`` sets."""
    rows = [
        {"label": label, "class_name": name} | measures(real.of(label).features, fake.of(label).features)
        for label, name in enumerate(class_names)
    ]
    return pd.DataFrame(rows)


def alignment(encoder, stages, real, others, class_names):
    """``per_class`` for every generate stage in ``stages`` (``stages.generated``), with its method, seed and n_shot.

    real: ``Encoded`` test images; others: ``{seed: Encoded}`` real images that are neither shots nor test images,
    compared in their turn as method ``REAL``, as many per class as the stages have.
    """
    rows, count = [], 0
    for stage in stages.itertuples():
        fake = encode_generated(encoder, stage, len(class_names))
        count = max(count, *np.bincount(fake.labels))
        names = {"method": stage.method, "n_shot": stage.n_shot, "seed": stage.seed}
        rows.append(per_class(real, fake, class_names).assign(**names))
    for seed, other in others.items():
        baseline = per_class(real, other.some(count, seed), class_names)
        rows.append(baseline.assign(method=REAL, n_shot=0, seed=seed))
    return pd.concat(rows, ignore_index=True)


def of_runs(encoder, stages, data, output_root):
    """``alignment`` of every generate stage in ``stages`` to the test split; the other real images are the train
    split's without the shots, for each seed.
    """
    if stages.empty:
        kinds = dict.fromkeys(("label", "n_real", "n_synthetic", "n_shot", "seed"), int) | dict.fromkeys(
            MEASURES, float
        )
        return pd.DataFrame(columns=["class_name", "method", *kinds]).astype(kinds)
    real = encode_real(encoder, data.files["test"], output_root)
    train = encode_real(encoder, data.files["train"], output_root)
    sets = {stage.seed: (stage.n_shot, stage.parameters["shots_file"]) for stage in stages.itertuples()}
    others = {seed: train.without(few_shot(data, n_shot, seed, file)) for seed, (n_shot, file) in sets.items()}
    return alignment(encoder, stages, real, others, data.class_names)


def against_gains(aligned, gains, setting, measure="frechet"):
    """Points (method, class): ``measure`` and the class's gain in accuracy in ``setting``, both means over seeds.

    aligned: ``alignment``; gains: ``classwise.gains``. Columns method, label, class_name, "distance", "gain".
    """
    keys = ["method", "label"]
    distance = aligned[aligned["method"] != REAL].groupby([*keys, "class_name"], as_index=False)[measure].mean()
    gain = gains[gains["setting"] == setting].groupby(keys, as_index=False)["gain"].mean()
    return distance.rename(columns={measure: "distance"}).merge(gain, on=keys).dropna()


def by_class(aligned, gains):
    """What the scatter plots show: per method and class the distances and the gains "gain_S", "gain_R+S" (points).

    All are means over seeds; other real images (``REAL``) have distances alone.
    """
    keys = ["method", "label", "class_name"]
    table = aligned.groupby(keys, as_index=False, sort=False)[["n_real", "n_synthetic", *DISTANCES]].mean()
    for setting in ("S", "R+S"):
        gain = gains[gains["setting"] == setting].groupby(keys)["gain"].mean().rename(f"gain_{setting}")
        table = table.join(gain, on=keys)
    return table


def correlations(aligned, gains):
    """``correlation`` of every distance with the gain in every setting: a row of each kind.

    "p_holm" is "p" of the methods' means, corrected for all of these tests; their verdict goes by it.
    """
    rows = [
        {"setting": setting, "measure": name, "kind": kind} | found
        for setting in ("S", "R+S")
        for name in DISTANCES
        for kind, found in correlation(against_gains(aligned, gains, setting, name)).items()
    ]
    table = pd.DataFrame(rows)
    tested, sides = table["p"].notna(), np.where(table["rho"] > 0, "above 0", "below 0")
    table.insert(table.columns.get_loc("p") + 1, "p_holm", table["p"])
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    table["verdict"] = table["verdict"].mask(tested, np.where(table["p_holm"] < LEVEL, sides, "not decided"))
    return table


def numbers_of(table, setting, measure):
    """``{kind: numbers}`` of one setting and distance in ``correlations``."""
    return table[(table["setting"] == setting) & (table["measure"] == measure)].set_index("kind").to_dict("index")


def means(aligned):
    """``MEASURES`` and the numbers of images per class, for each method, n_shot and seed: means over classes."""
    rows = aligned.groupby(["method", "n_shot", "seed"], as_index=False, sort=False)
    return rows[["n_real", "n_synthetic", *MEASURES]].mean()


def correlation(points, seed=0):
    """Spearman's rank correlation of distance and gain, of five kinds (``KINDS``): ``{kind: numbers}``.

    "pooled": of all points, where classes that gain with every method weigh most; "within": after the mean of its class
    is taken from each point: do methods that are nearer gain more?; "adapted": the same of the methods with an adapter,
    if there are three; "classes": of the classes of each method, the mean over methods: do classes that are nearer gain
    more?; "between": of the methods' means. Numbers: "rho", "low", "high" (95 %, ``RESAMPLES`` draws of *classes*: the
    points of one class are no independent ones; for the methods at hand), "p" (between: two-sided, by permuting the
    methods), "verdict" (``_verdict``; between: none, ``correlations`` corrects p first), "n_points", "n_classes",
    "n_methods". Not a number for fewer than three classes (between: methods too) or where all values are equal.
    """
    sides = ["distance", "gain"]
    adapts = points["method"].isin([name for name, method in METHODS.items() if method.adapts]).to_numpy()
    found = {}
    for kind in KINDS:
        of = points[adapts] if kind == "adapted" else points
        sizes = {"n_points": len(of), "n_classes": of["label"].nunique(), "n_methods": of["method"].nunique()}
        found[kind] = dict(rho=np.nan, low=np.nan, high=np.nan, p=np.nan, verdict="") | sizes
    classes = points["label"].nunique()
    if classes < 3:
        return found
    draws = np.random.default_rng(seed).multinomial(classes, np.full(classes, 1 / classes), RESAMPLES)
    draws = np.concatenate([np.ones((1, classes), int), draws])  # first the classes as they are
    weights = draws[:, points["label"].rank(method="dense").astype(int).to_numpy() - 1]
    rhos = {
        "pooled": weighted_spearman(*points[sides].to_numpy().T, weights),
        "within": _within_classes(points, weights),
        "classes": _within_methods(points, weights),
    }
    if found["adapted"]["n_methods"] > 2:
        rhos["adapted"] = _within_classes(points[adapts], weights[:, adapts])
    for kind, (rho, *drawn) in rhos.items():
        drawn = np.array(drawn)[~np.isnan(drawn)]
        if rho == rho and len(drawn):
            low, high = np.quantile(drawn, [0.025, 0.975])
            found[kind] |= dict(rho=float(rho), low=float(low), high=float(high), verdict=_verdict(drawn))
    means = points.groupby("method")[sides].mean().round(9)  # equal values stay equal
    if len(means) > 2 and (means.nunique() > 1).all():
        found["between"] |= _permuted(*means.to_numpy().T)
    return found


def _within_classes(points, weights):
    """``weighted_spearman`` after the mean of its class is taken from each point."""
    sides = points[["distance", "gain"]]
    return weighted_spearman(*(sides - sides.groupby(points["label"]).transform("mean")).round(9).to_numpy().T, weights)


def _within_methods(points, weights):
    """``weighted_spearman`` of each method's classes, the mean over those methods whose values vary."""
    sides = points[["distance", "gain"]].to_numpy().T
    each = [weighted_spearman(*sides[:, of], weights[:, of]) for of in points.groupby("method").indices.values()]
    return np.ma.masked_invalid(each).mean(axis=0).filled(np.nan)


def _permuted(x, y):
    """Spearman's correlation of a few values, and its exact p by all their orders (of many, ``RESAMPLES``)."""
    test = permutation_test((rankdata(x),), lambda x: np.corrcoef(x, rankdata(y))[0, 1], permutation_type="pairings",
                            n_resamples=RESAMPLES, rng=0)  # fmt: skip
    return dict(rho=float(test.statistic), p=float(test.pvalue))


def _verdict(drawn):
    """Where the 95 % interval lies; "at 0" if an end could lie on either side of 0 by the number of draws alone."""
    error = 1.96 * (0.025 * 0.975 / len(drawn)) ** 0.5  # of the share of draws beyond an end
    inner, outer = (np.quantile(drawn, [tail, 1 - tail]) for tail in (0.025 + error, 0.025 - error))
    if outer[0] > 0 or outer[1] < 0:
        return "above 0" if outer[0] > 0 else "below 0"
    return "at 0" if inner[0] > 0 or inner[1] < 0 else "not decided"


def weighted_spearman(x, y, weights):
    """Spearman's correlation of x (n,) and y (n,) for every row of ``weights`` (m, n): how often each point counts."""
    below = [(v[:, None] > v) + 0.5 * (v[:, None] == v) for v in (x, y)]
    return np.concatenate([_pearson(*(part @ side.T for side in below), part) for part in _chunks(weights)])


def _chunks(weights, size=1000):
    return [weights[i : i + size].astype(float) for i in range(0, len(weights), size)]


def _pearson(a, b, weights):
    """Pearson's correlation of the rows of a and b, (m, n), weighted; not a number where one does not vary."""
    a, b = (v - (weights * v).sum(1, keepdims=True) / weights.sum(1, keepdims=True) for v in (a, b))
    spread = ((weights * a**2).sum(1) * (weights * b**2).sum(1)) ** 0.5
    return np.divide((weights * a * b).sum(1), spread, out=np.full(len(a), np.nan), where=spread > 1e-9)
