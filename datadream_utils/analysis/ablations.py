"""What one parameter does: finished runs that differ in it alone, as tidy tables."""

import numpy as np
import pandas as pd

from datadream_utils.analysis.noise import SAID, by_seed
from datadream_utils.analysis.results import BLOCKS
from datadream_utils.analysis.stages import changes, run_parameters, value_of
from datadream_utils.methods import get_method

# Parameter: what an axis says.
ABLATIONS = {
    "n_shot": "real images per class",
    "synthetic_per_class": "generated images per class",
    "adapt_epochs": "epochs of adaptation",
    "train_text_encoder": "text encoder",
    "lora_rank": "rank of the adapters",
    "guidance_scale": "guidance scale",
    "real_weight": "weight of the real images' loss",
}
SNAKEMAKE = (
    "snakemake -s workflow/Snakefile --cores 2 --configfile params/studies/{0}.yaml makes them; then set "
    'output_root = "outputs/tiny".'
)
STUDY = SNAKEMAKE.format("tiny")
COMPUTE = ("n_shot", "adapt_epochs")  # what changes how many images adaptation looks at
COLUMNS = ("method", "setting", "value", "default", "reference", "seed", "accuracy", "adapted")
AGAINST = ("against", "difference", "low", "high", "verdict")
NOTE = (
    "Difference: to the row called reference, of the same seeds, with its 95 % interval over seeds (Student's t); one "
    "such interval of twenty misses 0 by chance."
)


def study_that_moves(parameter):
    """The command that makes the runs of an ablation, and the study of the paper's scale."""
    kind = {"n_shot": "shots", "synthetic_per_class": "images"}.get(parameter, "ablations")
    return f"{SNAKEMAKE.format(f'tiny_{kind}')[:-1]} (paper_{kind}.yaml: at the paper's scale)."


def ablation(runs, stages, dataset, n_shot, parameter, classifier="clip"):
    """Accuracy (%) of classifiers that differ in ``parameter`` alone: a row each (``COLUMNS``).

    runs: ``results.load_results``; stages: ``stages.load_stages``. For ``n_shot`` they are the runs without variant;
    for others those, and the variants that change this one parameter, with ``n_shot`` shots. Of a method and setting
    only the seeds remain that have every value; one that has a single value is left out. "default": the value of the
    runs that change nothing; "adapted": ``adapted_steps`` where ``parameter`` changes them, else 0. Real-finetune,
    which takes as many steps, is the value 0 of ``synthetic_per_class`` in R+S. "reference": what the others are held
    against, the default or that 0.
    """
    same = (runs["dataset"] == dataset) & (runs["classifier"] == classifier) & (runs["protocol"] == "sound")
    table = runs[same].assign(run=[folder.parent.name for folder in runs[same]["folder"]])
    if parameter == "n_shot":
        table = table[(table["variant"] == "") & (table["setting"] != "none")].assign(value=table["n_shot"])
    else:
        parameters, changed = run_parameters(stages), changes(stages)
        alone = {run: base for run, (change, base) in changed.items() if set(change) == {parameter}}
        table = table[(table["n_shot"] == n_shot) & ((table["variant"] == "") | table["run"].isin(alone))]
        values = [_value(parameters.get(run, {}), parameter) for run in table["run"]]
        table = table.assign(value=pd.Series(values, table.index, dtype=object)).dropna(subset="value")
    adapted = {run: adapted_steps(stages, run) for run in table["run"].unique()} if parameter in COMPUTE else {}
    default = table["n_shot"] == n_shot if parameter == "n_shot" else table["variant"] == ""
    table = table.assign(adapted=table["run"].map(adapted).fillna(0).astype(float), default=default, reference=default)
    table = table[list(COLUMNS)]
    if parameter == "synthetic_per_class":
        table = _with_none(table)
    kept = [_with_common_seeds(group) for _, group in table.groupby(["method", "setting"], sort=False)]
    kept = [group for group in kept if group["value"].nunique() > 1]
    return pd.concat(kept, ignore_index=True) if kept else table.iloc[:0]


def _value(parameters, name):
    """A parameter's value in a run; of ``synthetic_per_class``, whose 0 is "all", how many those are."""
    value = value_of(parameters, name)
    return value_of(parameters, "images_per_class") if name == "synthetic_per_class" and value == 0 else value


def _with_none(table):
    """``table``, and Real-finetune's runs for each method whose images are added to the same shots: with 0 of them."""
    both, real = table[table["setting"] == "R+S"], table[table["setting"] == "R"]
    counts = both.groupby("method", sort=False)["value"].nunique()
    names = list(counts.index[counts > 1]) if len(real) else []
    held = (table["setting"] == "R+S") & table["method"].isin(names)
    none = [real.assign(method=name, setting="R+S", value=0, default=False, reference=True) for name in names]
    return pd.concat([table.assign(reference=table["reference"] & ~held), *none], ignore_index=True)


