"""Measures of likeness, copies, classes and noise, each against an answer that is known or computed another way."""

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy import stats
from scipy.spatial.distance import cdist

from datadream_utils.analysis import alignment as fidelity
from datadream_utils.analysis import compare, features, results, significance
from datadream_utils.analysis import copies as memorisation
from datadream_utils.analysis import per_class as classwise
from datadream_utils.analysis.features import Encoded, Encoder, encode, encoder_of
from datadream_utils.data.dataset import load_dataset
from datadream_utils.data.shots import few_shot
from datadream_utils.errors import InputError
from datadream_utils.plots import results as figures


def _gaussian(n, d, mean, scale, seed):
    """Points whose sample mean and covariance are exactly ``mean`` and ``scale``² I."""
    x = np.random.default_rng(seed).normal(size=(n, d))
    x -= x.mean(0)
    x @= np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return x * scale + mean


def test_frechet_distance_of_two_gaussians():
    a, b = _gaussian(300, 6, 0.0, 1.0, 0), _gaussian(200, 6, 3.0, 2.0, 1)
    assert fidelity.frechet(a, b) == pytest.approx(6 * (3**2 + (2 - 1) ** 2), rel=1e-6)
    assert fidelity.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert fidelity.frechet(a, b) == pytest.approx(fidelity.frechet(b, a), rel=1e-6)


def test_frechet_distance_with_few_points_in_many_dimensions_is_that_of_the_formula():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 40)), rng.normal(size=(30, 40)) + 0.5
    roots = np.linalg.eigvals(np.cov(a.T) @ np.cov(b.T)).real.clip(0)
    formula = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))
    assert fidelity.frechet(a, b) == pytest.approx(formula - 2 * np.sqrt(roots).sum(), rel=1e-3)


def _mmd(kernel, a, b):
    n, m = len(a), len(b)
    within = (kernel(a, a).sum() - np.trace(kernel(a, a))) / (n * (n - 1))
    return within + (kernel(b, b).sum() - np.trace(kernel(b, b))) / (m * (m - 1)) - 2 * kernel(a, b).mean()


def test_kernel_distances_are_those_of_their_formulas():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(30, 5)), rng.normal(size=(30, 5)) + 0.7
    cubic = lambda x, y: (x @ y.T / 5 + 1) ** 3  # noqa: E731
    assert fidelity.kid(a, b) == pytest.approx(_mmd(cubic, a, b), rel=1e-4)
    gaussian = lambda x, y: np.exp(-(cdist(x, y) ** 2) / 200)  # noqa: E731
    assert fidelity.cmmd(a, b[:11]) == pytest.approx(1000 * _mmd(gaussian, a, b[:11]), rel=1e-6)
    same = rng.normal(size=(900, 5))
    assert abs(fidelity.cmmd(same[:800], same[800:])) < 0.1 * fidelity.cmmd(a, b)


def test_kid_leaves_the_global_generator_alone_and_repeats():
    torch = pytest.importorskip("torch")
    a = np.random.default_rng(0).normal(size=(120, 4))
    before = torch.get_rng_state()
    assert fidelity.kid(a[:60], a[60:]) == fidelity.kid(a[:60], a[60:])
    assert (torch.get_rng_state() == before).all()


def test_fidelity_and_diversity_come_apart():
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(40, 3)), rng.normal(size=(40, 3)) + 50])[rng.permutation(80)]
    same, far = fidelity.prdc(real, real), fidelity.prdc(real, real + 1000)
    assert (same["precision"], same["recall"], same["coverage"]) == (1, 1, 1)
    assert set(far.values()) == {0.0}
    half = np.concatenate([rng.normal(size=(80, 3))])  # one of the two heaps only: true to life, but not diverse
    found = fidelity.prdc(real, half)
    few = fidelity.prdc(np.concatenate([real, real + 1000]), half)  # not of the first ones alone
    assert few["precision"] < 1 and few["coverage"] < found["coverage"]
    assert found["precision"] > 0.9 and found["recall"] < 0.65 and found["coverage"] < 0.65


def test_too_few_images_have_no_number(capsys):
    one = fidelity.measures(np.ones((1, 3)), np.ones((9, 3)))
    assert one["n_real"] == 1 and all(np.isnan(one[name]) for name in fidelity.MEASURES)
    assert np.isnan(fidelity.prdc(np.eye(6), np.eye(6))["density"]) and capsys.readouterr().out == ""


