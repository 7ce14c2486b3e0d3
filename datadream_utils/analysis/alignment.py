"""How near generated images are to real ones in CLIP features: distances, and fidelity and diversity separately.

With few images the Fréchet distance, precision, recall, density and coverage are biased, and the bias differs between
methods; the kernel distance is unbiased. So each row has the numbers of images. Rows of other real images (``REAL``: of
the train split, without the shots) show the values that real images reach. The Fréchet distance is no FID, because FID
is defined with Inception's features.
"""

import numpy as np
import pandas as pd
from scipy.spatial.distance import cdist
from scipy.stats import bootstrap, permutation_test, rankdata

from datadream_utils.analysis.compare import LEVEL, Verdict, holm
from datadream_utils.analysis.features import encode_generated, encode_real
from datadream_utils.data.shots import few_shot
from datadream_utils.methods import METHODS

NEAREST = 5  # neighbours that make up a manifold, as in Naeem et al. 2020
SUBSETS = 10  # draws of the larger set, where precision, recall, density and coverage need equally many images
REAL = "real images"  # "method" of the rows that compare real images with real ones
MEASURES = {
    "frechet": "Fréchet distance",
    "kid": "kernel distance (KID)",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
}
DISTANCES = ("frechet", "kid")
RESAMPLES = 10_000  # bootstrap draws, or permutations
CORRELATIONS = {
    "within": "methods, within classes",
    "adapted": "methods with an adapter, within classes",
    "between": "methods, means over classes",
}


def frechet(real, fake):
    """Fréchet distance of two sets of features (n, d), (m, d): |μ - μ'|² + tr(S + S' - 2 (S S')^½).

    μ: means, S: sample covariances (Heusel et al. 2017, eq. 6). With S = RᵀR and S' = R'ᵀR', tr (S S')^½ is the sum of
    the singular values of R R'ᵀ. That is exact even if S lacks full rank because there are few features.
    """
    real, fake = (np.asarray(x, np.float64) for x in (real, fake))
    roots = [np.linalg.qr((x - x.mean(0)) / (len(x) - 1) ** 0.5, mode="r") for x in (real, fake)]
    traces = sum((root**2).sum() for root in roots) - 2 * np.linalg.norm(roots[0] @ roots[1].T, "nuc")
    return float(((real.mean(0) - fake.mean(0)) ** 2).sum() + traces)


def kid(real, fake):
    """Kernel distance of two sets of features of unit length, (n, d) and (m, d): unbiased, so it may be below 0.

    The squared maximum mean discrepancy with the kernel (x·y / d + 1)³ (Bińkowski et al. 2018, section 4) of features
    times √d, that is (cosine + 1)³. Without √d the kernel is almost linear on features of unit length, and the distance
    compares only means.
    """
    real, fake = (np.asarray(x, np.float64) for x in (real, fake))
    within = 0.0
    for x in (real, fake):
        kernel = (x @ x.T + 1) ** 3
        within += (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))
    return float(within - 2 * ((real @ fake.T + 1) ** 3).mean())


def prdc(real, fake, nearest=NEAREST):
    """Precision, recall, density, coverage of two sets of features, (n, d) and (m, d); NaN for fewer than 7 of one.

    Kynkäänniemi et al. 2019, eq. 2; Naeem et al. 2020, section 3. An image lies in a manifold if it is nearer to one of
    its points than that point's ``nearest``-th neighbour. Manifolds grow with the number of points, so subsets of the
    larger set, as large as the smaller one, are compared: the result is the mean over ``SUBSETS`` draws.
    """
    n, rng = min(len(real), len(fake)), np.random.default_rng(0)
    if n < nearest + 2:
        return dict.fromkeys(("precision", "recall", "density", "coverage"), float("nan"))
    draws = SUBSETS if len(real) != len(fake) else 1
    rows = [_prdc(*(x[np.sort(rng.permutation(len(x))[:n])] for x in (real, fake)), nearest) for _ in range(draws)]
    return pd.DataFrame(rows).mean().to_dict()


def _prdc(real, fake, nearest):
    """``prdc`` of two sets of equal size."""
    distances = cdist(real, fake)  # (n, n)
    # Each point is its own nearest neighbour, at index 0.
    real_radii, fake_radii = (np.partition(cdist(x, x), nearest, axis=1)[:, nearest] for x in (real, fake))
    in_real = distances < real_radii[:, None]
    return {
        "precision": in_real.any(0).mean(),
        "recall": (distances < fake_radii).any(1).mean(),
        "density": in_real.sum(0).mean() / nearest,
        "coverage": (distances.min(1) < real_radii).mean(),
    }


