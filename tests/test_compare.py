"""Paired differences against closed forms and another bootstrap; which runs are compared; verdicts; published order."""

import json

import numpy as np
import pandas as pd
import pytest
from conftest import finish_stage
from scipy import stats

from datadream_utils.analysis import compare, published, tables
from datadream_utils.analysis.compare import Verdict
from datadream_utils.analysis.results import load_predictions, load_results
from datadream_utils.errors import InputError
from datadream_utils.methods import classifier_name


def _random(share, n_images=2000, seeds=3, seed=0):
    hard = np.random.default_rng(99).normal(size=(n_images, 1))  # easy and hard images are so for everyone
    noise = np.random.default_rng(seed).normal(size=(n_images, seeds))
    return pd.DataFrame(hard + noise < np.sqrt(2) * stats.norm.ppf(share))


def test_interval_is_the_normal_one_of_the_paired_differences():
    a, b = _random(0.7, seed=1), _random(0.65, seed=2)
    found = compare.paired_difference(a, b)
    differences = 100 * (a.mean(axis=1) - b.mean(axis=1))
    error = differences.std(ddof=0) / len(differences) ** 0.5
    assert found["difference"] == pytest.approx(differences.mean()) and found["n_test"] == 2000
    assert found["low"] == pytest.approx(differences.mean() - 1.959964 * error, abs=0.1 * error)
    assert found["high"] == pytest.approx(differences.mean() + 1.959964 * error, abs=0.1 * error)


def test_interval_is_that_of_scipys_paired_bootstrap():
    a, b = _random(0.9, n_images=60, seed=1), _random(0.7, n_images=60, seed=2)
    found = compare.paired_difference(a, b)
    other = stats.bootstrap(
        (100 * a.mean(axis=1), 100 * b.mean(axis=1)), lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True, method="percentile", n_resamples=10_000, rng=1,
    ).confidence_interval  # fmt: skip
    assert found["low"] == pytest.approx(other.low, abs=1.0) and found["high"] == pytest.approx(other.high, abs=1.0)


def test_the_same_every_time():
    a, b = _random(0.7, seed=1), _random(0.65, seed=2)
    assert compare.paired_difference(a, b) == compare.paired_difference(a, b)


def test_pairing_makes_the_interval_narrower():
    a, b = _random(0.7, seed=1), _random(0.65, seed=2)
    shuffled = b.sample(frac=1, random_state=0, ignore_index=True)
    paired, apart = compare.paired_difference(a, b), compare.paired_difference(a, shuffled)
    assert paired["difference"] == pytest.approx(apart["difference"])
    assert paired["high"] - paired["low"] < 0.8 * (apart["high"] - apart["low"])


def test_only_common_seeds_are_compared():
    a, b = _random(0.7, seed=1), _random(0.65, seed=2)
    a.columns, b.columns = [0, 1, 2], [2, 3, 1]
    found = compare.paired_difference(a, b)
    by_hand = {seed: round(100 * (a[seed].mean() - b[seed].mean()), 2) for seed in (1, 2)}
    assert found["per_seed"] == by_hand and found["difference"] == pytest.approx(
        np.mean(list(by_hand.values())), abs=0.01
    )
    b.columns = [7, 8, 9]
    assert compare.paired_difference(a, b) is None


