"""The estimate of a study: its counts against the hand's, its arithmetic, its advice, and a real measurement."""

import pytest
import torch

from datadream_utils.data.known import known_names
from datadream_utils.errors import InputError
from datadream_utils.params import ROOT
from workflow.scripts import estimate, measure
from workflow.scripts.measure import DataSize, UnitCost
from workflow.scripts.study import make_study, read_study

SMALL = {
    "parameters": "params/smoke.yaml",
    "datasets": ["mnist5k"],
    "methods": ["real", "loft"],
    "n_shots": [2],
    "seeds": [0, 1],
}
SIZE = DataSize(tuple("abcdefghij"), 500, 3500, (28, 28))
LOWEST = {"adapters_together": 1, "adapt_batch_size": 1, "gradient_checkpointing": True}
ONE = {"methods": ["datadream_dset"], "seeds": [0], "settings": ["S"]}  # one stage of each kind
NO_LIMITS = {"memory": None, "disk": None, "hours": None}


def _tasks(study):
    return estimate.plan_tasks(study, dict.fromkeys(study.datasets, SIZE))


def test_counts_of_the_tiny_study_are_the_hands():
    tasks = _tasks(read_study(ROOT / "params" / "studies" / "tiny.yaml"))
    units = {(t.stage, t.params.method, getattr(t.params, "setting", "")): t.units for t in tasks}
    assert units["adapt", "datadream_cls", ""] == 60 * 2  # one group of ten; 16 shots are two batches of 8
    assert units["adapt", "datadream_dset", ""] == 60 * 20
    assert units["adapt", "loft", ""] == 4 * 100  # 160 adapters, 40 at a time, 100 steps of one image
    assert (
        units["generate", "fakeit", ""] == 10 * 2 and units["generate", "disef", ""] == 10 * 2 * estimate.FILTER_DRAWS
    )
    assert units["train", "fakeit", "R+S"] == 20 * 8 and units["train", "clip_zeroshot", "none"] == 0  # 500 / 64
    train = [t for t in tasks if t.stage == "train"]
    looks = {(t.params.classifier == "clip", t.evaluated) for t in train if t.params.setting != "none"}
    assert looks == {(True, 3500 + 4 * 500), (False, 3500 + 8 * 500)}  # every fifth of 20 or 40 epochs
    assert {t.evaluated for t in train if t.params.setting == "none"} == {3500}
    assert sum(t.jobs for t in tasks) == 292
    saved = {(t.stage, t.params.method): t.saved for t in tasks}
    assert (saved["adapt", "loft"], saved["adapt", "datadream_dset"], saved["generate", "loft"]) == (160, 1, 500)
    assert saved["train", "clip_zeroshot"] == 0 and saved["train", "real"] == 1


def test_a_studys_own_split_of_a_data_set_is_counted(folder_dataset, monkeypatch):
    asked = []
    monkeypatch.setattr(estimate, "read_size", lambda *names: asked.append(names) or SIZE)
    monkeypatch.setattr(estimate, "measure_unit_costs", lambda tasks, device: {})
    monkeypatch.setattr(estimate, "add_up", lambda *_: None)
    monkeypatch.setattr(estimate, "measure_start", lambda: 0.0)
    study = SMALL | {"datasets": ["mnist5k", str(folder_dataset)], "split_files": {str(folder_dataset): "list.json"}}
    estimate.estimate_study(make_study(study))
    assert [(name, split) for name, _, split in asked] == [("mnist5k", ""), (str(folder_dataset), "list.json")]


def test_what_costs_the_same_is_measured_once():
    tasks = _tasks(read_study(ROOT / "params" / "studies" / "tiny.yaml"))
    keys = {kind: {t.key for t in tasks if t.stage == kind} for kind in ("adapt", "generate", "train")}
    assert {kind: len(of_kind) for kind, of_kind in keys.items()} == {"adapt": 3, "generate": 6, "train": 4}


def test_shards_are_jobs_and_borrowed_stages_are_none():
    changes = {"shards": 4, "methods": ["datadream_cls"], "seeds": [0], "sweep": {"guidance_scale": [4.0]}}
    tasks = _tasks(make_study(SMALL | changes))
    jobs = {kind: [t.jobs for t in tasks if t.stage == kind] for kind in ("adapt", "generate", "train")}
    assert jobs == {"adapt": [5], "generate": [5, 5], "train": [1, 1, 1, 1]}


