"""The denoising loss (paper, section 3.2, equation 2) and its inputs: prompts as tokens, shots as noised latents."""

import math

import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from datadream_utils.data.images import read_image, resize_shortest, to_tensor
from datadream_utils.seeds import stable_seed

ALL = slice(None)  # the whole batch


def adapter_steps(params, n_images):
    """Optimizer steps of one adapter: epochs times batches per epoch."""
    return params.adapt_epochs * math.ceil(n_images / params.adapt_batch_size)


def adapter_seed(adapter, params):
    """The seed of an adapter's first weights and of its batches."""
    return stable_seed("adapt", params.seed, adapter.name)


def noise_scheduler(pipe):
    """The forward process the base model was trained with, from the pipeline's own scheduler configuration."""
    return DDPMScheduler.from_config(pipe.scheduler.config)


def denoising_loss(unet, scheduler, latents, noise, timesteps, context):
    """The diffusion loss || target - model(z_t, t, text) ||^2 of each image, (n,); paper, equation 2.

    latents, noise: (n, c, h, w); timesteps: (n,); context: text states (n, tokens, width).
    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise. The target is the noise, or for a
    v-prediction model v = sqrt(abar_t) noise - sqrt(1 - abar_t) z_0.
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    if scheduler.config.prediction_type == "v_prediction":
        target = scheduler.get_velocity(latents, noise, timesteps)
    else:
        target = noise
    prediction = unet(noisy, timesteps, encoder_hidden_states=context).sample
    return (target.float() - prediction.float()).pow(2).mean(dim=(1, 2, 3))


def tokenize(pipe, prompts):
    """Token ids (n, tokens) as Stable Diffusion's pipeline makes them."""
    tokens = pipe.tokenizer(
        list(prompts),
        padding="max_length",
        truncation=True,
        max_length=pipe.tokenizer.model_max_length,
        return_tensors="pt",
    )
    return tokens.input_ids.to(pipe.device)


class Shots:
    """The few images as latents: the shorter side resized to ``resolution``, cropped at random, encoded by the VAE.

    With ``crops=0`` every batch draws new crops, as published. At full size the VAE then takes two fifths of a step's
    arithmetic. With ``crops=k`` the constructor draws k crops of each shot with ``generator`` and encodes them; a batch
    takes one of the k at random. Square pictures have only one crop, so they are encoded once in both cases.
    """

    def __init__(self, pipe, paths, resolution, crops=0, generator=None):
        self.vae, self.resolution, self.count = pipe.vae, resolution, len(paths)
        self.pictures = [to_tensor(resize_shortest(read_image(path), resolution)) for path in paths]
        self.moments = None  # mean and log variance of the VAE's posterior, (n, crops, 2 c, h, w), if encoded once
        if all(picture.shape[1:] == (resolution, resolution) for picture in self.pictures):
            cropped = self.pictures
        else:
            cropped = [self._random_crop(i, generator) for i in range(len(paths)) for _ in range(crops)]
        if cropped:
            done = 0
            for moments in self._encode(cropped):  # kept on the CPU, and once: those of many shots take gigabytes
                if self.moments is None:
                    self.moments = torch.empty((len(cropped), *moments.shape[1:]), dtype=moments.dtype)
                self.moments[done : done + len(moments)] = moments.cpu()
                done += len(moments)
            self.moments, self.pictures = self.moments.unflatten(0, (len(paths), -1)), None

    def __len__(self):
        return self.count

    def latents(self, indices, generator, part=ALL):
        """Latents (n, c, h, w) of the shots ``indices``, sampled from the VAE's posterior with ``generator``.

        ``part``: compute only this slice of them; its latents are the same as if all were computed.
        """
        if self.moments is None:
            moments = torch.cat(list(self._encode([self._random_crop(i, generator) for i in indices][part])))
        else:
            crops, crop = self.moments.shape[1], torch.zeros(len(indices), dtype=torch.int64)
            if crops > 1:
                crop = torch.randint(0, crops, crop.shape, generator=generator)
            moments = self.moments[indices, crop][part]
        posterior = DiagonalGaussianDistribution(moments.to(self.vae.device))
        shape = (len(indices), *posterior.mean.shape[1:])
        noise = torch.randn(shape, generator=generator)[part].to(posterior.mean)
        return (posterior.mean + posterior.std * noise) * self.vae.config.scaling_factor

    def _random_crop(self, index, generator):
        picture, size = self.pictures[index], self.resolution
        top, left = (int(torch.randint(0, side - size + 1, (), generator=generator)) for side in picture.shape[1:])
        return picture[:, top : top + size, left : left + size]

    @torch.no_grad()
    def _encode(self, pictures):
        """Yields the VAE's moments of up to 8 pictures at a time, (up to 8, 2 c, h, w)."""
        for i in range(0, len(pictures), 8):
            chunk = torch.stack(pictures[i : i + 8]).float() / 127.5 - 1
            yield self.vae.encode(chunk.to(self.vae.device, self.vae.dtype)).latent_dist.parameters


class Batches:
    """The batches of one adapter: its shots in random order, noised to random timesteps.

    All randomness comes from (seed, adapter name). The next step depends on ``step``, ``generator`` and ``order`` (the
    current epoch's order of shots), which a checkpoint keeps. ``share(n)`` returns the slice of a batch of n that this
    process works on, and the weight of the slice's mean loss in the loss of the batch (the attribute ``weight``). Noise
    and timesteps are drawn for the whole batch, so they do not depend on the slice.
    """

    def __init__(self, pipe, adapter, params, share=lambda n: (ALL, 1.0)):
        self.generator = torch.Generator().manual_seed(adapter_seed(adapter, params))
        self.params, self.share = params, share
        cropping = torch.Generator().manual_seed(stable_seed("crops", params.seed, adapter.name))
        self.shots = Shots(pipe, adapter.paths, params.resolution, params.crops_per_shot, cropping)
        self.n_timesteps = noise_scheduler(pipe).config.num_train_timesteps
        self.weight = 1.0
        self.step, self.order = 0, torch.zeros(0, dtype=torch.int64)

    def __iter__(self):
        """Yields (indices, latents, noise, timesteps) for every step that is left."""
        size = self.params.adapt_batch_size
        while self.step < adapter_steps(self.params, len(self.shots)):
            first = self.step * size % (size * math.ceil(len(self.shots) / size))
            if first == 0:
                self.order = torch.randperm(len(self.shots), generator=self.generator)
            batch = self.order[first : first + size]
            part, self.weight = self.share(len(batch))
            latents = self.shots.latents(batch, self.generator, part)
            noise = torch.randn((len(batch), *latents.shape[1:]), generator=self.generator)[part].to(latents)
            timesteps = torch.randint(0, self.n_timesteps, (len(batch),), generator=self.generator)[part]
            self.step += 1
            yield batch[part], latents, noise, timesteps.to(latents.device)