def test_correlation_resamples_classes():
    points = pd.DataFrame({"label": range(12), "method": "a", "distance": np.arange(12.0), "gain": -np.arange(12.0)})
    found = fidelity.correlation(points)["pooled"]
    assert [found["rho"], found["low"], found["high"]] == pytest.approx([-1, -1, -1]) and found["n_classes"] == 12
    assert found["verdict"] == "below 0"
    noise = points.assign(gain=np.random.default_rng(1).normal(size=12))
    thrice = pd.concat([noise.assign(method=name) for name in "abc"])  # the same classes are no more evidence
    once, more = (fidelity.correlation(table)["pooled"] for table in (noise, thrice))
    assert once["low"] < 0 < once["high"] and once["verdict"] == "not decided"
    assert [more["low"], more["high"]] == pytest.approx([once["low"], once["high"]], abs=0.02)
    assert np.isnan(fidelity.correlation(points.head(2))["pooled"]["rho"])


def test_correlations_of_drawn_points_are_scipys():
    rng = np.random.default_rng(0)
    x, y, counts = rng.integers(0, 9, 30), rng.normal(size=30), rng.integers(0, 4, (5, 30))
    for rho, count in zip(fidelity.weighted_spearman(x, y, counts), counts, strict=True):
        assert rho == pytest.approx(stats.spearmanr(np.repeat(x, count), np.repeat(y, count)).statistic)


def test_classes_that_gain_with_every_method_do_not_pass_for_nearness():
    rng, rows = np.random.default_rng(0), []
    for label in range(10):
        for i, method in enumerate("abcd"):  # hard classes are far and gain; within a class nearer methods gain more
            rows.append((label, method, 10.0 * label + i + rng.normal() / 9, 20.0 * label - i + rng.normal() / 9))
    points = pd.DataFrame(rows, columns=["label", "method", "distance", "gain"])
    found = fidelity.correlation(points)
    assert found["pooled"]["rho"] > 0.9 and found["within"]["rho"] < -0.9 and found["between"]["rho"] == -1
    by_hand = stats.permutation_test(([0, 1, 2, 3],), lambda x: stats.spearmanr(x, [3, 2, 1, 0]).statistic,
                                     permutation_type="pairings").pvalue  # fmt: skip
    assert found["between"]["p"] == pytest.approx(by_hand) == pytest.approx(2 / 24)
    assert np.isnan(found["between"]["low"])  # four methods are few
    assert found["within"]["verdict"] == "below 0" and found["within"]["n_methods"] == 4
    assert found["classes"]["rho"] > 0.9 and found["classes"]["verdict"] == "above 0"  # and of each method's classes


def test_a_method_that_fails_does_not_pass_for_nearness():
    rng, rows = np.random.default_rng(0), []
    for label in range(
        12
    ):  # the base model is far and brings nothing; the adapted ones are alike, whatever brings more
        rows.append((label, "fakeit", 900 + 10 * rng.normal(), -50 + rng.normal()))
        rows += [(label, name, *rng.normal(size=2)) for name in ("datadream_cls", "datadream_dset", "loft")]
    points = pd.DataFrame(rows, columns=["label", "method", "distance", "gain"])
    found = fidelity.correlation(points)
    assert [found[kind]["verdict"] for kind in ("pooled", "within")] == ["below 0"] * 2
    assert [found[kind]["verdict"] for kind in ("adapted", "classes")] == ["not decided"] * 2
    assert (found["adapted"]["n_methods"], found["adapted"]["n_points"]) == (3, 36)
    each = [stats.spearmanr(of["distance"], of["gain"]).statistic for _, of in points.groupby("method")]
    assert found["classes"]["rho"] == pytest.approx(np.mean(each))
    adapted = points[points["method"] != "fakeit"]
    sides = adapted[["distance", "gain"]] - adapted.groupby("label")[["distance", "gain"]].transform("mean")
    assert found["adapted"]["rho"] == pytest.approx(stats.spearmanr(*sides.to_numpy().T).statistic)
    two = fidelity.correlation(adapted[adapted["method"] != "loft"])["adapted"]  # two methods are no choice
    assert np.isnan(two["rho"]) and (two["verdict"], two["n_methods"]) == ("", 2)
    same = points.assign(gain=points["gain"].where(points["method"] != "loft", 3.0))  # which has no correlation
    assert fidelity.correlation(same)["classes"]["rho"] == pytest.approx(np.mean(each[:-1]))


