"""The committed results: whole, of the study's seeds, and the numbers in the texts are theirs."""

import re

import pandas as pd
import pytest

from datadream_utils.analysis.compare import OUTCOMES
from datadream_utils.analysis.questions import read_questions
from datadream_utils.methods import METHODS
from datadream_utils.params import ROOT

FOLDER, QUESTIONS = ROOT / "figures" / "tiny", read_questions()
GENERATING = {(method, setting) for method, row in METHODS.items() if row.generates for setting in ("S", "R+S")}
TEXTS = ("README.md", "docs/results/toy.md")
NUMBER = r"[+-]\d+\.\d"
# The words of a text about an answer of the study.
HEADINGS = {
    "Holds": {"yes", "reversed"},  # "real images are better than generated ones" is the reverse of what was asked
    "Does not hold": {"reversed", "no difference that matters"},
}


def _table(name):
    return pd.read_csv(FOLDER / f"{name}.csv")


def _results_of(text):
    """What a text says of the study: of the README its section of results."""
    whole = (ROOT / text).read_text(encoding="utf-8")
    found = re.search(r"^## Results in brief$(.*?)^## ", whole, re.DOTALL | re.MULTILINE)
    return found[1] if found else whole


def _differences(text):
    """Every "+1.2 (+0.3 to +2.1)" in a text."""
    return {found[:3] for found in _daggers(text)}


def _daggers(text):
    """Every "+1.2 (+0.3 to +2.1)" in a text, with the † after it or ""."""
    return set(re.findall(rf"({NUMBER}) \(({NUMBER})\s+to\s+({NUMBER})\)(†?)", text))


def _answers():
    """``{(difference, low, high): {answer, ...}}`` of the study, as they are printed."""
    answers = {}
    for row in _table("answers").dropna(subset="difference").itertuples():
        key = tuple(f"{value:+z.1f}" for value in (row.difference, row.low, row.high))
        answers.setdefault(key, set()).add(row.answer)
    return answers


def test_the_main_table_has_every_system_data_set_and_seed():
    table = _table("main_results")
    assert set(table["dataset"]) == {"average", *QUESTIONS.datasets}
    for _, rows in table.groupby("dataset"):
        systems = list(zip(rows["method"], rows["setting"], strict=True))
        assert set(systems) == {("clip_zeroshot", "none"), ("real", "R")} | GENERATING and len(systems) == 14
    assert (table["n_test"] >= 900).all() and table["accuracy_mean"].between(0, 100).all()
    assert set(table[table["method"] != "clip_zeroshot"]["n_seeds"]) == {len(QUESTIONS.seeds)}
    resnet = _table("resnet_results")
    assert set(resnet["method"]) == {"real"} | {method for method, _ in GENERATING}
    assert set(resnet["n_seeds"]) == {len(QUESTIONS.seeds)}
    order = _table("order")
    assert set(order["outcome"]) <= set(OUTCOMES) and len(order) == 20


def test_every_question_is_reported():
    asked = [question.ask for question in QUESTIONS.questions.values()]
    assert list(dict.fromkeys(_table("answers")["question"])) == asked


def test_every_committed_table_has_its_markdown():
    for path in FOLDER.glob("*.csv"):
        assert path.with_suffix(".md").is_file(), path


@pytest.mark.parametrize("text", TEXTS)
def test_differences_in_the_text_are_answers_of_the_study(text):
    found = _differences(_results_of(text))
    assert len(found) >= 5 and not found - _answers().keys()


def test_what_holds_and_what_does_not_is_what_was_answered():
    text, answers = (ROOT / "docs" / "results" / "toy.md").read_text(encoding="utf-8"), _answers()
    for heading, words in HEADINGS.items():
        (section,) = re.findall(rf"^\*\*{heading}\*\*$(.*?)^(?:\*\*|## )", text, re.DOTALL | re.MULTILINE)
        found = _differences(section)
        assert found and all(answers[key] <= words for key in found), heading
    counts = _table("order")["outcome"].value_counts()
    stated = re.search(
        r"Of the 20 orders.*?(\d+) hold, (\d+) are\s+reversed.*?(\d+)\s+are not decided", text, re.DOTALL
    )
    assert [int(n) for n in stated.groups()] == [counts.get(word, 0) for word in ("holds", "reversed", "not decided")]


@pytest.mark.parametrize("text", TEXTS)
def test_a_dagger_marks_what_is_not_sure_seed_by_seed(text):
    unsure = {}
    for row in _table("answers").dropna(subset="difference").itertuples():
        key = tuple(f"{value:+z.1f}" for value in (row.difference, row.low, row.high))
        unsure.setdefault(key, set()).add("†" if row.also_by_seed == "no" else "")
    for *key, dagger in _daggers(_results_of(text)):
        assert unsure[tuple(key)] == {dagger}, key


@pytest.mark.parametrize("text", TEXTS)
def test_percentages_in_the_text_are_of_the_tables(text):
    """Accuracies of methods and baselines, and shares of copies."""
    known = {f"{value:.1f}" for name in ("main_results", "resnet_results", "baselines")
             for value in _table(name)["accuracy_mean"]}  # fmt: skip
    known |= {f"{value:.1f}" for value in _table("copies_by_shots")["copies"]}
    found = set(re.findall(r"(?<![\d.+-])(\d+\.\d) %", _results_of(text)))
    assert not found - known
