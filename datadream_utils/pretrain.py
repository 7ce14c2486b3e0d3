"""Pre-train the tiny world's base models: a CLIP, and a Stable Diffusion around its text tower.

    python -m datadream_utils.pretrain --output models --device cpu        (or: make pretrain)

Everything is stock ``transformers`` and ``diffusers``; the models are saved as ordinary folders in fp16
safetensors. Each part is skipped when its folder is complete, so an interrupted command goes on where it was.
The parts are independent of the number of pictures seen by each other, except that the U-Net needs the other two.
"""

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import CLIPConfig, CLIPModel, CLIPTextModel, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from datadream_utils import typeset

MAX_TOKENS = 24
STEPS = {"clip": 5000, "vae": 4000, "unet": 8000}
BATCH = {"clip": 128, "vae": 32, "unet": 64}
LEARNING_RATE = {"clip": 1e-3, "vae": 1e-3, "unet": 6e-4}
WARP = {"clip": "varied", "vae": "wild", "unet": "print"}


def make_tokenizer():
    """CLIP's byte-level BPE in which every caption word is one token and any other text is spelt in letters."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(vocab_size=10_000, end_of_word_suffix="</w>", show_progress=False)
    bpe.train_from_iterator(typeset.vocabulary(), trainer)
    merges = [tuple(pair) for pair in json.loads(bpe.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(c + "</w>" for c in alphabet), *("".join(pair) for pair in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_TOKENS)


def make_clip(tokenizer):
    """A CLIP of 0.9 M parameters: ViT with 4 layers on 8x8 patches of 32x32 pictures, text tower of 2 layers."""
    special = dict(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    text = dict(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        hidden_act="quick_gelu",
        **special,
    )
    vision = dict(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        hidden_act="quick_gelu",
    )
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))


def make_vae():
    """An AutoencoderKL of two downsamplings: 32x32 pictures to 8x8 latents of 4 channels."""
    return AutoencoderKL(
        block_out_channels=(24, 48, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )


def make_unet():
    """A UNet2DConditionModel of 2.4 M parameters on 8x8 latents, cross-attention to the text at both levels."""
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(48, 96),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def make_scheduler():
    """SD's noise schedule with v-prediction and zero terminal SNR (Lin et al. 2024), sampled by DPM-Solver++.

    With SD 2.1-base's epsilon-prediction the colour of a picture leaks through the last timestep, which at this size
    decides the whole background; SD 2.1 at 768 pixels predicts v as well.
    """
    return DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,
    )


def tokenize(tokenizer, texts):
    """Token ids (n, 24), padded as Stable Diffusion pads."""
    return tokenizer(
        texts, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
    ).input_ids


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
    if "clip" in args.parts and not (clip / "preprocessor_config.json").exists():
        train_clip(clip, steps["clip"], args.device, log)
    if "vae" in args.parts and not (vae / "config.json").exists():
        train_vae(vae, steps["vae"], args.device, log)
    if "unet" in args.parts and not (sd / "model_index.json").exists():
        train_unet(sd, clip, vae, steps["unet"], args.device, log)


if __name__ == "__main__":
    main()