def test_methods_are_permuted_once_for_every_distance_and_setting(monkeypatch):
    monkeypatch.setattr(fidelity, "RESAMPLES", 1000)
    methods = ("fakeit", "issynth", "disef", "datadream_cls", "datadream_dset", "loft")
    keys = pd.DataFrame([(m, i) for m in methods for i in range(3)], columns=["method", "label"])
    keys = keys.assign(seed=0, class_name=keys["label"].map(str))
    rank = keys["method"].map(methods.index)
    distances = {"frechet": rank, "kid": rank.replace({1: 2, 2: 1, 3: 4, 4: 3}), "cmmd": (rank - 2.5).abs()}
    gains = pd.concat([keys.assign(setting=setting, gain=-rank) for setting in ("S", "R+S")])
    found = fidelity.correlations(keys.assign(**distances), gains)
    between = found[found["kind"] == "between"]
    assert between["p_holm"].tolist() == pytest.approx(compare.holm(between["p"]).tolist())
    assert (between["p"] <= between["p_holm"]).all() and found.loc[found["kind"] != "between", "p_holm"].isna().all()
    for row in between.itertuples():
        assert row.verdict == ("below 0" if row.p_holm < 0.05 else "not decided")
    alone = between[(between["p"] < 0.05) & (between["verdict"] == "not decided")]
    assert set(alone["measure"]) == {"kid"} and (between["verdict"] == "below 0").sum() == 2  # p of 0.02, of six tests
    assert fidelity.numbers_of(found, "S", "kid")["between"]["verdict"] == "not decided"


