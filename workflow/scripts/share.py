"""Sharing a finished run: what others need to use it, with cards that say where it comes from. Nothing is uploaded.

    python -m workflow.scripts.share outputs/tiny/mnist5k_datadream_cls_16shot_seed0 --to shared/digits

    shared/digits/
        adapters/   README.md (model card), one folder per adapter, as pipe.load_lora_weights reads it
        images/     README.md (data-set card), one folder per class and metadata.jsonl: an ImageFolder
        shots.txt   the few-shot list, for the parameter shots_file
        results.csv accuracy of the run's classifiers

The cards name models and data sets by their hub ids or folder names; no path of this machine is in them.
"""

import argparse
import csv
import json
import re
import shutil
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from datadream_utils.data.dataset import load_dataset
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write
from datadream_utils.methods import get_method
from datadream_utils.params import ROOT
from datadream_utils.runs.stage import check_made

PAPER = "DataDream: Few-shot Guided Dataset Generation (Kim, Bader, Alaniz, Schmid, Akata; ECCV 2024, arXiv 2407.10910)"
LICENCES = {"MIT": "mit", "CC0": "cc0-1.0", "CC BY 4.0": "cc-by-4.0", "CC BY-SA 4.0": "cc-by-sa-4.0"}  # the hub's words
SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}  # the hub's categories
RESULT = ("dataset", "method", "setting", "n_shot", "seed", "variant", "classifier", "protocol", "accuracy", "n_test")


def share(run, to, data_root="data"):
    """Copy what a finished run has to give into the new folder ``to``, and return its path.

    run: a run's folder. Adapters, images and the classifiers' accuracies are taken from those of its stages that are
    finished; their files are checked first. Raises InputError when ``to`` exists, nothing is finished, a file was
    damaged or holds a path of this machine.
    """
    run, to = Path(run), Path(to)
    if to.exists():
        raise InputError(f"{to} exists already: name a new folder.")
    made = {path.parent.name: _json(path) for path in sorted(run.glob("*/manifest.json"))}
    if not made:
        raise InputError(f"{run} holds no finished stage: name a run's folder, such as outputs/tiny/mnist5k_...")
    for name in made:
        check_made(run / name, {"adapt": "01_adapt_sd", "generate": "02_generate"}.get(name, "03_train_clip"))
    parameters = next(iter(made.values()))["parameters"]
    data = load_dataset(parameters["dataset"], data_root, parameters["split_file"])
    with atomic_write(to, keep_existing=True) as temporary:
        temporary.mkdir()
        shots = next((run / name / "shots.txt" for name in made if (run / name / "shots.txt").is_file()), None)
        if shots:
            shutil.copyfile(shots, temporary / "shots.txt")
        if (run / "adapt" / "adapters").is_dir() and "adapt" in made:
            shutil.copytree(run / "adapt" / "adapters", temporary / "adapters")
            _model_card(made["adapt"], data, temporary / "adapters").save(temporary / "adapters" / "README.md")
        if "generate" in made:
            shutil.copytree(run / "generate" / "images", temporary / "images")
            count = sum(1 for _ in (temporary / "images" / "metadata.jsonl").open(encoding="utf-8"))
            _dataset_card(made["generate"], data, count).save(temporary / "images" / "README.md")
        _results(run, made, temporary / "results.csv")
        _check_paths(temporary, run, parameters)
    return to


def _model_card(manifest, data, folder):
    p, row = manifest["parameters"], get_method(manifest["parameters"]["method"])
    base = _base(p["sd_model"])
    adapters = sorted(path.name for path in folder.iterdir() if path.is_dir())
    card = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=manifest.get("model", {}).get("hub"),  # a folder of the project only looks like a hub id
        license="other",
        tags=["lora", "text-to-image", "few-shot", "datadream"],
    )
    text = f"""---
{card.to_yaml()}
---

# {row.label} adapters for {_word(data.name)}

{len(adapters)} LoRA adapters (rank {p["lora_rank"]}) of `{base}`, made by DataDream Notebooks after {PAPER}: one per
{_per(p)}, from {p["n_shot"]} real images per class, seed {p["seed"]}.

```python
pipe = StableDiffusionPipeline.from_pretrained("{base}")
pipe.load_lora_weights("adapters/{adapters[0]}")
```

{_table(_facts(manifest, ("adapt_epochs", "adapt_batch_size", "adapt_lr", "train_text_encoder", "resolution")))}

**Licence and origin.** They follow the licence of the base model and that of the images they were made from:
{_origin(data)} They can reproduce these images in part.
"""
    return ModelCard(text)


