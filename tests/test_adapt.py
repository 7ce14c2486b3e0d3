"""Adaptation: the loss, LoRA's start, and adapters that plain diffusers reads."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from datadream_utils.backbones.load import load_stable_diffusion
from datadream_utils.data.dataset import flatten
from datadream_utils.data.shots import few_shot
from datadream_utils.diffusion.adapt import Adapter, SingleTraining, adapt, plan_adapters
from datadream_utils.diffusion.denoising import Batches, Shots, denoising_loss, noise_scheduler, tokenize
from datadream_utils.diffusion.generate import sample
from datadream_utils.diffusion.lora import (
    WEIGHTS,
    adapted_layers,
    adapted_parts,
    attach_lora,
    attached_lora,
    fused_lora,
    save_lora,
)
from datadream_utils.diffusion.probe import count_lora
from datadream_utils.diffusion.stacked import StackedLinear, stacked_lora
from datadream_utils.errors import InputError
from datadream_utils.params import ROOT


def _batch(pipe, n=3):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, n, 4, 8, 8, generator=generator)
    with torch.no_grad():
        context = pipe.text_encoder(tokenize(pipe, ["a photo of a seven"] * n)).last_hidden_state
    return latents, noise, torch.tensor([1, 500, 998])[:n], context


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@torch.no_grad()
def test_loss_equals_one_written_from_the_noise_schedule(pipe, prediction_type):
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config, prediction_type=prediction_type)
    latents, noise, timesteps, context = _batch(pipe)
    abar = scheduler.alphas_cumprod[timesteps].reshape(-1, 1, 1, 1)
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    target = {"epsilon": noise, "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * latents}[prediction_type]
    predicted = pipe.unet(noisy, timesteps, context, return_dict=False)[0]
    expected = torch.stack([F.mse_loss(*of_image) for of_image in zip(predicted, target, strict=True)])
    actual = denoising_loss(pipe.unet, scheduler, latents, noise, timesteps, context)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_lora_at_init_changes_nothing(pipe):
    latents, _, timesteps, context = _batch(pipe)
    before = pipe.unet(latents, timesteps, context).sample
    tokens = tokenize(pipe, ["a photo of a seven"])
    text = pipe.text_encoder(tokens).last_hidden_state
    count = count_lora(pipe, 16)["LoRA parameters"].sum()
    parameters = attach_lora(pipe, rank=16, alpha=16.0, seed=1)
    try:
        assert torch.equal(pipe.unet(latents, timesteps, context).sample, before)
        assert torch.equal(pipe.text_encoder(tokens).last_hidden_state, text)
        assert all(parameter.dtype == torch.float32 for parameter in parameters)
        assert sum(parameter.numel() for parameter in parameters) == count
    finally:
        pipe.unload_lora_weights()
    assert torch.equal(pipe.unet(latents, timesteps, context).sample, before)


def test_lora_sits_on_the_papers_layers(pipe):
    attach_lora(pipe, rank=2, alpha=2.0, seed=0)
    try:
        for model, targets in adapted_parts(pipe):
            adapted = {name.split(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
            assert adapted and all(name.endswith(targets) for name in adapted)
            assert all(any(name.endswith(target) for name in adapted) for target in targets)
    finally:
        pipe.unload_lora_weights()


def test_adapting_lowers_the_loss_of_the_shots_and_the_base_returns(pipe, make_run):
    run = make_run("adapt", n_shot=2, adapt_epochs=30, adapt_batch_size=2)
    p = run.params
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    adapter = plan_adapters(run)[7]
    generator = torch.Generator().manual_seed(1)
    timesteps = torch.arange(50, 1000, 60)
    latents = Shots(pipe, adapter.paths, 32).latents([0, 1], generator).repeat(8, 1, 1, 1)
    noise = torch.randn(latents.shape, generator=generator)

    @torch.no_grad()
    def fixed_loss():
        context = pipe.text_encoder(tokenize(pipe, adapter.prompts[:1] * 16)).last_hidden_state
        return denoising_loss(pipe.unet, noise_scheduler(pipe), latents, noise, timesteps, context).mean().item()

    base = fixed_loss()
    with attached_lora(pipe, p.lora_rank, p.lora_alpha, 0) as parameters:
        rows = SingleTraining(pipe, adapter, parameters, p).run()
        adapted = fixed_loss()
    assert [step for step, _, _ in rows] == list(range(30))
    assert adapted < 0.95 * base and fixed_loss() == base
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def _perturbed_adapter(pipe, folder, text_encoder=True, alpha=32.0):
    """An adapter far from its start, as the attached and the saved one."""
    parameters = attach_lora(pipe, rank=4, alpha=alpha, seed=0, text_encoder=text_encoder)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in parameters:
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_lora(pipe, folder, text_encoder)
    return sample(pipe, ["a photo of a seven"] * 2, [1, 2], 2.0, 4, 32)


@pytest.mark.parametrize("text_encoder", [True, False])
def test_plain_diffusers_draws_what_the_trained_adapter_draws(pipe, tmp_path, text_encoder):
    base = np.stack([np.asarray(x) for x in sample(pipe, ["a photo of a seven"] * 2, [1, 2], 2.0, 4, 32)])
    attached = _perturbed_adapter(pipe, tmp_path / "adapter", text_encoder)
    pipe.unload_lora_weights()
    plain = StableDiffusionPipeline.from_pretrained(ROOT / "models" / "tiny-stable-diffusion", dtype=torch.float32)
    plain.load_lora_weights(tmp_path / "adapter")
    plain.set_progress_bar_config(disable=True)
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    loaded = plain(["a photo of a seven"] * 2, generator=generators, guidance_scale=2.0, num_inference_steps=4).images
    attached, loaded = (np.stack([np.asarray(image) for image in images]) for images in (attached, loaded))
    assert np.array_equal(attached, loaded)
    assert np.abs(attached.astype(int) - base).mean() > 5  # the adapter does something


@torch.no_grad()
def test_fused_predicts_what_attached_does_and_gives_the_base_back(pipe, tmp_path):
    latents, _, timesteps, context = _batch(pipe)
    tokens = tokenize(pipe, ["a photo of a seven"])
    predict = lambda: (pipe.unet(latents, timesteps, context).sample, pipe.text_encoder(tokens).last_hidden_state)  # noqa: E731
    base = predict()
    _perturbed_adapter(pipe, tmp_path / "adapter")
    attached = predict()
    pipe.unload_lora_weights()
    before = {name: w.clone() for m in (pipe.unet, pipe.text_encoder) for name, w in m.state_dict().items()}
    with fused_lora(pipe, tmp_path / "adapter"):
        for fused, expected, plain in zip(predict(), attached, base, strict=True):
            torch.testing.assert_close(fused, expected, rtol=1e-3, atol=1e-3)
            assert (fused - plain).abs().mean() > 0.05
    after = {name: w for m in (pipe.unet, pipe.text_encoder) for name, w in m.state_dict().items()}
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def _weights(pipe):
    return {name: w.clone() for m in (pipe.unet, pipe.text_encoder) for name, w in m.state_dict().items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("text_encoder", [True, False])
def test_fused_weights_are_those_of_diffusers_bit_for_bit(tmp_path, dtype, text_encoder):
    pipe = load_stable_diffusion("models/tiny-stable-diffusion", dtype=dtype)
    parts = (pipe.unet, pipe.text_encoder)
    parameters = attach_lora(pipe, rank=5, alpha=7.0, seed=0, text_encoder=text_encoder)
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    save_lora(pipe, tmp_path / "adapter", text_encoder)
    pipe.unload_lora_weights()
    base, modules = _weights(pipe), [id(module) for part in parts for module in part.modules()]
    with fused_lora(pipe, tmp_path / "adapter"):
        fused = _weights(pipe)
        assert [id(module) for part in parts for module in part.modules()] == modules
    assert [id(module) for part in parts for module in part.modules()] == modules
    assert all(torch.equal(weight, base[name]) for name, weight in _weights(pipe).items())
    pipe.load_lora_weights(tmp_path / "adapter")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    theirs = _weights(pipe)
    assert theirs.keys() == fused.keys() and all(torch.equal(theirs[name], fused[name]) for name in theirs)
    assert sum(not torch.equal(fused[name], base[name]) for name in base) == len(adapted_layers(pipe, text_encoder))


def test_an_adapter_of_another_model_is_refused(pipe, tmp_path):
    _perturbed_adapter(pipe, tmp_path / "adapter")
    pipe.unload_lora_weights()
    with safe_open(tmp_path / "adapter" / WEIGHTS, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        metadata = file.metadata()
    before = _weights(pipe)
    key = next(key for key in tensors if ".to_k." in key and ".up." in key)
    for changed, message in (
        (tensors | {key: torch.zeros(3, 4)}, "to_k of the U-Net, 3 x "),
        ({name.replace("mid_block", "end_block"): value for name, value in tensors.items()}, "which is not there"),
        ({}, "changes no layer"),
    ):
        (tmp_path / "other").mkdir(exist_ok=True)
        save_file(changed, tmp_path / "other" / WEIGHTS, metadata)
        with pytest.raises(InputError, match=message), fused_lora(pipe, tmp_path / "other"):
            pass
    assert all(torch.equal(weight, before[name]) for name, weight in _weights(pipe).items())


@pytest.mark.parametrize("method, names", [("datadream_cls", 10), ("datadream_dset", 1), ("fakeit", 0)])
def test_one_adapter_per_class_or_data_set(mnist, make_run, method, names):
    adapters = plan_adapters(make_run("adapt", method=method, n_shot=3))
    assert len(adapters) == names
    assert sum(len(adapter.paths) for adapter in adapters) == (30 if names else 0)
    for adapter in adapters:
        for path, prompt in zip(adapter.paths, adapter.prompts, strict=True):
            assert prompt == f"a photo of a {mnist.class_names[int(path.parent.name)]}"


@pytest.mark.parametrize("method", ["datadream_cls", "loft"])
def test_adapters_trained_together_are_those_trained_one_by_one(pipe, make_run, tmp_path, method):
    weights, losses = [], []
    for together in (1, 4):
        run = make_run("adapt", method=method, n_shot=3, adapt_epochs=8, adapt_batch_size=2, adapt_lr=1e-3,
                       adapters_together=together, output_root=str(tmp_path / str(together)))  # fmt: skip
        adapters = plan_adapters(run)[:6]
        losses.append(adapt(pipe, adapters, run))
        weights.append([load_file(run.folder / "adapters" / adapter.name / WEIGHTS) for adapter in adapters])
    start = {key: value.shape for key, value in weights[0][0].items()}
    for alone, together in zip(*weights, strict=True):
        assert {key: value.shape for key, value in together.items()} == start
        for key, value in alone.items():
            torch.testing.assert_close(together[key], value, rtol=1e-3, atol=2e-5)
            assert ".down." in key or value.abs().max() > 1e-3  # B has left zero
    assert losses[0].keys() == losses[1].keys() and len(losses[0]) == 6
    for name, alone in losses[0].items():
        np.testing.assert_allclose(losses[1][name], alone, rtol=1e-3)
    assert len({tuple(values) for values in losses[1].values()}) == 6  # every adapter has its own shots and noise


def test_gradients_are_clipped_for_each_adapter_on_its_own(pipe):
    with stacked_lora(pipe, 2, 2.0, [1, 2, 3]) as stack:
        for parameter in stack.parameters():
            parameter.grad = torch.ones_like(parameter) * torch.tensor([0.0, 1e-6, 5.0]).reshape(3, 1, 1)
        stack.clip_gradients(1.0)
        norms = [sum(p.grad[k].pow(2).sum() for p in stack.parameters()).sqrt().item() for k in range(3)]
    size = sum(parameter[0].numel() for parameter in stack.parameters()) ** 0.5
    assert norms == pytest.approx([0.0, 1e-6 * size, 1.0], rel=1e-3)


@pytest.mark.parametrize("dtype, apart", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("scale", [0.3, torch.tensor([0.5, 1.0, 0.0]).reshape(3, 1, 1)])
def test_a_stacked_layer_is_each_adapters_own(dtype, apart, scale):
    """In mixed precision too: W x in half precision, A and B in float32, and so their gradients."""
    torch.manual_seed(0)
    base, x = torch.nn.Linear(6, 5).requires_grad_(False), torch.randn(3 * 2, 4, 6)
    layer = StackedLinear(base, torch.randn(3, 2, 6), torch.randn(3, 5, 2), scale)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        out = layer(x)
    out.float().square().sum().backward()
    assert out.dtype == dtype and out.shape == (6, 4, 5)
    for k in range(3):
        down, up = (part.detach()[k].clone().requires_grad_() for part in (layer.down, layer.up))
        own = scale if isinstance(scale, float) else scale[k]
        expected = base(x[k::3]) + own * x[k::3] @ down.T @ up.T
        expected.square().sum().backward()
        for actual, wanted in ((out[k::3], expected), (layer.down.grad[k], down.grad), (layer.up.grad[k], up.grad)):
            assert (actual.float() - wanted).norm() <= apart * wanted.norm() + 1e-6


def test_stacked_adapters_leave_the_base_as_it_was(pipe):
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    with pytest.raises(RuntimeError, match="stop"), stacked_lora(pipe, 2, 2.0, [1, 2]):
        raise RuntimeError("stop")
    after = pipe.unet.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_loft_has_an_adapter_per_shot(mnist, make_run):
    adapters = plan_adapters(make_run("adapt", method="loft", n_shot=3))
    assert len(adapters) == len({adapter.name for adapter in adapters}) == 30
    assert [len(adapter.paths) for adapter in adapters] == [1] * 30
    assert [adapter.paths[0] for adapter in adapters] == flatten(few_shot(mnist, 3, 0))[0]


@pytest.mark.parametrize("together", [1, 2])
def test_same_parameters_same_bytes_and_resuming_changes_nothing(pipe, make_run, tmp_path, together):
    contents = []
    for name in ("once", "resumed"):
        changes = dict(n_shot=2, adapt_epochs=2, adapters_together=together)
        run = make_run("adapt", **changes, output_root=str(tmp_path / name))
        adapters = plan_adapters(run)[:3]
        adapt(pipe, adapters, run)
        files = [run.folder / "adapters" / adapter.name / WEIGHTS for adapter in adapters]
        if name == "resumed":  # lost: one adapter of a group
            files[1].unlink()
            files[1].parent.rmdir()
            adapt(pipe, adapters, run)
        files += sorted((run.folder / "losses").iterdir())
        contents.append([file.read_bytes() for file in files])
    assert contents[0] == contents[1]
    assert len(set(contents[0])) == len(contents[0])


def test_pictures_that_are_not_square_are_cropped_anew(pipe, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 64, 3), dtype=np.uint8)).save(tmp_path / "wide.png")
    Image.new("RGB", (50, 50), "red").save(tmp_path / "square.png")
    wide, square = Shots(pipe, [tmp_path / "wide.png"], 32), Shots(pipe, [tmp_path / "square.png"], 32)
    draw = lambda shots, seed: shots.latents([0], torch.Generator().manual_seed(seed))  # noqa: E731
    assert draw(wide, 0).shape == (1, 4, 8, 8) and torch.equal(draw(wide, 0), draw(wide, 0))
    assert wide.moments is None and square.moments is not None
    assert (draw(wide, 0) - draw(wide, 1)).abs().mean() > 2 * (draw(square, 0) - draw(square, 1)).abs().mean()


def test_crops_of_a_shot_are_encoded_once(pipe, tmp_path):
    paths = [tmp_path / "wide.png", tmp_path / "tall.png"]
    rng = np.random.default_rng(0)
    for path, size in zip(paths, [(32, 64), (64, 32)], strict=True):
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    cut = lambda seed: Shots(pipe, paths, 32, 3, torch.Generator().manual_seed(seed))  # noqa: E731
    shots, anew = cut(0), Shots(pipe, paths, 32)
    assert shots.moments.shape == (2, 3, 8, 8, 8) and torch.equal(shots.moments, cut(0).moments)
    assert not torch.equal(shots.moments, cut(1).moments)
    for i, picture in enumerate(anew.pictures):  # each is what the VAE makes of a crop of that shot
        crops = [picture[:, n : n + 32] if i else picture[:, :, n : n + 32] for n in range(33)]
        apart = (shots.moments[i][:, None] - torch.cat(list(anew._encode(crops)))).abs().flatten(2).amax(-1)
        assert apart.min(1).values.max() < 1e-4 and len(set(apart.argmin(1).tolist())) > 1
    draws = lambda part: [shots.latents([0, 1, 0, 1], generator, part) for _ in range(9)]  # noqa: E731
    generator = torch.Generator().manual_seed(1)
    whole, generator = draws(slice(None)), torch.Generator().manual_seed(1)
    assert torch.equal(torch.stack(whole)[:, 1:3], torch.stack(draws(slice(1, 3))))  # a part is the same as of all
    means = shots.moments[0].chunk(2, dim=1)[0] * pipe.vae.config.scaling_factor
    apart = (torch.stack(whole)[:, 0, None] - means).square().flatten(2).sum(-1)
    assert len({means[k].sum().item() for k in apart.argmin(1)}) == len({mean.sum().item() for mean in means})


def test_fixed_crops_are_the_same_after_a_kill(pipe, make_params, tmp_path):
    folder = tmp_path / "wide"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 256, (32, 48, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    p = make_params("adapt", crops_per_shot=2, adapt_epochs=3, adapt_batch_size=1)
    adapter = Adapter("wide", tuple(sorted(folder.iterdir())), ("a photo of noise",) * 2)
    whole, again = list(Batches(pipe, adapter, p)), Batches(pipe, adapter, p)
    other = Batches(pipe, adapter, make_params("adapt", crops_per_shot=2, seed=1))
    assert again.shots.moments.shape[:2] == (2, 2) and not torch.equal(again.shots.moments, other.shots.moments)
    first = [batch for _, batch in zip(range(2), again, strict=False)]
    resumed = Batches(pipe, adapter, p)
    resumed.step, resumed.order = again.step, again.order
    resumed.generator.set_state(again.generator.get_state())
    for ours, theirs in zip([*first, *resumed], whole, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_noise_schedule_is_the_base_models(pipe):
    config = noise_scheduler(pipe).config
    assert config.prediction_type == "v_prediction" and config.rescale_betas_zero_snr
    assert config.num_train_timesteps == 1000
