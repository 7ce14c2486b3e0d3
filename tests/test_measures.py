"""Distances, copies, classes and verdicts, each against an answer that is known or computed another way."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats

from datadream_utils.analysis import alignment, compare, copies, features, per_class, tables
from datadream_utils.analysis.compare import Verdict
from datadream_utils.analysis.features import Encoded, Encoder, encode, try_encoder
from datadream_utils.analysis.results import load_predictions
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.shots import few_shot
from datadream_utils.errors import InputError
from datadream_utils.methods import classifier_name


def _gaussian(n, d, mean, scale, seed):
    """Points whose sample mean and covariance are exactly ``mean`` and ``scale``² I."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(0)
    x @= np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x * scale + mean


def test_frechet_distance_of_two_gaussians():
    a, b = _gaussian(300, 6, 0.0, 1.0, 0), _gaussian(200, 6, 3.0, 2.0, 1)
    assert alignment.frechet(a, b) == pytest.approx(6 * (3**2 + (2 - 1) ** 2), rel=1e-6)
    assert alignment.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert alignment.frechet(a, b) == pytest.approx(alignment.frechet(b, a), rel=1e-6)


def test_frechet_distance_with_few_points_in_many_dimensions_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 40)), rng.normal(size=(30, 40)) + 0.5
    roots = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(0)
    formula = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
    assert alignment.frechet(a, b) == pytest.approx(formula - 2 * np.sqrt(roots).sum(), rel=1e-3)


def _mmd(kernel, a, b):
    n, m = len(a), len(b)
    within = (kernel(a, a).sum() - np.trace(kernel(a, a))) / (n * (n - 1))
    return within + (kernel(b, b).sum() - np.trace(kernel(b, b))) / (m * (m - 1)) - 2 * kernel(a, b).mean()


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_the_kernel_distance_is_that_of_its_formula():
    rng = np.random.default_rng(0)
    a, b = _unit(rng.normal(size=(30, 5))), _unit(rng.normal(size=(23, 5)) + 0.7)
    d, total = 5, 0.0
    a_, b_ = a * d**0.5, b * d**0.5  # Bińkowski et al.: (x·y / d + 1)³, of features times √d, pair by pair
    for x in (a_, b_):
        pairs = [(x[i] @ x[j] / d + 1) ** 3 for i in range(len(x)) for j in range(len(x)) if i != j]
        total += np.mean(pairs)
    total -= 2 * np.mean([(x @ y / d + 1) ** 3 for x in a_ for y in b_])
    assert alignment.kid(a, b) == pytest.approx(total, rel=1e-9)
    assert alignment.kid(a, b) == pytest.approx(alignment.kid(b, a))
    values = [alignment.kid(*np.split(_unit(rng.normal(size=(40, 5)) + 1), 2)) for _ in range(300)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 300**0.5  # unbiased: 0 on average for equal distributions


@pytest.mark.parametrize("distance", [alignment.frechet, alignment.kid])
def test_equal_means_with_different_spreads_are_told_apart(distance):
    """Both sets lie around one direction with one mean; of the second all images are one of two points."""
    rng = np.random.default_rng(0)
    d = 64

    def spread(n):
        x = rng.normal(size=(n, d - 1))
        return np.concatenate([np.full((n, 1), 0.8), 0.6 * _unit(x)], axis=1)  # unit length, mean (0.8, 0, 0, ...)

    real, other = spread(200), spread(200)
    two = np.concatenate([[0.8], [0.6], np.zeros(d - 2)]) * [[1.0] * d, [1.0, -1.0] + [1.0] * (d - 2)]
    collapsed = np.repeat(two, 100, axis=0)
    assert np.allclose(collapsed.mean(0), [0.8] + [0.0] * (d - 1)) and np.allclose((collapsed**2).sum(1), 1)
    assert distance(real, collapsed) > 10 * abs(distance(real, other))
    linear = lambda x, y: ((x.mean(0) - y.mean(0)) ** 2).sum()  # noqa: E731
    assert linear(real, collapsed) < 1.5 * linear(real, other)  # means alone tell nothing


def test_manifolds_are_those_of_a_loop_over_points():
    rng = np.random.default_rng(1)
    real, fake = rng.normal(size=(25, 3)), rng.normal(size=(25, 3)) * 0.8 + 0.4

    def radius(points, i, k):
        return sorted(np.linalg.norm(points[i] - other) for j, other in enumerate(points) if j != i)[k - 1]

    def inside(point, points, k):
        return [bool(np.linalg.norm(point - points[i]) < radius(points, i, k)) for i in range(len(points))]

    for k in (3, 5):
        by_hand = {
            "precision": np.mean([any(inside(x, real, k)) for x in fake]),
            "recall": np.mean([any(inside(x, fake, k)) for x in real]),
            "density": np.mean([sum(inside(x, real, k)) for x in fake]) / k,
            "coverage": np.mean([min(np.linalg.norm(x - y) for y in fake) < radius(real, i, k)
                                 for i, x in enumerate(real)]),
        }  # fmt: skip
        assert alignment.prdc(real, fake, k) == pytest.approx(by_hand)


def test_fidelity_and_diversity_come_apart():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 50])[rng.permutation(80)]
    same, far = alignment.prdc(real, real), alignment.prdc(real, real + 1000)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert set(far.values()) == {0.0}
    half = np.concatenate([rng.normal(size=(80, 3))])  # one of the two heaps only: true to life, but not diverse
    measured = alignment.prdc(real, half)
    few = alignment.prdc(np.concatenate([real, real + 1000]), half)  # not of the first ones alone
    assert few["precision"] < 1 and few["coverage"] < measured["coverage"]
    assert measured["precision"] > 0.9 and measured["recall"] < 0.65 and measured["coverage"] < 0.65