def measure(real, fake):
    """``MEASURES`` of two sets of features, and their sizes; NaN if a set has fewer than two."""
    sizes = {"n_real": len(real), "n_synthetic": len(fake)}
    if min(sizes.values()) < 2:
        return sizes | dict.fromkeys(MEASURES, float("nan"))
    return sizes | {"frechet": frechet(real, fake), "kid": kid(real, fake)} | prdc(real, fake)


def measure_classes(real, fake, class_names):
    """A row of ``measure`` per class of two ``Encoded`` sets."""
    rows = [
        {"label": label, "class_name": name} | measure(real.of_class(label).features, fake.of_class(label).features)
        for label, name in enumerate(class_names)
    ]
    return pd.DataFrame(rows)


def measure_stages(encoder, stages, real, others, class_names):
    """``measure_classes`` for every generate stage in ``stages``, with its method, seed and n_shot.

    real: ``Encoded`` test images; others: ``{seed: Encoded}`` real images that are neither shots nor test images. They
    are measured as method ``REAL``, with as many images per class as the largest class of the stages.
    """
    tables, count = [], 0
    for stage in stages.itertuples():
        fake = encode_generated(encoder, stage, len(class_names))
        count = max(count, *np.bincount(fake.labels))
        names = {"method": stage.method, "n_shot": stage.n_shot, "seed": stage.seed}
        tables.append(measure_classes(real, fake, class_names).assign(**names))
    for seed, other in others.items():
        table = measure_classes(real, other.sample(count, seed), class_names)
        tables.append(table.assign(method=REAL, n_shot=0, seed=seed))
    return pd.concat(tables, ignore_index=True)


def compute_alignment(encoder, stages, data, output_root):
    """``measure_stages`` of ``stages`` (``results.select_measured``) against the test split.

    The other real images of a seed are the train split without that seed's shots.
    """
    if stages.empty:
        types = dict.fromkeys(("label", "n_real", "n_synthetic", "n_shot", "seed"), int)
        types |= dict.fromkeys(MEASURES, float)
        return pd.DataFrame(columns=["class_name", "method", *types]).astype(types)
    real = encode_real(encoder, data.files["test"], output_root)
    train = encode_real(encoder, data.files["train"], output_root)
    sets = {stage.seed: (stage.n_shot, stage.parameters["shots_file"]) for stage in stages.itertuples()}
    others = {seed: train.without(few_shot(data, n_shot, seed, file)) for seed, (n_shot, file) in sets.items()}
    return measure_stages(encoder, stages, real, others, data.class_names)


def average_measures(aligned):
    """``MEASURES`` and the numbers of images per class, for each method, n_shot and seed: means over classes."""
    rows = aligned.groupby(["method", "n_shot", "seed"], as_index=False, sort=False)
    return rows[["n_real", "n_synthetic", *MEASURES]].mean()


def average_classes(aligned, gains):
    """A row per method and class: the distances and the gains "gain_S", "gain_R+S" (points), all means over seeds.

    gains: ``per_class.compute_gains``. The rows of other real images (``REAL``) have no gains.
    """
    keys = ["method", "label", "class_name"]
    table = aligned.groupby(keys, as_index=False, sort=False)[["n_real", "n_synthetic", *DISTANCES]].mean()
    for setting in ("S", "R+S"):
        gain = gains[gains["setting"] == setting].groupby(keys)["gain"].mean().rename(f"gain_{setting}")
        table = table.join(gain, on=keys)
    return table


def join_gains(aligned, gains, setting):
    """Points (method, class) of a scatter plot: Fréchet "distance", and "gain" in ``setting``, means over seeds.

    Columns method, label, class_name, "distance", "gain"; without ``REAL`` and without rows that lack a number.
    """
    table = average_classes(aligned, gains).rename(columns={"frechet": "distance", f"gain_{setting}": "gain"})
    points = table[table["method"] != REAL][["method", "label", "class_name", "distance", "gain"]]
    return points.dropna().reset_index(drop=True)


def correlate_settings(aligned, gains):
    """``correlate`` of distance and gain in both settings: a row per setting and kind, in ``CORRELATIONS``' order.

    "p_holm": "p" corrected for all tests of the table. The verdict of a tested row depends on it.
    """
    rows = [
        {"setting": setting, "kind": kind} | numbers
        for setting in ("S", "R+S")
        for kind, numbers in correlate(join_gains(aligned, gains, setting)).items()
    ]
    table = pd.DataFrame(rows)
    tested = table["p"].notna()
    table.insert(table.columns.get_loc("p") + 1, "p_holm", table["p"])
    table.loc[tested, "p_holm"] = holm(table.loc[tested, "p"])
    sides = np.where(table["rho"] > 0, Verdict.ABOVE.label, Verdict.BELOW.label)
    by_test = np.where(table["p_holm"] < LEVEL, sides, Verdict.WITHIN_NOISE.label)
    return table.assign(verdict=table["verdict"].mask(tested, by_test))


