"""The figures of the ablations: what one parameter changes, and what adaptation brings for its cost."""

from datadream_utils.analysis.ablations import format_value, study_command
from datadream_utils.analysis.compare import LEVEL, Verdict, compare_seeds, format_difference
from datadream_utils.analysis.results import BLOCKS
from datadream_utils.catalogue import ABLATIONS
from datadream_utils.methods import classifier_name
from datadream_utils.plots.results import (
    BOTH,
    COLUMN,
    SETTING_TITLES,
    WHISKERS,
    described,
    empty,
    finish,
    label,
    legend,
    look,
    panels,
)
from datadream_utils.plots.style import COLOURS

ABOVE, BELOW = Verdict.ABOVE.label, Verdict.BELOW.label


def by_chance(count):
    """How many of ``count`` such intervals miss 0 by chance, in words."""
    expected = LEVEL * count
    return f"about {expected:.0f} by chance" if expected >= 1 else f"about {expected:.1g} by chance"


def ablation(table, parameter, baseline=None):
    """``ablations.summary``: mean accuracy over seeds against ``parameter``, whiskers of one deviation, per block.

    Real-finetune stands beside R+S; where ``parameter`` does not move it, as a line at ``baseline``, its accuracy (%).
    Where its runs are the reference (images added), each seed's difference to it is drawn instead: the seeds share
    test images and shots, so their differences lie nearer together than their accuracies.
    """
    if table.empty:
        return empty(f"No runs differ in {parameter} alone: {study_command(parameter)}")
    blocks, share = table["setting"].map(BLOCKS), parameter == "synthetic_per_class"
    figure, axes = panels(blocks.nunique(), COLUMN if blocks.nunique() == 1 else BOTH, 2.4)
    xlabel, added = ABLATIONS.get(parameter, parameter), False
    for ax, block in zip(axes, blocks.unique(), strict=True):
        rows = table[blocks == block]
        values, default = sorted(set(rows["value"])), set(rows.loc[rows["default"], "value"])
        setting = "R+S" if block == BLOCKS["R+S"] else rows["setting"].iloc[0]
        title, ylabel = SETTING_TITLES[setting], "test accuracy (%)"
        if share and setting == "R+S" and (rows["reference"] & (rows["value"] == 0)).any():
            _differences(ax, rows, values)
            added = True
            title, ylabel = f"{title}; dots: seeds, lines: means", "minus Real-finetune\n(points, same seed)"
        else:
            _accuracies(ax, rows, values, baseline)
        most = max(table["value"]) if share else None
        if share:
            xlabel = f"images used of the {most:g} generated per class (%)"
        words = [f"{100 * v / most:.0f}" if share else format_value(v) for v in values]
        ax.set_xticks(
            range(len(values)), [w + "\n(default)" * (v in default) for w, v in zip(words, values, strict=True)]
        )
        finish(ax, xlabel, ylabel, title)
    legend(figure, axes)
    sentence = _against_reference(table, ABLATIONS.get(parameter, parameter), parameter)
    if added:
        sentence += (
            " At 0 stands Real-finetune: as many training steps on real images alone (weight 1), half the image-steps."
        )
    return described(figure, f"Lines: test accuracy against {xlabel}.", sentence)


def _accuracies(ax, rows, values, baseline):
    for method, of, places in _beside(rows, values):
        ax.errorbar(places, of["accuracy_mean"], of["accuracy_std"], **look(method), label=label(method), **WHISKERS)
    if baseline is not None and "R+S" in set(rows["setting"]) and "real" not in set(rows["method"]):
        ax.axhline(baseline, color=COLOURS["real"], ls="--", lw=1, label=label("real"))


def _differences(ax, rows, values):
    """Lines of mean differences from the reference's 0 on, and a dot per seed."""
    for method, of, places in _beside(rows, values):
        reference = of.loc[of["reference"], "per_seed"].iloc[0]
        for x, seeds in zip(places, of["per_seed"], strict=True):
            points = [accuracy - reference[seed] for seed, accuracy in seeds.items() if seed in reference]
            if values[round(x)]:
                ax.plot([x] * len(points), points, ls="", ms=2.5, alpha=0.6, **look(method))
        means = of["difference"].fillna(0.0)
        ax.plot([0, *places[1:]], means, ms=4.5, lw=1, mec="white", mew=0.5, label=label(method), **look(method))
    ax.axhline(0, color=COLOURS["real"], ls="--", lw=1, label=label("real"))


def _beside(rows, values):
    """``(method, its rows, places)``: marks of one value stand beside each other."""
    names = list(dict.fromkeys(rows["method"]))
    for i, method in enumerate(names):
        of = rows[rows["method"] == method].sort_values("value")
        shift = min(0.2, 0.05 * len(names)) * 2 * (i - (len(names) - 1) / 2) / max(1, len(names) - 1)
        yield method, of, [values.index(v) + shift for v in of["value"]]