def test_too_few_images_have_no_number():
    one = alignment.measure(np.ones((1, 3)), np.ones((9, 3)))
    assert one["n_real"] == 1 and all(np.isnan(one[name]) for name in alignment.MEASURES)
    assert np.isnan(alignment.prdc(np.eye(6), np.eye(6))["density"])


def _points(distance_and_gain, methods="abcd", classes=12):
    """``join_gains`` of made-up values: ``distance_and_gain(class, index of the method)``."""
    rows = [
        (label, method, *distance_and_gain(label, i)) for label in range(classes) for i, method in enumerate(methods)
    ]
    return pd.DataFrame(rows, columns=["label", "method", "distance", "gain"])


def _centred(points):
    sides = points[["distance", "gain"]]
    return sides - sides.groupby(points["label"]).transform("mean")


def test_a_correlation_within_classes_resamples_classes(monkeypatch):
    monkeypatch.setattr(alignment, "RESAMPLES", 2000)
    rng = np.random.default_rng(0)
    points = _points(lambda label, i: (i + rng.normal() + label, -0.5 * i + rng.normal() + label))
    within = alignment.correlate(points)["within"]
    rho = stats.spearmanr(*_centred(points).to_numpy().T).statistic
    assert within["rho"] == pytest.approx(rho)
    sides, by_class, drawn = _centred(points).to_numpy(), points.groupby("label").indices, []
    for _ in range(2000):  # another bootstrap: classes with all their points
        rows = np.concatenate([by_class[label] for label in rng.integers(0, 12, 12)])
        drawn.append(stats.spearmanr(*sides[rows].T).statistic)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (within["low"], within["high"]) == pytest.approx((low, high), abs=0.05)
    assert (within["n_points"], within["n_classes"], within["n_methods"]) == (48, 12, 4)
    few = alignment.correlate(points[points["label"] < 2])["within"]
    assert np.isnan(few["rho"]) and few["verdict"] == "" and few["n_classes"] == 2


def test_classes_that_gain_with_every_method_do_not_pass_for_nearness(monkeypatch):
    monkeypatch.setattr(alignment, "RESAMPLES", 1000)
    rng = np.random.default_rng(0)  # hard classes are far and gain; within a class nearer methods gain more
    points = _points(lambda label, i: (10.0 * label + i + rng.normal() / 9, 20.0 * label - i + rng.normal() / 9))
    correlations = alignment.correlate(points)
    assert stats.spearmanr(points["distance"], points["gain"]).statistic > 0.9
    assert correlations["within"]["rho"] < -0.9 and correlations["between"]["rho"] == -1
    by_hand = stats.permutation_test(([0, 1, 2, 3],), lambda x: stats.spearmanr(x, [3, 2, 1, 0]).statistic,
                                     permutation_type="pairings").pvalue  # fmt: skip
    assert correlations["between"]["p"] == pytest.approx(by_hand) == pytest.approx(2 / 24)
    assert np.isnan(correlations["between"]["low"])  # four methods are few
    assert correlations["within"]["verdict"] == Verdict.BELOW.label


