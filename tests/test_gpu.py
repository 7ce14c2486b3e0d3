"""What only a GPU can show; skipped without one: python -m pytest -m gpu tests/test_gpu.py"""

import numpy as np
import pytest
import torch
from PIL import Image

from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.classifier import train
from datadream_utils.classifier.build import make_classifier
from datadream_utils.classifier.pictures import make_sets
from datadream_utils.classifier.train import Training, train_classifier
from datadream_utils.data.shots import few_shot
from datadream_utils.diffusion.generate import generate, make_recipe
from datadream_utils.diffusion.lora import attach_lora, fused_lora, save_lora
from datadream_utils.runs.checkpoint import Checkpoint

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_fused_weights_are_those_of_diffusers(tmp_path, dtype):
    pipe = load_stable_diffusion("models/tiny-stable-diffusion", device="cuda", dtype=dtype)
    for parameter in attach_lora(pipe, rank=5, alpha=7.0, seed=0):
        parameter.data += 0.1 * torch.randn_like(parameter)
    save_lora(pipe, tmp_path / "adapter")
    pipe.unload_lora_weights()
    weights = lambda: {n: w.clone() for m in (pipe.unet, pipe.text_encoder) for n, w in m.state_dict().items()}  # noqa: E731
    with fused_lora(pipe, tmp_path / "adapter"):
        fused = weights()
    pipe.load_lora_weights(tmp_path / "adapter")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    assert all(torch.equal(weight, fused[name]) for name, weight in weights().items())


def test_compiled_images_are_the_same_up_to_rounding(make_run):
    pipe = load_stable_diffusion("models/tiny-stable-diffusion", device="cuda")
    pictures = []
    for choice in ("no", "yes"):
        run = make_run("generate", method="fakeit", images_per_class=3, generate_batch_size=2, num_inference_steps=4,
                       compile=choice, variant=choice, shard="1/5")  # fmt: skip
        run.device = "cuda"
        generate(pipe, make_recipe(run), run)
        files = sorted(run.folder.rglob("*.png"))
        pictures.append(np.stack([np.asarray(Image.open(path), dtype=int) for path in files]))
    assert len(pictures[0]) == 6 and np.abs(pictures[0] - pictures[1]).mean() < 1


def _train(run):
    model = make_classifier(run)
    sets = make_sets(run.params, run.shots, few_shot(run.data, 4, 1), 32)
    return [row["loss"] for row in train_classifier(model, sets, run.params)]


@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_pictures_prepared_beside_the_step_are_the_same(make_run, monkeypatch, precision):
    """Dropout and all: it has the GPU's generator."""
    changes = dict(method="fakeit", setting="R+S", n_shot=2, images_per_class=4, train_epochs=4, train_batch_size=16)
    losses = []
    for ahead in (set(), {"cuda"}):
        monkeypatch.setattr(train, "AHEAD", ahead)
        run = make_run("train", mixed_precision=precision, mix_share=0.5, **changes)
        run.device = "cuda"
        losses.append(_train(run))
    assert len(losses[0]) == 12
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)


def test_a_training_goes_on_from_its_checkpoint_with_the_same_dropout(make_run, tmp_path):
    losses, checkpoint = [], Checkpoint(tmp_path / "state.safetensors", "this", 5)
    changes = dict(method="fakeit", setting="R+S", n_shot=2, images_per_class=4, train_epochs=4, train_batch_size=16)
    for steps in (7, 12):
        run = make_run("train", mixed_precision="fp16", mix_share=0.5, **changes)
        run.device = "cuda"
        model = make_classifier(run)
        sets = make_sets(run.params, run.shots, few_shot(run.data, 4, 1), 32)
        rows = Training(model, sets, run.params).run(checkpoint)
        losses.append([row["loss"] for _, row in zip(range(steps), rows, strict=False)])
    run = make_run("train", mixed_precision="fp16", mix_share=0.5, **changes)
    run.device = "cuda"
    np.testing.assert_allclose(losses[1], _train(run), rtol=1e-2)
    assert losses[1][:5] == losses[0][:5] and len(losses[1]) == 12


def test_compiled_training_is_the_same_up_to_rounding(make_run):
    losses = []
    for choice in ("no", "yes"):
        run = make_run("train", method="real", n_shot=2, images_per_class=4, train_epochs=3, train_batch_size=15,
                       compile=choice)  # fmt: skip
        run.device = "cuda"
        losses.append(_train(run))
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-2)
