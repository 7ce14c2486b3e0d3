"""Stages on disk: locks between processes, checksums, mending, full and read-only disks, too little memory."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import psutil
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datadream_utils.analysis.results import load_stages
from datadream_utils.data.dataset import load_dataset
from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import generate, make_recipe
from datadream_utils.diffusion.lora import WEIGHTS
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, digest, sha256
from datadream_utils.runs import device, locks
from datadream_utils.runs.checksums import LIST, changed_files, made_files
from datadream_utils.runs.device import advise_on_memory, peak_memory
from datadream_utils.runs.locks import release
from datadream_utils.runs.progress import no_progress
from datadream_utils.runs.run import open_run
from datadream_utils.runs.stage import finished_stage

HOLDER = """
import sys, time
from pathlib import Path
from datadream_utils.runs.locks import lock
locks = lock(Path(sys.argv[1]), sys.argv[2])
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.3)


@contextmanager
def _held_by_another(folder, part=""):
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), part], stdout=subprocess.PIPE, text=True
    ) as other:
        try:
            assert other.stdout.readline() == "held\n"
            yield other
        finally:
            other.kill()


def test_peak_memory_without_the_module_resource(monkeypatch):
    assert 10 < peak_memory("cpu")["peak_memory_mb"] < 10**6
    monkeypatch.setattr(device, "resource", None)  # as on Windows
    monkeypatch.setattr(psutil.Process, "memory_info", lambda self: SimpleNamespace(peak_wset=123_400_000))
    assert peak_memory("cpu") == {"peak_memory_mb": 123}


def test_of_two_processes_the_second_stops_and_names_the_first(make_run):
    stage = make_run("adapt", n_shot=1)
    with _held_by_another(stage.folder) as other:
        with pytest.raises(InputError) as error:
            stage.begin()
        message = str(error.value)
        assert str(stage.folder) in message and f"process {other.pid} on {os.uname().nodename}" in message
        assert not (stage.folder / "parameters.json").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert stage.begin()


def test_a_part_and_the_whole_exclude_each_other_but_not_two_parts(make_run):
    part = {n: make_run("adapt", n_shot=1, shard=f"{n}/2") for n in (1, 2)}
    whole = make_run("adapt", n_shot=1)
    with _held_by_another(whole.folder, "1-of-2"):
        with pytest.raises(InputError, match="being worked on by process"):
            whole.begin()
        with pytest.raises(InputError, match="being worked on by process"):
            part[1].begin()
        assert part[2].begin()
        part[2].finish()
    with _held_by_another(whole.folder), pytest.raises(InputError, match="being worked on by process"):
        part[1].begin()


def test_parts_leave_records_and_the_whole_adds_them_up(make_run, capsys):
    for n in (1, 2):
        part = make_run("adapt", n_shot=1, shard=f"{n}/2")
        assert part.begin() and not part.stage.finished
        part._started = tuple(then - 100 for then in part._started)
        part.finish()
        assert not part.stage.finished and not part.begin()
    assert f"Part 2-of-2 of {part.folder} is done already" in capsys.readouterr().out
    whole = make_run("adapt", n_shot=1)
    assert whole.begin()
    whole.finish()
    manifest = whole.stage.manifest()
    assert [record["shard"] for record in manifest["shards"]] == ["1-of-2", "2-of-2"]
    assert 200 <= manifest["seconds"] < 230 and not part.begin()
    assert 200 <= manifest["processor_seconds"] < 230


@pytest.fixture
def finished(make_run):
    """A run whose stage is finished, with three files."""
    run = make_run("adapt", n_shot=1)
    assert run.begin()
    for name in ("a.txt", "deep/b c.txt", "deep/é.txt"):
        with atomic_write(run.folder / name) as temporary:
            temporary.write_text(name * 50)
    run.finish()
    return run


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_list_is_what_sha256sum_reads(finished):
    check = lambda: subprocess.run(["sha256sum", "-c", LIST], cwd=finished.folder, capture_output=True, text=True)  # noqa: E731
    assert check().stdout == "a.txt: OK\ndeep/b c.txt: OK\ndeep/é.txt: OK\n"
    assert finished.stage.manifest()["checksums"] == sha256(finished.folder / LIST)
    _flip_a_bit(finished.folder / "a.txt")
    assert "a.txt: FAILED" in check().stdout and finished.stage.damaged_files() == ["a.txt"]