def test_a_method_that_fails_does_not_pass_for_nearness(monkeypatch):
    """The base model is far and brings nothing; the adapted ones are alike, whatever brings more."""
    monkeypatch.setattr(alignment, "RESAMPLES", 1000)
    rng, methods = np.random.default_rng(0), ("fakeit", "datadream_cls", "datadream_dset", "loft")
    far = lambda label, i: (900 + 10 * rng.normal(), -50 + rng.normal()) if i == 0 else tuple(rng.normal(size=2))  # noqa: E731
    points = _points(far, methods)
    correlations = alignment.correlate(points)
    assert correlations["within"]["verdict"] == Verdict.BELOW.label
    adapted = points[points["method"] != "fakeit"]
    rho = stats.spearmanr(*_centred(adapted).to_numpy().T).statistic
    assert correlations["adapted"]["rho"] == pytest.approx(rho)
    assert correlations["adapted"]["verdict"] == Verdict.WITHIN_NOISE.label
    assert (correlations["adapted"]["n_methods"], correlations["adapted"]["n_points"]) == (3, 36)
    two = alignment.correlate(adapted[adapted["method"] != "loft"])["adapted"]  # two methods are no choice
    assert np.isnan(two["rho"]) and (two["verdict"], two["n_methods"]) == ("", 2)
    same = points.assign(gain=points["label"].astype(float))  # every method gains alike
    assert np.isnan(alignment.correlate(same)["within"]["rho"]) and np.isnan(alignment.correlate(same)["between"]["p"])


def test_both_settings_are_tested_at_once(monkeypatch):
    monkeypatch.setattr(alignment, "RESAMPLES", 1000)
    methods = ("fakeit", "issynth", "disef", "datadream_cls", "datadream_dset")
    keys = pd.DataFrame([(m, i) for m in methods for i in range(3)], columns=["method", "label"])
    keys = keys.assign(seed=0, class_name=keys["label"].map(str), n_real=9, n_synthetic=9)
    rank = keys["method"].map(methods.index)
    ranked, swapped = -rank, -rank.replace({0: 1, 1: 0})  # p of 2 / 120 and of 10 / 120
    gains = pd.concat([keys.assign(setting="S", gain=ranked), keys.assign(setting="R+S", gain=swapped)])
    table = alignment.correlate_settings(keys.assign(frechet=rank + keys["label"], kid=0.0), gains)
    assert table[["setting", "kind"]].to_numpy().tolist() == [[s, k] for s in ("S", "R+S") for k in
                                                              ("within", "adapted", "between")]  # fmt: skip
    between = table[table["kind"] == "between"]
    assert between["p_holm"].tolist() == pytest.approx(compare.holm(between["p"]).tolist())
    assert between["p"].tolist() == pytest.approx([2 / 120, 10 / 120])
    assert between["verdict"].tolist() == [Verdict.BELOW.label, Verdict.WITHIN_NOISE.label]
    assert table.loc[table["kind"] != "between", "p_holm"].isna().all()
    assert len(tables.to_markdown("alignment", table).splitlines()) == 4 + 6


def test_an_interval_that_ends_at_0_is_no_evidence():
    rng = np.random.default_rng(0)
    drawn = rng.normal(1.96, 1, 10_000)
    assert alignment._judge_draws(drawn - np.quantile(drawn, 0.025) + 1e-4) is Verdict.WITHIN_NOISE
    assert alignment._judge_draws(drawn + 1) is Verdict.ABOVE and alignment._judge_draws(drawn - 1) is (
        Verdict.WITHIN_NOISE
    )


@pytest.fixture
def pictures(tmp_path):
    """Three classes of four small pictures each."""
    rng, files = np.random.default_rng(0), []
    for label in range(3):
        files.append([tmp_path / f"{label}_{i}.png" for i in range(4)])
        for path in files[-1]:
            Image.fromarray(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8)).save(path)
    return files


def test_features_are_clips_and_kept_by_content(clip, pictures, tmp_path):
    model, _, processor = clip
    encoder = Encoder(model, processor, {"folder": "models/tiny-clip", "sha256": "x"})
    found = encode(encoder, pictures, tmp_path / "analysis")
    expected = model.get_image_features(**processor(images=Image.open(pictures[2][1]), return_tensors="pt"))
    expected = expected.pooler_output[0].detach().numpy()
    assert found.features[9] == pytest.approx(expected / np.linalg.norm(expected), abs=1e-5)
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and found.of_class(2).paths == tuple(pictures[2])
    assert found.sample(2, 0).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (
        found.sample(2, 0).paths == found.sample(2, 0).paths
        and len({found.sample(2, seed).paths for seed in range(9)}) > 1
    )
    nothing = Encoder(None, None, encoder.identity)  # what is kept needs no model
    again = encode(nothing, pictures, tmp_path / "analysis")
    assert (again.features == found.features).all()
    Image.new("RGB", (28, 28)).save(pictures[0][0])
    with pytest.raises(AttributeError):
        encode(nothing, pictures, tmp_path / "analysis")
    with pytest.raises(AttributeError):
        encode(Encoder(None, None, {"folder": "another"}), pictures[1:], tmp_path / "analysis")


