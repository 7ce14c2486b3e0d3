"""Stages on disk: locks between processes, checksums, mending, full and read-only disks, too little memory."""

import json
import os
import signal
import subprocess
import sys
import weakref
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from conftest import same_progress
from PIL import Image
from safetensors.torch import load_file

from datadream_utils.analysis.results import load_stages
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.train import train_and_test, training_sets
from datadream_utils.data.dataset import few_shot, load_dataset
from datadream_utils.diffusion.adapt import adapt, adapter_folder, plan_adapters, read_losses
from datadream_utils.diffusion.generate import generate
from datadream_utils.diffusion.lora import WEIGHTS
from datadream_utils.diffusion.recipe import Recipe
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, digest, sha256
from datadream_utils.methods import get_method
from datadream_utils.runs import locks
from datadream_utils.runs.checksums import LIST, changed_files, made_files
from datadream_utils.runs.device import advise_on_memory
from datadream_utils.runs.stage import SINCE, Stage, check_made, needs
from datadream_utils.runs.stage import stage as run_stage

HOLDER = """
import sys, time
from pathlib import Path
from datadream_utils.runs.locks import hold
locks = hold(Path(sys.argv[1]), sys.argv[2])
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


def test_of_two_processes_the_second_stops_and_names_the_first(tmp_path):
    stage = Stage("adapt", tmp_path / "adapt", {"seed": 0})
    with _held_by_another(stage.folder) as other:
        with pytest.raises(InputError) as error:
            stage.begin()
        message = str(error.value)
        assert str(stage.folder) in message and f"process {other.pid} on {os.uname().nodename}" in message
        assert not (stage.folder / "parameters.json").exists()
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert stage.begin()


def test_a_part_and_the_whole_exclude_each_other_but_not_two_parts(tmp_path):
    part = {n: Stage("adapt", tmp_path, {}, {"shard": f"{n}/2"}) for n in (1, 2)}
    with _held_by_another(tmp_path, "1-of-2"):
        with pytest.raises(InputError, match="being worked on by process"):
            Stage("adapt", tmp_path, {}).begin()
        with pytest.raises(InputError, match="being worked on by process"):
            part[1].begin()
        assert part[2].begin()
        part[2].finish()
    with _held_by_another(tmp_path), pytest.raises(InputError, match="being worked on by process"):
        part[1].begin()


def test_parts_leave_records_and_the_whole_adds_them_up(tmp_path, capsys):
    for n in (1, 2):
        part = Stage("adapt", tmp_path, {}, {"shard": f"{n}/2"})
        assert part.begin() and not part.finished
        part.started = tuple(then - 100 for then in part.started)
        part.finish()
        assert not part.finished and not part.begin()
    assert f"Part 2-of-2 of {tmp_path} is done already" in capsys.readouterr().out
    whole = Stage("adapt", tmp_path, {})
    assert whole.begin()
    manifest = whole.finish()
    assert [record["shard"] for record in manifest["shards"]] == ["1-of-2", "2-of-2"]
    assert 200 <= manifest["seconds"] < 230 and not part.begin()
    assert 200 <= manifest["processor_seconds"] < 230


def _finished(folder, parameters=None, **facts):
    stage = Stage("adapt", folder, parameters or {"seed": 0})
    assert stage.begin()
    for name in ("a.txt", "deep/b c.txt", "deep/é.txt"):
        with atomic_write(folder / name) as temporary:
            temporary.write_text(name * 50)
    stage.finish(**facts)
    return stage


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_the_list_is_what_sha256sum_reads(tmp_path):
    stage = _finished(tmp_path / "adapt")
    run = lambda: subprocess.run(["sha256sum", "-c", LIST], cwd=stage.folder, capture_output=True, text=True)  # noqa: E731
    assert run().stdout == "a.txt: OK\ndeep/b c.txt: OK\ndeep/é.txt: OK\n"
    assert stage.manifest()["checksums"] == sha256(stage.folder / LIST)
    _flip_a_bit(stage.folder / "a.txt")
    assert "a.txt: FAILED" in run().stdout and stage.damage() == ["a.txt"]


def test_what_has_vanished_or_changed_is_found_and_only_that_is_taken_away(tmp_path, capsys):
    stage = _finished(tmp_path / "adapt")
    check_made(stage.folder, "01_adapt_sd")
    (stage.folder / "deep" / "é.txt").unlink()
    _flip_a_bit(stage.folder / "deep" / "b c.txt")
    with pytest.raises(InputError, match=r"b c.txt \(and 1 more\) has vanished or changed .* run 01_adapt_sd again"):
        check_made(stage.folder, "01_adapt_sd")
    check_made(stage.folder, "01_adapt_sd", ["a.txt"])
    again = Stage("adapt", stage.folder, {"seed": 0})
    assert again.begin() and not again.finished
    assert capsys.readouterr().out.count("has vanished or changed: it is made again") == 2
    assert made_files(stage.folder) == ["a.txt"] and not (stage.folder / LIST).exists()


def test_a_bad_list_or_note_alone_costs_no_file(tmp_path):
    stage = _finished(tmp_path / "adapt")
    _flip_a_bit(stage.folder / LIST)
    assert stage.damage() == [LIST]
    assert stage.begin()
    stage.finish()
    assert stage.damage() == [] and len(made_files(stage.folder)) == 3
    assert changed_files(stage.folder, "0" * 64) == [LIST]  # a flipped bit in the manifest
    (stage.folder / LIST).unlink()
    (stage.folder / "a.txt").unlink()
    with pytest.raises(InputError, match="nobody can tell which files"):
        stage.begin()


def test_a_list_that_leads_out_of_the_folder_is_refused(tmp_path):
    stage = _finished(tmp_path / "adapt")
    (tmp_path / "precious").write_text("x")
    (stage.folder / "manifest.json").unlink()
    with open(stage.folder / LIST, "a") as file:
        file.write(f"{'0' * 64}  ../precious\n")
    with pytest.raises(InputError, match="'../precious' is no file below"):
        stage.begin()
    assert (tmp_path / "precious").exists()


def test_a_stage_whose_manifest_was_taken_still_knows_its_files(tmp_path):
    stage = _finished(tmp_path / "adapt")  # Snakemake takes it before it runs a stage again
    (stage.folder / "manifest.json").unlink()
    _flip_a_bit(stage.folder / "a.txt")
    assert stage.begin()
    assert made_files(stage.folder) == ["deep/b c.txt", "deep/é.txt"]


def test_manifests_without_checksums_stay_readable(tmp_path, capsys):
    stage = _finished(tmp_path / "adapt")
    manifest = stage.manifest()
    del manifest["checksums"]
    (stage.folder / "manifest.json").write_text(json.dumps(manifest))
    (stage.folder / LIST).unlink()
    check_made(stage.folder, "01_adapt_sd")
    assert not stage.begin() and "finished already" in capsys.readouterr().out


def test_a_manifest_says_how_the_stage_was_made(make_params):
    p = make_params("adapt", n_shot=2)
    stage = run_stage(p, "adapt")
    assert stage.begin()
    manifest = stage.finish("cpu", model={"folder": "m"})
    assert manifest["parameters"] | manifest["how"] == p.model_dump() and manifest["parameters"]["lora_rank"] == 16
    assert 50 < manifest["peak_memory_mb"] < 100_000 and "peak_gpu_memory_mb" not in manifest
    assert {"torch", "diffusers"} <= set(manifest["versions"]) and manifest["device"].startswith("cpu")
    assert {"git", "python", "seconds", "finished", "resumed", "model", "num_threads"} <= set(manifest)
    assert os.uname().nodename not in json.dumps(manifest)


def test_a_stage_from_before_a_parameter_goes_on_where_its_value_changes_nothing(make_params):
    p = make_params("adapt", n_shot=2)
    stage = run_stage(p, "adapt")
    assert stage.begin()
    for name in ("parameters.json", "manifest.json"):
        for parameter in SINCE["adapt"]:
            noted = json.loads((stage.folder / name).read_text())
            assert (noted["parameters"] if name == "manifest.json" else noted).pop(parameter) == 0
            (stage.folder / name).write_text(json.dumps(noted))
        run_stage(p, "adapt")
        with pytest.raises(InputError, match="was made with crops_per_shot=0, not 8"):
            run_stage(make_params("adapt", n_shot=2, crops_per_shot=8), "adapt")
        if name == "parameters.json":
            stage.finish()
    assert load_stages(p.output_root)["parameters"][0]["crops_per_shot"] == 0


def test_other_parameters_are_refused_even_when_the_note_of_them_is_gone(make_params):
    stage = run_stage(make_params("adapt", n_shot=2), "adapt")
    assert stage.begin()
    stage.finish()
    (stage.folder / "parameters.json").unlink()
    with pytest.raises(InputError, match="was made with lora_rank=16, not 8: set 'variant'"):
        run_stage(make_params("adapt", n_shot=2, lora_rank=8), "adapt")
    (stage.folder / "manifest.json").write_text("{torn")
    with pytest.raises(InputError, match="manifest.json cannot be read .*: delete it and run the notebook"):
        needs(make_params("adapt", n_shot=2), "adapt", "01_adapt_sd")


@pytest.mark.parametrize(
    "change", [{"split_file": "lists/other.csv"}, {"sd_model": "models/other"}, {"resolution": 64}]
)
def test_a_stage_made_from_other_data_or_models_is_not_built_on(make_params, tmp_path, change):
    name = next(iter(change))
    stage = run_stage(make_params("adapt", n_shot=2), "adapt")
    stage.begin()
    stage.finish()
    elsewhere = {"sd_model": f"{tmp_path}/models/tiny-stable-diffusion"}  # the same model in another place
    assert needs(make_params("generate", n_shot=2, **elsewhere), "adapt", "01_adapt_sd").finished
    with pytest.raises(InputError, match=f"was made with {name}=.*: use the same value here, or set 'variant'"):
        needs(make_params("generate", n_shot=2, **change), "adapt", "01_adapt_sd")


def test_a_stage_made_from_other_shots_is_not_built_on(make_params, mnist):
    (one, two), stage = mnist.files["train"][0][:2], run_stage(make_params("adapt", n_shot=2), "adapt")
    stage.begin()
    stage.finish(shots_sha256=digest([one]))
    assert needs(make_params("generate", n_shot=2), "adapt", "01_adapt_sd", [one]).finished
    with pytest.raises(InputError, match="was made from other few-shot images: use the same data"):
        needs(make_params("generate", n_shot=2), "adapt", "01_adapt_sd", [two])


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


def test_a_full_disk_costs_nothing_finished_and_the_rerun_heals(tmp_path, mnist, pipe, make_params):
    changes = dict(n_shot=2, adapt_epochs=1, adapters_together=2, lora_rank=4, train_text_encoder=False)
    method, shots = get_method("datadream_cls"), few_shot(mnist, 2, 0)
    adapters = plan_adapters(method, mnist, shots)[:4]
    elsewhere = run_stage(make_params("adapt", **changes), "adapt")
    adapt(pipe, adapters, make_params("adapt", **changes), elsewhere, same_progress)
    size = sum((adapter_folder(elsewhere, a.name) / WEIGHTS).stat().st_size for a in adapters)
    with _small_disk(tmp_path / "disk") as disk:
        p = make_params("adapt", **changes, output_root=str(disk))
        stage = run_stage(p, "adapt")
        assert stage.begin()
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(2 * 2**20 - size * 5 // 8))  # room for two and a half
        with pytest.raises(InputError, match="adapters/.* cannot be written: the disk is full. Make room"):
            adapt(pipe, adapters, p, stage, same_progress)
        assert 1 <= len(list(disk.rglob(WEIGHTS))) <= 2 and not list(disk.rglob("*.part"))
        kept = {path: path.stat().st_mtime_ns for path in disk.rglob(WEIGHTS)}
        ballast.unlink()
        adapt(pipe, adapters, p, stage, same_progress)
        assert kept.items() <= {path: path.stat().st_mtime_ns for path in disk.rglob(WEIGHTS)}.items()
        for a in adapters:
            files = [adapter_folder(s, a.name) / WEIGHTS for s in (elsewhere, stage)]
            assert files[0].read_bytes() == files[1].read_bytes()


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


def test_a_read_only_folder_is_named_before_any_work(tmp_path):
    with _small_disk(tmp_path / "disk") as disk:
        stage = _finished(disk / "adapt")
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(InputError, match="run/adapt cannot be written .*Read-only.*set output_root"):
            Stage("adapt", disk / "run" / "adapt", {}).begin()
        with pytest.raises(InputError, match="x.txt cannot be written: the disk is read-only"):  # noqa: SIM117
            with atomic_write(disk / "x.txt") as temporary:
                temporary.write_text("x")
        assert not stage.begin()  # finished: reading it needs no lock


def test_errors_about_other_files_are_left_alone(tmp_path):
    with pytest.raises(PermissionError), atomic_write(tmp_path / "inner" / "x"):
        raise PermissionError(13, "Permission denied", "/elsewhere/source.png")
    with pytest.raises(OSError, match="strange"), atomic_write(tmp_path / "x"):
        raise OSError("strange")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_adapters_that_do_not_fit_into_memory_are_trained_by_halves(mnist, pipe, make_params, monkeypatch, capsys):
    """Memory for the images of two adapters at once; the result is that of five at once, up to rounding."""
    shots, together = few_shot(mnist, 2, 0), dict(n_shot=2, adapt_epochs=2, adapters_together=5, lora_rank=4)
    adapters = plan_adapters(get_method("datadream_cls"), mnist, shots)[:8]
    folders = {}
    for variant in ("enough", "short"):
        p, counted = make_params("adapt", **together, variant=variant), []
        folders[variant] = run_stage(p, "adapt")
        count = lambda steps, total, counted=counted, **_: counted.extend([*steps, total]) or []  # noqa: E731
        adapt(pipe, adapters, p, folders[variant], count)
        assert counted[-1] == len(counted) - 1 == 4  # two epochs of two groups, of one batch each
        forward = pipe.unet.forward

        def full(noisy, *args, forward=forward, **kwargs):
            if len(noisy) > 2 * 2:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return forward(noisy, *args, **kwargs)

        monkeypatch.setattr(pipe.unet, "forward", full)
    assert capsys.readouterr().out == "5 adapters at once do not fit into memory: going on with 2.\n"
    for a in adapters:
        one, other = (load_file(adapter_folder(folders[variant], a.name) / WEIGHTS) for variant in folders)
        for key in one:
            torch.testing.assert_close(one[key], other[key], rtol=1e-3, atol=2e-5)
        assert read_losses(folders["enough"])[a.name] == pytest.approx(read_losses(folders["short"])[a.name], rel=1e-4)


def test_too_little_memory_names_what_to_lower(mnist, pipe, make_params, monkeypatch):
    changes = dict(n_shot=2, adapt_epochs=2, adapters_together=1, lora_rank=4)
    shots, p = few_shot(mnist, 2, 0), make_params("adapt", **changes)
    adapters, stage = plan_adapters(get_method("datadream_cls"), mnist, shots)[:4], run_stage(p, "adapt")
    forward, calls = pipe.unet.forward, []

    def full(*args, **kwargs):
        calls.append(1)
        if len(calls) == 6:  # in the third
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", full)
    words = r"lower adapt_batch_size \(8\) or set gradient_checkpointing to true"
    with pytest.raises(InputError, match=words):
        adapt(pipe, adapters, p, stage, same_progress)
    assert [adapter_folder(stage, a.name).exists() for a in adapters] == [True, True, False, False]
    adapt(pipe, adapters, p, stage, same_progress)
    other_p = make_params("adapt", **changes, variant="undisturbed")
    other = run_stage(other_p, "adapt")
    adapt(pipe, adapters, other_p, other, same_progress)
    for a in adapters:
        files = [adapter_folder(s, a.name) / WEIGHTS for s in (stage, other)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.parametrize("full_at, kind", [(0, "clip"), (1, "clip"), (0, "models/tiny-resnet")])
def test_a_classifier_that_does_not_fit_into_memory(full_at, kind, clip, mnist, make_params, monkeypatch, capsys):
    """Full in the very first step: it computes activations twice, to the same result. In a later one there is none."""
    few = replace(mnist, files={split: [files[:4] for files in mnist.files[split]] for split in ("train", "test")})
    changes = dict(method="real", setting="R", classifier=kind, n_shot=2, images_per_class=4, train_epochs=2)
    p, found = make_params("train", train_batch_size=20, **changes), []
    for short in (False, True):
        model, steps, blocks = make_classifier(clip[0], clip[1], few, p), [], []
        if kind == "clip":
            model.clip.text_model.encoder.layers[0].mlp.register_forward_pre_hook(
                lambda *_, blocks=blocks: blocks.append(1)
            )
        forward = type(model).forward

        def full(self, *args, steps=steps, forward=forward):
            steps.append(1)
            if len(steps) == full_at + 1:
                next(x for x in self.parameters() if x.requires_grad).data.add_(1.0)  # a step that was half done
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
            return forward(self, *args)

        with monkeypatch.context() as patched:
            patched.setattr(type(model), "forward", full if short else forward)
            run = lambda model=model: train_and_test(  # noqa: E731
                model, clip[2], few, training_sets("R", few_shot(few, 2, 0), None, p, 32), p, 32, same_progress
            )
            if short and (full_at or kind != "clip"):
                with pytest.raises(InputError, match=r"lower train_batch_size \(20\)"):
                    run()
                return
            table, history = run()
        found.append((table["probability"].tolist(), [row["loss"] for row in history], len(blocks)))
    assert capsys.readouterr().out.count("activations computed twice, to the same result") == 1
    (once, again), steps = found, len(found[0][1])
    assert once[:2] == again[:2] and steps == 4
    assert again[2] - once[2] == steps + 1  # the first block once more in every step, and once before it was full


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
    held = []

    def fill():
        tensor = torch.zeros(3)
        held.append(weakref.ref(tensor))
        raise error

    kind, p = InputError if fix else RuntimeError, make_params("train")
    with pytest.raises(kind) as raised, advise_on_memory(p, "eval_batch_size"):
        fill()
    assert (fix or "shapes do not match") in str(raised.value)
    assert not fix or held[0]() is None  # what filled the memory is free again


def test_an_interrupted_stage_goes_on_in_the_same_process_to_the_same_images(folder_dataset, pipe, make_params):
    """The adapter that was fused when the interrupt came is out again: nothing is drawn with it twice."""
    data = load_dataset(str(folder_dataset), "data")
    shots = few_shot(data, 2, 0)
    a = make_params("adapt", n_shot=2, adapt_epochs=1, lora_rank=4, adapters_together=1)
    adapted = run_stage(a, "adapt")
    adapters = plan_adapters(get_method("datadream_cls"), data, shots)

    def interrupted(after):
        def progress(iterable, total=None, label=""):
            for i, item in enumerate(iterable):
                if i == after:
                    raise KeyboardInterrupt
                yield item

        return progress

    with pytest.raises(KeyboardInterrupt) as held:
        adapt(pipe, adapters, a, adapted, interrupted(after=1))
    adapt(pipe, adapters, a, adapted, same_progress)
    recipe = Recipe(get_method("datadream_cls"), data, shots, 0)
    stages = []
    for variant, progress in {"interrupted": interrupted(after=1), "undisturbed": same_progress}.items():
        p = make_params("generate", n_shot=2, images_per_class=2, generate_batch_size=1, num_inference_steps=2)
        p = p.model_copy(update={"variant": variant})
        stages.append(run_stage(p, "generate"))
        with pytest.raises(KeyboardInterrupt) if variant == "interrupted" else nullcontext() as held:  # noqa: F841
            generate(pipe, recipe, p, stages[-1], adapted, None, progress)
        generate(pipe, recipe, p, stages[-1], adapted, None, same_progress)
    assert len(made_files(stages[0].folder)) == 5
    for name in made_files(stages[0].folder):
        assert (stages[0].folder / name).read_bytes() == (stages[1].folder / name).read_bytes()
