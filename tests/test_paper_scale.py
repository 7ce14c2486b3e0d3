"""Paper scale without network or GPU: published sizes, and every stage on hub-shaped folders at reduced width."""

import json

import hub_worlds
import numpy as np
import pytest
import torch
from conftest import execute_notebook
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from datadream_utils.backbones.load import load_stable_diffusion, model_identity
from datadream_utils.diffusion.adapt import Adapter, SingleTraining
from datadream_utils.diffusion.denoising import denoising_loss, noise_scheduler, tokenize
from datadream_utils.diffusion.lora import WEIGHTS, adapted_parts, attach_lora, attached_lora, fused_lora, save_lora
from datadream_utils.params import NOTEBOOKS, ROOT, STAGES, read_params_file

PUBLISHED = {  # parameters in millions
    "SD 2.1 U-Net": 865.9,
    "SD 2.1 text encoder": 340.4,
    "SD 1.5 U-Net": 859.5,
    "SD 1.5 text encoder": 123.1,
    "SD VAE": 83.7,
    "CLIP ViT-B/16": 149.6,
}


@pytest.mark.parametrize("part", PUBLISHED)
def test_full_size_has_the_published_number_of_parameters(part):
    with torch.device("meta"):
        model = hub_worlds.FULL[part]()
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6, 1) == PUBLISHED[part]


def test_full_size_lora_sits_on_the_attention_of_both_parts():
    with torch.device("meta"):
        unet, text = hub_worlds.FULL["SD 2.1 U-Net"](), hub_worlds.FULL["SD 2.1 text encoder"]()
    pipe = type("Pipe", (), {"unet": unet, "text_encoder": text})
    layers = {
        type(model).__name__: [name for name, module in model.named_modules() if name.endswith(targets)]
        for model, targets in adapted_parts(pipe)
    }
    # 16 transformer blocks of self- and cross-attention with four projections; 23 layers of four projections
    assert {name: len(found) for name, found in layers.items()} == {"UNet2DConditionModel": 128, "CLIPTextModel": 92}


@pytest.fixture(scope="module", params=hub_worlds.SHAPES)
def shape(request):
    return request.param


@pytest.fixture(scope="module")
def folder(shape, tmp_path_factory):
    return hub_worlds.write_stable_diffusion(tmp_path_factory.mktemp(shape) / "sd", shape)


@pytest.fixture
def pipe(folder):
    return load_stable_diffusion(str(folder))


def _batch(pipe, n=2):
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, n, 4, 4, 4, generator=generator)
    return latents, noise, torch.tensor([20, 900])[:n], tokenize(pipe, ["a photo of a seven"] * n)


@torch.no_grad()
def _predictions(pipe):
    """What U-Net and text encoder make of one fixed batch."""
    latents, _, timesteps, tokens = _batch(pipe)
    context = pipe.text_encoder(tokens).last_hidden_state
    return torch.cat([pipe.unet(latents, timesteps, context).sample.flatten(), context.flatten()])


def test_the_noise_schedule_is_the_published_one(pipe, shape):
    scheduler = noise_scheduler(pipe)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), (1 - betas).cumprod(0), rtol=1e-4, atol=1e-6)
    assert scheduler.config.prediction_type == ("v_prediction" if shape == "sd21-v" else "epsilon")


@torch.no_grad()
def test_the_loss_follows_the_models_prediction(pipe, shape):
    latents, noise, timesteps, tokens = _batch(pipe)
    context = pipe.text_encoder(tokens).last_hidden_state
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    abar = (1 - betas).cumprod(0)[timesteps].reshape(-1, 1, 1, 1)
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * noise
    target = abar.sqrt() * noise - (1 - abar).sqrt() * latents if shape == "sd21-v" else noise
    expected = (pipe.unet(noisy, timesteps, context).sample - target).pow(2).flatten(1).mean(1)
    actual = denoising_loss(pipe.unet, noise_scheduler(pipe), latents, noise, timesteps, context)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_adapter_goes_to_plain_diffusers_and_into_the_weights_and_off_again(pipe, folder, tmp_path):
    base = _predictions(pipe)
    generator = torch.Generator().manual_seed(5)
    for parameter in attach_lora(pipe, rank=4, alpha=8.0, seed=0):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    attached = _predictions(pipe)
    save_lora(pipe, tmp_path / "adapter")
    pipe.unload_lora_weights()
    assert torch.equal(_predictions(pipe), base) and (attached - base).abs().mean() > 0.01

    plain = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    plain.load_lora_weights(tmp_path / "adapter")
    torch.testing.assert_close(_predictions(plain), attached, rtol=1e-5, atol=1e-5)

    layer = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    weight, lora = pipe.unet.get_parameter(f"{layer}.weight").clone(), load_file(tmp_path / "adapter" / WEIGHTS)
    a, b = (lora[f"unet.{layer}.{side}.weight"] for side in ("lora.down", "lora.up"))
    with fused_lora(pipe, tmp_path / "adapter"):
        torch.testing.assert_close(_predictions(pipe), attached, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(pipe.unet.get_parameter(f"{layer}.weight"), weight + 8.0 / 4 * b @ a)
    assert torch.equal(_predictions(pipe), base)


def test_half_precision_base_keeps_its_adapter_in_float32(folder, shape, make_params, tmp_path):
    pipe = load_stable_diffusion(str(folder), dtype=torch.bfloat16)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 48, 40, 3), dtype=np.uint8)
    for i, picture in enumerate(pixels):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    adapter = Adapter("seven", tuple(tmp_path.glob("*.png")), ("a photo of a seven",) * 2)
    changes = dict(n_shot=2, adapt_epochs=3, adapt_batch_size=2, resolution=hub_worlds.RESOLUTION)
    p = make_params("adapt", mixed_precision="bf16", gradient_checkpointing=True, **changes)
    before = {name: weight.clone() for name, weight in pipe.unet.named_parameters()}
    with attached_lora(pipe, p.lora_rank, p.lora_alpha, 0) as parameters:
        losses = [loss for _, loss, _ in SingleTraining(pipe, adapter, parameters, p).run()]
        assert len(losses) == 3 and np.isfinite(losses).all()
        for model, _ in adapted_parts(pipe):
            for name, parameter in model.named_parameters():
                assert parameter.dtype == (torch.float32 if ".lora_" in name else torch.bfloat16), name
        save_lora(pipe, tmp_path / "adapter")
    assert all(torch.equal(weight, before[name]) for name, weight in pipe.unet.named_parameters())
    lora = load_file(tmp_path / "adapter" / WEIGHTS)
    assert {tensor.dtype for tensor in lora.values()} == {torch.float32}
    trained = [tensor for name, tensor in lora.items() if name.startswith("unet") and "to_v.lora.up" in name]
    assert trained and all(tensor.abs().sum() > 0 for tensor in trained)