def test_a_broken_cache_is_named(pictures, tmp_path, clip):
    model, _, processor = clip
    encoder = Encoder(model, processor, {"folder": "models/tiny-clip"})
    encode(encoder, pictures, tmp_path / "analysis")
    (kept,) = (tmp_path / "analysis").iterdir()
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(InputError, match=r"features-.*delete it"):
        encode(encoder, pictures, tmp_path / "analysis")


def test_runs_of_two_clips_have_no_common_space():
    runs = pd.DataFrame({"parameters": [{"clip_model": name, "clip_revision": ""} for name in ("a", "b")]})
    encoder, why_not = try_encoder(runs)
    assert encoder is None and "2 values of clip_model, a, b" in why_not


def _encoded(paths):
    features = np.stack([np.asarray(Image.open(path), float).ravel() for path in paths])
    return Encoded(tuple(paths), np.zeros(len(paths), int), features / np.linalg.norm(features, axis=1, keepdims=True))


def test_copies_are_found_and_real_images_are_none(pictures, tmp_path):
    shots, held_out = _encoded(pictures[0]), _encoded(pictures[1] + pictures[2])
    copied = copies.find_nearest(shots, shots)
    real = copies.find_nearest(held_out, shots)
    assert copied["feature"].abs().max() < 1e-9 and copied["pixel"].max() == 0
    assert copied["pixel_shot"].tolist() == list(shots.paths)
    numbers = copies.summarise_nearest(copied, real)
    assert numbers["feature_copies"] == numbers["pixel_copies"] == 100
    assert copies.summarise_nearest(real, real)["pixel_copies"] == pytest.approx(100 / 8)  # one of eight is the least
    squares = [np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC), float) / 255
               for path in (held_out.paths[0], *shots.paths)]  # fmt: skip
    by_hand = [np.sqrt(((squares[0] - other) ** 2).mean()) for other in squares[1:]]
    assert real["pixel"][0] == pytest.approx(min(by_hand), abs=1e-6)
    pairs = copies.find_worst(pd.concat([real, copied]), 2, "feature")
    assert pairs["distance"].tolist() == pytest.approx([0, 0], abs=1e-9) and pairs["shot"].is_unique


def _set(features, labels):
    return Encoded(tuple(map(str, range(len(labels)))), np.array(labels), np.array(features, float))


def test_without_copying_half_of_the_images_are_nearer_to_a_shot(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 6)) * [1, 1, 1, 3, 3, 3]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.arange(1000) % 2
    shots, others, images = (_set(x[part], labels[part]) for part in (slice(40), slice(40, 600), slice(600, 1000)))
    monkeypatch.setattr(copies, "load_pixels", lambda paths: x[: len(paths)])
    drawn = copies.held_out_draws(others, shots)
    assert drawn.shape == (10, 40) and len(np.unique(drawn)) == 400
    assert all(np.bincount(others.labels[row]).tolist() == [20, 20] for row in drawn)
    assert (drawn == copies.held_out_draws(others, shots)).all()
    measured = lambda found: copies.share_nearer(copies.find_nearest(found, shots), found, others, drawn)  # noqa: E731
    assert measured(images)["feature_nearer"] == pytest.approx(50, abs=6)
    moved = shots.features[rng.integers(40, size=400)] + rng.normal(size=(400, 6)) * 0.05 + [0, 0, 0, 0.4, 0, 0]
    copied = _set(moved / np.linalg.norm(moved, axis=1, keepdims=True), labels[:400])
    real = copies.find_nearest(others, shots)
    assert copies.summarise_nearest(copies.find_nearest(copied, shots), real)["feature_copies"] < 25
    assert measured(copied)["feature_nearer"] > 65 and measured(copied)["n_draws"] == 10  # shifted, and yet found
    few = copies.held_out_draws(others.sample(19, 0), shots)
    assert few.shape == (0, 0) and np.isnan(copies.share_nearer(None, copied, others, few)["feature_nearer"])


