"""Pre-train the tiny world's base models: a CLIP, and a Stable Diffusion around its text tower.

    python -m models.pretraining.pretrain --output models --device cpu        (or: make pretrain)

Everything is stock ``transformers`` and ``diffusers``; the models are saved as ordinary folders in fp16
safetensors. A part whose folder is complete is skipped, so an interrupted command goes on with the part it was at.
"""

import argparse
import json
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from datadream_utils.files import sha256
from models.pretraining import typeset
from models.pretraining.architectures import make_clip, make_scheduler, make_tokenizer, make_unet, make_vae, tokenize

CARD = """# The tiny world's base models

`tiny-clip` (`CLIPModel`, `CLIPTokenizer`, `CLIPImageProcessor`) and `tiny-stable-diffusion` (`StableDiffusionPipeline`:
`AutoencoderKL`, `UNet2DConditionModel`, the CLIP's text tower, `DPMSolverMultistepScheduler`), in fp16 safetensors.
Stock `transformers` and `diffusers` load them; nothing of this project is needed.

**Data.** Pictures of typeset characters, 32x32, drawn as they are needed by `models/pretraining/typeset.py`: 62
characters in 20 fonts that ship with matplotlib, 10 colours, with captions such as "a photo of a red seven on a blue
background".
The U-Net sees plain print only; the CLIP also sheared, bent, thin and thick print; the VAE also wild shapes. No
handwriting, and nothing of any data set, is among them.

**Training.** `python -m models.pretraining.pretrain --output models` (`make pretrain`), AdamW with cosine
schedule, U-Net weights averaged (EMA 0.999), v-prediction with zero terminal SNR. Losses every 100 steps:
`pretraining_log.jsonl`.
Losses below are means over the first and last 100 steps; seconds are of the machine that made them (2 CPU cores).

{table}

**Use and limits.** For teaching and testing few-shot adaptation at toy size. They know 62 characters and 10 colours and
nothing else. Licence: Apache-2.0.

**Checksums** (sha256)

```
{sums}
```
"""
STEPS = {"clip": 5000, "vae": 4000, "unet": 6500}
BATCH = {"clip": 128, "vae": 32, "unet": 64}
LEARNING_RATE = {"clip": 1e-3, "vae": 1e-3, "unet": 6e-4}
WARP = {"clip": "varied", "vae": "wild", "unet": "print"}


def contrastive_loss(image_features, text_features, scale, is_true):
    """CLIP's symmetric cross-entropy; ``is_true`` (n, n) lets several captions be true of one picture."""
    logits = scale * F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
    targets = is_true.float()
    by_image = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
    return (by_image + by_text) / 2


class Trainer:
    """AdamW, cosine schedule and a log line every 100 steps, shared by the three parts."""

    def __init__(self, part, parameters, steps, log):
        self.part, self.steps, self.log = part, steps, log
        self.parameters = [p for p in parameters if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE[part], weight_decay=0.01)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, min(300, steps // 10), steps)
        self.generator = torch.Generator().manual_seed({"clip": 1, "vae": 2, "unet": 3}[part])
        self.started, self.losses = time.time(), []

    def pictures(self):
        return typeset.render(BATCH[self.part], self.generator, WARP[self.part])

    def step(self, number, loss):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        if (number + 1) % 100 == 0:
            row = dict(part=self.part, step=number + 1, loss=round(sum(self.losses) / len(self.losses), 5))
            row["seconds"] = round(time.time() - self.started)
            self.losses = []
            print(row, flush=True)
            with open(self.log, "a") as file:
                file.write(json.dumps(row) + "\n")


def train_clip(folder, steps, device, log):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    clip = make_clip(tokenizer).to(device)
    trainer = Trainer("clip", clip.parameters(), steps, log)
    for step in range(steps):
        pictures, facts = trainer.pictures()
        texts, says = typeset.captions(facts, trainer.generator)
        vision = clip.vision_model(pixel_values=(pictures.to(device) * 2 - 1)).pooler_output
        text = clip.text_model(input_ids=tokenize(tokenizer, texts).to(device)).pooler_output
        image_features, text_features = clip.visual_projection(vision), clip.text_projection(text)
        scale = clip.logit_scale.exp().clamp(max=100)
        is_true = typeset.caption_is_true(facts, says).to(device)
        trainer.step(step, contrastive_loss(image_features, text_features, scale, is_true))
    clip.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)


