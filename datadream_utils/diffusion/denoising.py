"""The denoising loss (paper, section 3.2, eq. 2), and what goes into it: prompts as tokens, shots as noised latents."""

import math

import torch
from diffusers import DDPMScheduler
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from datadream_utils.data.images import read_image, resize_shortest, to_tensor
from datadream_utils.seeds import stable_seed

ALL = slice(None)


def adapter_steps(p, n_images):
    """Optimizer steps of one adapter: epochs times batches."""
    return p.adapt_epochs * math.ceil(n_images / p.adapt_batch_size)


def noise_scheduler(pipe):
    """The forward process the base model was trained with, from the pipeline's own scheduler configuration."""
    return DDPMScheduler.from_config(pipe.scheduler.config)


def denoising_loss(unet, scheduler, latents, noise, timesteps, context, groups=1):
    """The diffusion loss || target - model(z_t, t, text) ||^2, averaged over everything.

    latents, noise: (n, c, h, w); timesteps: (n,); context: text states (n, tokens, width).
    z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) noise. The target is the noise, or for a
    v-prediction model v = sqrt(abar_t) noise - sqrt(1 - abar_t) z_0. With ``groups`` K > 1
    the batch holds images of K adapters in turn, and the result is a loss for each (K,).
    """
    noisy = scheduler.add_noise(latents, noise, timesteps)
    targets = {
        "epsilon": lambda: noise,
        "v_prediction": lambda: scheduler.get_velocity(latents, noise, timesteps),
    }
    target = targets[scheduler.config.prediction_type]()
    predicted = unet(noisy, timesteps, encoder_hidden_states=context).sample
    error = (predicted.float() - target.float()).pow(2)
    return error.unflatten(0, (-1, groups)).flatten(2).mean((0, 2)).squeeze(0)


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
    """The few images as latents: resized, cropped at random, encoded by the VAE.

    Every batch crops anew, as published; the VAE is then two fifths of a step's arithmetic at full size. ``crops`` > 0:
    so many of each shot are cut with ``generator`` and encoded here, once, and a batch takes any of them. Where every
    picture is square a crop has nothing to choose: one is enough.
    """

    def __init__(self, pipe, paths, resolution, crops=0, generator=None):
        self.vae, self.resolution, self.count = pipe.vae, resolution, len(paths)
        self.pictures = [to_tensor(resize_shortest(read_image(path), resolution)) for path in paths]
        square = all(picture.shape[1:] == (resolution, resolution) for picture in self.pictures)
        every, self.moments = range(len(paths)), None
        cut = self.pictures if square else [self._random_crop(i, generator) for i in every for _ in range(crops)]
        if cut:  # (n, crops, 2 c, h, w), in the computer's memory: of many shots they are gigabytes
            encoded = torch.cat([moments.cpu() for moments in self._encode(cut)])
            self.moments, self.pictures = encoded.unflatten(0, (len(paths), -1)), None

    def __len__(self):
        return self.count

    def latents(self, indices, generator, part=ALL):
        """Latents (n, c, h, w) of these shots, sampled from the VAE's posterior with ``generator``.

        ``part``: a slice of them, the same as it is of all of them.
        """
        if self.moments is None:
            moments = torch.cat(list(self._encode([self._random_crop(i, generator) for i in indices][part])))
        else:
            crops, n = self.moments.shape[1], len(indices)
            one = torch.randint(0, crops, (n,), generator=generator) if crops > 1 else torch.zeros(n, dtype=torch.int64)
            moments = self.moments[indices, one][part]
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
        """The VAE's moments of a few pictures at a time."""
        for i in range(0, len(pictures), 8):
            chunk = torch.stack(pictures[i : i + 8]).float() / 127.5 - 1
            yield self.vae.encode(chunk.to(self.vae.device, self.vae.dtype)).latent_dist.parameters


class Batches:
    """What one adapter sees: its shots in random order, noised to random times; all of it from (seed, adapter name).

    What the next step depends on, and a checkpoint keeps: ``step``, ``generator``, and ``order`` of the current epoch.
    share: ``share(n)``: the slice of a batch of n that is worked on here, and ``weight``, what its mean loss counts in
    the batch's; the randomness is drawn for all of it.
    """

    def __init__(self, pipe, adapter, p, share=lambda n: (ALL, 1.0)):
        self.seed = stable_seed("adapt", p.seed, adapter.name)
        self.generator, self.p, self.share = torch.Generator().manual_seed(self.seed), p, share
        cutting = torch.Generator().manual_seed(stable_seed("crops", p.seed, adapter.name))
        self.shots = Shots(pipe, adapter.paths, p.resolution, p.crops_per_shot, cutting)
        self.times = noise_scheduler(pipe).config.num_train_timesteps
        self.weight = 1.0
        self.step, self.order = 0, torch.zeros(0, dtype=torch.int64)

    def __iter__(self):
        """Yields (indices, latents, noise, timesteps) for every step that is left."""
        size = self.p.adapt_batch_size
        while self.step < adapter_steps(self.p, len(self.shots)):
            first = self.step * size % (size * math.ceil(len(self.shots) / size))
            if first == 0:
                self.order = torch.randperm(len(self.shots), generator=self.generator)
            batch = self.order[first : first + size]
            part, self.weight = self.share(len(batch))
            latents = self.shots.latents(batch, self.generator, part)
            noise = torch.randn((len(batch), *latents.shape[1:]), generator=self.generator)[part].to(latents)
            timesteps = torch.randint(0, self.times, (len(batch),), generator=self.generator)[part]
            self.step += 1
            yield batch[part], latents, noise, timesteps.to(latents.device)