def test_an_interval_that_ends_at_0_is_no_evidence():
    rng = np.random.default_rng(0)
    drawn = rng.normal(1.96, 1, 10_000)
    assert fidelity._verdict(drawn - np.quantile(drawn, 0.025) + 1e-4) == "at 0"
    assert fidelity._verdict(drawn + 1) == "above 0" and fidelity._verdict(drawn - 1) == "not decided"


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
    assert found.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4 and found.of(2).paths == tuple(pictures[2])
    assert found.some(2, 0).labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert (
        found.some(2, 0).paths == found.some(2, 0).paths and len({found.some(2, seed).paths for seed in range(9)}) > 1
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
    with pytest.raises(InputError, match="not one clip_model but a, b"):
        encoder_of(runs)


def _encoded(paths):
    features = np.stack([np.asarray(Image.open(path), float).ravel() for path in paths])
    return Encoded(tuple(paths), np.zeros(len(paths), int), features / np.linalg.norm(features, axis=1, keepdims=True))


def test_copies_are_found_and_real_images_are_none(pictures, tmp_path):
    shots, held_out = _encoded(pictures[0]), _encoded(pictures[1] + pictures[2])
    copied = memorisation.nearest(shots, shots)
    real = memorisation.nearest(held_out, shots)
    assert copied["feature"].abs().max() < 1e-9 and copied["pixel"].max() == 0
    assert copied["pixel_shot"].tolist() == list(shots.paths)
    numbers = memorisation.summary(copied, real)
    assert numbers["feature_copies"] == numbers["pixel_copies"] == 100
    assert memorisation.summary(real, real)["pixel_copies"] == pytest.approx(100 / 8)  # one of eight is the least
    squares = [np.asarray(Image.open(path).resize((32, 32), Image.Resampling.BICUBIC), float) / 255
               for path in (held_out.paths[0], *shots.paths)]  # fmt: skip
    by_hand = [np.sqrt(((squares[0] - other) ** 2).mean()) for other in squares[1:]]
    assert real["pixel"][0] == pytest.approx(min(by_hand), abs=1e-6)
    pairs = memorisation.worst(pd.concat([real, copied]), 2)
    assert pairs["distance"].tolist() == pytest.approx([0, 0], abs=1e-9) and pairs["shot"].is_unique


def _set(features, labels):
    return Encoded(tuple(map(str, range(len(labels)))), np.array(labels), np.array(features, float))


def test_without_copying_half_of_the_images_are_nearer_to_a_shot(monkeypatch):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1000, 6)) * [1, 1, 1, 3, 3, 3]
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    labels = np.arange(1000) % 2
    shots, others, images = (_set(x[part], labels[part]) for part in (slice(40), slice(40, 600), slice(600, 1000)))
    monkeypatch.setattr(memorisation, "pixels", lambda paths: x[: len(paths)])
    drawn = memorisation.rivals(others, shots)
    assert drawn.shape == (10, 40) and len(np.unique(drawn)) == 400
    assert all(np.bincount(others.labels[row]).tolist() == [20, 20] for row in drawn)
    assert (drawn == memorisation.rivals(others, shots)).all()
    measured = lambda found: memorisation.nearer(memorisation.nearest(found, shots), found, others, drawn)  # noqa: E731
    assert measured(images)["feature_nearer"] == pytest.approx(50, abs=6)
    moved = shots.features[rng.integers(40, size=400)] + rng.normal(size=(400, 6)) * 0.05 + [0, 0, 0, 0.4, 0, 0]
    copied = _set(moved / np.linalg.norm(moved, axis=1, keepdims=True), labels[:400])
    real = memorisation.nearest(others, shots)
    assert memorisation.summary(memorisation.nearest(copied, shots), real)["feature_copies"] < 25
    assert measured(copied)["feature_nearer"] > 65 and measured(copied)["n_draws"] == 10  # shifted, and yet found
    few = memorisation.rivals(others.some(19, 0), shots)
    assert few.shape == (0, 0) and np.isnan(memorisation.nearer(None, copied, others, few)["feature_nearer"])


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
    table, images, real = memorisation.of_runs(encoder, pd.DataFrame(rows), data, tmp_path / "outputs")
    assert table["n"].tolist() == [3, 3] and table["n_real"].tolist() == [2, 2] and list(real) == [(2, 0), (2, 1)]
    for seed in (0, 1):
        distances = images["loft", 2, seed]["pixel"]
        assert distances[[0, 2]].tolist() == [0, 0] and distances[1] > 0.05  # in the order of classes
        assert images["loft", 2, seed]["pixel_shot"][2] == few_shot(data, 2, seed)[1][1]
    one, two = rows[0] | {"n_shot": 1}, rows[0] | {"method": "fakeit"}
    for blind in ([two, one], [one, two, two | {"n_shot": 1}]):  # FakeIt saw no shot: it stands for 1 and 2, once each
        controls = memorisation.of_runs(encoder, pd.DataFrame(blind), data, tmp_path / "outputs")[0]
        found = controls[["method", "n_shot"]].to_numpy().tolist()
        assert sorted(found) == [["fakeit", 1], ["fakeit", 2], ["loft", 1]]
    generated, held_out = memorisation.pooled(images, real, 2)
    assert len(generated["loft"]) == 6 and len(held_out) == 4 and memorisation.pooled(images, real, 1) == ({}, None)
    for of_runs in (
        lambda none: memorisation.of_runs(None, none, data, "")[0],
        lambda none: fidelity.of_runs(None, none, data, ""),
    ):
        assert of_runs(pd.DataFrame(rows[:0])).empty  # no images, no encoder: no rows
    aligned = fidelity.of_runs(encoder, pd.DataFrame(rows), data, tmp_path / "outputs")
    assert (aligned.loc[aligned["method"] == fidelity.REAL, "n_synthetic"] == 1).all() and len(aligned) == 8


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
    found = classwise.gains(predictions, ["zero", "one"]).set_index(["setting", "seed", "class_name"])["gain"]
    assert found.to_dict() == {("S", 1, "zero"): 50, ("S", 1, "one"): 0, ("R+S", 1, "zero"): -50, ("R+S", 1, "one"): 50}
    change = classwise.confusion_change(predictions, "fakeit", "R+S", 2)
    assert change.tolist() == [[-50, 50], [-50, 50]]
    assert classwise.confusion_change(predictions, "issynth", "S", 2) is None


