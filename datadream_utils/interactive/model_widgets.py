"""Widgets that look inside the diffusion model: through noise, along sampling, at guidance, copies and adapters.

Each answers the question in its docstring. All take data; none knows the notebook in which it stands.
"""

from functools import cache

import numpy as np
from matplotlib.ticker import MaxNLocator

from datadream_utils.diffusion.probe import find_nearest, lora_spectra
from datadream_utils.interactive.explorer import Explorer
from datadream_utils.plots.pictures import show_grid
from datadream_utils.plots.style import BLUE, describe, new_figure


def noise_slider(noised, guesses, timesteps):
    """What does the model see at timestep t, and what does it make of it? Pictures as ``probe.through_noise`` gives."""
    at = {int(t): pair for t, pair in zip(timesteps, zip(noised, guesses, strict=True), strict=True)}
    names = ["what it sees", "its guess of the clean picture"]

    def draw(t):
        return show_grid([at[t]], column_titles=names, title=f"Timestep t = {t}", side=2.2)

    def overview():
        title = "One real picture through the noise: what the model sees, what it takes it for"
        rows = list(zip(*at.values(), strict=True))
        return show_grid(rows, names, [f"t = {t}" for t in at], title, side=0.9)

    return Explorer(draw, {"Timestep t": list(at)}, [list(at)[len(at) // 2]], overview)


def trajectory_slider(samples, title):
    """How does a picture come about? ``samples``: ``{who draws: {step: picture}}`` of ``probe.trajectory``."""
    steps = list(next(iter(samples.values())))

    def draw(step):
        row = [frames[step] for frames in samples.values()]
        return show_grid([row], column_titles=list(samples), title=f"{title}, after step {step}", side=2.2)

    def overview():
        rows = [list(frames.values()) for frames in samples.values()]
        return show_grid(rows, list(samples), [f"step {step}" for step in steps], title, side=0.9)

    return Explorer(draw, {"Denoising step": steps}, [steps[-1]], overview)


def guidance_grid(pictures, title):
    """What do guidance and adapter each do? ``pictures``: ``{(guidance scale, adapter scale): [picture, ...]}``."""
    guidance, adapter = (sorted(set(values)) for values in zip(*pictures, strict=True))

    def draw(w, s):
        where = f"guidance {w:g}, adapter × {s:g}"
        return show_grid([pictures[w, s]], title=f"{title}: {where}", side=1.5)

    def overview():
        rows = [[pictures[w, s][0] for w in guidance] for s in adapter]
        return show_grid(rows, [f"adapter × {s:g}" for s in adapter], [f"w = {w:g}" for w in guidance], title)

    start = [guidance[len(guidance) // 2], 1 if 1 in adapter else adapter[-1]]
    return Explorer(draw, {"Guidance scale w": guidance, "Adapter scale": adapter}, start, overview)


def nearest_shot_browser(sets, shots, class_names, features, label=0, method="", count=8):
    """Is a generated picture a copy? Samples of a class and method, with the nearest few-shot image under each.

    sets: ``{method: files[label]}``; shots: ``files[label]``; features: ``features(paths) -> (n, d)``, unit length.
    A set that lacks images of a class is left out.
    """
    sets = {name: files for name, files in sets.items() if all(files)}
    of_shots = cache(lambda k: features(shots[k]))

    @cache
    def draw(class_name, method):
        k = class_names.index(class_name)
        drawn = sets[method][k][:count]
        indices, likeness = find_nearest(features(drawn), of_shots(k))
        near = [shots[k][i] for i in indices]
        title = f"{method}, {class_name}: each sample and the real shot most like it (cosine of CLIP features)"
        return show_grid([drawn, near], ["generated", "nearest shot"], [f"{x:.2f}" for x in likeness], title, 0.95)

    names, first = list(class_names), method if method in sets else next(iter(sets))
    return Explorer(draw, {"Class": names, "Method": list(sets)}, [names[label], first])


def lora_browser(pipe, folders):
    """Which layers change, and in how many directions? ``folders``: ``{adapter name: folder}``."""
    spectra = cache(lambda name: lora_spectra(pipe, folders[name]))
    first = next(iter(folders))
    layers = list(spectra(first))
    most = max(layers, key=lambda layer: spectra(first)[layer][1])

    def draw(name, layer):
        return lora_changes(spectra(name), layer, name)

    return Explorer(draw, {"Adapter": list(folders), "Layer": layers}, [first, most])


def lora_changes(spectra, layer, name):
    """How much each layer changes, and the singular values of ``layer``.

    spectra: ``probe.lora_spectra``, ``{layer: (singular values, relative change)}``; name: the adapter's.
    """
    figure, axes = new_figure(1, 2, 9, 3, width_ratios=(3, 2))
    left, right = axes[0]
    layers = list(spectra)
    for i, kind in enumerate(dict.fromkeys(_projection(other) for other in layers)):
        places = [j for j, other in enumerate(layers) if _projection(other) == kind]
        left.plot(
            places, [100 * spectra[layers[j]][1] for j in places], ls="", marker="osD^vP*X"[i % 8], ms=4, label=kind
        )
    values, change = spectra[layer]
    left.plot(layers.index(layer), 100 * change, "o", ms=12, mfc="none", mec="black")
    left.set(xlabel="layer, U-Net first", ylabel="|BA| / |W| (%)", title="How much each layer changes", ylim=(0, None))
    left.legend(fontsize=7, ncols=4)
    for other, _ in spectra.values():
        right.plot(range(1, len(other) + 1), other, color="0.85", lw=0.6)
    right.plot(range(1, len(values) + 1), values, color=BLUE, marker="o", ms=3)
    right.xaxis.set_major_locator(MaxNLocator(integer=True))
    right.set(xlabel="direction", ylabel="singular value of BA", ylim=(0, None))
    rank = f"{effective_rank(values)} of {len(values)} directions carry 90 % of the sum of squares"
    right.set_title(f"{layer}\n{rank}", fontsize=9)
    figure.suptitle(f"Adapter '{name}'", fontsize=10)
    every = [100 * other for _, other in spectra.values()]
    alt = f"Adapter '{name}'. Left: the change of each layer relative to its weights, {min(every):.0f} to "
    alt += f"{max(every):.0f} %. Right: the singular values of {layer}, which changes by {100 * change:.0f} %; {rank}."
    return describe(figure, alt)


def _projection(layer):
    return layer.removesuffix(".0").split(".")[-1].removeprefix("to_").removesuffix("_proj")


def effective_rank(values, share=0.9):
    """How many singular values, largest first, make up ``share`` of their sum of squares; 0 for an adapter of zeros."""
    energy = np.cumsum(np.square(values))
    return int(np.searchsorted(energy, share * energy[-1]) + 1) if energy[-1] else 0
