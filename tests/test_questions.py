"""Questions asked before the runs: their differences against closed forms, every answer, and the committed file."""

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats
from sklearn.datasets import load_digits

from datadream_utils.analysis import baselines, questions
from datadream_utils.analysis.tables import to_markdown
from datadream_utils.errors import InputError
from datadream_utils.methods import classifier_name
from datadream_utils.params import ROOT
from workflow.scripts.study import read_study

PAIR = ["datadream_cls S", "fakeit S"]


class _Correct:
    """``questions.Correct`` of tables by (side, data set, n_shot, classifier); None where there is none."""

    def __init__(self, tables):
        self.tables = tables

    def table(self, *key):
        return self.tables.get(key)


def _right(shares, n_images=1000, seed=0):
    """(n_images, n_seeds) booleans, each seed with exactly its share; the same images are easy for all."""
    ease = np.random.default_rng(seed).permutation(n_images)
    return pd.DataFrame({10 + i: ease < round(share * n_images) for i, share in enumerate(shares)})


def _correct(gains, n_shots=(16,), dataset="a", base=0.5):
    gains = np.asarray(gains)
    tables = {}
    for n_shot in n_shots:
        tables["datadream_cls S", dataset, n_shot, "clip"] = _right(base + gains / 100)
        tables["fakeit S", dataset, n_shot, "clip"] = _right(np.full(len(gains), base))
    return tables


def test_of_one_data_set_the_interval_is_students_t_plus_the_images_noise():
    gains = [4.0, 5.0, 7.0, 3.0, 6.0]
    row = questions.compare_sides(_Correct(_correct(gains)), PAIR, ["a"], [16])
    per_image = np.zeros(1000)
    for gain in gains:
        per_image[: round(10 * gain)] += 100 / len(gains)
    error = (np.var(gains, ddof=1) / 5 + np.var(per_image, ddof=1) / 1000) ** 0.5
    half = stats.t(4).ppf(0.975) * error
    assert row["difference"] == pytest.approx(5.0)
    assert (row["low"], row["high"]) == (pytest.approx(5 - half), pytest.approx(5 + half))
    assert row["p"] == pytest.approx(2 * stats.t(4).sf(5 / error)) and row["n_seeds"] == 5


def test_data_sets_count_alike_and_their_distance_is_no_noise():
    tables = _correct([4.0, 5.0, 6.0]) | _correct([14.0, 15.0, 16.0], dataset="b")
    row = questions.compare_sides(_Correct(tables), PAIR, ["a", "b"], [16])
    assert row["difference"] == pytest.approx(10.0) and row["per_dataset"] == {"a": 5.0, "b": 15.0}
    assert row["high"] - row["low"] < 5  # the ten points between the data sets are not part of it
    alone = questions.compare_sides(_Correct(tables), PAIR, ["a"], [16])
    assert row["high"] - row["low"] < alone["high"] - alone["low"]


def test_the_mean_of_shots_and_chosen_seeds():
    tables = _correct([2.0, 4.0], n_shots=(1,)) | _correct([6.0, 8.0], n_shots=(16,))
    row = questions.compare_sides(_Correct(tables), PAIR, ["a"], [1, 16])
    assert row["difference"] == pytest.approx(5.0) and row["n_seeds"] == 2
    one = questions.compare_sides(_Correct(tables), PAIR, ["a"], [1, 16], seeds=[11])
    assert one["difference"] == pytest.approx(6.0) and np.isnan(one["p"]) and one["n_seeds"] == 1
    assert one["low"] < 6 < one["high"]  # of test images alone
    assert questions.compare_sides(_Correct(tables), PAIR, ["a", "b"], [1, 2]) is None


def test_averaged_seed_by_seed_common_noise_counts_once():
    """Two data sets whose seeds move together: pooled they look like ten observations, by seed there are five."""
    gains = [2.0, 4.0, 5.0, 6.0, 8.0]
    tables = _correct(gains) | _correct(gains, dataset="b")
    row = questions.compare_sides(_Correct(tables), PAIR, ["a", "b"], [16])
    alone = questions.compare_sides(_Correct(tables), PAIR, ["a"], [16])
    images = questions.compare_sides(_Correct(_correct([5.0] * 5)), PAIR, ["a"], [16])
    of_images = (images["high"] - 5) / stats.t(4).ppf(0.975)
    per_image = np.zeros(1000)
    for gain in gains:
        per_image[: round(10 * gain)] += 100 / len(gains)
    error = (np.var(gains, ddof=1) / 5 + np.var(per_image, ddof=1) / 1000 / 2) ** 0.5
    assert row["p_by_seed"] == pytest.approx(2 * stats.t(4).sf(5 / error)) and row["p"] < row["p_by_seed"]
    assert alone["p"] == pytest.approx(alone["p_by_seed"]) and of_images < error
    fewer = tables | _correct([5.0], dataset="b")  # one seed in common
    row = questions.compare_sides(_Correct(fewer), PAIR, ["a", "b"], [16])
    assert np.isnan(row["p_by_seed"]) and row["p"] > 0