def test_calibration_error_by_hand():
    table = _table([0] * 10, [0] * 8 + [1] * 2, 0.8)
    assert classwise.calibration_error(table) == pytest.approx(0, abs=1e-5)
    sure = _table([0] * 10, [0] * 6 + [1] * 4, [1.0] * 5 + [0.5] * 5)  # right: 5 of 5, 1 of 5
    assert classwise.calibration_error(sure) == pytest.approx(100 * (0.5 * 0 + 0.5 * 0.3), abs=1e-5)
    bins = classwise.reliability({("real", "R"): {0: sure}}).set_index("n")
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
    assert list(classwise.load_predictions(runs.head(1), "d", 1)[("real", "R")]) == [0]
    many = [("loft", "R+S"), ("fakeit", "R+S"), ("real", "R"), ("loft", "S"), ("fakeit", "S")]
    many = pd.concat([runs.head(1).assign(method=method, setting=setting) for method, setting in many])
    assert list(classwise.load_predictions(many, "d", 1)) == [
        ("fakeit", "S"), ("loft", "S"), ("real", "R"), ("fakeit", "R+S"), ("loft", "R+S")]  # fmt: skip
    with pytest.raises(InputError, match="same images in the same order"):
        classwise.load_predictions(runs, "d", 1)
    (tmp_path / "1" / "predictions.parquet").write_text("no table")
    with pytest.raises(InputError, match="run 03_train_clip again"):
        classwise.load_predictions(runs, "d", 1)


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
    equal = compare.pairs(_correct({(m, "S"): 0.6 for m in methods}))
    assert len(equal) == 15 and set(equal["verdict"]) == {compare.NOISE}
    assert (equal["p"] < 0.2).any() and (equal["p_holm"] >= equal["p"]).all()
    apart = compare.pairs(_correct({("fakeit", "S"): 0.5, ("loft", "S"): 0.8, ("real", "R"): 0.5}, seed=1))
    verdicts = apart.set_index(["first", "second"])["verdict"]
    assert verdicts["FakeIt (S)", "LoFT (S)"] == "below" and verdicts["LoFT (S)", "Real-finetune (R)"] == "above"
    assert verdicts["FakeIt (S)", "Real-finetune (R)"] == compare.NOISE
    square = significance.marks(apart)
    assert square["LoFT (S)"]["FakeIt (S)"] == "above" and square["FakeIt (S)"]["LoFT (S)"] == "below"
    assert "3 pairs: 2 differ" in significance.markdown(apart) and significance.markdown(apart).count("| ≈ |") == 1
    assert "0 pairs" in significance.markdown(compare.pairs({}))
    single = compare.pairs(_correct({("fakeit", "S"): 0.5, ("loft", "S"): 0.8}, seeds=1))
    assert "1 pair: 0 differ" in significance.markdown(single) and "| ○ |" in significance.markdown(single)
    assert "1 differ on these images but have one seed" in significance.sentence(single)


def test_marks_of_the_main_table_are_those_of_the_pairs():
    shares = {("fakeit", "S"): 0.5, ("loft", "S"): 0.8, ("issynth", "S"): 0.8, ("real", "R"): 0.7, ("loft", "R+S"): 0.9}
    correct = _correct(shares | {("clip_zeroshot", "none"): 0.5})
    pairs = compare.pairs(correct)
    rows = pd.DataFrame(list(correct), columns=["method", "setting"]).assign(dataset="mine", n_shot=16)
    rows["accuracy_mean"], rows["accuracy_std"] = [100 * found.to_numpy().mean() for found in correct.values()], np.nan
    table = significance.marked(rows, {"mine": pairs})
    square, marked = significance.marks(pairs), set()
    for block in (["FakeIt (S)", "LoFT (S)", "IsSynth (S)"], ["Real-finetune (R)", "LoFT (R+S)"]):
        best = max(block, key=lambda name: sum(verdict == "above" for verdict in square[name].values()))
        marked |= {name for name in block if square[best].get(name) == compare.NOISE}
    noted = table[table["note"] == significance.NOTE]
    names = {f"{figures.label(row.method)} ({row.setting})" for row in noted.itertuples()}
    assert len(names) == len(marked) == 1 and names <= {"LoFT (S)", "IsSynth (S)"}  # of two equals, one is the best
    assert significance.NOTE in results.to_markdown(table) and results.to_markdown(table).count("<sup>a</sup>") == 2
    words = significance.headline(table, "mine", pairs)
    assert (
        "With real images LoFT (R+S) is best" in words
        and "alone LoFT (S) is best" not in words
        and words.endswith(" %, less, and more than noise.")
    )
    assert "zero-shot CLIP: " in words and "No CLIP was trained" in significance.headline(table, "other", pairs)
    alone = rows[(rows["method"] == "loft") & (rows["setting"] == "R+S")]
    assert significance.headline(alone, "mine", pairs).startswith("With real images LoFT (R+S) has ")
    text = significance.square(pairs)
    assert (
        text.startswith("**15 pairs: ") and text.count("▲") == text.count("▼") and len(text.splitlines()) == 2 + 2 + 6
    )