def test_a_verdict_needs_images_and_seeds():
    same = _pair([0.5, 0.5], [0.5, 0.5])
    assert same["verdict"] == Verdict.WITHIN_NOISE.label and (same["low"], same["high"]) == (0.0, 0.0)
    assert _pair([0.9, 0.88], [0.5, 0.5])["verdict"] == "above" and _pair([0.5, 0.5], [0.9, 0.88])["verdict"] == "below"
    mixed = _pair([0.9, 0.8, 0.55], [0.5, 0.5, 0.5])  # far apart in the mean, every seed on one side, but how unlike!
    assert mixed["low"] > 10 and mixed["p_holm"] < 1e-6 and mixed["seeds_low"] < 0
    assert mixed["verdict"] == Verdict.UNDECIDED.label  # no tie: only the seeds do not decide
    one = _pair([0.9], [0.5])  # another training may bring anything
    assert one["low"] > 10 and np.isnan(one["seeds_low"]) and one["verdict"] == Verdict.ONE_SEED.label
    few = compare.compare_pairs({("real", "R"): _shares([1.0], 5), ("fakeit", "R+S"): _shares([0.2], 5)}).iloc[0]
    assert (
        few["low"] > 0 and few["p"] > 0.05 and few["verdict"] == Verdict.WITHIN_NOISE.label
    )  # four of five images prove nothing
    open_ = _pair([0.505, 0.49, 0.51], [0.5, 0.5, 0.5])  # neither images nor seeds
    assert open_["p"] > 0.05 and open_["seeds_low"] < 0 and open_["verdict"] == Verdict.WITHIN_NOISE.label


def test_interval_over_seeds_is_students():
    found = _pair([0.9, 0.8, 0.7], [0.5, 0.5, 0.5])
    low, high = stats.ttest_1samp([40.0, 30.0, 20.0], 0).confidence_interval(0.95)
    assert (found["seeds_low"], found["seeds_high"]) == (pytest.approx(low), pytest.approx(high))


def test_images_must_be_on_the_side_of_the_mean():
    a, b = np.zeros((3500, 3), bool), np.zeros((3500, 3), bool)
    a[:150] = True  # 150 images that the first recognises with every seed
    for seed in range(3):  # 300 that the second recognises with one seed each
        b[150 + 100 * seed : 250 + 100 * seed, seed] = True
    found = compare.compare_pairs({("loft", "S"): pd.DataFrame(a), ("fakeit", "S"): pd.DataFrame(b)}).iloc[0]
    assert found["low"] > 0 and found["seeds_low"] > 0 and found["p"] < 1e-9  # and yet more images are the second's
    assert (found["better"], found["worse"]) == (150, 300) and found["verdict"] == Verdict.WITHIN_NOISE.label


def test_zero_shot_clip_is_the_same_with_every_seed(runs):
    _write_run(runs, "clip_zeroshot", "none", [True] * 30 + [False] * 70)
    correct = _correct(runs)
    assert list(correct["clip_zeroshot", "none"]) == [0, 1] and list(correct["issynth", "R+S"]) == [0]
    row = compare.select_pair(compare.compare_pairs(correct), "Real-finetune (R)", "CLIP (zero-shot)")
    assert row["per_seed"] == {0: 30.0, 1: 30.0} and row["verdict"] == "above"


def _shares(shares, n=1000):
    """The first ``share`` of ``n`` images is recognised, for each seed."""
    return pd.DataFrame({seed: np.arange(n) < share * n for seed, share in enumerate(shares)})


def _pair(first, second):
    return compare.compare_pairs({("datadream_cls", "S"): _shares(first), ("fakeit", "S"): _shares(second)}).iloc[0]


def test_a_verdict_has_a_label_a_sign_and_another_side():
    assert Verdict("above") is Verdict.ABOVE and Verdict.ABOVE.reversed() is Verdict.BELOW
    assert all(verdict.reversed().reversed() is verdict for verdict in Verdict)
    assert len({verdict.sign for verdict in Verdict}) == len({verdict.label for verdict in Verdict}) == 5
    assert Verdict.UNDECIDED.reversed() is Verdict.UNDECIDED