def test_gradient_checkpointing_changes_no_gradient(pipe):
    parameters = attach_lora(pipe, rank=4, alpha=4.0, seed=0)
    generator = torch.Generator().manual_seed(5)
    for parameter in parameters:
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    latents, noise, timesteps, tokens = _batch(pipe)
    pipe.unet.train(), pipe.text_encoder.train()
    gradients, calls = [], []
    pipe.unet.conv_in.register_forward_pre_hook(lambda *_: calls.append("conv_in"))
    block = pipe.unet.up_blocks[1].resnets[0]
    block.register_forward_pre_hook(lambda *_: calls.append("block"))
    for checkpointing in (False, True):
        pipe.unet.enable_gradient_checkpointing() if checkpointing else pipe.unet.disable_gradient_checkpointing()
        context = pipe.text_encoder(tokens).last_hidden_state
        loss = denoising_loss(pipe.unet, noise_scheduler(pipe), latents, noise, timesteps, context).mean()
        gradients.append(torch.autograd.grad(loss, parameters))
    assert calls.count("block") > calls.count("conv_in") == 2  # blocks were computed again on the way back
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=1e-4, atol=1e-7)


RUNS = {
    "sd21-base": {"method": "datadream_cls", "setting": "R+S"},
    "sd21-v": {"method": "datadream_dset", "setting": "S", "mixed_precision": "bf16", "gradient_checkpointing": True},
    "sd15": {"method": "disef", "setting": "R+S", "start_noise": 0.7, "filter_tries": 2},
}
EVERY_SHAPE = [pytest.param(shape, marks=[pytest.mark.slow] if i else []) for i, shape in enumerate(RUNS)]


@pytest.mark.parametrize("shape", EVERY_SHAPE, indirect=True)
def test_all_four_notebooks_run_on_every_shape(folder, shape, folder_dataset, tmp_path, warm_kernel):
    clip = str(hub_worlds.write_clip(tmp_path / "clip"))
    captioner = str(hub_worlds.write_llava(tmp_path / "llava"))
    parameters = read_params_file(ROOT / "params" / "smoke.yaml") | RUNS[shape]
    parameters |= {"sd_model": str(folder), "clip_model": clip, "filter_model": clip, "captioner": captioner}
    parameters |= {"dataset": str(folder_dataset), "resolution": hub_worlds.RESOLUTION, "example_class": "apple pie"}
    parameters |= {"output_root": str(tmp_path / "outputs"), "figures_dir": str(tmp_path / "figures")}
    for stage, name in NOTEBOOKS.items():
        known = {name: value for name, value in parameters.items() if name in STAGES[stage].model_fields}
        executed = execute_notebook(name, tmp_path / f"{name}.ipynb", known, warm_kernel)
        if stage == "generate":  # loads every kind of model, the captioner too
            outputs = [output for cell in executed.cells for output in cell.get("outputs", ())]
            assert [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"] == []
    (run,) = {path.parent.parent for path in (tmp_path / "outputs").glob("*/*/manifest.json")}
    manifests = {path.parent.name: json.loads(path.read_text()) for path in run.glob("*/manifest.json")}
    trained = f"train-{RUNS[shape]['setting']}"
    assert manifests.keys() == {"adapt", "generate", trained}
    assert manifests["generate"]["model"] == model_identity(str(folder))
    assert manifests[trained]["model"] == model_identity(clip)
    images = list(run.glob("generate/images/*/*.png"))
    assert len(images) == 4 and {Image.open(image).size for image in images} == {(hub_worlds.RESOLUTION,) * 2}
    assert json.loads((run / trained / "metrics.json").read_text())["n_test"] == 4
    adapters = {path.parent.name for path in run.glob(f"adapt/adapters/*/{WEIGHTS}")}
    assert len(adapters) == {"sd21-base": 2, "sd21-v": 1, "sd15": 0}[shape]
    if shape == "sd15":
        captions = json.loads((run / "generate" / "captions.json").read_text())
        assert captions["note"] == captioner and len(captions["captions"]) == 4
    assert (tmp_path / "figures" / "teaser.png").is_file()