def test_what_has_vanished_or_changed_is_found_and_only_that_is_taken_away(finished, make_run, capsys):
    stage = finished.stage
    stage.check_files()
    (stage.folder / "deep" / "é.txt").unlink()
    _flip_a_bit(stage.folder / "deep" / "b c.txt")
    with pytest.raises(InputError, match=r"b c.txt \(and 1 more\) has vanished or changed .* run 01_adapt_sd again"):
        stage.check_files()
    stage.check_files(["a.txt"])
    again = make_run("adapt", n_shot=1)
    assert again.begin() and not stage.finished
    assert capsys.readouterr().out.count("has vanished or changed: it is made again") == 2
    assert made_files(stage.folder) == ["a.txt"] and not (stage.folder / LIST).exists()


def test_a_bad_list_or_note_alone_costs_no_file(finished):
    stage = finished.stage
    _flip_a_bit(stage.folder / LIST)
    assert stage.damaged_files() == [LIST]
    assert finished.begin()
    finished.finish()
    assert stage.damaged_files() == [] and len(made_files(stage.folder)) == 3
    assert changed_files(stage.folder, "0" * 64) == [LIST]  # a flipped bit in the manifest
    (stage.folder / LIST).unlink()
    (stage.folder / "a.txt").unlink()
    with pytest.raises(InputError, match="nobody can tell which files"):
        finished.begin()


def test_a_list_that_leads_out_of_the_folder_is_refused(finished):
    precious = finished.folder.parent / "precious"
    precious.write_text("x")
    (finished.folder / "manifest.json").unlink()
    with open(finished.folder / LIST, "a", encoding="utf-8") as file:
        file.write(f"{'0' * 64}  ../precious\n")
    with pytest.raises(InputError, match="'../precious' is no file below"):
        finished.begin()
    assert precious.exists()


def test_a_stage_whose_manifest_was_taken_still_knows_its_files(finished):
    (finished.folder / "manifest.json").unlink()  # Snakemake takes it before it runs a stage again
    _flip_a_bit(finished.folder / "a.txt")
    assert finished.begin()
    assert made_files(finished.folder) == ["deep/b c.txt", "deep/é.txt"]


def test_a_manifest_says_how_the_stage_was_made(make_run):
    run = make_run("adapt", n_shot=2)
    assert run.begin()
    run.finish(model={"folder": "m"})
    manifest, every = run.stage.manifest(), run.params.model_dump()
    shown = {
        "guidance_scale",
        "num_inference_steps",
        "sampler",
        "pictures_shown",
    }  # decide only pictures shown
    assert manifest["parameters"] | manifest["machine"] == {k: v for k, v in every.items() if k not in shown}
    assert manifest["parameters"]["lora_rank"] == 16 and manifest["machine"]["num_threads"] == 1
    assert manifest["shots"] == [str(path.relative_to(run.data.root)) for files in run.shots for path in files]
    assert 50 < manifest["peak_memory_mb"] < 100_000 and "peak_gpu_memory_mb" not in manifest
    assert {"torch", "diffusers"} <= set(manifest["versions"]) and manifest["device"].startswith("cpu")
    assert {"git", "python", "seconds", "finished", "resumed", "model", "num_threads"} <= set(manifest)
    assert os.uname().nodename not in json.dumps(manifest)


@pytest.mark.parametrize("format_", [None, 1, 99])
@pytest.mark.parametrize("name", ["parameters.json", "manifest.json"])
def test_a_stage_of_another_version_is_refused(make_run, finished, name, format_):
    """A study from before a change of the format is refused with one sentence rather than half-read."""
    if name == "parameters.json":
        (finished.folder / "manifest.json").unlink()
    noted = json.loads((finished.folder / name).read_text())
    noted |= {"format": format_} if format_ else {}
    if not format_:
        del noted["format"]
    (finished.folder / name).write_text(json.dumps(noted))
    with pytest.raises(InputError, match="was made by another version of this project .*: set output_root to another"):
        make_run("adapt", n_shot=1)
    if name == "manifest.json":
        with pytest.raises(InputError, match="was made by another version of this project"):
            load_stages(finished.params.output_root)


def test_a_stage_is_finished_without_git(make_run, monkeypatch):
    monkeypatch.setenv("PATH", "")
    run = make_run("adapt", n_shot=1)
    assert run.begin()
    run.finish()
    assert run.stage.manifest()["git"] is None


def test_other_parameters_are_refused_even_when_the_note_of_them_is_gone(make_run, make_params, finished):
    (finished.folder / "parameters.json").unlink()
    with pytest.raises(InputError, match="was made with lora_rank=16, not 8: set 'variant'"):
        make_run("adapt", n_shot=1, lora_rank=8)
    (finished.folder / "manifest.json").write_text("{torn")
    with pytest.raises(InputError, match="manifest.json cannot be read .*: delete it and run 01_adapt_sd again"):
        finished_stage(make_params("adapt", n_shot=1), "adapt")


