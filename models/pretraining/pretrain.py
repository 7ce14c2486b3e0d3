"""Pre-train the tiny world's base models: a CLIP, and a Stable Diffusion around its text tower.

    python -m models.pretraining.pretrain --output models --device cpu        (or: make pretrain)

Everything is stock ``transformers`` and ``diffusers``; the models are saved as ordinary folders in fp16
safetensors. A part whose folder is complete is skipped, and an unfinished part goes on from its last checkpoint, so an
interrupted command can be given again and makes the same bytes.
"""

import argparse
import json
import math
import shutil
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from datadream_utils.files import atomic_write, sha256
from models.pretraining import typeset
from models.pretraining.architectures import make_clip, make_scheduler, make_tokenizer, make_unet, make_vae, tokenize

CARD = """# The tiny world's base models

`tiny-clip` (`CLIPModel`, `CLIPTokenizer`, `CLIPImageProcessor`) and `tiny-stable-diffusion` (`StableDiffusionPipeline`:
`AutoencoderKL`, `UNet2DConditionModel`, the CLIP's text tower, `DPMSolverMultistepScheduler`), in fp16 safetensors.
Stock `transformers` and `diffusers` load them; nothing of this project is needed. `tiny-resnet` is a configuration
without weights: a ResNet of the tiny world is trained from scratch.

**Data.** Pictures of typeset characters, 32x32, drawn by `models/pretraining/typeset.py` during training (of the
U-Net's 64 pictures a step 16 are new, the others are of the last 16,384): 62 characters in 21 fonts that ship with
matplotlib, 10 colours, with captions such as "a photo of a red seven on a blue background". The U-Net learns to draw
print, a little bent, thin or thick; the CLIP sees print that is bent more; the VAE also wild shapes. CLIP and U-Net
begin with plain print, which is bent more and more until the middle of training. No handwriting, and nothing of any
data set, is among the pictures.

**Training.** `python -m models.pretraining.pretrain --output models` (`make pretrain`), AdamW with a cosine schedule
(CLIP's is of 6,500 steps and ends after 4,500), U-Net weights averaged (EMA 0.999), v-prediction with zero terminal
SNR. Losses every 100 steps: `pretraining_log.jsonl`. Losses below are means over the first and last 100 steps; seconds
are of the machine that made them (2 CPU cores).

{table}

**Evaluation.** {evaluation}

**Use and limits.** For teaching and testing few-shot adaptation at toy size. They know 62 characters and 10 colours and
nothing else. Licence: Apache-2.0.

**Checksums** (sha256)

```
{sums}
```
"""
STEPS = {"clip": 4500, "vae": 2500, "unet": 6000}
COSINE = {"clip": 6500, "vae": 2500, "unet": 6000}  # steps of the cosine that the learning rate follows
BATCH = {"clip": 128, "vae": 32, "unet": 64}
LEARNING_RATE = {"clip": 1e-3, "vae": 1e-3, "unet": 1.5e-3}
WEIGHT_DECAY = {"clip": 0.05, "vae": 0.01, "unet": 0.01}
KIND = {"clip": "bent", "vae": "wild", "unet": "print"}  # of pictures, see typeset.KINDS
EASY = {"clip": 3250, "vae": 0, "unet": 3000}  # steps during which the pictures are bent more and more
FOLDERS = {"clip": "tiny-clip", "vae": "tiny-stable-diffusion/vae", "unet": "tiny-stable-diffusion/unet"}
FRESH, KEPT = 16, 16384  # U-Net: pictures drawn for a step, and how many past ones the rest of its batch comes from
SAVE_EVERY = 500  # steps
EMA = 0.999  # of the U-Net's weights
LOG = "pretraining_log.jsonl"


def contrastive_loss(image_features, text_features, scale, is_true):
    """CLIP's symmetric cross-entropy; ``is_true`` (n, n) lets several captions be true of one picture."""
    logits = scale * F.normalize(image_features, dim=-1) @ F.normalize(text_features, dim=-1).T
    targets = is_true.float()
    by_image = F.cross_entropy(logits, targets / targets.sum(1, keepdim=True))
    by_text = F.cross_entropy(logits.T, targets.T / targets.T.sum(1, keepdim=True))
    return (by_image + by_text) / 2