def _with_common_seeds(table):
    n_values = table["value"].nunique()
    counts = table.groupby("seed")["value"].nunique()
    return table[table["seed"].isin(counts.index[counts == n_values])]


def summary(table):
    """Mean, sample standard deviation and number of seeds per method, setting and value of ``ablation``.

    "per_seed": ``{seed: accuracy}``. "against": the reference's value, None where there is none; "difference" to it
    (points, seed by seed), "low", "high" and "verdict": ``noise.against_noise``, the reference's own empty.
    """
    keys = ["setting", "method", "value"]
    rows = table.groupby(keys, as_index=False, sort=True).agg(
        n_seeds=("seed", "nunique"), accuracy_mean=("accuracy", "mean"), accuracy_std=("accuracy", "std"),
        default=("default", "all"), adapted=("adapted", "mean"), reference=("reference", "all"),
    )  # fmt: skip
    seeds = {key: part.groupby("seed")["accuracy"].mean().round(4).to_dict() for key, part in table.groupby(keys)}
    rows["per_seed"] = [seeds[key] for key in rows[keys].itertuples(index=False, name=None)]
    found = [_against(rows, row) for row in rows.itertuples()]
    rows = rows.assign(**{name: [one[i] for one in found] for i, name in enumerate(AGAINST)})
    order = {setting: rank for rank, setting in enumerate(BLOCKS)}
    return rows.sort_values("setting", key=lambda s: s.map(order), kind="stable", ignore_index=True)


def _against(rows, row):
    """``AGAINST`` of one row of ``summary``: how it differs from the reference of its method and setting."""
    same = rows[(rows["setting"] == row.setting) & (rows["method"] == row.method) & rows["reference"]]
    nan, value = float("nan"), same["value"].iloc[0] if len(same) else None
    found = None if row.reference or same.empty else by_seed(row.per_seed, same["per_seed"].iloc[0])
    return (value, *found.values()) if found else (value, nan, nan, nan, "")


def compute(summaries):
    """What adaptation costs against what it brings: the rows of ``summary`` of the ``COMPUTE`` ablations together.

    summaries: ``{parameter: summary}``. Column "moved" names the parameter; methods that adapt nothing are left out.
    """
    kept = [table.assign(moved=name) for name, table in summaries.items() if name in COMPUTE and len(table)]
    rows = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=["moved", "adapted", "setting"])
    return rows[(rows["adapted"] > 0) & (rows["setting"] == "S")]


def value_words(value):
    """A parameter's value as figures and tables say it."""
    return {True: "adapted", False: "not adapted"}[value] if isinstance(value, bool | np.bool_) else f"{value:g}"


def texts(table, parameter):
    """``summary`` as csv and Markdown, by kind."""
    extra = parameter in COMPUTE
    moved = ABLATIONS.get(parameter, parameter) + " | images adapted on" * extra
    lines = [NOTE, "", f"| Method | R | S | {moved} | Accuracy (%) | Seeds | Difference | 95 % over seeds | It is |"]
    lines.append("|---|:-:|:-:|---:|" + "---:|" * extra + "---:|---:|---:|:-:|---|")
    for row in table.itertuples():
        ticks = " | ".join("✓" if kind in row.setting else "" for kind in "RS")
        spread = "" if pd.isna(row.accuracy_std) else f" ± {row.accuracy_std:.1f}"
        label = get_method(row.method).label
        value = value_words(row.value) + (f" | {row.adapted:,.0f}" if extra else "")
        apart = "reference" if row.reference else "" if pd.isna(row.difference) else f"{row.difference:+.1f}"
        interval = "" if pd.isna(row.low) else f"{row.low:+.1f} to {row.high:+.1f}"
        cells = [label, ticks, value, f"{row.accuracy_mean:.1f}{spread}", str(row.n_seeds), apart, interval]
        lines.append(f"| {' | '.join(cells)} | {SAID.get(row.verdict, '')} |")
    return {"csv": table.round(4).to_csv(index=False, lineterminator="\n"), "md": "\n".join(lines) + "\n"}


def adapted_steps(stages, run):
    """Training images that pass through Stable Diffusion in a run's adaptation, over all its adapters; 0 without."""
    adapted = stages[(stages["run"] == run) & (stages["stage"] == "adapt")]
    return sum(row.n_real * row.parameters["adapt_epochs"] for row in adapted.itertuples())