def test_differences_of_seeds_alone():
    assert compare.judge_seeds([3, 3.1, 2.9])["verdict"] == "above"
    judged = compare.judge_seeds([1.0, 3.0, 5.0])
    low, high = stats.ttest_1samp([1.0, 3.0, 5.0], 0).confidence_interval(0.95)
    assert (judged["mean"], judged["low"], judged["high"]) == pytest.approx((3.0, low, high))
    assert judged["verdict"] == Verdict.WITHIN_NOISE.label
    assert compare.format_difference(judged) == "+3.0 points (-2.0 to +8.0 over seeds: within noise)"
    assert compare.format_difference(compare.judge_seeds([1.0])) == "+1.0 points (one seed)"
    assert compare.judge_seeds([0.1 + 0.2 - 0.3] * 3)["verdict"] == Verdict.WITHIN_NOISE.label  # 0 up to rounding
    assert compare.judge_seeds([-2.0, -2.0])["verdict"] == "below"  # all alike
    both = compare.compare_seeds({0: 5.0, 1: 7.0, 2: 1.0}, {1: 6.0, 0: 5.0, 3: 9.0})
    assert both["mean"] == 0.5 and compare.compare_seeds({0: 1.0}, {1: 1.0}) is None


def test_a_pair_seen_from_the_other_side():
    found = compare.compare_pairs({("datadream_cls", "S"): _shares([0.9, 0.88]), ("fakeit", "S"): _shares([0.5, 0.5])})
    there = compare.select_pair(found, "DataDream_cls (S)", "FakeIt (S)")
    back = compare.select_pair(found, "FakeIt (S)", "DataDream_cls (S)")
    assert there["difference"] == -back["difference"] == 39.0
    for low, high in (("low", "high"), ("seeds_low", "seeds_high")):
        assert (there[low], there[high]) == (-back[high], -back[low]) and there[low] < there[high]
    assert (there["better"], there["worse"]) == (back["worse"], back["better"]) == (400, 0)
    assert (there["verdict"], back["verdict"]) == ("above", "below") and back["per_seed"] == {0: -40.0, 1: -38.0}
    assert compare.select_pair(found, "FakeIt (S)", "LoFT (S)") is None


def _write_run(root, method, setting, right, seed=0, suffix="", files=None, **changes):
    folder = root / f"d_{method}_16shot_seed{seed}" / f"train-{setting}{suffix}"
    folder.mkdir(parents=True)
    files = files or [f"test/{i}.png" for i in range(len(right))]
    predictions = pd.DataFrame({"correct": right, "file": files, "label": 0, "probability": 0.9})
    predictions = predictions.assign(prediction=(~predictions["correct"]).astype(int))
    predictions.to_parquet(folder / "predictions.parquet")
    metrics = dict(dataset="d", method=method, setting=setting, n_shot=16, seed=seed, variant="", n_test=len(right))
    metrics |= dict(accuracy=100 * float(np.mean(right)), classifier="clip", protocol="sound") | changes
    (folder / "metrics.json").write_text(json.dumps(metrics))
    finish_stage(folder)


def _correct(root, **which):
    return compare.stack_correct(load_predictions(load_results(root), "d", 16, **which))


@pytest.fixture
def runs(tmp_path):
    """dset above Real-finetune; cls below it; IsSynth as good as it, on other images."""
    for seed in (0, 1):
        _write_run(tmp_path, "real", "R", [True] * 60 + [False] * 40, seed)
        _write_run(tmp_path, "datadream_dset", "R+S", [True] * 80 + [False] * 20, seed)
        _write_run(tmp_path, "datadream_cls", "R+S", [True] * 40 + [False] * 60, seed)
        _write_run(tmp_path, "fakeit", "R+S", [False] * 50 + [True] * 50, seed)
    _write_run(tmp_path, "issynth", "R+S", [False] * 10 + [True] * 60 + [False] * 30)
    return tmp_path