@pytest.mark.parametrize(
    "change", [{"split_file": "lists/other.csv"}, {"sd_model": "models/other"}, {"resolution": 64}]
)
def test_a_stage_made_from_other_data_or_models_is_not_built_on(finished, make_params, tmp_path, change):
    name = next(iter(change))
    elsewhere = {"sd_model": f"{tmp_path}/models/tiny-stable-diffusion"}  # the same model in another place
    assert finished_stage(make_params("generate", n_shot=1, **elsewhere), "adapt").finished
    with pytest.raises(InputError, match=f"was made with {name}=.*: use the same value here, or set 'variant'"):
        finished_stage(make_params("generate", n_shot=1, **change), "adapt")


def test_a_stage_made_from_other_shots_is_not_built_on(finished, make_params):
    params, (first, *others) = make_params("generate", n_shot=1), [path for files in finished.shots for path in files]
    assert finished_stage(params, "adapt", [first, *others]).finished
    with pytest.raises(InputError, match="was made from other few-shot images: use the same data"):
        finished_stage(params, "adapt", [*others, first])


@contextmanager
def _small_disk(folder):
    """A disk of 2 MiB, for those who may mount one (root)."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True).returncode:
        pytest.skip("mounting a small disk is not allowed here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_full_disk_costs_nothing_finished_and_the_rerun_heals(tmp_path, pipe, make_run):
    changes = dict(n_shot=2, adapt_epochs=1, adapters_together=2, lora_rank=4, train_text_encoder=False)
    elsewhere = make_run("adapt", **changes)
    adapters = plan_adapters(elsewhere)[:4]
    weights = lambda run: [run.folder / "adapters" / adapter.name / WEIGHTS for adapter in adapters]  # noqa: E731
    adapt(pipe, adapters, elsewhere)
    size = sum(path.stat().st_size for path in weights(elsewhere))
    with _small_disk(tmp_path / "disk") as disk:
        run = make_run("adapt", **changes, output_root=str(disk))
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(2 * 2**20 - size * 5 // 8))  # room for two and a half
        with pytest.raises(InputError, match="adapters/.* cannot be written: the disk is full. Make room"):
            adapt(pipe, adapters, run)
        assert 1 <= len(list(disk.rglob(WEIGHTS))) <= 2 and not list(disk.rglob("*.part"))
        kept = {path: path.stat().st_mtime_ns for path in disk.rglob(WEIGHTS)}
        ballast.unlink()
        adapt(pipe, adapters, run)
        assert kept.items() <= {path: path.stat().st_mtime_ns for path in disk.rglob(WEIGHTS)}.items()
        for one, other in zip(weights(elsewhere), weights(run), strict=True):
            assert one.read_bytes() == other.read_bytes()


def _fill_up(kind, path):
    """Write a file of ``kind`` to ``path``, far more than a small disk holds."""
    if kind == "png":
        Image.effect_noise((2000, 2000), 100).save(path, format="PNG")
    elif kind == "parquet":
        import pandas as pd

        pd.DataFrame({"x": torch.rand(10**6).numpy()}).to_parquet(path)
    elif kind == "safetensors":
        from safetensors.torch import save_file

        save_file({"x": torch.rand(10**6)}, path)
    else:
        path.write_text("x" * 10**7)


def test_every_kind_of_file_says_that_the_disk_is_full(tmp_path):
    with _small_disk(tmp_path / "disk") as disk:
        for kind in ("png", "parquet", "safetensors", "txt"):
            with pytest.raises(InputError, match=f"x.{kind} cannot be written: the disk is full"):  # noqa: SIM117
                with atomic_write(disk / f"x.{kind}") as temporary:
                    _fill_up(kind, temporary)
        assert list(disk.iterdir()) == []


def test_a_read_only_folder_is_named_before_any_work(tmp_path, make_run):
    with _small_disk(tmp_path / "disk") as disk:
        run = make_run("adapt", n_shot=1, output_root=str(disk))
        run.begin()
        run.finish()
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(InputError, match="/adapt cannot be written .*Read-only.*set output_root"):
            make_run("adapt", n_shot=2, output_root=str(disk)).begin()
        with pytest.raises(InputError, match="x.txt cannot be written: the disk is read-only"):  # noqa: SIM117
            with atomic_write(disk / "x.txt") as temporary:
                temporary.write_text("x")
        assert not run.begin()  # finished: reading it needs no lock


def test_errors_about_other_files_are_left_alone(tmp_path):
    with pytest.raises(PermissionError), atomic_write(tmp_path / "inner" / "x"):
        raise PermissionError(13, "Permission denied", "/elsewhere/source.png")
    with pytest.raises(OSError, match="strange"), atomic_write(tmp_path / "x"):
        raise OSError("strange")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def _count_steps(counts):
    """A progress that appends (steps so far, total) to ``counts`` at every step."""

    @contextmanager
    def progress(total, label):
        done = 0

        def advance(n=1):
            nonlocal done
            done += n
            counts.append((done, total))

        yield advance

    return progress


def test_adapters_that_do_not_fit_into_memory_are_trained_by_halves(pipe, make_run, monkeypatch, capsys):
    """Memory for the images of two adapters at once; the result is that of five at once, up to rounding."""
    together = dict(n_shot=2, adapt_epochs=2, adapters_together=5, lora_rank=4)
    runs, losses = {}, {}
    for variant in ("enough", "short"):
        counts = []
        run = runs[variant] = make_run("adapt", progress=_count_steps(counts), variant=variant, **together)
        adapters = plan_adapters(run)[:8]
        losses[variant] = adapt(pipe, adapters, run)
        assert counts[-1] == (16, 16)  # eight adapters, two epochs, of one batch each
        forward = pipe.unet.forward

        def full(noisy, *args, forward=forward, **kwargs):
            if len(noisy) > 2 * 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return forward(noisy, *args, **kwargs)

        monkeypatch.setattr(pipe.unet, "forward", full)
    assert capsys.readouterr().out == "5 adapters at once do not fit into memory: going on with 2.\n"
    for a in adapters:
        one, other = (load_file(run.folder / "adapters" / a.name / WEIGHTS) for run in runs.values())
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=2e-5)
        assert losses["enough"][a.name] == pytest.approx(losses["short"][a.name], rel=1e-4)


def test_too_little_memory_names_what_to_lower(pipe, make_run, monkeypatch):
    changes = dict(n_shot=2, adapt_epochs=2, adapters_together=1, lora_rank=4)
    run, other = make_run("adapt", **changes), make_run("adapt", **changes, variant="undisturbed")
    adapters = plan_adapters(run)[:4]
    forward, calls = pipe.unet.forward, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:  # in the third
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", full)
    words = r"set gradient_checkpointing to true \(no result changes\) or lower adapt_batch_size \(8\)"
    with pytest.raises(InputError, match=words):
        adapt(pipe, adapters, run)
    assert [(run.folder / "adapters" / a.name).exists() for a in adapters] == [True, True, False, False]
    adapt(pipe, adapters, run)
    adapt(pipe, adapters, other)
    for a in adapters:
        one, two = (made.folder / "adapters" / a.name / WEIGHTS for made in (run, other))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.parametrize(
    "error, fix",
    [
        (RuntimeError("MPS backend out of memory"), "lower eval_batch_size (256)"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes"), "lower eval_batch_size"),
        (MemoryError(), "lower eval_batch_size"),
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_only_errors_about_memory_are_translated(make_params, error, fix):
    filled = []

    def fill():
        tensor = torch.zeros(3)
        filled.append(weakref.ref(tensor))
        raise error

    kind, p = InputError if fix else RuntimeError, make_params("train")
    with pytest.raises(kind) as raised, advise_on_memory(p, "eval_batch_size"):
        fill()
    assert (fix or "shapes do not match") in str(raised.value)
    assert not fix or filled[0]() is None  # what filled the memory is free again


def test_an_interrupted_stage_goes_on_in_the_same_process_to_the_same_images(folder_dataset, pipe, make_run):
    """The adapter that was fused when the interrupt came is out again: nothing is drawn with it twice."""
    data = load_dataset(str(folder_dataset), "data")

    @contextmanager
    def interrupted(total, label):
        steps = []

        def advance(n=1):
            steps.append(n)
            if len(steps) == 2:
                raise KeyboardInterrupt

        yield advance

    adapted = make_run("adapt", data, n_shot=2, adapt_epochs=1, lora_rank=4, adapters_together=1, progress=interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapt(pipe, plan_adapters(adapted), adapted)
    adapted.progress = no_progress
    adapt(pipe, plan_adapters(adapted), adapted)
    folders = []
    for variant, progress in {"interrupted": interrupted, "undisturbed": no_progress}.items():
        changes = dict(n_shot=2, images_per_class=2, generate_batch_size=1, num_inference_steps=2, variant=variant)
        run = make_run("generate", data, adapted.stage, progress=progress, **changes)
        with pytest.raises(KeyboardInterrupt) if variant == "interrupted" else nullcontext():
            generate(pipe, make_recipe(run), run)
        run.progress = no_progress
        generate(pipe, make_recipe(run), run)
        folders.append(run.folder)
    assert len(made_files(folders[0])) == 5
    for name in made_files(folders[0]):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


@pytest.fixture
def changing(folder_dataset, make_params):
    """``opened(stage, **changes)``: a ``Run``, as ``open_run`` gives it, of a folder whose pictures a test changes."""

    def opened(stage, **changes):
        values = dict(dataset=str(folder_dataset), n_shot=2) | changes
        return open_run(make_params(stage, **values), progress=no_progress)

    return opened


def _add_picture(folder, name="new.png"):
    Image.new("RGB", (40, 40), "red").save(folder / name)


@pytest.mark.parametrize("finishes", [False, True])
def test_a_stage_is_not_continued_with_other_shots(changing, folder_dataset, finishes):
    """Else adapters of pictures that belong to the test split by now could become part of a result."""
    run = changing("adapt")
    assert run.begin()
    if finishes:
        run.finish()
    release(run._locks)
    assert changing("adapt").shots == run.shots
    replaced = run.shots[0][0]
    _add_picture(replaced.parent, replaced.name)
    with pytest.raises(InputError, match="adapt was made from other few-shot images: .* Put them back, or set 'vari"):
        changing("adapt")
    assert changing("adapt", variant="new").begin()


def test_a_classifier_tested_on_other_pictures_is_no_result_of_these(changing, folder_dataset):
    """The shots are the same, so only the test images tell that the folder has grown."""
    run = changing("train", method="real", setting="R")
    assert run.begin()
    run.finish(evaluated_on="test", evaluated_sha256=digest([p for files in run.data.files["test"] for p in files]))
    assert changing("train", method="real", setting="R").stage.finished
    _add_picture(folder_dataset / "test" / "apple_pie")
    with pytest.raises(InputError, match="train-R was tested on other test images: .* have changed since"):
        changing("train", method="real", setting="R")


def test_a_stage_is_not_continued_after_an_earlier_one_was_made_otherwise(changing):
    def make(stage, **changes):
        run = changing(stage, **changes)
        assert run.begin()
        run.finish()
        return run

    first = make("adapt", lora_rank=4)
    make("generate")
    train = changing("train")
    assert train.begin()  # and is killed
    release(train._locks)
    shutil.rmtree(first.folder)
    make("adapt", lora_rank=4)  # the same: what was made from it still holds
    assert changing("generate").stage.finished and changing("train").folder.exists()
    shutil.rmtree(first.folder)
    make("adapt", lora_rank=8)
    with pytest.raises(InputError, match="generate was made from an earlier stage that has been made again since"):
        changing("generate")
    with pytest.raises(InputError, match="generate was made from an earlier stage that has been made again since"):
        changing("train", setting="S")  # without 02
    shutil.rmtree(first.folder.parent / "generate")
    make("generate")
    with pytest.raises(InputError, match=r"train-R\+S was made from an earlier stage that has been made again since"):
        changing("train")


def test_a_clock_that_is_set_back_makes_no_negative_seconds(changing, monkeypatch):
    run = changing("adapt")
    assert run.begin()
    earlier = time.time() - 3600
    monkeypatch.setattr(time, "time", lambda: earlier)
    run.finish()
    assert 0 <= run.stage.manifest()["seconds"] < 60


@pytest.mark.parametrize(
    "line, value", [("parameters", 3), ("parameters", None), ("versions", []), ("seconds", "x"), ("device", None)]
)
def test_a_manifest_that_somebody_has_edited_is_named(finished, line, value):
    path = finished.folder / "manifest.json"
    noted = json.loads(path.read_text())
    path.write_text(json.dumps(noted | {line: value}))
    fix = "delete it and run 01_adapt_sd again"
    with pytest.raises(InputError, match=f"manifest.json cannot be read .'{line}' is .*: {fix}"):
        finished.stage.manifest()
    path.write_text(json.dumps({name: value for name, value in noted.items() if name != line}))
    with pytest.raises(InputError, match=f"manifest.json cannot be read .it lacks '{line}'.: {fix}"):
        _ = finished.stage.manifest()[line]
    path.write_text(json.dumps(noted | {"parameters": {"dataset": 3}}))
    with pytest.raises(InputError, match="'dataset' is 3"):
        finished.stage.manifest()
    path.write_text(json.dumps(noted | {"parameters": {}}))
    with pytest.raises(InputError, match="lacks 'dataset'"):
        _ = finished.stage.manifest()["parameters"]["dataset"]
