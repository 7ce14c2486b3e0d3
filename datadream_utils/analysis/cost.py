"""What a result costs: seconds, memory, images through the networks, floating-point operations.

Seconds are those of the machine that made the runs. Operations are counted by torch on the models of the runs, once per
kind of step, and multiplied by how often the schedule takes that step.
"""

import math

import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from datadream_utils.analysis.results import RANKS
from datadream_utils.backbones.clip import ClipClassifier, attach_clip_lora
from datadream_utils.backbones.load import load_clip, load_stable_diffusion
from datadream_utils.diffusion.denoising import denoising_loss, noise_scheduler, tokenize
from datadream_utils.diffusion.generate import read_metadata
from datadream_utils.diffusion.lora import attached_lora
from datadream_utils.errors import InputError
from datadream_utils.prompts import class_prompt

STAGE_NAMES = ("adapt", "generate", "train")
COSTS = {
    "seconds": "seconds, all stages (on a CPU: its processors')",
    "flops": "floating-point operations, all stages",
    "peak_memory_mb": "peak memory (MB; on a GPU: its own)",
}


def count_flops(step):
    """Floating-point operations of ``step()``: matrix products, convolutions and attention; a multiply-add counts two.

    Attention is computed as plain products meanwhile, because torch does not count the CPU's own kernel.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def sd_flops(pipe, resolution):
    """Operations per image of Stable Diffusion: "denoise" (one U-Net pass) and "decode"."""
    latents, context, time, _ = _inputs(pipe, resolution)
    with torch.no_grad():
        denoise = count_flops(lambda: pipe.unet(latents, time, encoder_hidden_states=context))
        return {"denoise": denoise, "decode": count_flops(lambda: pipe.vae.decode(latents))}


def adapt_flops(pipe, lora_rank, train_text_encoder, resolution):
    """Operations per image of a training step of an adapter, forward and backward."""
    latents, _, time, tokens = _inputs(pipe, resolution)

    def step():
        states = pipe.text_encoder(tokens).last_hidden_state
        loss = denoising_loss(pipe.unet, noise_scheduler(pipe), latents, torch.zeros_like(latents), time, states)
        loss.mean().backward()

    with attached_lora(pipe, lora_rank, lora_rank, 0, train_text_encoder):
        return count_flops(step)


def _inputs(pipe, resolution):
    """``(latents, text states, time, tokens)`` of one image; only their shapes matter."""
    unet, side = pipe.unet, resolution // pipe.vae_scale_factor
    tokens, time = tokenize(pipe, [class_prompt("thing", "")]), torch.zeros(1, dtype=torch.long, device=pipe.device)
    latents = torch.zeros(1, unet.config.in_channels, side, side, device=pipe.device, dtype=unet.dtype)
    context = torch.zeros(1, tokens.shape[1], unet.config.cross_attention_dim, device=pipe.device, dtype=unet.dtype)
    return latents, context, time, tokens


def clip_flops(clip, tokenizer, data, clip_lora_rank):
    """Operations of a training step of CLIP: "image" (per image), "texts" (per step, all classes)."""
    adapted = attach_clip_lora(clip, clip_lora_rank, clip_lora_rank, 0.0, 0)
    classifier, side = ClipClassifier(adapted, tokenizer, None, data), clip.config.vision_config.image_size

    def step(n):
        pixels = torch.zeros(n, 3, side, side, device=clip.device)
        classifier(pixels, classifier.class_weights()).sum().backward()

    try:
        one, two = (count_flops(lambda n=n: step(n)) for n in (1, 2))
        return {"image": two - one, "texts": 2 * one - two}
    finally:
        adapted.unload()


def count_image_steps(stage, n_classes):
    """Images through a network in a stage (a row of ``results.load_stages``), one per image and step.

    adapt: shots × epochs. generate: images × U-Net passes, with those that DISEF's filter rejected. train: images ×
    epochs, real and synthetic ones in R+S.
    """
    p = stage.parameters
    if stage.stage == "adapt":
        return stage.n_real * p["adapt_epochs"]
    if stage.stage == "generate":
        drawn = sum(row.get("tries", 1) for row in read_metadata(stage))  # rejected images included
        return drawn * stage.passes
    if p["setting"] == "none":
        return 0
    return p["train_epochs"] * p["images_per_class"] * n_classes * len(p["setting"].split("+"))


def tabulate_costs(runs, stages, n_classes, flops):
    """A row per CLIP classifier of ``runs``: seconds, image-steps, memory of its stages, and its accuracy.

    "seconds_adapt", "seconds_generate", "seconds_train" and their sum "seconds"; "steps_..." likewise; "peak_memory_mb"
    the largest (missing where not recorded); "flops" from ``flops`` (``count_flops_per_step``), without the evaluation,
    or NaN where that is None.
    """
    by_run = {run: rows.set_index("stage", drop=False) for run, rows in stages.groupby("run")}
    rows = []
    for row in runs.itertuples():
        made = by_run[row.folder.parent.name]
        wanted = {"adapt": "adapt", "generate": "generate", "train": row.folder.name}
        own = {kind: made.loc[name] for kind, name in wanted.items() if name in made.index}
        if row.setting in ("R", "none"):
            own = {"train": own["train"]}
        steps = {kind: count_image_steps(own[kind], n_classes) if kind in own else 0 for kind in STAGE_NAMES}
        seconds = {kind: float(own[kind].seconds) if kind in own else 0.0 for kind in STAGE_NAMES}
        memory = pd.to_numeric(pd.Series([stage.peak_memory_mb for stage in own.values()]))
        cost = dict(method=row.method, setting=row.setting, n_shot=row.n_shot, seed=row.seed,
                     classifier=row.classifier, accuracy=row.accuracy, seconds=sum(seconds.values()),
                     peak_memory_mb=memory.max())  # fmt: skip
        cost |= {f"seconds_{kind}": value for kind, value in seconds.items()}
        cost |= {f"steps_{kind}": value for kind, value in steps.items()}
        cost["flops"] = _flops(own, steps, n_classes, flops) if flops else float("nan")
        rows.append(cost)
    return pd.DataFrame(rows)


def _flops(own, steps, n_classes, flops):
    total = steps["train"] * flops["image"]
    if "adapt" in own:
        p = own["adapt"].parameters
        total += steps["adapt"] * flops["adapt"][p["lora_rank"], p["train_text_encoder"]]
    if "generate" in own:
        total += steps["generate"] * (flops["denoise"] + flops["decode"] / own["generate"].passes)
    p = own["train"].parameters
    if steps["train"]:
        total += (
            flops["texts"] * p["train_epochs"] * math.ceil(p["images_per_class"] * n_classes / p["train_batch_size"])
        )
    return total


def compute_costs(runs, stages, data, n_shot):
    """``average_costs`` of a data set's CLIP classifiers with ``n_shot`` shots, in the order of the main table.

    "flops" is missing where a model that made the runs is not on this machine.
    """
    same = (runs["dataset"] == data.name) & (runs["n_shot"] == n_shot) & (runs["variant"] == "")
    chosen = runs[same & (runs["classifier"] == "clip") & (runs["protocol"] == "sound")]
    theirs = stages[stages["run"].isin({folder.parent.name for folder in chosen["folder"]})]
    try:
        flops = count_flops_per_step(theirs[theirs["stage"] != "train-none"], data)
    except InputError:
        flops = None
    table = tabulate_costs(chosen, theirs, len(data.class_names), flops)
    if table.empty:
        return pd.DataFrame(columns=["method", "setting", "accuracy_mean", "accuracy_std", *COSTS])
    table = table.sort_values(["setting", "method"], key=lambda names: names.map(RANKS[names.name]), kind="stable")
    return average_costs(table)


def average_costs(table):
    """Means over seeds of ``tabulate_costs`` per method, setting, n_shot and classifier, with "accuracy_std" (%)."""
    numbers = [name for name in table.columns if name.startswith(("seconds", "steps", "peak", "flops"))]
    return table.groupby(["method", "setting", "n_shot", "classifier"], as_index=False, sort=False).agg(
        accuracy_mean=("accuracy", "mean"), accuracy_std=("accuracy", "std"), n_seeds=("seed", "nunique"),
        **{name: (name, "mean") for name in numbers},
    )  # fmt: skip


def pareto_front(table, cost="seconds"):
    """The rows that no other beats: none is as accurate for a lower cost, or more accurate for the same cost."""
    ordered = table.dropna(subset=cost).sort_values([cost, "accuracy_mean"], ascending=[True, False])
    best = ordered["accuracy_mean"].cummax().shift(fill_value=-1.0)
    return ordered[ordered["accuracy_mean"] > best]


def count_flops_per_step(stages, data):
    """Operations per kind of step in ``stages``, counted on the models that their parameters name.

    "adapt": ``{(lora_rank, train_text_encoder): per image}``; the others as in ``sd_flops`` and ``clip_flops``.
    InputError when the runs are of several models.
    """
    one = {name: _one_value(stages, name) for name in ("clip_model", "clip_revision", "clip_lora_rank")}
    clip, tokenizer, _ = load_clip(one["clip_model"], one["clip_revision"], "cpu")
    flops = clip_flops(clip, tokenizer, data, one["clip_lora_rank"]) | {"adapt": {}}
    if not (stages["stage"] == "generate").any():
        return flops
    one = {name: _one_value(stages, name) for name in ("sd_model", "sd_revision", "resolution")}
    pipe = load_stable_diffusion(one["sd_model"], one["sd_revision"], "cpu")
    adapted = stages["parameters"][stages["stage"] == "adapt"]
    flops |= sd_flops(pipe, one["resolution"])
    for rank, text in sorted({(p["lora_rank"], p["train_text_encoder"]) for p in adapted}):
        flops["adapt"][rank, text] = adapt_flops(pipe, rank, text, one["resolution"])
    return flops


def _one_value(stages, name):
    values = {p[name] for p in stages["parameters"] if name in p}
    if len(values) != 1:
        raise InputError(f"the runs have {len(values)} values of {name}, {sorted(values)}: count runs of one value.")
    return values.pop()