def _dataset_card(manifest, data, count):
    p, row = manifest["parameters"], get_method(manifest["parameters"]["method"])
    licence = LICENCES.get(data.licence, "other")
    card = DatasetCardData(
        license=licence,
        license_name=None if licence != "other" else "see-the-card",
        size_categories=_size(count),
        dataset_info={"splits": [{"name": "train", "num_examples": count}]},
        task_categories=["image-classification"],
        tags=["synthetic", "datadream"],
        pretty_name=f"{row.label} images of {_word(data.name)}",
    )
    classes = "\n".join(f"{label}. {_word(name)}" for label, name in enumerate(data.class_names))
    text = f"""---
{card.to_yaml()}
---

# {row.label} images of {_word(data.name)}

{p["images_per_class"]} synthetic images for each of {len(data.class_names)} classes, {p["resolution"]} pixels wide,
drawn by `{_base(p["sd_model"])}` with DataDream Notebooks after {PAPER}. {p["n_shot"]} real images per class were seen,
seed {p["seed"]}.

```python
datasets.load_dataset("imagefolder", data_dir="images")
```

`metadata.jsonl` has each image's label, class name, prompt, seed and adapter.

{_table(_facts(manifest, ("guidance_scale", "num_inference_steps", "start", "keep")))}

**Licence and origin.** The images follow the licence of the model that drew them and that of the real images:
{_origin(data)} They are no photographs of anything, and may copy real ones in part.

**Classes**, from label 0:

{classes}
"""
    return DatasetCard(text)


def _facts(manifest, names):
    facts = {name: manifest["parameters"].get(name) for name in names}
    facts = {name: value for name, value in facts.items() if value not in ("", None)}
    versions = ", ".join(f"{k} {manifest['versions'][k]}" for k in ("torch", "diffusers") if k in manifest["versions"])
    return facts | {
        "software": versions,
        "commit": manifest.get("git"),
        "split": re.sub(r"(?<![\w:/])/\S*/", "", manifest.get("split") or ""),
    }


def _table(facts):
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {_word(str(value))} |" for name, value in facts.items())])


def _per(p):
    row = get_method(p["method"], **({"adapter": p["adapter"]} if p.get("adapter") else {}))
    return {"class": "class", "dataset": "data set", "image": "image"}.get(row.adapter, str(row.adapter))


def _base(model):
    """A hub id as it is; of a path the last part, or the part below the project."""
    path = Path(model)
    if path.is_absolute() or ".." in path.parts:
        return path.name
    return path.as_posix() if (ROOT / model).is_dir() or model.count("/") == 1 else path.name


def _origin(data):
    said = [_word(data.source)] if data.source else []
    said += [f"licence: {_word(data.licence)}"] if data.licence else []
    if missing := " and ".join(name for name in ("source", "licence") if not getattr(data, name)):
        said.append(f"{missing} of the real images: not stated (`dataset.yaml` can say it)")
    return "; ".join(said) + "."


def _word(text):
    """A name in a card: on one line, beginning no markup and no table cell."""
    return "".join(f"&#{ord(c)};" if c in "<>|`*[]&\\" else c for c in " ".join(text.split()))


def _size(count):
    return next((name for bound, name in SIZES.items() if count < bound), "1M<n<10M")


def _check_paths(folder, run, parameters):
    """InputError when a file to be shared holds a path of this machine: the project's, the user's, a parameter's."""
    places = {f"{path.absolute()}/" for path in (ROOT, run, Path.home()) if path != Path("/")}
    places |= {value for value in parameters.values() if isinstance(value, str) and Path(value).is_absolute()}
    words = [re.escape(place.encode()) for place in sorted(places)]
    found = re.compile(rb"(?<![\w.-])(" + b"|".join(words) + rb")")  # not within a longer path: train/root/ is none
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        if place := found.search(path.read_bytes()):
            place = place[1].decode()
            raise InputError(f"{path.relative_to(folder)} of {run} holds the path {place}: nothing was shared.")


def _results(run, made, path):
    rows = [_json(run / name / "metrics.json") for name in made if name.startswith("train-")]
    if rows:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, RESULT, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row | {"dataset": Path(row["dataset"]).name} for row in rows)


def _json(path):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): run the notebook that made it again.") from None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Copy what a finished run has made, with cards.")
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--to", required=True, help="a new folder")
    parser.add_argument("--data-root", default="data", help="where data sets are, as in the parameter data_root")
    arguments = parser.parse_args()
    try:
        print(share(arguments.run, arguments.to, arguments.data_root))
    except InputError as error:
        raise SystemExit(str(error)) from None
