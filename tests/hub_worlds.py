"""Random-weight models of the published shapes at reduced width, in folders that look as their hub pages do; a hub.

Same classes, schedulers, file names and (older) tensor names as on the hub; only width, depth and resolution are small.
``FULL`` has the published architectures' own sizes, to be counted on torch's "meta" device.
``serve`` is a hub on this machine with the pages that it is given.
"""

import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from contextlib import contextmanager

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from safetensors.torch import load_file, save_file
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipProcessor,
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlamaTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from datadream_utils.params import ROOT

COMMIT, CONVERTED = "0123456789abcdef0123456789abcdef01234567", "89abcdef0123456789abcdef0123456789abcdef"
DATE = "2024-07-24T00:00:00.000Z"
RESOLUTION = 32  # of the reduced pipelines: latents of 4x4, as the VAE has its published three downsamplings
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}
NOISE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000)
SAMPLER = NOISE | dict(set_alpha_to_one=False, steps_offset=1)
SCHEDULERS = {
    "sd21-base": lambda: PNDMScheduler(**SAMPLER, skip_prk_steps=True, prediction_type="epsilon"),
    "sd21-v": lambda: DDIMScheduler(**SAMPLER, clip_sample=False, prediction_type="v_prediction"),
    "sd15": lambda: PNDMScheduler(**SAMPLER, skip_prk_steps=True),
}
SHAPES = tuple(SCHEDULERS)
WIDTHS = (320, 640, 1280, 1280)
UNETS = {  # what differs between the versions, at full size
    "sd21-base": dict(attention_head_dim=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True),
    "sd15": dict(attention_head_dim=8, cross_attention_dim=768),
}
UNETS["sd21-v"] = UNETS["sd21-base"]
LEGACY_IDS = dict(bos_token_id=0, eos_token_id=2, pad_token_id=1)  # as the published configs have them
TEXTS = {
    "sd21-base": dict(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16),
    "sd15": dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
}
CLIP_TEXT = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=12, num_attention_heads=8)
CLIP_VISION = dict(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12)
FULL = {
    "SD 2.1 U-Net": lambda: UNet2DConditionModel(**BLOCKS, **UNETS["sd21-base"], block_out_channels=WIDTHS),
    "SD 2.1 text encoder": lambda: CLIPTextModel(CLIPTextConfig(**TEXTS["sd21-base"], hidden_act="gelu")),
    "SD 1.5 U-Net": lambda: UNet2DConditionModel(**BLOCKS, **UNETS["sd15"], block_out_channels=WIDTHS),
    "SD 1.5 text encoder": lambda: CLIPTextModel(CLIPTextConfig(**TEXTS["sd15"])),
    "SD VAE": lambda: _vae((128, 256, 512, 512)),
    "CLIP ViT-B/16": lambda: CLIPModel(
        CLIPConfig(text_config=CLIP_TEXT, vision_config=CLIP_VISION | dict(patch_size=16, image_size=224))
    ),
}


def _vae(widths, layers=2):
    levels = len(widths)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=layers,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    )