class Trainer:
    """AdamW, cosine schedule, checkpoints and the losses of every 100 steps, shared by the three parts.

    modules: the model, and after it other modules whose tensors training changes.
    """

    def __init__(self, part, steps, output, *modules):
        self.part, self.total, self.output, self.modules = part, steps, output, torch.nn.ModuleList(modules)
        self.scale = steps / STEPS[part]
        self.parameters = list(modules[0].parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=LEARNING_RATE[part], weight_decay=WEIGHT_DECAY[part])
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.generator = torch.Generator().manual_seed({"clip": 1, "vae": 2, "unet": 3}[part])
        self.rows, self.losses, self.number, self.seconds = [], [], 0, 0.0
        self.checkpoint = checkpoint_of(part, output)
        if self.checkpoint.exists():
            self._load()

    def steps(self):
        """The numbers of the steps that are left; saves a checkpoint now and then, and at the end."""
        started = time.time() - self.seconds
        while self.number < self.total:
            yield self.number
            self.number += 1
            self.seconds = time.time() - started
            if self.number % 100 == 0:
                row = dict(part=self.part, step=self.number, loss=round(sum(self.losses) / len(self.losses), 5))
                self.rows.append(row | dict(seconds=round(self.seconds)))
                self.losses = []
                print(self.rows[-1], flush=True)
            if self.number % SAVE_EVERY == 0 or self.number == self.total:
                self._save()

    def finish(self):
        """Write the part's losses into the log; its folder is complete now, and the checkpoint not needed."""
        others = [row for row in read_log(self.output) if row["part"] != self.part]
        with atomic_write(self.output / LOG) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in others + self.rows), encoding="utf-8")
        self.checkpoint.unlink()

    def _rate(self, step):
        """Warm-up, then a cosine; where training ends before the cosine does, linearly to zero in the last third."""
        warm, length = min(300, self.total // 10), round(COSINE[self.part] * self.scale)
        if step < warm:
            return step / warm
        factor = 0.5 * (1 + math.cos(math.pi * ((step - warm) / max(1, length - warm))))
        return factor if length <= self.total else factor * min(1.0, (self.total - step) / (self.total / 3))

    def pictures(self, n):
        """Pictures of the part's kind, bent as far as training has come."""
        easy = EASY[self.part] * self.scale
        bend = min(1.0, self.number / easy) if easy else 1.0
        return typeset.render(n, self.generator, KIND[self.part], bend)

    def step(self, loss):
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())

    def _save(self):
        tensors = {f"modules.{name}": tensor for name, tensor in self.modules.state_dict().items()}
        for i, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in moments.items()}
        tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
        tensors["generator"] = self.generator.get_state()
        facts = dict(rows=self.rows, losses=self.losses, number=self.number, seconds=self.seconds)
        states = dict(facts=json.dumps(facts), schedule=json.dumps(self.schedule.state_dict()))
        with atomic_write(self.checkpoint) as temporary:
            save_file(tensors, temporary, states)

    def _load(self):
        with safe_open(self.checkpoint, "pt") as file:
            states = {name: json.loads(text) for name, text in file.metadata().items()}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        of = lambda start: {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}  # noqa: E731
        self.modules.load_state_dict(of("modules."))
        moments = {i: of(f"optimizer.{i}.") for i in range(len(self.parameters))}
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": moments})
        self.schedule.load_state_dict(states["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.generator.set_state(tensors["generator"])
        vars(self).update(states["facts"])
        print(f"Going on at step {self.number} of {self.checkpoint}", flush=True)


def checkpoint_of(part, output):
    """Where the state of an unfinished part is kept."""
    return output / f"{part}.checkpoint.safetensors"


def read_log(output):
    """The log's rows: part, step, mean loss of the last 100 steps, seconds so far."""
    log = output / LOG
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def train_clip(folder, steps, device):
    torch.manual_seed(0)
    tokenizer = make_tokenizer()
    clip = make_clip(tokenizer).to(device)
    trainer = Trainer("clip", steps, folder.parent, clip)
    for _ in trainer.steps():
        pictures, facts = trainer.pictures(BATCH["clip"])
        texts, says = typeset.captions(facts, trainer.generator)
        vision = clip.vision_model(pixel_values=(pictures.to(device) * 2 - 1)).pooler_output
        text = clip.text_model(input_ids=_until_the_last_end(tokenize(tokenizer, texts)).to(device)).pooler_output
        image_features, text_features = clip.visual_projection(vision), clip.text_projection(text)
        scale = clip.logit_scale.exp().clamp(max=100)
        is_true = typeset.caption_is_true(facts, says).to(device)
        trainer.step(contrastive_loss(image_features, text_features, scale, is_true))
    clip.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ).save_pretrained(folder)
    trainer.finish()


def _until_the_last_end(ids):
    """Token ids (n, 24) without the padding that every text has: CLIP's text tower never looks ahead."""
    return ids[:, : int((ids != ids[0, -1]).sum(1).max()) + 1]


def train_vae(folder, steps, device):
    torch.manual_seed(0)
    vae = make_vae().to(device)
    trainer = Trainer("vae", steps, folder.parent, vae)
    for _ in trainer.steps():
        pictures = trainer.pictures(BATCH["vae"])[0].to(device) * 2 - 1
        posterior = vae.encode(pictures).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=trainer.generator).to(device)
        decoded = vae.decode(posterior.mean + posterior.std * noise).sample
        reconstruction = F.mse_loss(decoded, pictures) + 0.2 * F.l1_loss(decoded, pictures)
        trainer.step(reconstruction + 1e-5 * posterior.kl().mean())
    with torch.inference_mode():
        pictures = torch.cat([typeset.render(256, trainer.generator, "print")[0] for _ in range(4)]) * 2 - 1
        spread = vae.encode(pictures.to(device)).latent_dist.mean.std().item()
    vae.register_to_config(scaling_factor=round(1 / spread, 5))
    vae.half().save_pretrained(folder)
    trainer.finish()


