"""What one parameter changes: finished runs that differ in it alone, as tidy tables."""

import numpy as np
import pandas as pd

from datadream_utils.analysis.compare import compare_seeds
from datadream_utils.analysis.results import BLOCKS
from datadream_utils.params import LATER

COMMAND = (
    "snakemake -s workflow/Snakefile --cores 2 --configfile params/studies/{0}.yaml makes them; then set "
    'output_root = "outputs/tiny".'
)
STUDY = COMMAND.format("tiny")
COMPUTE = ("n_shot", "adapt_epochs")  # parameters that change how many images adaptation trains on
NOT_A_CHANGE = ("variant", "setting")  # parameters that name a run or a stage
COLUMNS = ("method", "setting", "value", "default", "reference", "seed", "accuracy", "adapted")
AGAINST = ("against", "difference", "low", "high", "verdict")


def study_command(parameter):
    """The command that makes the runs of an ablation, and the name of the study at the paper's scale."""
    kind = {"n_shot": "shots", "synthetic_per_class": "images"}.get(parameter, "ablations")
    return f"{COMMAND.format(f'tiny_{kind}')[:-1]} (paper_{kind}.yaml: at the paper's scale)."


def find_changes(stages):
    """``{run: {parameter: value}}``: what every run with a variant changes.

    stages: ``results.load_stages``. A parameter is changed where a stage has another value than the same stage of the
    run without variant. Runs that have no such run are left out.
    """
    keys = ["dataset", "method", "n_shot", "seed"]
    parameters, changes = _group_parameters(stages), {}
    plain = stages[stages["variant"] == ""].drop_duplicates("run").set_index(keys)["run"].to_dict()
    for row in stages[stages["variant"] != ""].drop_duplicates("run").itertuples():
        base = plain.get((row.dataset, row.method, row.n_shot, row.seed))
        if base is not None:
            changed = {}
            for stage, values in parameters[row.run].items():
                changed |= _find_changed(parameters[base].get(stage, values), values)
            changes[row.run] = changed
    return changes


def _find_changed(before, after):
    """The parameters of a stage that have other values than before; lora_alpha is no change where it is the rank's."""
    before, after = LATER | before, LATER | after
    changed = {
        name: value
        for name, value in after.items()
        if name not in NOT_A_CHANGE and name in before and before[name] != value
    }
    if all(values.get("lora_alpha") == values.get("lora_rank") for values in (before, after)):
        changed.pop("lora_alpha", None)
    return changed


def _group_parameters(stages):
    """``{run: {stage: parameters}}``."""
    return {run: dict(zip(rows["stage"], rows["parameters"], strict=True)) for run, rows in stages.groupby("run")}


def _find_value(parameters, name):
    """A parameter's value in a run, from the first of its stages that has it; None where none has.

    Of ``synthetic_per_class``, whose 0 means "all", the number of all.
    """
    value = next((values[name] for values in parameters.values() if name in values), LATER.get(name))
    return _find_value(parameters, "images_per_class") if name == "synthetic_per_class" and value == 0 else value


def count_adapted(stages, run):
    """Training images that pass through Stable Diffusion in a run's adaptation, over all its adapters; 0 without."""
    adapted = stages[(stages["run"] == run) & (stages["stage"] == "adapt")]
    return sum(row.n_real * row.parameters["adapt_epochs"] for row in adapted.itertuples())


def select_ablation(runs, stages, dataset, n_shot, parameter):
    """Accuracy (%) of CLIP classifiers that differ in ``parameter`` alone: a row each (``COLUMNS``).

    runs: ``results.load_results``; stages: ``results.load_stages``. For ``n_shot`` they are the runs without variant;
    for others those, and the variants that change this one parameter, with ``n_shot`` shots. Of a method and setting
    only the seeds remain that have every value; one that has a single value is left out. "default": the value of the
    runs that change nothing; "adapted": ``count_adapted`` where ``parameter`` changes it, else 0. Real-finetune, which
    takes as many steps, is the value 0 of ``synthetic_per_class`` in R+S. "reference": what the others are compared
    with, the default or that 0.
    """
    same = (runs["dataset"] == dataset) & (runs["classifier"] == "clip") & (runs["protocol"] == "sound")
    table = runs[same].assign(run=[folder.parent.name for folder in runs[same]["folder"]])
    if parameter == "n_shot":
        table = table[(table["variant"] == "") & (table["setting"] != "none")].assign(value=table["n_shot"])
    else:
        parameters = _group_parameters(stages)
        alone = {run for run, changed in find_changes(stages).items() if set(changed) == {parameter}}
        table = table[(table["n_shot"] == n_shot) & ((table["variant"] == "") | table["run"].isin(alone))]
        values = [_find_value(parameters.get(run, {}), parameter) for run in table["run"]]
        table = table.assign(value=pd.Series(values, table.index, dtype=object)).dropna(subset="value")
    adapted = {run: count_adapted(stages, run) for run in table["run"].unique()} if parameter in COMPUTE else {}
    default = table["n_shot"] == n_shot if parameter == "n_shot" else table["variant"] == ""
    table = table.assign(adapted=table["run"].map(adapted).fillna(0).astype(float), default=default, reference=default)
    table = table[list(COLUMNS)]
    if parameter == "synthetic_per_class":
        table = _add_real_finetune(table)
    kept = [_keep_common_seeds(group) for _, group in table.groupby(["method", "setting"], sort=False)]
    kept = [group for group in kept if group["value"].nunique() > 1]
    return pd.concat(kept, ignore_index=True) if kept else table.iloc[:0]


