"""Results that cannot be right are refused before they become results: in every stage, for both classifiers.

The rules, each an InputError where it is broken:

- ``check_loss``: a loss is a finite number. The first one that is not stops the training.
- ``check_skipped``: at most half of the optimizer steps are skipped. With fp16, torch's ``GradScaler`` skips a step
  whose gradients overflow. A few at the start are normal, so the rule counts from step 100 on, or from the last step.
- ``check_weights``: weights are finite before they are saved.
- ``check_drawn``: a picture that a model draws is finite before it is rounded to 8 bits, and not blacked out.
- ``check_pictures``: of the generated pictures of a class fewer than half have one colour in every pixel, and two or
  more of them are not all the same file. So a dark picture is allowed, and in a class of three or more also a black
  one.
- ``check_finite``: logits and features are finite.
- ``check_prompts``: no two classes have the same tokens. A prompt that is cut, but not to that of another class, is
  only reported.
"""

import math
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch

from datadream_utils.data.images import read_image
from datadream_utils.errors import InputError
from datadream_utils.files import sha256s

PATIENCE = 100  # steps; GradScaler's first scale, 2^16, can be halved this often without harm


def check_loss(losses, names, step, params):
    """InputError when one of ``losses`` (numbers, one for each of ``names``) is not finite."""
    for name, loss in zip(names, losses, strict=True):
        if not math.isfinite(loss):
            raise InputError(f"The loss of {name} is {loss} at step {step}: {_gentler(params)}.")


def steps_taken(optimizer):
    """How many steps have changed the weights: a scalar tensor, on a GPU for a fused optimizer, or 0."""
    return next(iter(optimizer.state.values()), {}).get("step", 0)


def check_skipped(taken, done, steps, params):
    """InputError when more than half of the ``done`` steps, of ``steps`` in all, left the weights as they were.

    taken: ``steps_taken``, as a number.
    """
    skipped = done - int(taken)
    if 2 * skipped > max(done, min(steps, PATIENCE)):
        raise InputError(
            f"{skipped} of {done} optimizer steps were skipped, because their gradients were not finite, so the "
            f"weights stayed {'what' if skipped == done else 'nearly what'} they were: {_gentler(params)}."
        )


def check_weights(tensors, name, params):
    """InputError when one of ``tensors`` holds a number that is not finite."""
    if not are_finite(tensors):
        raise InputError(f"The trained weights of {name} are not finite and are not saved: {_gentler(params)}.")


def are_finite(tensors):
    """Whether every number in ``tensors`` is finite."""
    return all(bool(tensor.isfinite().all()) for tensor in tensors)


def check_finite(values, names, what, fix):
    """InputError when a row of ``values`` (n, ...) is not finite; ``names``: what the rows belong to, such as paths."""
    bad = (~torch.as_tensor(values).flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
    if bad:
        raise InputError(f"{what} of {names[bad[0]]}{_and_more(len(bad) - 1)} are not finite numbers: {fix}.")


def check_drawn(images, blacked_out, prompts):
    """InputError when a model draws what is no picture.

    images: (n, height, width, 3), before rounding; blacked_out: the answers of a safety checker, or None without one.
    """
    for prompt, flagged in zip(prompts, blacked_out or [False] * len(prompts), strict=True):
        if flagged:
            raise InputError(
                f"The safety checker of this Stable Diffusion has blacked out the picture of {prompt!r}: load the "
                "model without it, as load_stable_diffusion does."
            )
    bad = [prompt for prompt, image in zip(prompts, images, strict=True) if not np.isfinite(image).all()]
    if bad:
        raise InputError(
            f"The picture of {bad[0]!r}{_and_more(len(bad) - 1)} would be black, because the model's numbers are not "
            "finite: set mixed_precision to 'bf16' or 'no' if it is 'fp16'; if the base model draws well, lower "
            "adapt_lr and train the adapters again, with another 'variant'."
        )


def check_pictures(paths, class_name, fix):
    """InputError when the generated pictures ``paths`` of a class cannot be right; ``fix`` ends its sentence.

    It names a picture that cannot be read, too.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        flat = [path for path, colour in zip(paths, pool.map(_only_colour, paths), strict=True) if colour]
    if flat and 2 * len(flat) >= len(paths):
        colour = "black" if _only_colour(flat[0]) == (0, 0, 0) else "of a single colour"
        raise InputError(
            f"{len(flat)} of the {len(paths)} generated images of class {class_name!r} are {colour}, such as {flat[0]} "
            f"(a model draws so when its numbers overflow, or when a safety checker blacks its images out): {fix}."
        )
    if len(paths) > 1 and len(set(sha256s(paths))) == 1:
        raise InputError(
            f"The {len(paths)} generated images of class {class_name!r} are all the same, such as {paths[0]}, though "
            f"each was drawn from other noise: {fix}."
        )


def check_prompts(tokenizer, prompts, class_names, reader):
    """InputError when two classes have the same tokens; prints once which prompts are cut.

    prompts: the sentence of each class; reader: whose tokens they are, "CLIP" or "Stable Diffusion".
    """
    whole = tokenizer(list(prompts)).input_ids
    read = tokenizer(list(prompts), truncation=True).input_ids
    first, cut = {}, []
    for name, prompt, tokens, all_tokens in zip(class_names, prompts, read, whole, strict=True):
        if tuple(tokens) in first:
            seen = tokenizer.decode(tokens, skip_special_tokens=True)
            raise InputError(
                f"{reader} cannot tell class {first[tuple(tokens)]!r} from {name!r}: of both prompts it reads {seen!r} "
                f"({len(tokens)} tokens), and no more. Give them names in dataset.yaml that differ "
                "earlier, or choose a model that reads more tokens."
            )
        first[tuple(tokens)] = name
        if len(all_tokens) > len(tokens):
            cut.append((prompt, tokenizer.decode(all_tokens[len(tokens) - 1 :], skip_special_tokens=True)))
    if cut:
        prompt, lost = cut[0]
        _say_once(
            f"{reader} reads {tokenizer.model_max_length} tokens of a prompt: it does not see {lost!r} at the end of "
            f"{prompt!r}{_and_more(len(cut) - 1, 'the ends of ')}."
        )


@cache
def _say_once(line):
    print(line)


def _only_colour(path):
    """The colour of a picture with one colour in every pixel, (red, green, blue); else None."""
    ranges = read_image(path).getextrema()
    return tuple(low for low, _ in ranges) if all(low == high for low, high in ranges) else None


def _and_more(count, what=""):
    return f" (and {what}{count} more)" if count else ""


def _gentler(params):
    """How to go on after a training that failed: both parameters decide the result, so the stage begins anew."""
    name = "adapt_lr" if hasattr(params, "adapt_lr") else "train_lr"
    changes = [f"lower {name} ({getattr(params, name):g})"]
    if params.mixed_precision == "fp16":
        changes.insert(0, "set mixed_precision to 'bf16' or 'no' instead of 'fp16'")
    folder = params.run_folder / params.stage
    return f"{' or '.join(changes)}, and delete {folder} or set 'variant' to a word of your own"