def test_the_published_order_against_ours(runs):
    order = compare.compare_order(compare.compare_pairs(_correct(runs)), "d").set_index("pair")
    assert len(order) == 6 and set(order["source"]) == {"average"}
    holds = order.loc["DataDream_dset (R+S) − Real-finetune (R)"]
    assert (holds["published"], holds["ours"], holds["outcome"], holds["verdict"]) == (2.38, 20.0, "holds", "above")
    assert holds["per_seed"] == {0: 20.0, 1: 20.0} and holds["low"] > 10 and holds["n_test"] == 100
    reversed_ = order.loc["DataDream_cls (R+S) − Real-finetune (R)"]
    assert (reversed_["ours"], reversed_["outcome"], reversed_["verdict"]) == (-20.0, "reversed", "below")
    open_ = order.loc["IsSynth (R+S) − Real-finetune (R)"]
    assert (open_["ours"], open_["outcome"], open_["per_seed"]) == (0.0, "not decided", {0: 0.0})
    assert open_["verdict"] == Verdict.WITHIN_NOISE.label
    assert order.loc["DataDream_dset (R+S) − IsSynth (R+S)", "verdict"] == Verdict.ONE_SEED.label
    assert order["outcome"].value_counts().to_dict() == {"holds": 2, "reversed": 1, "not decided": 3}
    assert not order.index.str.contains("FakeIt").any()


def test_the_order_as_a_table(runs):
    order = compare.compare_order(compare.compare_pairs(_correct(runs)), "d")
    text = tables.to_markdown("order", order)
    assert "| DataDream_dset (R+S) − Real-finetune (R) | averages | +2.4 | +2.8 | +20.0 |" in text
    assert text.count("| ▲ above | holds |") == 2 and text.count("| ○ one seed | not decided |") == 2
    assert "⇄" not in text and len(text.splitlines()) == 4 + len(order)
    empty = compare.compare_order(compare.compare_pairs({}), "d")
    assert empty.empty and list(empty.columns) == list(order.columns) == list(compare.ORDER)
    assert len(tables.to_markdown("order", empty).splitlines()) == 4


def test_an_order_that_needs_training_images_is_marked():
    shares = {("real", "R"): [0.9, 0.9], ("datadream_dset", "S"): [0.5, 0.52], ("datadream_cls", "S"): [0.89, 0.5]}
    correct = {key: _shares(share) for key, share in shares.items()}
    table = compare.compare_order(compare.compare_pairs(correct), "d")
    order = table.set_index("pair")
    dset = order.loc["Real-finetune (R) − DataDream_dset (S)"]
    assert (dset["published"], dset["published_without"], dset["outcome"]) == (1.21, -1.51, "holds")  # by all ten
    cls = order.loc["Real-finetune (R) − DataDream_cls (S)"]
    assert (cls["verdict"], cls["outcome"]) == (Verdict.UNDECIDED.label, "not decided")
    text = tables.to_markdown("order", table)
    assert "| Real-finetune (R) − DataDream_dset (S) | averages | +1.2 | -1.5 ⇄ | +39.0 |" in text
    assert text.count("⇄") == 1


@pytest.mark.parametrize("dataset", ["eurosat", "fgvc_aircraft", "imagenet"])
def test_a_perfect_reproduction_of_a_published_column_reverses_nothing(dataset):
    """A data set's own published cells as accuracies: every order holds or is within noise. The averages' would not."""
    cells = published.load_published().query("dataset == @dataset")
    rng = np.random.default_rng(0)
    hard = rng.random((8000, 1))  # easy and hard images are so for every system
    correct = {
        (row.method, row.setting): pd.DataFrame((hard + rng.normal(0, 0.02, (8000, 3))) < row.mean / 100)
        for row in cells.itertuples()
    }
    pairs = compare.compare_pairs(correct)
    order = compare.compare_order(pairs, dataset)
    claims = {(classifier_name(*row.higher), classifier_name(*row.lower))
              for row in published.published_order(dataset).itertuples()}  # fmt: skip
    assert len(order) == len(claims) >= 17 and set(order["source"]) == {dataset}
    assert "reversed" not in set(order["outcome"])
    assert (order["outcome"] == "holds").sum() > len(order) / 2
    assert order["published_without"].isna().all()
    large = order[order["published"] > 2]
    assert (large["outcome"] == "holds").all() and len(large)
    if dataset == "eurosat":  # against the averages, the same runs would have reversed many orders
        assert (compare.compare_order(pairs, "another")["outcome"] == "reversed").sum() >= 4