def test_sides_that_were_tested_on_other_images_are_refused():
    tables = _correct([1.0, 2.0], n_shots=(1, 16))
    for key in [("fakeit S", "a", 16, "clip"), ("datadream_cls S", "a", 16, "clip")]:
        tables[key] = tables[key].set_axis([f"{i}.png" for i in range(1000)])
        with pytest.raises(InputError, match="a: .* with 16 shots were not tested|with 1 and 16 shots were not tested"):
            questions.compare_sides(_Correct(tables), PAIR, ["a"], [1, 16])
    assert questions.compare_sides(_Correct(tables), PAIR, ["a"], [16])


def _answers(gains, monkeypatch, **changes):
    tables = {}
    for name, points in gains.items():
        tables |= {(side, name, *key): table for (side, _, *key), table in _correct(points).items()}
    monkeypatch.setattr(questions, "Correct", lambda _: _Correct(tables))
    asked = {"q": {"ask": "Is it?", "pairs": [PAIR]} | changes}
    values = dict(datasets=["a"], seeds=[10, 11, 12, 13, 14], smallest=2.0, questions=asked)
    return questions.answer_questions(questions.Questions(**values), None)


@pytest.mark.parametrize(
    "gains, answer",
    [
        ([9.0, 10.0, 11.0, 10.0, 10.0], "yes"),
        ([-9.0, -10.0, -11.0, -10.0, -10.0], "reversed"),
        ([0.0, 0.5, -0.5, 0.2, -0.2], "no difference that matters"),
        ([9.0, -7.0, 12.0, -3.0, 1.0], "cannot tell"),
        ([9.0], "one seed"),
    ],
)
def test_every_answer(gains, answer, monkeypatch):
    (row,) = _answers({"a": gains}, monkeypatch).itertuples()
    assert row.also_by_seed == ("yes" if answer in ("yes", "reversed") else "")
    assert row.answer == answer and row.first == classifier_name("datadream_cls", "S")
    assert row.visible == pytest.approx((row.high - row.low) / 2)


def test_the_gain_in_a_sentence():
    row = {"method": "datadream_cls", "setting": "R+S", "n_shot": 1, "low": 1.0, "high": 5.0, "p": 0.01}
    row["per_dataset"] = {"a": 2.0, "b": 4.0}
    table = pd.DataFrame(
        [row | {"classifier": "clip", "difference": 3.0}, row | {"classifier": "resnet", "difference": 14.2}]
    )
    instead = table.assign(setting="S", difference=-9.0)
    text = questions.write_gain(pd.concat([instead, table]), 1)
    assert "1 real image per class" in text and "CLIP +3.0 points (+1.0 to +5.0)" in text
    assert "ResNet from scratch +14.2 points" in text and "seeds and test images" in text
    assert "one seed" in questions.write_gain(table.assign(p=np.nan), 1)
    assert ", mean of a and b;" in text
    assert "mean" not in questions.write_gain(table.assign(per_dataset=[{"a": 3.0}] * 2), 1)
    assert questions.write_gain(table, 16) == ""


def test_what_was_not_run_is_reported_as_such(monkeypatch):
    table = _answers({"a": [9.0, 10.0, 11.0]}, monkeypatch, datasets=["a", "b"])
    assert table["answer"].tolist() == ["not run"] and np.isnan(table.loc[0, "difference"])
    assert "not run" in to_markdown("answers", table)


def test_several_comparisons_of_a_question_are_corrected_together(monkeypatch):
    table = _answers({"a": [3.0, 1.0, 5.0, 2.0, 4.0]}, monkeypatch, n_shots=[16])
    several = _answers({"a": [3.0, 1.0, 5.0, 2.0, 4.0]}, monkeypatch, pairs=[PAIR, PAIR, PAIR])
    assert several["p_holm"].tolist() == pytest.approx([3 * table.loc[0, "p_holm"]] * 3)
    missing = _answers({"a": [3.0, 1.0, 5.0, 2.0, 4.0]}, monkeypatch, pairs=[PAIR, [PAIR[0], "loft S"]])
    assert missing.loc[0, "p_holm"] == pytest.approx(2 * table.loc[0, "p_holm"]) and np.isnan(missing.loc[1, "p_holm"])


