"""Paired differences against closed forms and another bootstrap; which runs are compared; verdicts."""

import json

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from datadream_utils.analysis import compare
from datadream_utils.analysis.results import load_results
from datadream_utils.errors import InputError
from datadream_utils.plots import style as plots


def _random(share, n_images=2000, seeds=3, seed=0):
    hard = np.random.default_rng(99).normal(size=(n_images, 1))  # easy and hard images are so for everyone
    noise = np.random.default_rng(seed).normal(size=(n_images, seeds))
    return pd.DataFrame(hard + noise < np.sqrt(2) * stats.norm.ppf(share))


def test_interval_is_the_normal_one_of_the_paired_differences():
    a, b = _random(0.7, seed=1), _random(0.65, seed=2)
    found = compare.paired(a, b)
    differences = 100 * (a.mean(axis=1) - b.mean(axis=1))
    error = differences.std(ddof=0) / len(differences) ** 0.5
    assert found["ours"] == pytest.approx(differences.mean()) and found["n_test"] == 2000
    assert found["low"] == pytest.approx(differences.mean() - 1.959964 * error, abs=0.1 * error)
    assert found["high"] == pytest.approx(differences.mean() + 1.959964 * error, abs=0.1 * error)


def test_interval_is_that_of_scipys_paired_bootstrap():
    a, b = _random(0.9, n_images=60, seed=1), _random(0.7, n_images=60, seed=2)
    found = compare.paired(a, b)
    other = stats.bootstrap(
        (100 * a.mean(axis=1), 100 * b.mean(axis=1)), lambda x, y, axis: (x - y).mean(axis=axis),
        paired=True, method="percentile", n_resamples=10_000, rng=1,
    ).confidence_interval  # fmt: skip
    assert found["low"] == pytest.approx(other.low, abs=1.0) and found["high"] == pytest.approx(other.high, abs=1.0)


def test_the_same_every_time():
    a, b = _random(0.7, seed=1), _random(0.65, seed=2)
    assert compare.paired(a, b) == compare.paired(a, b)


def test_pairing_makes_the_interval_narrower():
    a, b = _random(0.7, seed=1), _random(0.65, seed=2)
    shuffled = b.sample(frac=1, random_state=0, ignore_index=True)
    paired, apart = compare.paired(a, b), compare.paired(a, shuffled)
    assert paired["ours"] == pytest.approx(apart["ours"])
    assert paired["high"] - paired["low"] < 0.8 * (apart["high"] - apart["low"])


def test_only_common_seeds_are_compared():
    a, b = _random(0.7, seed=1), _random(0.65, seed=2)
    a.columns, b.columns = [0, 1, 2], [2, 3, 1]
    found = compare.paired(a, b)
    by_hand = {seed: round(100 * (a[seed].mean() - b[seed].mean()), 2) for seed in (1, 2)}
    assert found["per_seed"] == by_hand and found["ours"] == pytest.approx(np.mean(list(by_hand.values())), abs=0.01)
    b.columns = [7, 8, 9]
    assert compare.paired(a, b) is None


def test_a_verdict_needs_images_and_seeds():
    same = _pair([0.5, 0.5], [0.5, 0.5])
    assert same["verdict"] == compare.NOISE and (same["low"], same["high"]) == (0.0, 0.0)
    assert _pair([0.9, 0.88], [0.5, 0.5])["verdict"] == "above" and _pair([0.5, 0.5], [0.9, 0.88])["verdict"] == "below"
    mixed = _pair([0.9, 0.8, 0.55], [0.5, 0.5, 0.5])  # far apart in the mean, every seed on one side, but how unlike!
    assert mixed["low"] > 10 and mixed["p_holm"] < 1e-6 and mixed["seeds_low"] < 0
    assert mixed["verdict"] == compare.SEEDS_NOISE  # no tie: only the seeds do not decide
    one = _pair([0.9], [0.5])  # another training may bring anything
    assert one["low"] > 10 and np.isnan(one["seeds_low"]) and one["verdict"] == compare.ONE_SEED
    few = compare.pairs({("real", "R"): _shares([1.0], 5), ("fakeit", "R+S"): _shares([0.2], 5)}).iloc[0]
    assert few["low"] > 0 and few["p"] > 0.05 and few["verdict"] == compare.NOISE  # four of five images prove nothing
    open_ = _pair([0.505, 0.49, 0.51], [0.5, 0.5, 0.5])  # neither images nor seeds
    assert open_["p"] > 0.05 and open_["seeds_low"] < 0 and open_["verdict"] == compare.NOISE


def test_interval_over_seeds_is_students():
    found = _pair([0.9, 0.8, 0.7], [0.5, 0.5, 0.5])
    low, high = stats.ttest_1samp([40.0, 30.0, 20.0], 0).confidence_interval(0.95)
    assert (found["seeds_low"], found["seeds_high"]) == (pytest.approx(low), pytest.approx(high))