def write_stable_diffusion(folder, shape):
    """A pipeline of ``shape`` (see ``SHAPES``) with random weights, as its hub page has it; returns ``folder``."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models" / "tiny-clip")
    second = shape.startswith("sd21")
    heads = dict(attention_head_dim=(2, 2, 4, 4), use_linear_projection=True) if second else dict(attention_head_dim=8)
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        hidden_act="gelu" if second else "quick_gelu",
        **LEGACY_IDS,
    )
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=_small_vision(), projection_dim=8))
    pipe = StableDiffusionPipeline(
        vae=_vae((32, 32, 32, 32), layers=1),
        text_encoder=CLIPTextModel(text),
        tokenizer=tokenizer,
        unet=UNet2DConditionModel(
            **BLOCKS,
            **heads,
            sample_size=RESOLUTION // 8,
            block_out_channels=(32, 32, 64, 64),
            layers_per_block=1,
            norm_num_groups=8,
            cross_attention_dim=32,
        ),
        scheduler=SCHEDULERS[shape](),
        safety_checker=None if second else checker,
        feature_extractor=CLIPImageProcessorPil(),
        requires_safety_checker=not second,
    )
    pipe.save_pretrained(folder)
    _write_tokenizer(folder / "tokenizer", tokenizer, "!" if second else "<|endoftext|>")
    _edit_json(folder / "model_index.json", feature_extractor=["transformers", "CLIPImageProcessor"])
    _edit_json(folder / "feature_extractor" / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    _rename_tensors(folder / "text_encoder" / "model.safetensors", lambda name: f"text_model.{name}", positions=77)
    _rename_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", _old_attention_name)
    return folder


def write_clip(folder):
    """A CLIP as openai/clip-vit-base-patch16: patches of 16 pixels, quick GELU; returns ``folder``."""
    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(ROOT / "models" / "tiny-clip")
    text = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, **LEGACY_IDS)
    model = CLIPModel(
        CLIPConfig(text_config=text | dict(vocab_size=len(tokenizer)), vision_config=_small_vision(), projection_dim=32)
    )
    model.save_pretrained(folder)
    size = RESOLUTION
    CLIPImageProcessorPil(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(
        folder
    )
    _edit_json(folder / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    _write_tokenizer(folder, tokenizer, "<|endoftext|>")
    return folder


def write_blip(folder):
    """A caption model as Salesforce/blip-image-captioning-base, without chat template; returns ``folder``."""
    torch.manual_seed(0)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*special, "photo", "of", "seven", "red", "cat", "on", "table", *letters, *(f"##{x}" for x in letters)]
    vocab = {word: i for i, word in enumerate(dict.fromkeys(words))}
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    ids = dict(bos_token_id=len(vocab), pad_token_id=0, eos_token_id=3, sep_token_id=3)  # bos: none of the tokenizer's
    text = small | ids | dict(vocab_size=len(vocab) + 2, encoder_hidden_size=32, max_position_embeddings=128)
    vision = small | dict(image_size=RESOLUTION, patch_size=16, initializer_range=0.02)
    _loud(BlipForConditionalGeneration(BlipConfig(text_config=text, vision_config=vision))).save_pretrained(folder)
    processor = BlipImageProcessorPil(size={"height": RESOLUTION, "width": RESOLUTION})
    BlipProcessor(processor, BertTokenizer(vocab=vocab)).save_pretrained(folder)
    _split_processor(folder, "BlipImageProcessor")
    return folder


def write_llava(folder):
    """A chat model as llava-hf/llava-1.5-7b-hf: CLIP's vision tower, a Llama, a chat template; returns ``folder``."""
    torch.manual_seed(0)
    letters = "▁ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz.,:\"'\n"
    vocab = {word: i for i, word in enumerate(["<unk>", "<s>", "</s>", *letters])}
    tokenizer = LlamaTokenizer(vocab=vocab, merges=[], pad_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    vision = CLIPVisionConfig(**_small_vision())
    text = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    image_token = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=image_token, image_seq_length=4)
    _loud(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    template = (
        "{% for message in messages %}{{ message['role'].upper() }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
    LlavaProcessor(
        _clip_processor(),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=template,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    _split_processor(folder, "CLIPImageProcessor")
    return folder


def _loud(model):
    """Weights twenty times larger: with those drawn at the start, what is seen hardly changes what is said."""
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(20 if weight.ndim > 1 else 1)
    return model


def _clip_processor():
    return CLIPImageProcessorPil(
        size={"shortest_edge": RESOLUTION}, crop_size={"height": RESOLUTION, "width": RESOLUTION}
    )


def _small_vision():
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)
    return small | dict(image_size=RESOLUTION, patch_size=16)


def _write_tokenizer(folder, tokenizer, pad):
    """CLIP's four tokenizer files as the hub pages have them, in place of one ``tokenizer.json``."""
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "tokenizer.json").unlink(missing_ok=True)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.get_vocab(), ensure_ascii=False))
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in bpe["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    special |= {"pad_token": pad}
    (folder / "special_tokens_map.json").write_text(json.dumps(special))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "do_lower_case": True, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def _edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def _split_processor(folder, image_processor_type):
    """The image processor in its own file and under its torchvision name, as hub pages older than transformers 5."""
    config = json.loads((folder / "processor_config.json").read_text())
    image = config.pop("image_processor") | {"image_processor_type": image_processor_type}
    (folder / "preprocessor_config.json").write_text(json.dumps(image))
    (folder / "processor_config.json").write_text(json.dumps(config))


def _old_attention_name(name):
    for new, old in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def _rename_tensors(path, rename, positions=0):
    """Give tensors the names they have on the hub, and the text encoder its stored position ids."""
    tensors = {rename(name): tensor for name, tensor in load_file(path).items()}
    if positions:
        tensors["text_model.embeddings.position_ids"] = torch.arange(positions)[None]
    save_file(tensors, path, metadata={"format": "pt"})


@contextmanager
def serve(folders, commits=()):
    """Serve ``{"tiny/sd": folder, "datasets/tiny/eurosat": folder, ...}`` as a hub does; gives its address.

    commits: further revisions that every page has.
    """
    handler = type("Served", (Hub,), {"folders": folders, "revisions": Hub.revisions | {c: c for c in commits}})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def _directly_in(files, folder):
    """Of a page's files those in ``folder`` ("" for the top) and its sub-folders, as the hub lists them."""
    start, folders = f"{folder}/" if folder else "", {}
    inside = [file for file in files if file["path"].startswith(start)]
    for file in inside:
        name, below, _ = file["path"][len(start) :].partition("/")
        if below:
            folders[name] = {"type": "directory", "path": start + name, "oid": file["oid"], "size": 0}
    return [*folders.values(), *(file for file in inside if "/" not in file["path"][len(start) :])]


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub with the pages of ``folders``, each with one commit; other pages are missing or gated.

    tiny/pickled has no safetensors; as on the hub, a bot has proposed them in a pull request, ``CONVERTED``.
    """

    folders = {}  # noqa: RUF012
    revisions = {"main": COMMIT, COMMIT: COMMIT, "refs/pr/1": CONVERTED, CONVERTED: CONVERTED}  # noqa: RUF012

    def do_HEAD(self):
        self._answer(body=False)

    def do_GET(self):
        self._answer(body=True)

    def do_POST(self):
        """Only paths-info: which of the asked files there are."""
        asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())["paths"]
        name = self.path.removeprefix("/api/").removeprefix("models/").partition("/paths-info/")[0]
        files = [file for file in self._page(name, self.folders[name], "tree", COMMIT) if file["path"] in asked]
        self._send(200, True, {"Content-Type": "application/json"}, json.dumps(files).encode())

    def _answer(self, body):
        path = urllib.parse.unquote(self.path.split("?")[0]).removeprefix("/").replace("refs/pr/1", "refs%pr%1")
        parts = [part.replace("%", "/") for part in path.split("/")]
        api = parts[0] == "api"
        if api:  # api/models/<name>/..., api/datasets/<name>/...; else <name>/resolve/..., datasets/<name>/resolve/...
            parts = parts[1:] if parts[1] == "datasets" else parts[2:]
        long = 3 if parts[:1] == ["datasets"] else 2
        name, *rest = ["/".join(parts[:long]), *parts[long:]]
        if name == "tiny/gated":
            return self._send(403, body, {"X-Error-Code": "GatedRepo"})
        if name not in self.folders:
            return self._send(404, body, {"X-Error-Code": "RepoNotFound"})
        commit = self.revisions.get(rest[1] if len(rest) > 1 else "main")
        if commit is None:
            return self._send(404, body, {"X-Error-Code": "RevisionNotFound"})
        folder = self.folders["tiny/clip" if commit == CONVERTED else name]
        if api:
            page = self._page(name, folder, rest[0] if rest else "", commit)
            if rest[:1] == ["tree"] and "recursive=false" in self.path:
                page = _directly_in(page, "/".join(rest[2:]))
            page = json.dumps(page).encode()
            return self._send(200, body, {"Content-Type": "application/json"}, page)
        file = folder / "/".join(rest[2:])
        if not file.is_file():
            return self._send(404, body, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = file.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if asked := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            first, last = map(int, asked.groups())
            whole, content = len(content), content[first : last + 1]
            headers["Content-Range"] = f"bytes {first}-{first + len(content) - 1}/{whole}"
            return self._send(206, body, headers, content)
        return self._send(200, body, headers, content)

    def _page(self, name, folder, what, commit):
        files = {str(f.relative_to(folder)): f.stat().st_size for f in sorted(folder.rglob("*")) if f.is_file()}
        if what == "tree":
            return [{"type": "file", "path": file, "size": size, "oid": commit} for file, size in files.items()]
        if what == "commits":
            history = [COMMIT] if commit == COMMIT else [commit, COMMIT]
            return [{"id": id_, "title": "", "message": "", "authors": [], "date": DATE} for id_ in history]
        if what == "discussions":
            title, author = "Adding `safetensors` variant of this model", {"name": "SFconvertbot"}
            pull = {"num": 1, "title": title, "status": "open", "isPullRequest": True, "author": author}
            pull |= {"createdAt": DATE, "repo": {"name": name, "type": "model"}}
            return {"count": 1, "start": 0, "discussions": [pull]}
        siblings = [{"rfilename": file} for file in files]
        return {"id": name, "modelId": name, "sha": commit, "siblings": siblings, "private": False}

    def _send(self, status, body, headers, content=b""):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *_):
        pass