def test_runs_are_compared_with_their_own_shots(tmp_path, clip, folder_dataset):
    model, _, processor = clip
    encoder, data = Encoder(model, processor, {"folder": "models/tiny-clip"}), load_dataset(str(folder_dataset))
    rows = []
    for seed in (0, 1):  # each run "draws" its own two shots per class, then a picture of the train split that is none
        shots = few_shot(data, 2, seed)
        images = tmp_path / "outputs" / f"run{seed}" / "generate" / "images"
        images.mkdir(parents=True)
        files = [shots[0][0], shots[1][1], *(p for p in data.files["train"][0] if p not in shots[0])]
        for i, path in enumerate(files):
            (images / f"{i}.png").write_bytes(path.read_bytes())
        lines = [json.dumps({"file_name": f"{i}.png", "label": [0, 1, 0][i]}) + "\n" for i in range(3)]
        (images / "metadata.jsonl").write_text("".join(lines))
        rows.append(dict(method="loft", n_shot=2, seed=seed, parameters={"shots_file": ""}, digest=f"{seed}",
                         folder=images.parent))  # fmt: skip
    table, images, real = copies.compute_copies(encoder, pd.DataFrame(rows), data, tmp_path / "outputs")
    assert table["n"].tolist() == [3, 3] and table["n_real"].tolist() == [2, 2] and list(real) == [(2, 0), (2, 1)]
    for seed in (0, 1):
        distances = images["loft", 2, seed]["pixel"]
        assert distances[[0, 2]].tolist() == [0, 0] and distances[1] > 0.05  # in the order of classes
        assert images["loft", 2, seed]["pixel_shot"][2] == few_shot(data, 2, seed)[1][1]
    one, two = rows[0] | {"n_shot": 1}, rows[0] | {"method": "fakeit"}
    for blind in ([two, one], [one, two, two | {"n_shot": 1}]):  # FakeIt saw no shot: it stands for 1 and 2, once each
        controls = copies.compute_copies(encoder, pd.DataFrame(blind), data, tmp_path / "outputs")[0]
        found = controls[["method", "n_shot"]].to_numpy().tolist()
        assert sorted(found) == [["fakeit", 1], ["fakeit", 2], ["loft", 1]]
    generated, held_out = copies.pool_seeds(images, real, 2)
    assert len(generated["loft"]) == 6 and len(held_out) == 4 and copies.pool_seeds(images, real, 1) == ({}, None)
    for empty in (
        lambda none: copies.compute_copies(None, none, data, "")[0],
        lambda none: alignment.compute_alignment(None, none, data, ""),
    ):
        assert empty(pd.DataFrame(rows[:0])).empty  # no images, no encoder: no rows
    aligned = alignment.compute_alignment(encoder, pd.DataFrame(rows), data, tmp_path / "outputs")
    assert (aligned.loc[aligned["method"] == alignment.REAL, "n_synthetic"] == 1).all() and len(aligned) == 8


def test_of_very_many_images_some_are_looked_at(monkeypatch, pictures, tmp_path):
    seen = []
    monkeypatch.setattr(features, "encode", lambda encoder, files, *_: seen.append(files))
    monkeypatch.setattr(features, "MOST", 6)
    monkeypatch.setattr(features, "LEAST", 1)
    for _ in range(2):
        features.encode_real(None, pictures, tmp_path)
    assert [len(files) for files in seen[0]] == [2, 2, 2] and seen[0] == seen[1]
    assert all(set(some) < set(files) and some == sorted(some) for some, files in zip(seen[0], pictures, strict=True))
    features.encode_real(None, pictures, tmp_path, every=True)
    monkeypatch.setattr(features, "LEAST", 20)
    features.encode_real(None, pictures, tmp_path)
    assert seen[2] == seen[3] == pictures
    monkeypatch.setattr(features, "LEAST", 3)
    monkeypatch.setattr(features, "read_generated", lambda stage, n_classes: pictures)
    features.encode_generated(None, SimpleNamespace(folder=tmp_path / "run" / "generate", digest=""), 3)
    assert seen[4] == [paths[:3] for paths in pictures]


def _table(label, prediction, probability=0.9):
    table = pd.DataFrame({"label": label, "prediction": prediction, "probability": probability})
    return table.assign(correct=table["label"] == table["prediction"], file=[f"{i}.png" for i in range(len(table))])


def test_gains_and_confusions_by_hand():
    zero = _table([0, 0, 1, 1], [0, 1, 1, 0])  # 50 % and 50 %
    real = _table([0, 0, 1, 1], [0, 0, 1, 0])  # 100 % and 50 %
    both = _table([0, 0, 1, 1], [0, 1, 1, 1])  # 50 % and 100 %
    predictions = {
        ("clip_zeroshot", "none"): {0: zero},
        ("real", "R"): {1: real},
        ("fakeit", "S"): {1: real},
        ("fakeit", "R+S"): {0: both, 1: both},  # seed 0 has no Real-finetune beside it
    }
    table = per_class.compute_gains(predictions, ["zero", "one"]).set_index(["setting", "seed", "class_name"])
    # of "zero" in S: an image gained 100 points, one nothing; the variance of their mean
    assert table.loc[("S", 1, "zero"), "image_variance"] == np.var([0, 100], ddof=1) / 2
    found = table["gain"]
    assert found.to_dict() == {("S", 1, "zero"): 50, ("S", 1, "one"): 0, ("R+S", 1, "zero"): -50, ("R+S", 1, "one"): 50}
    change = per_class.compute_confusion_change(predictions, "fakeit", "R+S", 2)
    assert change.tolist() == [[-50, 50], [-50, 50]]
    assert per_class.compute_confusion_change(predictions, "issynth", "S", 2) is None