def test_images_must_be_on_the_side_of_the_mean():
    a, b = np.zeros((3500, 3), bool), np.zeros((3500, 3), bool)
    a[:150] = True  # 150 images that the first recognises with every seed
    for seed in range(3):  # 300 that the second recognises with one seed each
        b[150 + 100 * seed : 250 + 100 * seed, seed] = True
    found = compare.pairs({("loft", "S"): pd.DataFrame(a), ("fakeit", "S"): pd.DataFrame(b)}).iloc[0]
    assert found["low"] > 0 and found["seeds_low"] > 0 and found["p"] < 1e-9  # and yet more images are the second's
    assert (found["better"], found["worse"]) == (150, 300) and found["verdict"] == compare.NOISE


def test_zero_shot_clip_is_the_same_with_every_seed(runs):
    _write_run(runs, "clip_zeroshot", "none", [True] * 30 + [False] * 70)
    correct = compare.load_correct(load_results(runs), "d", 16)
    assert list(correct["clip_zeroshot", "none"]) == [0, 1] and list(correct["issynth", "R+S"]) == [0]
    row = compare.between(compare.pairs(correct), "Real-finetune (R)", "CLIP (zero-shot)")
    assert row["per_seed"] == {0: 30.0, 1: 30.0} and row["verdict"] == "above"


def _shares(shares, n=1000):
    """The first ``share`` of ``n`` images is recognised, for each seed."""
    return pd.DataFrame({seed: np.arange(n) < share * n for seed, share in enumerate(shares)})


def _pair(first, second):
    return compare.pairs({("datadream_cls", "S"): _shares(first), ("fakeit", "S"): _shares(second)}).iloc[0]


def test_a_pair_seen_from_the_other_side():
    found = compare.pairs({("datadream_cls", "S"): _shares([0.9, 0.88]), ("fakeit", "S"): _shares([0.5, 0.5])})
    there = compare.between(found, "DataDream_cls (S)", "FakeIt (S)")
    back = compare.between(found, "FakeIt (S)", "DataDream_cls (S)")
    assert there["difference"] == -back["difference"] == 39.0
    for low, high in (("low", "high"), ("seeds_low", "seeds_high")):
        assert (there[low], there[high]) == (-back[high], -back[low]) and there[low] < there[high]
    assert (there["better"], there["worse"]) == (back["worse"], back["better"]) == (400, 0)
    assert (there["verdict"], back["verdict"]) == ("above", "below") and back["per_seed"] == {0: -40.0, 1: -38.0}
    assert compare.between(found, "FakeIt (S)", "LoFT (S)") is None


def _write_run(root, method, setting, right, seed=0, suffix="", files=None, **changes):
    folder = root / f"d_{method}_16shot_seed{seed}" / f"train-{setting}{suffix}"
    folder.mkdir(parents=True)
    files = files or [f"test/{i}.png" for i in range(len(right))]
    pd.DataFrame({"correct": right, "file": files}).to_parquet(folder / "predictions.parquet")
    metrics = dict(dataset="d", method=method, setting=setting, n_shot=16, seed=seed, variant="", n_test=len(right))
    metrics |= {"accuracy": 100 * float(np.mean(right))} | changes
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "manifest.json").write_text("{}")


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
    order = compare.order(compare.pairs(compare.load_correct(load_results(runs), "d", 16))).set_index("pair")
    assert len(order) == 6
    holds = order.loc["DataDream_dset (R+S) − Real-finetune (R)"]
    assert (holds["published"], holds["ours"], holds["verdict"]) == (2.38, 20.0, "holds")
    assert holds["per_seed"] == {0: 20.0, 1: 20.0} and holds["low"] > 10 and holds["n_test"] == 100
    reversed_ = order.loc["DataDream_cls (R+S) − Real-finetune (R)"]
    assert (reversed_["ours"], reversed_["verdict"]) == (-20.0, "reversed")
    open_ = order.loc["IsSynth (R+S) − Real-finetune (R)"]
    assert (open_["ours"], open_["verdict"], open_["per_seed"]) == (0.0, "not decided: within noise", {0: 0.0})
    assert order.loc["DataDream_dset (R+S) − IsSynth (R+S)", "verdict"] == "not decided: one seed"
    assert not order.index.str.contains("FakeIt").any()


def test_order_in_words_and_files(runs):
    order = compare.order(compare.pairs(compare.load_correct(load_results(runs), "d", 16)))
    texts = compare.order_texts(order)
    assert texts["md"].startswith(
        "20 published orders, 6 of them run here: **2 hold here, 1 reversed, 3 not decided (within noise: 1, one seed: "
        "2)**. Decided: 0 outside"
    )
    assert "| DataDream_dset (R+S) − Real-finetune (R) | +2.4 | +2.8 | +20.0 |" in texts["md"]
    assert texts["csv"].splitlines()[0] == (
        "pair,published,published_without,ours,low,high,seeds_low,seeds_high,per_seed,n_test,verdict"
    )
    assert "**0** of these published orders are turned (⇄).\n" in texts["md"]
    empty = compare.order(compare.pairs({}))
    assert "0 of them run here" in compare.order_texts(empty)["md"] and list(empty.columns) == list(order.columns)