def test_hours_and_bytes_are_counts_times_what_was_measured():
    study = make_study(SMALL | {"methods": ["loft"], "seeds": [0], "settings": ["S"]})
    tasks = _tasks(study)
    costs = {"adapt": (2.0, 1000), "generate": (3.0, 20), "train": (5.0, 700)}
    measured = {
        t.key: UnitCost(costs[t.stage][0], load=11.0, memory=100 + t.units, saved=costs[t.stage][1], per_evaluated=0.25)
        for t in tasks
    }
    rows = estimate.add_up(tasks, measured, start=7.0).set_index("stage")
    picture = 3.0 / 2  # a batch of two takes three seconds
    # adapt: 20 adapters in one group of up to 40, two epochs of two images; generate: ten classes, one batch of two
    assert rows.loc["adapt", "units"] == 2 and rows.loc["generate", "units"] == 10
    assert rows.loc["adapt", "hours"] * 3600 == pytest.approx(2 * 2.0 + 7 + 11 + 26 * picture)
    assert rows.loc["generate", "hours"] * 3600 == pytest.approx(10 * 3.0 + 7 + 11 + 57 * picture)
    steps, pictures = 2 * 2, 3500 + 2 * 500  # 20 images in batches of 16; validated after both epochs
    assert rows.loc["train", "hours"] * 3600 == pytest.approx(steps * 5.0 + 0.25 * pictures + 7 + 11)
    assert rows.loc["adapt", "disk"] == 20 * 1000 + estimate.NOTEBOOK_BYTES
    assert rows.loc["generate", "disk"] == 20 * 20 + estimate.NOTEBOOK_BYTES
    assert rows.loc["train", "memory"] == 104


def test_advice_names_what_to_lower_and_nothing_when_it_fits():
    study = make_study(SMALL)
    tasks = _tasks(study)
    measured = {t.key: UnitCost(1.0, 1.0, memory=3 * estimate.GIB, saved=1e6) for t in tasks}
    rows = estimate.add_up(tasks, measured, 1.0)
    assert estimate.find_shortages(rows, tasks, NO_LIMITS) == []
    assert estimate.find_shortages(rows, tasks, {"memory": 4 * estimate.GIB, "disk": 2**40, "hours": 100}) == []
    memory = estimate.find_shortages(rows, tasks, NO_LIMITS | {"memory": 2 * estimate.GIB})
    assert [sentence.split()[0] for sentence in memory] == ["adapt", "generate", "train"]
    assert "3.0 GiB of memory, 2.0 are available" in memory[0] and "lower adapters_together (40)" in memory[0]
    assert "lower adapt_batch_size (2)" in memory[0] and "set gradient_checkpointing to true" in memory[0]
    adapting = next(t.params for t in tasks if t.stage == "adapt")
    assert estimate.advise("adapt", "memory", adapting.model_copy(update=LOWEST)) == "use a larger device"
    (disk,) = estimate.find_shortages(rows, tasks, NO_LIMITS | {"disk": 1e6})
    assert "takes most of it" in disk and "fewer seeds" in disk
    (hours,) = estimate.find_shortages(rows, tasks, NO_LIMITS | {"hours": 0.001})
    assert "hours, 0.0 are available" in hours


def test_a_data_set_that_is_not_here_is_counted_from_what_is_known(tmp_path, folder_dataset):
    eurosat = estimate.read_size("eurosat", str(tmp_path))
    assert (len(eurosat.class_names), eurosat.n_test) == (10, 8100)
    own = estimate.read_size(str(folder_dataset))
    assert (len(own.class_names), own.n_val, own.n_test, own.picture) == (2, 0, 4, (50, 40))
    with pytest.raises(InputError, match="neither known nor a folder"):
        estimate.read_size("eurosatt", str(tmp_path))
    assert all(estimate.read_size(name, str(tmp_path)).n_test for name in known_names())


def test_a_small_study_is_measured_and_printed(capsys, monkeypatch):
    monkeypatch.setattr(estimate, "read_size", lambda *_: SIZE)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a GPU's memory is without torch's own
    monkeypatch.setattr(estimate, "measure_start", lambda: 5.0)
    monkeypatch.setattr(estimate, "read_study", lambda _: make_study(SMALL | ONE))
    assert estimate.main(["small", "--memory", "64", "--disk", "100"]) == 0
    printed = capsys.readouterr().out
    assert "It fits." in printed and "runs: 1" in printed
    assert [line.split()[0] for line in printed.splitlines()[2:5]] == ["adapt", "generate", "train"]
    assert all(float(line.split()[6]) > 0.2 for line in printed.splitlines()[2:5])  # GiB: torch alone takes that
    assert estimate.main(["small", "--memory", "0.01"]) == 1
    assert "lower train_batch_size (16)" in capsys.readouterr().out


def test_a_stage_that_runs_out_of_memory_says_what_to_lower(monkeypatch):
    def full(*_):
        raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(measure.Meter, "generate", full)
    tasks = [task for task in _tasks(make_study(SMALL | {"methods": ["fakeit"]})) if task.stage == "generate"]
    with pytest.raises(InputError, match=r"lower generate_batch_size \(2\)"):
        measure.measure_unit_costs(tasks, "cpu")


def test_steps_of_a_group_that_did_not_fit_are_not_timed():
    ticks = []
    with measure._note_times(ticks)(8, "") as advance:
        for n in (0, 4, 4, -8, 2, 2):
            advance(n)
    assert [n for _, n in ticks] == [2, 2]