def _add_real_finetune(table):
    """``table`` with Real-finetune's runs as the value 0 of every method whose images are added to the same shots."""
    both, real = table[table["setting"] == "R+S"], table[table["setting"] == "R"]
    counts = both.groupby("method", sort=False)["value"].nunique()
    names = list(counts.index[counts > 1]) if len(real) else []
    added = (table["setting"] == "R+S") & table["method"].isin(names)
    zeros = [real.assign(method=name, setting="R+S", value=0, default=False, reference=True) for name in names]
    return pd.concat([table.assign(reference=table["reference"] & ~added), *zeros], ignore_index=True)


def _keep_common_seeds(table):
    n_values = table["value"].nunique()
    counts = table.groupby("seed")["value"].nunique()
    return table[table["seed"].isin(counts.index[counts == n_values])]


def summarise_ablation(table):
    """Mean, sample standard deviation (%) and number of seeds per method, setting and value of ``select_ablation``.

    "per_seed": ``{seed: accuracy}``. "against": the reference's value, None where there is none; "difference" to it
    (points, seed by seed), "low", "high" and "verdict": ``compare.judge_seeds``, the reference's own empty.
    """
    keys = ["setting", "method", "value"]
    rows = table.groupby(keys, as_index=False, sort=True).agg(
        n_seeds=("seed", "nunique"), accuracy_mean=("accuracy", "mean"), accuracy_std=("accuracy", "std"),
        default=("default", "all"), adapted=("adapted", "mean"), reference=("reference", "all"),
    )  # fmt: skip
    seeds = {key: part.groupby("seed")["accuracy"].mean().round(4).to_dict() for key, part in table.groupby(keys)}
    rows["per_seed"] = [seeds[key] for key in rows[keys].itertuples(index=False, name=None)]
    against = [_compare_with_reference(rows, row) for row in rows.itertuples()]
    rows = rows.assign(**{name: [values[i] for values in against] for i, name in enumerate(AGAINST)})
    order = {setting: rank for rank, setting in enumerate(BLOCKS)}
    return rows.sort_values("setting", key=lambda s: s.map(order), kind="stable", ignore_index=True)


def _compare_with_reference(rows, row):
    """``AGAINST`` of one row of ``summarise_ablation``."""
    same = rows[(rows["setting"] == row.setting) & (rows["method"] == row.method) & rows["reference"]]
    value = same["value"].iloc[0] if len(same) else None
    judged = None if row.reference or same.empty else compare_seeds(row.per_seed, same["per_seed"].iloc[0])
    return (value, *judged.values()) if judged else (value, np.nan, np.nan, np.nan, "")


def join_compute(summaries):
    """What adaptation costs and brings on synthetic images alone: the ablations in ``COMPUTE``, together.

    summaries: ``{parameter: summarise_ablation}``. Column "moved" names the parameter; methods that adapt nothing are
    left out.
    """
    kept = [table.assign(moved=name) for name, table in summaries.items() if name in COMPUTE and len(table)]
    rows = pd.concat(kept, ignore_index=True) if kept else pd.DataFrame(columns=["moved", "adapted", "setting"])
    return rows[(rows["adapted"] > 0) & (rows["setting"] == "S")]


def format_value(value):
    """A parameter's value as figures and tables print it."""
    return {True: "adapted", False: "not adapted"}[value] if isinstance(value, bool | np.bool_) else f"{value:g}"