def test_an_order_that_hangs_on_training_images_is_marked_and_counted():
    shares = {("real", "R"): [0.9, 0.9], ("datadream_dset", "S"): [0.5, 0.52], ("datadream_cls", "S"): [0.89, 0.5]}
    order = compare.order(compare.pairs({key: _shares(share) for key, share in shares.items()})).set_index("pair")
    dset = order.loc["Real-finetune (R) − DataDream_dset (S)"]
    assert (dset["published"], dset["published_without"], dset["verdict"]) == (1.21, -1.51, "holds")  # by all ten
    assert order.loc["Real-finetune (R) − DataDream_cls (S)", "verdict"] == "not decided: within the seeds' noise"
    md = compare.order_markdown(order.reset_index())
    assert "1 hold here, 0 reversed, 2 not decided (within the seeds' noise: 2)" in md
    assert "**1** of these published orders is turned (⇄): Real-finetune (R) − DataDream_dset (S).\n" in md
    assert "| Real-finetune (R) − DataDream_dset (S) | +1.2 | -1.5 ⇄ | +39.0 |" in md and md.count("⇄") == 2
    figure = plots.forest(order.reset_index(), "d")
    assert figure.sentence == (
        "Of 3 published orders 1 hold here, 0 reversed, 2 not decided (within the seeds' noise: 2)."
    )


def test_gains_are_sentences_with_intervals(runs):
    text = compare.gains(compare.pairs(compare.load_correct(load_results(runs), "d", 16)))
    assert "**DataDream_dset (R+S)** is 20.0 points above Real-finetune (R) (95 % interval over test images +" in text
    assert "**FakeIt (R+S)** is 10.0 points below Real-finetune (R)" in text and "Synthetic only" not in text
    assert compare.gains(compare.pairs({})) == "There is nothing to compare yet."


def test_only_like_runs_are_compared(runs):
    before = compare.load_correct(load_results(runs), "d", 16)
    wrong = [False] * 100
    _write_run(runs, "real", "R", wrong, suffix="-resnet", classifier="resnet", protocol="sound")
    _write_run(runs, "real", "R", wrong, suffix="-published", classifier="clip", protocol="published")
    _write_run(runs, "real", "R", wrong, seed=5, suffix="-v", variant="v")
    _write_run(runs, "real", "R", wrong, seed=6, n_shot=4)
    after = compare.load_correct(load_results(runs), "d", 16)
    assert after.keys() == before.keys() and all(after[key].equals(before[key]) for key in before)
    resnet = compare.load_correct(load_results(runs), "d", 16, classifier="resnet")
    assert list(resnet) == [("real", "R")] and not resnet["real", "R"].to_numpy().any()


@pytest.mark.parametrize("files", [[f"test/{i}.png" for i in reversed(range(100))], ["test/new.png"] * 100])
def test_other_test_images_are_refused(runs, files):
    _write_run(runs, "disef", "S", [True] * 100, seed=3, files=files)
    with pytest.raises(InputError, match=r"disef_16shot_seed3/train-S and .* were not tested on the same images"):
        compare.load_correct(load_results(runs), "d", 16)


def test_missing_predictions_are_named(runs):
    (runs / "d_real_16shot_seed1" / "train-R" / "predictions.parquet").unlink()
    with pytest.raises(InputError, match=r"d_real_16shot_seed1/train-R/predictions.parquet cannot be read .* copy it"):
        compare.load_correct(load_results(runs), "d", 16)


def test_the_figure_has_every_pair_and_the_same_bytes(runs, tmp_path):
    order = compare.order(compare.pairs(compare.load_correct(load_results(runs), "d", 16)))
    for name in ("a", "b"):
        plots.save_figure(plots.forest(order, "d"), tmp_path, name)
    for suffix in ("png", "pdf"):
        assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    figure, count = plots.forest(order, "d"), order["verdict"].value_counts()
    (ax,) = figure.axes
    words = f"Of {len(order)} published orders {count.get('holds', 0)} hold here"
    assert figure.sentence.startswith(words) and figure.sentence in figure.alt
    assert [label.get_text() for label in ax.get_yticklabels()] == order["pair"].tolist()
    figure.draw_without_rendering()
    for text in (ax.title, ax.xaxis.label):
        box = text.get_window_extent()
        assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y0 >= 0, text
    (ax,) = plots.forest(order[:0], "d").axes
    assert ax.texts[0].get_text() == "no published pair has been run"
