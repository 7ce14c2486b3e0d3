"""One adapter by several processes: their parts add up to the whole batch, and to the same adapter."""

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datadream_utils.diffusion.adapt import plan_adapters
from datadream_utils.diffusion.denoising import Batches
from datadream_utils.errors import InputError
from datadream_utils.params import ROOT
from workflow.scripts.launch import Team, read_command, run_stage


def _teams(size, reduce=None):
    return [
        Team(SimpleNamespace(process_index=rank, num_processes=size, is_main_process=rank == 0, reduce=reduce))
        for rank in range(size)
    ]


@pytest.mark.parametrize("n, size", [(8, 2), (7, 2), (7, 3), (5, 5), (8, 1)])
def test_shares_make_up_the_batch(n, size):
    losses = torch.rand(n)
    shares = [team.share(n) for team in _teams(size)]
    assert torch.equal(torch.cat([losses[part] for part, _ in shares]), losses)
    torch.testing.assert_close(sum(weight * losses[part].mean() for part, weight in shares), losses.mean())


def test_fewer_images_than_processes_are_everybodys():
    assert [team.share(2) for team in _teams(4)] == [(slice(None), 0.25)] * 4


@pytest.mark.parametrize("crops, wide", [(0, False), (0, True), (2, True)])
def test_every_process_draws_the_images_noise_and_times_of_one(pipe, make_run, tmp_path, crops, wide):
    changes = dict(n_shot=1, adapt_batch_size=4, adapt_epochs=2, crops_per_shot=crops)
    run = make_run("adapt", method="datadream_dset", **changes)
    (adapter,) = plan_adapters(run)
    if wide:
        paths = tuple(tmp_path / f"{i}.png" for i in range(len(adapter.paths)))
        for path, digit in zip(paths, adapter.paths, strict=True):
            Image.open(digit).resize((40, 28)).save(path)
        adapter = replace(adapter, paths=paths)
    alone = list(Batches(pipe, adapter, run.params))
    shares = [list(Batches(pipe, adapter, run.params, team.share)) for team in _teams(2)]
    assert [len(batch[0]) for batch in alone] == [4, 4, 2] * 2
    for batch, *parts in zip(alone, *shares, strict=True):
        for whole, *halves in zip(batch, *parts, strict=True):
            if wide and not crops:  # the VAE's pictures of this batch, rounded otherwise in halves
                torch.testing.assert_close(torch.cat(halves), whole, rtol=1e-3, atol=1e-3)
            else:
                assert torch.equal(torch.cat(halves), whole)


def test_gradients_and_losses_are_added_up():
    parameters = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    parameters[0].grad, parameters[1].grad = torch.ones(2, 3), torch.arange(4.0)
    (team,) = _teams(1, reduce=lambda tensor, how: {"sum": 2 * tensor + 1}[how])
    assert team.add_up(torch.tensor(5.0), parameters).item() == 11
    assert torch.equal(parameters[0].grad, torch.full((2, 3), 3.0))
    assert torch.equal(parameters[1].grad, torch.tensor([1.0, 3.0, 5.0, 7.0]))


def test_the_command_takes_files_and_values_as_papermill_does(tmp_path):
    (tmp_path / "mine.yaml").write_text("n_shot: 4\nadapt_lr: {default: 1.0e-4, loft: 2.0}\ntrain_epochs: 3\n")
    values = "-p seed 7 -p adapt_warmup_steps 3 -p dataset eurosat -p gradient_checkpointing true -p max_grad_norm 1e-1"
    command = ["adapt", "-f", str(tmp_path / "mine.yaml"), *values.split(), "-r", "variant", "1e3", "--shard", "2/4"]
    p, shard = read_command(command)
    assert (p.n_shot, p.seed, p.adapt_lr, p.dataset, p.max_grad_norm) == (4, 7, 1e-4, "eurosat", 0.1)
    assert p.gradient_checkpointing is True and p.mixed_precision == "no" and p.variant == "1e3" and shard == "2/4"
    assert read_command(["generate", "-p", "n_shot", "3"])[0].stage == "generate"
    with pytest.raises(InputError, match="parameter 'seeds' is not known. Did you mean 'seed'"):
        read_command(["adapt", "-p", "seeds", "1"])
    with pytest.raises(InputError, match="'5/4' is no part of the work"):
        run_stage(*read_command(["generate", "--shard", "5/4"]))