def test_calibration_error_by_hand():
    table = _table([0] * 10, [0] * 8 + [1] * 2, 0.8)
    assert per_class.calibration_error(table) == pytest.approx(0, abs=1e-5)
    sure = _table([0] * 10, [0] * 6 + [1] * 4, [1.0] * 5 + [0.5] * 5)  # right: 5 of 5, 1 of 5
    assert per_class.calibration_error(sure) == pytest.approx(100 * (0.5 * 0 + 0.5 * 0.3), abs=1e-5)
    bins = per_class.compute_reliability({("real", "R"): {0: sure}}).set_index("n")
    assert bins["certainty"].tolist() == [50, 100] and bins["accuracy"].tolist() == [20, 100]


def test_predictions_of_other_images_are_refused(tmp_path):
    rows = []
    for seed in (0, 1):
        folder = tmp_path / str(seed)
        folder.mkdir()
        _table([0, 1], [0, 1]).iloc[:: 1 - 2 * seed].to_parquet(folder / "predictions.parquet")
        rows.append(dict(dataset="d", n_shot=1, classifier="clip", protocol="sound", variant="", seed=seed,
                         method="real", setting="R", folder=folder))  # fmt: skip
    runs = pd.DataFrame(rows)
    assert list(load_predictions(runs.head(1), "d", 1)[("real", "R")]) == [0]
    many = [("loft", "R+S"), ("fakeit", "R+S"), ("real", "R"), ("loft", "S"), ("fakeit", "S")]
    many = pd.concat([runs.head(1).assign(method=method, setting=setting) for method, setting in many])
    assert list(load_predictions(many, "d", 1)) == [
        ("fakeit", "S"), ("loft", "S"), ("real", "R"), ("fakeit", "R+S"), ("loft", "R+S")]  # fmt: skip
    with pytest.raises(InputError, match="same images in the same order"):
        load_predictions(runs, "d", 1)
    (tmp_path / "1" / "predictions.parquet").write_text("no table")
    with pytest.raises(InputError, match="run 03_train_clip again"):
        load_predictions(runs, "d", 1)


def test_mcnemar_is_the_exact_test_of_the_discordant_pairs():
    a = pd.DataFrame({0: [True] * 12 + [False] * 3 + [True] * 50})
    b = pd.DataFrame({0: [False] * 12 + [True] * 3 + [True] * 50})
    by_hand = min(1, 2 * stats.binom.cdf(3, 15, 0.5))
    assert compare.mcnemar(a, b) == (pytest.approx(by_hand), 12, 3)
    assert compare.mcnemar(b, a) == (pytest.approx(by_hand), 3, 12)
    twice = [pd.DataFrame({0: x[0], 1: x[0]}) for x in (a, b)]  # a second seed of the same is no new evidence
    assert compare.mcnemar(*twice) == (pytest.approx(by_hand), 12, 3)
    assert compare.mcnemar(a, a) == (1.0, 0, 0)


def test_equal_classifiers_are_told_apart_in_one_of_twenty_tables_at_most():
    rng, found = np.random.default_rng(0), 0
    for _ in range(200):
        a, b = (pd.DataFrame(rng.random((200, 3)) < 0.7) for _ in range(2))
        found += compare.mcnemar(a, b)[0] < 0.05
    assert 1 <= found <= 16  # 10 are expected, fewer because the test is exact


def test_holm_by_hand():
    assert compare.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert compare.holm([0.5, 0.9]).tolist() == [1.0, 1.0] and len(compare.holm([])) == 0


def _correct(shares, n=400, seeds=4, seed=0):
    rng = np.random.default_rng(seed)
    return {key: pd.DataFrame(rng.random((n, seeds)) < share) for key, share in shares.items()}