class PastPictures(torch.nn.Module):
    """The latents and facts of the last ``KEPT`` pictures: encoding a picture costs more than using it again."""

    def __init__(self, latent_shape):
        super().__init__()
        self.register_buffer("latents", torch.zeros(KEPT, *latent_shape))
        self.register_buffer("facts", torch.zeros(KEPT, 3, dtype=torch.int64))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def add_and_draw(self, latents, facts, n, generator):
        """Keep some fresh pictures and return them with randomly drawn past ones, ``n`` in all."""
        places = (self.count + torch.arange(len(facts))) % KEPT
        self.latents[places], self.facts[places] = latents, facts
        self.count += len(facts)
        past = torch.randint(0, min(int(self.count), KEPT), (n - len(facts),), generator=generator)
        chosen = torch.cat([places, past])
        return self.latents[chosen], self.facts[chosen]


def train_unet(folder, clip_folder, vae_folder, steps, device):
    torch.manual_seed(0)
    vae = AutoencoderKL.from_pretrained(vae_folder, dtype=torch.float32).to(device).requires_grad_(False)
    vae.register_to_config(_name_or_path="")  # no path of this machine in what is shipped
    text_encoder = CLIPTextModel.from_pretrained(clip_folder, dtype=torch.float32).to(device).requires_grad_(False)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    unet = make_unet().to(device)
    average = AveragedModel(unet, multi_avg_fn=get_ema_multi_avg_fn(EMA)).requires_grad_(False)
    past = PastPictures((unet.config.in_channels, unet.config.sample_size, unet.config.sample_size))
    sampler = make_scheduler()
    noising = DDPMScheduler.from_config(sampler.config)
    trainer = Trainer("unet", steps, folder.parent, unet, average, past)
    for _ in trainer.steps():
        pictures, facts = trainer.pictures(FRESH)
        with torch.no_grad():
            encoded = vae.encode(pictures.to(device) * 2 - 1).latent_dist.mean * vae.config.scaling_factor
        latents, facts = past.add_and_draw(encoded.cpu(), facts, BATCH["unet"], trainer.generator)
        texts, _ = typeset.captions(facts, trainer.generator)
        dropped = torch.rand(len(texts), generator=trainer.generator) < 0.1  # teaches the unconditional score too
        texts = ["" if drop else text for drop, text in zip(dropped, texts, strict=True)]
        with torch.no_grad():
            context = text_encoder(tokenize(tokenizer, texts).to(device)).last_hidden_state
        noise = torch.randn(latents.shape, generator=trainer.generator).to(device)
        timesteps = torch.randint(0, noising.config.num_train_timesteps, (len(texts),), generator=trainer.generator)
        latents, timesteps = latents.to(device), timesteps.to(device)
        predicted = unet(noising.add_noise(latents, noise, timesteps), timesteps, context).sample
        trainer.step(F.mse_loss(predicted, noising.get_velocity(latents, noise, timesteps)))
        average.update_parameters(unet)
    StableDiffusionPipeline(
        vae=vae.half(),
        text_encoder=text_encoder.half(),
        tokenizer=tokenizer,
        unet=average.module.half(),
        scheduler=sampler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    trainer.finish()


def write_card(output, evaluation="Not yet: `python -m models.pretraining.evaluate` does it."):
    """``README.md`` of the models' folder: what they are, how they were made, how far training came, checksums.

    evaluation: the section of that name (see evaluate.py).
    """
    rows = read_log(output)
    table = [
        "| part | parameters | optimizer steps | batch | pictures | first loss | last loss | seconds |",
        "|---|--:|--:|--:|---|--:|--:|--:|",
    ]
    weights = {part: next((output / folder).glob("*.safetensors")) for part, folder in FOLDERS.items()}
    for part, file in weights.items():
        lines = [row for row in rows if row["part"] == part]
        parameters = f"{sum(tensor.numel() for tensor in load_file(file).values()) / 1e6:.2f} M"
        first, last = (lines[0], lines[-1]) if lines else ({}, {})  # made elsewhere: its log is not here
        of_log = [values.get(name, "–") for values, name in ((first, "loss"), (last, "loss"), (last, "seconds"))]
        cells = [part, parameters, last.get("step", "–"), BATCH[part], KIND[part], *of_log]
        table.append("| " + " | ".join(map(str, cells)) + " |")
    sums = [f"{sha256(path)}  {path.relative_to(output)}" for path in sorted(output.rglob("*.safetensors"))]
    card = CARD.format(table="\n".join(table), sums="\n".join(sums), evaluation=evaluation)
    (output / "README.md").write_text(card, encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("models"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--parts", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--scale-steps", type=float, default=1.0, help="train longer or shorter by this factor")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU; other numbers may make other bytes")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    args.output.mkdir(parents=True, exist_ok=True)
    clip, vae, sd = args.output / "tiny-clip", args.output / "vae", args.output / "tiny-stable-diffusion"
    steps = {part: max(1, round(n * args.scale_steps)) for part, n in STEPS.items()}
    last_files = {"clip": clip / "preprocessor_config.json", "vae": vae / "config.json"}
    last_files["unet"] = sd / "model_index.json"
    started = {part for part in STEPS if checkpoint_of(part, args.output).exists()}
    if last_files["unet"].exists() and "unet" not in started and not vae.exists():
        sys.exit(f"{sd} is complete: name another --output to train again.")
    to_do = [part for part in args.parts if part in started or not last_files[part].exists()]
    if "clip" in to_do:
        train_clip(clip, steps["clip"], args.device)
    if "vae" in to_do:
        train_vae(vae, steps["vae"], args.device)
    if "unet" in to_do:
        train_unet(sd, clip, vae, steps["unet"], args.device)
    if "unet" in args.parts:
        shutil.rmtree(vae)  # it is part of the Stable Diffusion now
        write_card(args.output)


if __name__ == "__main__":
    main()