def test_gains_are_pairs_with_verdicts(runs):
    pairs = compare.compare_pairs(_correct(runs))
    gains = compare.select_gains(pairs).set_index("first")
    assert set(gains["second"]) == {"Real-finetune (R)"} and "FakeIt (S)" not in gains.index
    assert gains.loc["DataDream_dset (R+S)", ["difference", "verdict"]].tolist() == [20.0, "above"]
    assert gains.loc["FakeIt (R+S)", "difference"] == -10.0
    assert len(tables.to_markdown("pairs", gains.reset_index(), caption=False).splitlines()) == 2 + len(gains)
    assert compare.select_gains(compare.compare_pairs({})).empty


def test_only_like_runs_are_compared(runs):
    before = _correct(runs)
    wrong = [False] * 100
    _write_run(runs, "real", "R", wrong, suffix="-resnet", classifier="resnet", protocol="sound")
    _write_run(runs, "real", "R", wrong, suffix="-published", classifier="clip", protocol="published")
    _write_run(runs, "real", "R", wrong, seed=5, suffix="-v", variant="v")
    _write_run(runs, "real", "R", wrong, seed=6, n_shot=4)
    after = _correct(runs)
    assert after.keys() == before.keys() and all(after[key].equals(before[key]) for key in before)
    resnet = _correct(runs, classifier="resnet")
    assert list(resnet) == [("real", "R")] and not resnet["real", "R"].to_numpy().any()


@pytest.mark.parametrize("files", [[f"test/{i}.png" for i in reversed(range(100))], ["test/new.png"] * 100])
def test_other_test_images_are_refused(runs, files):
    _write_run(runs, "disef", "S", [True] * 100, seed=3, files=files)
    with pytest.raises(InputError, match="were not tested on the same images in the same order") as caught:
        _correct(runs)
    assert "d_disef_16shot_seed3/train-S" in str(caught.value)


def test_missing_predictions_are_named(runs):
    table = load_results(runs)
    (runs / "d_real_16shot_seed1" / "train-R" / "predictions.parquet").unlink()
    with pytest.raises(InputError, match=r"d_real_16shot_seed1/train-R/predictions.parquet cannot be read .* copy it"):
        load_predictions(table, "d", 16)
    with pytest.raises(InputError, match=r"predictions.parquet has vanished or changed .* run 03_train_clip again"):
        load_results(runs)


def test_a_conclusion_has_at_most_four_sentences_with_the_counts():
    keys = [("fakeit", "S"), ("loft", "S"), ("real", "R"), ("loft", "R+S"), ("issynth", "R+S")]
    shares = dict(zip(keys, (0.3, 0.5, 0.6, 0.8, 0.4), strict=True))
    correct = {
        key: pd.DataFrame({s: np.arange(1000) < 1000 * share for s in range(3)}) for key, share in shares.items()
    }
    table = pd.DataFrame([{"dataset": "d", "method": m, "setting": s, "accuracy_mean": 100 * shares[m, s]}
                          for m, s in keys])  # fmt: skip
    pairs = compare.compare_pairs(correct)
    words = compare.write_conclusion(compare.add_verdicts(table, {"d": pairs}), pairs, "d")
    order = compare.compare_order(pairs, "d")["outcome"].value_counts()
    assert words.startswith("For d: on synthetic images alone, ") and words.count(". ") <= 3
    assert "LoFT (S) has the highest mean accuracy, 50.0 %" in words
    assert "surely helps with 1 of 2 methods and surely hurts with 1." in words
    assert f"{order.get('holds', 0)} hold here, {order.get('reversed', 0)} are reversed" in words
    assert "LoFT (S) has an accuracy of 50.0 %" in compare.write_headline(table[1:2].assign(verdict=""), "d")