def test_noise_is_never_called_better():
    methods = ("fakeit", "issynth", "disef", "datadream_cls", "datadream_dset", "loft")
    equal = compare.compare_pairs(_correct({(m, "S"): 0.6 for m in methods}))
    assert len(equal) == 15 and set(equal["verdict"]) == {Verdict.WITHIN_NOISE.label}
    assert (equal["p"] < 0.2).any() and (equal["p_holm"] >= equal["p"]).all()
    apart = compare.compare_pairs(_correct({("fakeit", "S"): 0.5, ("loft", "S"): 0.8, ("real", "R"): 0.5}, seed=1))
    verdicts = apart.set_index(["first", "second"])["verdict"]
    assert verdicts["FakeIt (S)", "LoFT (S)"] == "below" and verdicts["LoFT (S)", "Real-finetune (R)"] == "above"
    assert verdicts["FakeIt (S)", "Real-finetune (R)"] == Verdict.WITHIN_NOISE.label
    matrix = compare.verdict_matrix(apart)
    assert matrix.loc["LoFT (S)", "FakeIt (S)"] == "above" and matrix.loc["FakeIt (S)", "LoFT (S)"] == "below"
    assert all(matrix.isna().to_numpy().diagonal())
    text = tables.to_markdown("pairs", apart)
    assert text.count("| ≈ within noise |") == 1 and text.count("| ▼ below |") == 1 and len(text.splitlines()) == 4 + 3
    assert len(tables.to_markdown("pairs", compare.compare_pairs({})).splitlines()) == 4
    single = compare.compare_pairs(_correct({("fakeit", "S"): 0.5, ("loft", "S"): 0.8}, seeds=1))
    assert single["verdict"].tolist() == [Verdict.ONE_SEED.label] and "| ○ one seed |" in tables.to_markdown(
        "pairs", single
    )


def test_verdicts_of_the_main_table_are_those_of_the_pairs():
    shares = {("fakeit", "S"): 0.5, ("loft", "S"): 0.8, ("issynth", "S"): 0.8, ("real", "R"): 0.7, ("loft", "R+S"): 0.9}
    correct = _correct(shares | {("clip_zeroshot", "none"): 0.5})
    pairs = compare.compare_pairs(correct)
    rows = pd.DataFrame(list(correct), columns=["method", "setting"]).assign(dataset="mine", n_shot=16)
    rows["accuracy_mean"], rows["accuracy_std"] = [100 * seeds.to_numpy().mean() for seeds in correct.values()], np.nan
    table = compare.add_verdicts(rows, {"mine": pairs})
    verdicts = {classifier_name(row.method, row.setting): row.verdict for row in table.itertuples()}
    assert verdicts["FakeIt (S)"] == verdicts["Real-finetune (R)"] == "below"
    assert {verdicts["LoFT (S)"], verdicts["IsSynth (S)"]} == {"", Verdict.WITHIN_NOISE.label}  # of equals one is best
    assert verdicts["LoFT (R+S)"] == verdicts["CLIP (zero-shot)"] == ""
    text = tables.to_markdown("main_results", table)
    assert text.count("<sup>≈</sup>") == 2 and "<sup>◇</sup>" not in text  # in its cell, and the note
    sentences = compare.write_headline(table, "mine")
    best, near = ("LoFT (S)", "IsSynth (S)") if verdicts["LoFT (S)"] == "" else ("IsSynth (S)", "LoFT (S)")
    assert sentences.count(". ") == 1 and f"{best} has the highest mean" in sentences and f": {near}." in sentences
    assert sentences.endswith("With real images, LoFT (R+S) has the highest mean accuracy, "
                              f"{table['accuracy_mean'].max():.1f} %.")  # fmt: skip
    assert "No CLIP was trained" in compare.write_headline(table, "other")
    square = tables.matrix_to_markdown(pairs)
    rows = "".join(line for line in square.splitlines() if line.startswith("|"))
    assert rows.count("▲") == rows.count("▼") > 0 and len(square.splitlines()) == 2 + 2 + 6
    assert len(tables.matrix_to_markdown(compare.compare_pairs({})).splitlines()) == 2
    average = compare.add_verdicts(table.assign(dataset="average"), {"mine": pairs})
    assert set(average["verdict"]) == {""}  # nothing is compared