def compute(table):
    """``ablations.compute``: accuracy on synthetic images alone against the images that adaptation looked at."""
    if table.empty:
        return empty(f"No runs differ in how long an adapter is trained: {study_command('adapt_epochs')}")
    figure, (ax,) = panels(1, COLUMN, 2.6)
    styles, words = {"n_shot": "-", "adapt_epochs": "--"}, []
    for (method, moved), rows in table.groupby(["method", "moved"], sort=False):
        rows = rows.sort_values("adapted")
        name = f"{label(method)}, {ABLATIONS[moved]}"
        ax.errorbar(rows["adapted"], rows["accuracy_mean"], rows["accuracy_std"], ls=styles[moved],
                    label=name, **look(method), **WHISKERS)  # fmt: skip
        first, last = rows.iloc[0], rows.iloc[-1]
        words.append(f"{name}: {first.accuracy_mean:.1f} % on {first.adapted:,.0f} images adapted on, "
                     f"{last.accuracy_mean:.1f} % on {last.adapted:,.0f}{_apart(last, first)}")  # fmt: skip
    ax.set_xscale("log")
    finish(ax, "images adapted on (shots × epochs, all adapters)", "test accuracy (%)", SETTING_TITLES["S"])
    legend(figure, [ax], 1)
    sentence = "; ".join(words) + "." + "".join(_at_equal_cost(table))
    return described(figure, "Lines: test accuracy against what adaptation costs.", sentence)


def _apart(row, other):
    found = compare_seeds(row.per_seed, other.per_seed)
    return f": {format_difference(found)}" if found else ""


def _at_equal_cost(table):
    """Sentences on few shots for long against more shots for fewer epochs, where both looked at as many images."""
    for method, rows in table.groupby("method", sort=False):
        shots, epochs = (rows[(rows["moved"] == name)] for name in ("n_shot", "adapt_epochs"))
        usual = [of.loc[of["default"], "value"] for of in (shots, epochs)]
        for few in shots[~shots["default"]].itertuples():
            for short in epochs[~epochs["default"] & (epochs["adapted"] == few.adapted)].itertuples():
                if all(map(len, usual)):
                    yield (
                        f" With as many images adapted on ({few.adapted:,.0f}), {label(method)} has "
                        f"{short.accuracy_mean:.1f} % with {usual[0].iloc[0]:g} shots for {short.value:g} epochs, "
                        f"{few.accuracy_mean:.1f} % with {few.value:g} for {usual[1].iloc[0]:g}{_apart(short, few)}."
                    )


FEW = 4  # differences that a sentence can list


def _against_reference(table, name, parameter):
    """How the values differ from the reference, seed by seed: each if they are few, else how many beyond noise."""
    said = []
    for against, rows in table[table["verdict"] != ""].groupby("against", sort=False):
        none = parameter == "synthetic_per_class" and against == 0
        reference = f"{format_value(against)} ({'Real-finetune' if none else 'default'})"
        said.append(f"against {reference}{_few(rows) if len(rows) <= FEW else _many(rows)}")
    if not said:
        return f"The default value of {name} has not been run: there is nothing to hold the others against."
    return f"{name[0].upper()}{name[1:]}, {'; '.join(said)}."


def _few(rows):
    parts = []
    for (method, setting), of in rows.groupby(["method", "setting"], sort=False):
        each = [
            f"{format_difference({'mean': row.difference} | row._asdict())} at {format_value(row.value)}"
            for row in of.itertuples()
        ]  # fmt: skip
        parts.append(f"{classifier_name(method, setting)} {', '.join(each)}")
    return f": {'; '.join(parts)}"


def _many(rows):
    if (rows["verdict"] == Verdict.ONE_SEED.label).all():
        return f": of {len(rows)} differences none can be told from noise with one seed"
    parts = []
    for (method, setting), of in rows.groupby(["method", "setting"], sort=False):
        counts = {words: int((of["verdict"] == side).sum()) for side, words in ((ABOVE, "higher"), (BELOW, "lower"))}
        sides = [f"{count} {words}" for words, count in counts.items() if count]
        parts += [f"{classifier_name(method, setting)} {', '.join(sides)} of {len(of)}"] if sides else []
    beyond = int(rows["verdict"].isin([ABOVE, BELOW]).sum())
    count = f", {beyond} of {len(rows)} differences of the same seeds are more than noise ({by_chance(len(rows))})"
    return f"{count}{': ' if parts else ''}{', '.join(parts)}"
