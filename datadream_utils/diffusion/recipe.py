"""What decides one generated image (paper, section 3.3), for every compared system.

(seed, class, index) alone decide the image's noise, its prompt, the shot it starts from and the adapters that draw it.
So any image can be drawn again by itself, and stopping, resuming or splitting the work changes no image.
"""

import itertools
import random
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from datadream_utils.data.dataset import Dataset
from datadream_utils.diffusion.adapt import adapter_names
from datadream_utils.methods import Method
from datadream_utils.prompts import generation_prompt
from datadream_utils.seeds import stable_seed


@dataclass(frozen=True)
class Draw:
    """What decides one image.

    seed: of its noise; start: the shot that it starts from, None: pure noise; adapters: folders of the adapters that
    draw it, () for the base model, two for LoFT.
    """

    seed: int
    prompt: str
    start: Path | None
    adapters: tuple[Path, ...]


@dataclass(frozen=True)
class Recipe:
    """How a method draws the images of a data set: ``draw(label, index)`` gives the ``Draw`` of each.

    shots: ``shots[label]``, paths; captions: ``{shot path: caption}`` for methods that prompt with captions; adapters:
    the folder that holds the adapters' folders, or None to draw with the base model.
    """

    method: Method
    data: Dataset
    shots: list
    seed: int
    adapters: Path | None = None
    captions: dict | None = None

    def draw(self, label, index, attempt=0):
        """The ``Draw`` of image ``index`` of class ``label``; a rejected image is drawn again, as the next ``attempt``.

        Attempt a of image i starts from shot i + a, modulo the number of shots. The caption is that of another shot of
        the class (da Costa et al. 2023: captions are shuffled among the shots). Image i of LoFT uses pair i of the
        shuffled pairs of the class's adapters.
        """
        folder, shots = self.data.folders[label], self.shots[label]
        turn = (index + attempt) % len(shots)
        if self.method.prompt == "caption":
            others = [shot for i, shot in enumerate(shots) if i != turn] or shots
            choice = stable_seed("caption", self.seed, folder, index, attempt) % len(others)
            prompt = self.captions[others[choice]]
        else:
            prompt = self.class_prompts[label]
        return Draw(
            seed=image_seed(self.seed, folder, index, attempt),
            prompt=prompt,
            start=shots[turn] if self.method.start == "shot" else None,
            adapters=self._adapters(label, index),
        )

    @cached_property
    def class_prompts(self):
        """The prompt of each class: its name in a template, or its name and definition (FakeIt)."""
        kind = "definition" if self.method.prompt == "definition" else "template"
        names, data = self.data.class_names, self.data
        return [generation_prompt(kind, name, data.domain, data.definitions.get(name, "")) for name in names]

    def without_adapters(self):
        """The same recipe with the base model: same prompts, same noise."""
        return replace(self, adapters=None)

    def from_shots(self):
        """The same recipe from few-shot images with noise added (image-to-image)."""
        return replace(self, method=replace(self.method, start="shot"))

    def from_noise(self):
        """The same recipe from pure noise and the class prompt: it needs neither captions nor shots to start from."""
        prompt = "template" if self.method.prompt == "caption" else self.method.prompt
        return replace(self, method=replace(self.method, start="noise", prompt=prompt))

    def _adapters(self, label, index):
        if self.adapters is None:
            return ()
        names = adapter_names(self.method, self.data, label, len(self.shots[label]))
        if self.method.adapter == "image":
            pairs = self._pairs[label]
            names = [names[i] for i in pairs[index % len(pairs)]]
        return tuple(self.adapters / name for name in names)

    @cached_property
    def _pairs(self):
        """For each class all pairs of shot indices, shuffled (LoFT: each image mixes two adapters)."""
        shuffled = []
        for folder, shots in zip(self.data.folders, self.shots, strict=True):
            pairs = list(itertools.combinations(range(len(shots)), 2)) or [(0,)]
            random.Random(stable_seed("pairs", self.seed, folder)).shuffle(pairs)
            shuffled.append(pairs)
        return shuffled


def image_seed(seed, class_folder, index, attempt=0):
    """The seed of one image's initial noise. ``class_folder``: an entry of ``Dataset.folders``."""
    return stable_seed("generate", seed, class_folder, index, *([attempt] if attempt else []))