@pytest.mark.parametrize("side, words", [("datadream_cls", "names no setting"), ("nothing S", "'nothing'")])
def test_a_wrong_side_is_refused_with_its_file(side, words, tmp_path):
    values = dict(datasets=["a"], seeds=[1], smallest=2.0, questions={"q": {"ask": "?", "pairs": [[side, "fakeit S"]]}})
    (tmp_path / "q.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.raises(InputError, match=words) as error:
        questions.read_questions(tmp_path / "q.yaml")
    assert "q.yaml" in str(error.value)


def test_the_studies_make_every_run_that_the_committed_questions_need():
    asked = questions.read_questions()
    made = set()
    for path in sorted((ROOT / "params" / "studies").glob("tiny*.yaml")):
        study = read_study(path)
        for run in study.runs().values():
            for stage in study.classifiers(run):
                setting, _, resnet = stage.removeprefix("train-").partition("-")
                made.add((run.dataset, run.method, setting, run.variant, run.n_shot, run.seed, resnet or "clip"))
    for question in asked.questions.values():
        for classifier in question.classifiers:
            for side in (side for pair in question.pairs for side in pair):
                method, setting, variant = questions.parse_side(side)
                for dataset in question.datasets or asked.datasets:
                    for n_shot in question.n_shots:
                        for seed in asked.seeds:
                            assert (dataset, method, setting, variant, n_shot, seed, classifier) in made, side


def test_baselines_learn_from_shots():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))  # the files are in the order of writers
    pixels, labels = digits.data[order].astype(np.float32), digits.target[order]
    for predict, least in ((baselines.predict_nearest, 0.9), (baselines.predict_probe, 0.85)):
        predicted = predict(pixels[:300], labels[:300], pixels[300:900])
        assert (predicted == labels[300:900]).mean() > least
    distances = ((pixels[300:320, None] - pixels[None, :300]) ** 2).sum(-1)
    assert (baselines.predict_nearest(pixels[:300], labels[:300], pixels[300:320]) == labels[distances.argmin(1)]).all()


def test_the_table_of_baselines_has_a_column_for_each_number_of_shots():
    rows = [("mnist5k", baselines.NEAREST, 1, 5, 43.0, 1.0), ("mnist5k", baselines.NEAREST, 16, 5, 79.0, 0.5)]
    rows += [("mnist5k", baselines.TRAINED["clip"], 16, 5, 93.0, 0.5)]
    text = to_markdown("baselines", pd.DataFrame(rows, columns=list(baselines.COLUMNS)))
    assert "| mnist5k | Nearest neighbour on pixels | 43.0 ± 1.0 | 79.0 ± 0.5 |" in text
    assert "| Real-finetune of CLIP | – | 93.0 ± 0.5 |" in text


def test_an_answer_waits_for_all_seeds(monkeypatch):
    assert _answers({"a": [9.0, 10.0, 11.0]}, monkeypatch)["answer"].tolist() == ["seeds missing"]


def test_gains_are_of_data_sets_with_the_same_numbers_of_shots(monkeypatch):
    """Else the line would go from one data set to another."""
    tables, rows = {}, []
    for dataset, n_shots in (("a", (1, 16)), ("b", (1, 16)), ("c", (16,)), ("d", (8,))):
        for n_shot in n_shots:
            for (method, setting), gain in {("real", "R"): 0.0, ("datadream_cls", "R+S"): 5.0}.items():
                tables[f"{method} {setting}", dataset, n_shot, "clip"] = _right([0.5 + gain / 100] * 3)
                rows.append(dict(dataset=dataset, n_shot=n_shot, method=method, setting=setting, classifier="clip",
                                 protocol="sound", variant=""))  # fmt: skip
    monkeypatch.setattr(questions, "Correct", lambda _: _Correct(tables))
    runs = pd.DataFrame(rows)
    found = {name: questions.gains_by_shots(runs, name).set_index("n_shot")["per_dataset"] for name in "abcd"}
    assert {n: {*names} for n, names in found["a"].items()} == {1: {"a", "b"}, 16: {"a", "b"}}
    assert {n: {*names} for n, names in found["c"].items()} == {16: {"a", "b", "c"}}
    assert {n: {*names} for n, names in found["d"].items()} == {8: {"d"}}


def test_baselines_of_a_data_set_that_is_gone_are_left_out(tmp_path, capsys):
    row = dict(method="real", variant="", protocol="sound", classifier="clip", dataset="gone", n_shot=2, seed=0)
    values = {"dataset": str(tmp_path / "gone"), "split_file": "", "shots_file": ""}
    runs = pd.DataFrame([row | {"accuracy": 90.0, "parameters": values}])
    table = baselines.compare_baselines("an encoder", runs, str(tmp_path), str(tmp_path))
    assert table["baseline"].tolist() == [baselines.TRAINED["clip"]]
    assert "No baselines without the images: data set" in capsys.readouterr().out
