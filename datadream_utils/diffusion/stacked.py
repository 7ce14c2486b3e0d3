"""Many LoRA adapters on one frozen model at once: their matrices stacked, one pass of the base over all their images.

K adapters with b images each make a batch of b K; image j of adapter k has index j K + k. Every adapted layer computes
W x once for the whole batch and adds (alpha / rank) B_k A_k x for the images of adapter k, as two batched products.

In training the adapters share no parameters, so the result is the same as training them one by one, up to rounding. (In
fp16 they share the loss scale: an overflow skips the step of all.) In sampling every image of a batch of K can have its
own adapter; with guidance b is 2, because the batch holds the K images without their prompt and then with it.
"""

from contextlib import contextmanager

import torch

from datadream_utils.diffusion.lora import (
    adapted_layers,
    adapted_parts,
    first_lora_a,
    lora_config,
    read_lora,
    write_lora,
)


class StackedLinear(torch.nn.Module):
    """A frozen linear layer ``base`` with K adapters: maps (b K, tokens, in) to (b K, tokens, out).

    down: A, (K, rank, in); up: B, (K, out, rank); scale: alpha / rank, a number or a tensor (K, 1, 1).
    """

    def __init__(self, base, down, up, scale):
        super().__init__()
        self.base, self.scale = base, scale
        self.down, self.up = torch.nn.Parameter(down), torch.nn.Parameter(up)

    def forward(self, x):
        by_adapter = x.unflatten(0, (-1, len(self.down))).to(self.down.dtype)  # (b, K, tokens, in)
        low = (by_adapter @ self.down.mT).flatten(0, 1)
        up = (self.up.mT * self.scale).repeat(len(by_adapter), 1, 1)
        base = self.base(x)
        return torch.baddbmm(base, low.to(base.dtype), up.to(base.dtype))


class Stack:
    """K fresh adapters attached to a pipeline, to be trained; see ``stacked_lora``."""

    def __init__(self, pipe, rank, alpha, seeds, text_encoder):
        self.rank, self.alpha, self.text_encoder, self.layers = rank, alpha, text_encoder, {}
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        for model, name, base in adapted_layers(pipe, text_encoder):
            down = torch.stack([first_lora_a(rank, base.in_features, g) for g in generators])
            up = torch.zeros(len(seeds), base.out_features, rank)
            device = base.weight.device
            self.layers[model, name] = StackedLinear(base, down.to(device), up.to(device), alpha / rank)

    def parameters(self):
        """Every (K, ...) parameter, float32."""
        return [parameter for layer in self.layers.values() for parameter in (layer.down, layer.up)]

    @torch.no_grad()
    def clip_gradients(self, max_norm):
        """Scale down each adapter's gradient whose norm, over all its parameters, exceeds ``max_norm``."""
        gradients = [parameter.grad for parameter in self.parameters()]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        shrink = (max_norm / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient *= shrink.reshape(-1, 1, 1)

    def save(self, pipe, k, folder):
        """Write adapter ``k`` exactly as ``lora.save_lora`` writes a single one."""
        states, configs = [], []
        for model, targets in adapted_parts(pipe, self.text_encoder):
            state = {}
            for (other, name), layer in self.layers.items():
                if other is model:
                    state[f"{name}.lora_A.weight"] = layer.down[k].detach()
                    state[f"{name}.lora_B.weight"] = layer.up[k].detach()
            states.append(state)
            configs.append(lora_config(self.rank, self.alpha, targets))
        write_lora(folder, states, configs)


@contextmanager
def stacked_lora(pipe, rank, alpha, seeds, text_encoder=True):
    """Attach one fresh adapter per seed while the block runs, and yield the ``Stack``; then restore the base model."""
    stack = Stack(pipe, rank, alpha, seeds, text_encoder)
    with _in_place(stack.layers):
        yield stack


@contextmanager
def per_image_adapters(pipe, folders_of_images, scale=1.0):
    """While the block runs, image i of a batch is drawn with the mean of the adapters in ``folders_of_images[i]``.

    The weights of an image with n adapters are W + (scale / n) sum (alpha / rank) B A. For LoFT n is 2. Every image
    needs the same number of adapters; a list with the folders of a single image applies to all images. ``scale``: a
    number, or a tensor with one number per image. The result is that of diffusers' ``set_adapters`` image by image, up
    to rounding.
    """
    scale = scale.reshape(-1, 1, 1) if isinstance(scale, torch.Tensor) else scale
    adapters = {folder: read_lora(folder) for folder in {f for folders in folders_of_images for f in folders}}
    layers = {}
    for model, name, base in adapted_layers(pipe):
        key = (model is pipe.unet, name)
        if all(key in adapter for adapter in adapters.values()):  # LoFT leaves the text encoder as it is
            pairs = [[adapters[folder][key] for folder in folders] for folders in folders_of_images]
            down = torch.stack([torch.cat([a for a, _, _ in of_image]) for of_image in pairs])
            up = torch.stack([torch.cat([b * own for _, b, own in of_image], dim=1) for of_image in pairs])
            down, up = (part.to(base.weight.device, base.weight.dtype) for part in (down, up))
            layers[model, name] = StackedLinear(base, down, up, scale / len(pairs[0])).requires_grad_(False)
    with _in_place(layers):
        yield pipe


@contextmanager
def _in_place(layers):
    """Put the layers ``{(model, name): StackedLinear}`` into their models while the block runs."""
    for (model, name), layer in layers.items():
        model.set_submodule(name, layer)
    try:
        yield
    finally:
        for (model, name), layer in layers.items():
            model.set_submodule(name, layer.base)