def correlate(points):
    """Spearman's rank correlation of distance and gain (``join_gains``), of the kinds in ``CORRELATIONS``.

    "within": the mean of its class is subtracted from each point, so it asks whether nearer methods gain more. Without
    that, classes that gain with every method would dominate. "adapted": the same for methods with an adapter only,
    because a single failing method is far away and can dominate too. "between": of the methods' means over classes.

    Returns ``{kind: numbers}``: "rho"; "low", "high" (within, adapted: 95 %, ``RESAMPLES`` draws of classes, since the
    points of one class are not independent); "p" (between: two-sided, by permuting the methods); "verdict" (a label of
    ``Verdict``, "" without a number; between: that of ``correlate_settings``); "n_points", "n_classes", "n_methods".
    rho is NaN for fewer than three classes or methods, or if all values are equal.
    """
    adapts = points["method"].map(lambda name: name in METHODS and METHODS[name].adapts).astype(bool)
    chosen = {"within": points, "adapted": points[adapts], "between": points}
    correlations = {}
    for kind, of_kind in chosen.items():
        classes, methods = of_kind["label"].nunique(), of_kind["method"].nunique()
        sizes = {"n_points": len(of_kind), "n_classes": classes, "n_methods": methods}
        correlations[kind] = {"rho": np.nan, "low": np.nan, "high": np.nan, "p": np.nan, "verdict": ""} | sizes
        if min(sizes["n_classes"], sizes["n_methods"]) > 2:
            correlations[kind] |= _correlate_means(of_kind) if kind == "between" else _correlate_within(of_kind)
    return correlations


def _correlate_within(points):
    """Correlation after subtracting the mean of its class from each point, with an interval that resamples classes."""
    values = points[["distance", "gain"]]
    values = (values - values.groupby(points["label"]).transform("mean")).round(9)  # equal values stay equal
    rows = points.assign(row=np.arange(len(points))).pivot(index="label", columns="method", values="row")
    rows = rows.dropna().to_numpy(int)  # row numbers (classes, methods), of the classes that have every method
    x, y = values.to_numpy()[rows].transpose(2, 0, 1)
    if len(rows) < 3 or not x.any() or not y.any():
        return {}

    def statistic(classes, axis=-1):  # classes: (..., n), the drawn ones
        drawn = classes.astype(int)
        return _spearman(*(v[drawn].reshape(*drawn.shape[:-1], -1) for v in (x, y)))

    classes = np.arange(len(rows))
    draws = bootstrap((classes,), statistic, n_resamples=RESAMPLES, batch=200, method="percentile", vectorized=True,
                      rng=0).bootstrap_distribution  # fmt: skip
    draws = draws[~np.isnan(draws)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return {"rho": float(statistic(classes)), "low": low, "high": high, "verdict": _judge_draws(draws).label}


def _spearman(x, y):
    """Spearman's correlation along the last axis; NaN where x or y does not vary."""
    x, y = (rankdata(v, axis=-1) for v in (x, y))
    x, y = (v - v.mean(-1, keepdims=True) for v in (x, y))
    with np.errstate(invalid="ignore"):
        return (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))


def _judge_draws(draws):
    """Whether the 95 % interval excludes 0, with a margin for the random error of its ends, which are quantiles."""
    tail = 0.025 - 1.96 * (0.025 * 0.975 / len(draws)) ** 0.5
    low, high = np.quantile(draws, [tail, 1 - tail])
    return Verdict.ABOVE if low > 0 else Verdict.BELOW if high < 0 else Verdict.WITHIN_NOISE


def _correlate_means(points):
    """Correlation of the methods' means over classes; p by all their permutations, or ``RESAMPLES`` random ones."""
    means = points.groupby("method")[["distance", "gain"]].mean().round(9)  # equal values stay equal
    if (means.nunique() < 2).any():
        return {}
    x, y = means.to_numpy().T
    test = permutation_test((x,), lambda x: _spearman(x, y), permutation_type="pairings", n_resamples=RESAMPLES,
                            rng=0)  # fmt: skip
    return {"rho": float(test.statistic), "p": float(test.pvalue)}
