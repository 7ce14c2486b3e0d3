"""Study files: what they come to, what is refused, and the graph that the workflow makes of them."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest
import yaml

from datadream_utils.errors import InputError
from datadream_utils.params import ROOT
from workflow.scripts.one_gpu import take_gpu
from workflow.scripts.study import make_study, read_study

SMALL = {
    "parameters": "params/smoke.yaml",
    "datasets": ["mnist5k"],
    "methods": ["real", "datadream_cls"],
    "n_shots": [2],
    "seeds": [0, 1],
}


@pytest.mark.parametrize("path", sorted((ROOT / "params" / "studies").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_study_of_the_project_is_valid(path):
    study = read_study(path)
    assert len(study.runs()) >= len(study.datasets) * len(study.methods)


def test_the_tiny_study_has_the_runs_and_stages_of_the_committed_tables():
    study = read_study(ROOT / "params" / "studies" / "tiny.yaml")
    stages = Counter(stage for run in study.runs().values() for stage in study.stages(run))
    assert len(study.runs()) == 2 * (1 + 7 * 5)
    assert stages == {"adapt": 30, "generate": 60, "train-S": 60, "train-R+S": 60, "train-S-resnet": 60, "train-R": 10,
                      "train-R-resnet": 10, "train-none": 2}  # fmt: skip


def test_a_sweep_moves_one_parameter_at_a_time_and_only_where_it_plays_a_part():
    study = make_study(SMALL | {"sweep": {"guidance_scale": [2.0, 4], "real_weight": [0.5, 0.8], "lora_rank": [4]}})
    names = [name for name, run in study.runs().items() if run.seed == 0]
    assert names == [
        "mnist5k_real_2shot_seed0",
        "mnist5k_datadream_cls_2shot_seed0",
        "mnist5k_datadream_cls_2shot_seed0_guidance-scale=4.0",
        "mnist5k_datadream_cls_2shot_seed0_real-weight=0.5",
        "mnist5k_datadream_cls_2shot_seed0_lora-rank=4",
    ]
    run = study.runs()[names[2]]
    assert run.values["guidance_scale"] == 4.0 and run.values["variant"] == run.variant
    assert study.params(run, "generate").guidance_scale == 4.0 and study.params(run, "generate").n_shot == 2
    assert study.classifiers(study.runs()[names[3]]) == ["train-R+S"]  # nothing else has a weight


def test_values_are_read_as_the_notebooks_read_them():
    written = {"methods": "real", "seeds": ["0", 1.0], "n_shots": "2", "shards": "1"}
    assert make_study(SMALL | written).runs().keys() == make_study(SMALL | {"methods": ["real"]}).runs().keys()
    sweep = {"train_lr": ["1e-4", 1], "real_weight": ["0.5"], "mixed_precision": [False, "bf16"]}
    study = make_study(SMALL | {"seeds": 0, "sweep": sweep})
    changes = {run.variant: run.change[1] for run in study.runs().values() if run.change and run.method == "real"}
    assert changes == {"train-lr=0.0001": 0.0001, "train-lr=1.0": 1.0, "mixed-precision=bf16": "bf16"}
    run = next(run for run in study.runs().values() if run.change == ("real_weight", 0.5))
    assert study.params(run, "train-R+S").real_weight == 0.5


def test_the_unchanged_value_is_known_however_the_file_writes_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("train_lr: 1e-4\n")
    files = ["params/smoke.yaml", str(tmp_path / "mine.yaml")]
    study = make_study(SMALL | {"parameters": files, "sweep": {"train_lr": [0.0001, 0.002]}})
    assert {run.variant for run in study.runs().values()} == {"", "train-lr=0.002"}


def test_a_data_set_has_the_split_that_the_study_gives_it():
    study = make_study(SMALL | {"split_files": {"mnist5k": "lists/coop.json"}, "sweep": {"guidance_scale": [4.0]}})
    for run in study.runs().values():
        assert run.values["split_file"] == study.params(run, study.classifiers(run)[0]).split_file == "lists/coop.json"
        assert run.owner("adapt").values["split_file"] == "lists/coop.json" and not run.owner("adapt").change
    with pytest.raises(InputError, match="split_files: 'minst5k' is none of the datasets. Did you mean 'mnist5k'"):
        make_study(SMALL | {"split_files": {"minst5k": "x.json"}})


def test_a_sweep_of_what_a_method_has_no_use_for_makes_no_run():
    sweep = {"start_noise": [0.5], "filter_tries": [9], "captioner": ["mine"]}
    study = make_study(SMALL | {"methods": ["datadream_cls", "issynth", "disef"], "seeds": [0], "sweep": sweep})
    changes = {(run.method, run.change[0]) for run in study.runs().values() if run.change}
    assert changes == {("issynth", "start_noise"), *(("disef", name) for name in sweep)}


def test_stages_that_a_change_does_not_touch_are_made_once():
    study = make_study(SMALL | {"sweep": {"guidance_scale": [4.0], "real_weight": [0.5], "lora_rank": [4]}})
    owners = {
        run.variant: {s: run.owner(s).variant for s in study.stages(run)}
        for run in study.runs().values()
        if run.method == "datadream_cls" and run.seed == 0
    }
    assert owners["guidance-scale=4.0"] == dict.fromkeys(("generate", "train-S", "train-R+S"), "guidance-scale=4.0") | {
        "adapt": ""
    }
    assert owners["real-weight=0.5"] == {"adapt": "", "generate": "", "train-R+S": "real-weight=0.5"}
    assert set(owners["lora-rank=4"].values()) == {"lora-rank=4"}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"method": ["real"]}, "'method' is not known. Did you mean 'methods'"),
        ({"methods": ["datadreamcls"]}, "Did you mean 'datadream_cls'"),
        ({"datasets": ["eurosatt"]}, "neither known nor a folder. Did you mean 'eurosat'"),
        ({"settings": ["SR"]}, "setting 'SR' is not known"),
        ({"n_shots": [0]}, "'n_shots.0' is 0: write 1 or more"),
        ({"n_shots": ["few"]}, "'n_shots.0' is 'few': write a whole number"),
        ({"seeds": []}, "'seeds' is []: list one or more"),
        ({"seeds": {"first": 0}}, "'seeds' is {'first': 0}: write a list"),
        ({"seeds": [0, 0]}, "two runs called 'mnist5k_real_2shot_seed0'"),
        ({"sweep": {"seed": [1]}}, "sweep cannot change 'seed'"),
        ({"sweep": {"guidance": [1.0]}}, "Did you mean 'guidance_scale'"),
        ({"sweep": {"guidance_scale": [-1.0]}}, "guidance_scale"),
        ({"sweep": {"guidance_scale": ["high"]}}, "guidance_scale"),
        ({"parameters": "params/none.yaml"}, "params/none.yaml"),
    ],
)
def test_mistakes_are_found_before_anything_runs(change, message):
    with pytest.raises(InputError, match="^a study: .*") as error:
        make_study(SMALL | change, "a study")
    assert message in str(error.value)


def _plan(study, *arguments):
    study.write_text(yaml.safe_dump(yaml.safe_load(study.read_text()) if study.exists() else SMALL))
    command = ["-m", "snakemake", "-s", "workflow/Snakefile", "--cores", "1", "--configfile", str(study), "--dry-run"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_the_workflow_plans_shards_sweeps_and_named_targets(tmp_path):
    study, values = tmp_path / "study.yaml", tmp_path / "out.yaml"
    values.write_text(f"output_root: {tmp_path}/outputs\nfigures_dir: {tmp_path}/figures\n")
    files = ["params/smoke.yaml", str(values)]
    study.write_text(yaml.safe_dump(SMALL | {"parameters": files, "shards": 2, "sweep": {"guidance_scale": [4.0]}}))
    planned = _plan(study, "--printshellcmds")
    assert planned.returncode == 0, planned.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", planned.stdout, re.M))
    wanted = {"adapt_shard": 4, "adapt": 2, "generate_shard": 8, "generate": 4, "train": 10}
    wanted |= {"analysis": 1, "beyond": 1, "all": 1}
    assert {rule: int(count) for rule, count in jobs.items() if rule != "total"} == wanted
    assert "guidance_scale 4.0" in planned.stdout
    assert len(re.findall(r"workflow.scripts.launch (?:adapt|generate) --shard [12]/2 ", planned.stdout)) == 12
    one = _plan(study, "mnist5k_real_2shot_seed1").stdout
    assert "train" in one and "adapt" not in one


def test_the_makefile_starts_every_study_behind_the_committed_results():
    made = {"capture_output": True, "text": True, "cwd": ROOT, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    make = [
        "make",
        "--dry-run",
        "-o",
        ".venv/installed",
        f"BIN={os.path.relpath(os.path.dirname(sys.executable), ROOT)}",
    ]
    for target in ("results", "demo"):
        printed = subprocess.run([*make, target], **made, check=True).stdout
        commands = "\n".join(line for line in printed.splitlines() if "snakemake " in line)
        planned = subprocess.run(["bash", "-ec", commands.replace("snakemake ", "snakemake --dry-run ")], **made)
        assert commands and planned.returncode == 0, planned.stderr


def test_runs_are_made_although_tables_of_another_study_are_there(tmp_path):
    study, values = tmp_path / "study.yaml", tmp_path / "out.yaml"
    values.write_text(f"output_root: {tmp_path}/outputs\nfigures_dir: {tmp_path}/figures\n")
    study.write_text(yaml.safe_dump(SMALL | {"parameters": ["params/smoke.yaml", str(values)]}))
    first = _plan(study).stdout
    written = set(re.findall(r"/figures/([\w.]+)", first))
    assert {"main_results.md", "teaser.png"} <= written
    (tmp_path / "figures").mkdir()
    for name in written:
        (tmp_path / "figures" / name).touch()
    for target in ("tables", "main_results"):
        jobs = dict(re.findall(r"^(\w+) +(\d+)$", _plan(study, target).stdout, re.M))
        assert jobs["train"] == "6" and jobs["analysis"] == "1", target


STAND_IN = """
import os, pathlib, sys, time
start = time.time()
time.sleep(0.7)
source, executed, *values = (part for part in sys.argv[sys.argv.index("--no-progress-bar") + 1 :])
stage = pathlib.Path(executed).parent / "train-R"
(stage / "manifest.json").write_text("{}")
seen = [os.environ.get("CUDA_VISIBLE_DEVICES", ""), values[values.index("device") + 1] if "device" in values else ""]
(stage / "seen").write_text(f"{start} {time.time()} {seen[0]} {seen[1]}")
"""


@pytest.fixture
def stand_in_study(tmp_path):
    """``run(*arguments, visible=...)`` runs a study whose notebooks only note what they see.

    Gives (start, end, GPU, device) of each.
    """
    package = tmp_path / "stand-in" / "papermill"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "engines.py").write_text("NBClientEngine = object\nclass papermill_engines:\n    register = print\n")
    (package / "cli.py").write_text(f"def papermill(arguments):\n    exec({STAND_IN!r}, {{}})\n")
    study, values = tmp_path / "study.yaml", tmp_path / "out.yaml"
    values.write_text(f"output_root: {tmp_path}/outputs\nfigures_dir: {tmp_path}/figures\n")
    files = ["params/smoke.yaml", str(values)]
    study.write_text(yaml.safe_dump(SMALL | {"parameters": files, "methods": ["real"], "seeds": [0, 1, 2, 3, 4]}))

    def run(*arguments, visible=None):
        path = os.pathsep.join([str(tmp_path / "stand-in"), str(ROOT)])
        environment = os.environ | {"PYTHONPATH": path} | ({"CUDA_VISIBLE_DEVICES": visible} if visible else {})
        command = [
            "-m",
            "snakemake",
            "runs",
            "-s",
            str(ROOT / "workflow" / "Snakefile"),
            "--cores",
            "5",
            "--configfile",
            study,
        ]
        command = [sys.executable, *command, "--directory", str(tmp_path), *arguments]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr
        seen = [path.read_text().split(" ") for path in (tmp_path / "outputs").glob("*/train-R/seen")]
        return [(float(start), float(end), gpu, device) for start, end, gpu, device in seen]

    return run


def _at_once(jobs):
    """The greatest number of jobs that ran at one moment."""
    return max(sum(start <= moment < end for start, end, *_ in jobs) for moment, *_ in jobs)


def test_every_job_has_a_gpu_of_its_own(stand_in_study):
    jobs = stand_in_study("--resources", "gpu=2", visible="5,7")
    assert len(jobs) == 5 and {gpu for *_, gpu, _ in jobs} == {"5", "7"} and {device for *_, device in jobs} == {"cuda"}
    assert _at_once(jobs) == 2
    for name in ("5", "7"):
        assert _at_once([job for job in jobs if job[2] == name]) == 1


def test_gpus_are_counted_from_the_first(monkeypatch, tmp_path):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    (first, lock), (second, _kept) = take_gpu(2, tmp_path), take_gpu(2, tmp_path)
    lock.release()
    assert (first, second) == ("0", "1") and take_gpu(2, tmp_path)[0] == "0"


def test_jobs_share_gpus_when_asked(stand_in_study):
    jobs = stand_in_study("--resources", "gpu=4", visible="3,6")
    assert {gpu for *_, gpu, _ in jobs} == {"3", "6"} and _at_once(jobs) > 2
    assert max(_at_once([job for job in jobs if job[2] == gpu]) for gpu in "36") == 2


def test_without_the_resource_nothing_is_changed(stand_in_study, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    jobs = stand_in_study()
    assert len(jobs) == 5 and {(gpu, device) for *_, gpu, device in jobs} == {("", "")} and _at_once(jobs) > 2


def test_the_workflow_stops_with_one_sentence(tmp_path):
    study = tmp_path / "study.yaml"
    study.write_text(yaml.safe_dump(SMALL | {"methods": ["loftt"]}))
    stopped = _plan(study)
    assert stopped.returncode != 0 and "Traceback" not in stopped.stderr + stopped.stdout
    assert f"{study}: method 'loftt' is not known. Did you mean 'loft'" in stopped.stderr + stopped.stdout