def train_vae(folder, steps, device, log):
    torch.manual_seed(0)
    vae = make_vae().to(device)
    trainer = Trainer("vae", vae.parameters(), steps, log)
    for step in range(steps):
        pictures = trainer.pictures()[0].to(device) * 2 - 1
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=trainer.generator).to(device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        reconstruction = F.mse_loss(decoded, pictures) + 0.2 * F.l1_loss(decoded, pictures)
        trainer.step(step, reconstruction + 1e-5 * posterior.kl().mean())
    with torch.inference_mode():
        pictures = torch.cat([typeset.render(256, trainer.generator, "print")[0] for _ in range(4)]) * 2 - 1
        spread = vae.encode(pictures.to(device)).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    vae.half().save_pretrained(folder)


def train_unet(folder, clip_folder, vae_folder, steps, device, log):
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).to(device).requires_grad_(False)
    vae.register_to_config(_name_or_path="")  # no path of this machine in what is shipped
    text_encoder = CLIPTextModel.from_pretrained(clip_folder, dtype=torch.float32).to(device).requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    unet = make_unet().to(device)
    ema = EMAModel(unet.parameters(), decay=0.999)
    sampler = make_scheduler()
    noising = DDPMScheduler.from_config(sampler.config)
    trainer = Trainer("unet", unet.parameters(), steps, log)
    for step in range(steps):
        pictures, facts = trainer.pictures()
        texts, _ = typeset.captions(facts, trainer.generator)
        dropped = torch.rand(len(texts), generator=trainer.generator) < 0.1  # teaches the unconditional score too
        texts = ["" if drop else text for drop, text in zip(dropped, texts, strict=True)]
        with torch.no_grad():
            latents = vae.encode(pictures.to(device) * 2 - 1).latent_dist.mean * vae.config.scaling_factor
            context = text_encoder(tokenize(tokenizer, texts).to(device)).last_hidden_state
        noise = torch.randn(latents.shape, generator=trainer.generator).to(device)
        timesteps = torch.randint(0, noising.config.num_train_timesteps, (len(texts),), generator=trainer.generator)
        timesteps = timesteps.to(device)
        predicted = unet(noising.add_noise(latents, noise, timesteps), timesteps, context).sample
        trainer.step(step, F.mse_loss(predicted, noising.get_velocity(latents, noise, timesteps)))
        ema.step(unet.parameters())
    ema.copy_to(unet.parameters())
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=unet.half(),
        scheduler=sampler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)


def write_card(output, log):
    """``README.md`` of the models' folder: what they are, how they were made, how far training came, checksums."""
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    table = [
        "| part | optimizer steps | batch | pictures | first loss | last loss | seconds |",
        "|---|--:|--:|---|--:|--:|--:|",
    ]
    for part in STEPS:
        lines = [row for row in rows if row["part"] == part]
        first, last, size = lines[0], lines[-1], BATCH[part]
        cells = [part, last["step"], size, WARP[part], first["loss"], last["loss"], last["seconds"]]
        table.append("| " + " | ".join(map(str, cells)) + " |")
    sums = [f"{sha256(path)}  {path.relative_to(output)}" for path in sorted(output.rglob("*.safetensors"))]
    (output / "README.md").write_text(CARD.format(table="\n".join(table), sums="\n".join(sums)))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--scale-steps", type=float, default=1.0, help="train longer or shorter by this factor")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.output.mkdir(parents=True, exist_ok=True)
    log = args.output / "pretraining_log.jsonl"
    clip, vae, sd = args.output / "tiny-clip", args.output / "vae", args.output / "tiny-stable-diffusion"
    steps = {part: max(1, round(n * args.scale_steps)) for part, n in STEPS.items()}
    if (sd / "model_index.json").exists():
        sys.exit(f"{sd} is complete: name another --output, or delete {args.output} to train again.")
    if "clip" in args.parts and not (clip / "preprocessor_config.json").exists():
        train_clip(clip, steps["clip"], args.device, log)
    if "vae" in args.parts and not (vae / "config.json").exists():
        train_vae(vae, steps["vae"], args.device, log)
    if "unet" in args.parts:
        train_unet(sd, clip, vae, steps["unet"], args.device, log)
        shutil.rmtree(vae)  # it is part of the Stable Diffusion now
        write_card(args.output, log)


if __name__ == "__main__":
    main()