def test_noise_of_the_seeds_is_no_tie():
    """IsSynth is above LoFT with every seed alike, above DISEF by these seeds' mean alone, and as good as FakeIt."""
    shares = {("issynth", "R+S"): [0.9] * 3, ("loft", "R+S"): [0.5, 0.52, 0.51], ("disef", "R+S"): [0.85, 0.4, 0.6]}
    shares |= {("fakeit", "R+S"): [0.899, 0.901, 0.9]}
    correct = {
        key: pd.DataFrame({i: np.arange(1000) < s * 1000 for i, s in enumerate(of)}) for key, of in shares.items()
    }
    pairs = compare.pairs(correct)
    rows = pd.DataFrame(list(correct), columns=["method", "setting"]).assign(dataset="d", n_shot=16, accuracy_std=1.0)
    rows["accuracy_mean"] = [90.0, 51.0, 61.7, 89.9]
    table = significance.marked(rows, {"d": pairs})
    assert table["note"].tolist() == ["", "", significance.SEEDS, significance.NOTE]
    for text in (results.to_markdown(table), results.to_latex(table), table.to_csv()):
        assert "seeds do not decide" in text and "over these test images too" in text
    assert "61.7 ± 1.0<sup>a</sup>" in results.to_markdown(table) and "89.9$_{\\pm 1.0}$$^{b}$" in results.to_latex(
        table
    )
    assert significance.headline(rows, "d", pairs) == (
        "With real images IsSynth (R+S) has the highest mean, 90.0 %; within noise of it: FakeIt (R+S); below it by "
        "more than these images' noise, but not by the seeds': DISEF (R+S)."
    )
    assert significance.headline(rows[:2], "d", pairs) == "With real images IsSynth (R+S) is best, with 90.0 %."
    real = pairs.replace({"DISEF (R+S)": "Real-finetune (R)"})
    rows = rows.replace({"disef": "real"}).assign(setting=["R+S", "R+S", "R", "R+S"])
    words = significance.headline(rows, "d", real)
    assert words.endswith(
        "Real-finetune (R) has 61.7 %, less by more than these images' noise, but these seeds do not decide."
    )
    count = pairs["verdict"].value_counts()
    assert f"{count[compare.SEEDS_NOISE]} differ on these images but are within the seeds' noise" in (
        significance.sentence(pairs)
    )
    assert f"{len(pairs) - count[compare.SEEDS_NOISE] - count[compare.NOISE]} differ (" in significance.sentence(pairs)
    lines = significance.markdown(pairs).splitlines()[4:]
    assert sum(line.endswith("| ◇ |") for line in lines) == count[compare.SEEDS_NOISE] > 0
    assert significance.square(pairs).count(" ◇ |") == 2 * count[compare.SEEDS_NOISE]


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
    table = fidelity.alignment(encoder, pd.DataFrame([stage]), real, {0: others}, ("zero", "one"))
    sizes = table.set_index(["method", "class_name"])[["n_real", "n_synthetic"]]
    assert sizes.loc[(fidelity.REAL, "one")].tolist() == [20, 8] and len(table) == 4
    again = fidelity.frechet(real.of(1).features, others.some(8, 0).of(1).features)
    assert table.set_index(["method", "label"]).loc[(fidelity.REAL, 1), "frechet"] == pytest.approx(again)
    gains = pd.DataFrame({"method": "fakeit", "setting": "S", "seed": 0, "label": [0, 1], "gain": [3.0, -1.0]})
    points = fidelity.against_gains(table, gains, "S").set_index("label")
    assert points["gain"].tolist() == [3, -1] and set(points["method"]) == {"fakeit"}