def test_noise_of_the_seeds_is_no_tie():
    """IsSynth is above LoFT with every seed alike, above DISEF by these seeds' mean alone, and as good as FakeIt."""
    shares = {("issynth", "R+S"): [0.9] * 3, ("loft", "R+S"): [0.5, 0.52, 0.51], ("disef", "R+S"): [0.85, 0.4, 0.6]}
    shares |= {("fakeit", "R+S"): [0.899, 0.901, 0.9]}
    correct = {
        key: pd.DataFrame({i: np.arange(1000) < s * 1000 for i, s in enumerate(of)}) for key, of in shares.items()
    }
    pairs = compare.compare_pairs(correct)
    rows = pd.DataFrame(list(correct), columns=["method", "setting"]).assign(dataset="d", n_shot=16, accuracy_std=1.0)
    rows["accuracy_mean"] = [90.0, 51.0, 61.7, 89.9]
    table = compare.add_verdicts(rows, {"d": pairs})
    undecided, noise = Verdict.UNDECIDED.label, Verdict.WITHIN_NOISE.label
    assert table["verdict"].tolist() == ["", "below", undecided, noise]
    markdown, latex = tables.to_markdown("main_results", table), tables.to_latex("main_results", table)
    assert "61.7 ± 1.0<sup>◇</sup>" in markdown and r"89.9$_{\pm 1.0}$$^{\approx}$" in latex
    for text in (markdown, latex):
        assert "seeds do not decide" in text and "Within the noise of these test images" in text
    assert compare.write_headline(table, "d") == (
        "With real images, IsSynth (R+S) has the highest mean accuracy, 90.0 %; not surely below it: DISEF (R+S), "
        "FakeIt (R+S)."
    )
    assert compare.write_headline(table[:2], "d").endswith("IsSynth (R+S) has the highest mean accuracy, 90.0 %.")
    count = pairs["verdict"].value_counts()
    lines = tables.to_markdown("pairs", pairs).splitlines()[4:]
    assert sum(line.endswith(f"| ◇ {undecided} |") for line in lines) == count[undecided] > 0
    square = "".join(tables.matrix_to_markdown(pairs).splitlines(keepends=True)[4:])
    assert square.count(" ◇ |") == 2 * count[undecided]


@pytest.mark.parametrize("seeds", [(3, 4, 5), (0, 1, 2)])  # none in common; those on which LoFT is the better one
def test_a_mean_of_other_seeds_is_not_called_lower(seeds):
    def of(shares):
        return pd.DataFrame({seed: np.arange(1000) < 1000 * share for seed, share in shares.items()})

    best = of({0: 0.5, 1: 0.5, 2: 0.5, 6: 1.0, 7: 1.0, 8: 1.0, 9: 1.0})
    correct = {("issynth", "R+S"): best, ("loft", "R+S"): of(dict.fromkeys(seeds, 0.7))}
    rows = pd.DataFrame(list(correct), columns=["method", "setting"]).assign(dataset="d", n_shot=16, accuracy_std=1.0)
    rows["accuracy_mean"] = [100 * table.to_numpy().mean() for table in correct.values()]
    table = compare.add_verdicts(rows, {"d": compare.compare_pairs(correct)})
    assert table["verdict"].tolist() == ["", compare.OTHER_SEEDS]
    assert "70.0 ± 1.0<sup>§</sup>" in tables.to_markdown("main_results", table)
    assert "not surely below it: LoFT (R+S)" in compare.write_headline(table, "d")


def test_alignment_puts_real_images_beside(tmp_path, clip):
    model, _, processor = clip
    encoder = Encoder(model, processor, {"folder": "models/tiny-clip"})
    files = [[tmp_path / f"{label}_{i}.png" for i in range(40)] for label in range(2)]
    rng = np.random.default_rng(0)
    for path in files[0] + files[1]:
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
    images = tmp_path / "outputs" / "run" / "generate" / "images"
    images.mkdir(parents=True)
    rows = []
    for label in range(2):
        for path in files[label][:8]:
            (images / path.name).write_bytes(path.read_bytes())
            rows.append({"file_name": path.name, "label": label})
    (images / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = dict(method="fakeit", n_shot=16, seed=0, digest="known", folder=images.parent)
    real = encode(encoder, [paths[20:] for paths in files], tmp_path / "analysis")
    others = encode(encoder, [paths[8:20] for paths in files], tmp_path / "analysis")
    table = alignment.measure_stages(encoder, pd.DataFrame([stage]), real, {0: others}, ("zero", "one"))
    sizes = table.set_index(["method", "class_name"])[["n_real", "n_synthetic"]]
    assert sizes.loc[(alignment.REAL, "one")].tolist() == [20, 8] and len(table) == 4
    again = alignment.frechet(real.of_class(1).features, others.sample(8, 0).of_class(1).features)
    assert table.set_index(["method", "label"]).loc[(alignment.REAL, 1), "frechet"] == pytest.approx(again)
    gains = pd.DataFrame(
        {
            "method": "fakeit",
            "setting": "S",
            "seed": 0,
            "label": [0, 1],
            "gain": [3.0, -1.0],
            "class_name": ["zero", "one"],
        }
    )
    points = alignment.join_gains(table, gains, "S").set_index("label")
    assert points["gain"].tolist() == [3, -1] and set(points["method"]) == {"fakeit"}