def test_the_command_makes_parts_and_then_the_whole(tmp_path):
    def run(stage, method, folder, shard):
        few = f"-p method {method} -p n_shot 1 -p adapt_epochs 1 -p adapters_together 4 -p images_per_class 1"
        values = f"-p num_inference_steps 1 -r data_root {tmp_path} -r output_root {tmp_path / folder} --shard".split()
        run_stage(*read_command([stage, *few.split(), *values, shard]))
        return next((tmp_path / folder).glob(f"*/{stage}"))

    stage = run("adapt", "datadream_cls", "adapters", "2/2")
    assert len(list(stage.glob("adapters/*"))) == 2 and (stage / "shards" / "2-of-2.json").exists()
    contents = []
    for folder, shards in {"whole": [""], "parts": ["2/2", "1/2", ""]}.items():
        for shard in shards:
            stage = run("generate", "fakeit", folder, shard)
            assert (stage / "manifest.json").exists() == (shard == "")
        contents.append({str(path.relative_to(stage)): path.read_bytes() for path in stage.glob("images/*/*.png")})
    assert contents[0] == contents[1] and len(contents[0]) == 10


def test_several_processes_share_adapt_only(monkeypatch):
    two = SimpleNamespace(num_processes=2, process_index=0, is_main_process=True)
    monkeypatch.setattr("workflow.scripts.launch.Accelerator", lambda cpu: two)
    with pytest.raises(InputError, match="divide generate with --shard"):
        run_stage(*read_command(["generate"]))


# pytest -m slow -s tests/test_parallel.py
# On CPUs torchrun starts the processes (accelerate launch does so for GPUs only); Accelerator finds them all the same.
@pytest.mark.slow
@pytest.mark.parametrize("method", ["datadream_dset", "datadream_cls"])
def test_two_processes_train_the_adapters_of_one(tmp_path, method):
    """Batches of 3 and, at the end of an epoch, of 1: neither divides by two. datadream_cls: adapters in a stack."""
    values = dict(method=method, n_shot=1, adapt_epochs=3, adapt_batch_size=3, adapt_warmup_steps=2, device="cpu")
    if method == "datadream_cls":
        values |= dict(n_shot=4, adapters_together=10)
    results = []
    for name, start in {
        "one": [sys.executable],
        "two": [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"],
    }.items():
        folders = dict(output_root=str(tmp_path / name), data_root=str(tmp_path / "data"))
        flags = [word for key, value in (values | folders).items() for word in ("-p", key, str(value))]
        subprocess.run([*start, "-m", "workflow.scripts.launch", "adapt", *flags], cwd=ROOT, check=True)
        (folder,) = (tmp_path / name).glob("*/adapt")
        weights = {path.parent.name: load_file(path) for path in folder.glob("adapters/*/*.safetensors")}
        losses = {path.stem: path.read_text() for path in folder.glob("losses/*.csv")}
        results.append((weights, losses, (folder / "manifest.json").read_text()))
    (one, losses, _), (two, losses_of_two, manifest) = results
    assert '"processes": 2' in manifest and one.keys() == two.keys() and len(one) in (1, 10)
    pairs = [(one[name][key], two[name][key]) for name in one for key in one[name]]
    difference = max((a - b).abs().max().item() for a, b in pairs)
    print(f"\n{method}: {len(pairs)} matrices, largest difference {difference:.1e}, largest value", end=" ")
    print(f"{max(a.abs().max().item() for a, _ in pairs):.2f}")
    assert difference < 1e-4 and all(b.abs().max() > 1e-4 for _, b in pairs)
    rows = [[text.splitlines() for text in (losses[name], losses_of_two[name])] for name in losses]
    for a, b in ((a, b) for pair in rows for a, b in zip(*[lines[1:] for lines in pair], strict=True)):
        assert float(a.split(",")[1]) == pytest.approx(float(b.split(",")[1]), abs=2e-5)
