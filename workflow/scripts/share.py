"""Copy a finished run into a folder for other people, with cards that state where everything comes from.

    python -m workflow.scripts.share outputs/tiny/mnist5k_datadream_cls_16shot_seed0 --to shared/digits

    shared/digits/
        adapters/   README.md (model card) and one folder per adapter, as pipe.load_lora_weights reads it
        images/     README.md (data-set card), one folder per class and metadata.jsonl: an ImageFolder
        shots.txt   the few-shot list, for the parameter shots_file
        results.csv the accuracies of the run's classifiers

Nothing is uploaded. The cards name models and data sets by hub id or folder name; they hold no path of this machine.
"""

import argparse
import csv
import re
import shutil
from pathlib import Path

from huggingface_hub import DatasetCard, DatasetCardData, ModelCard, ModelCardData

from datadream_utils.analysis.tables import escape_markdown
from datadream_utils.data.dataset import load_dataset
from datadream_utils.errors import InputError
from datadream_utils.files import atomic_write, read_json
from datadream_utils.methods import get_method
from datadream_utils.params import ROOT
from datadream_utils.runs.stage import Stage

TEMPLATES = Path(__file__).parent / "templates"
PAPER = "DataDream: Few-shot Guided Dataset Generation (Kim, Bader, Alaniz, Schmid, Akata; ECCV 2024, arXiv 2407.10910)"
HUB_LICENCES = {"MIT": "mit", "CC0": "cc0-1.0", "CC BY 4.0": "cc-by-4.0", "CC BY-SA 4.0": "cc-by-sa-4.0"}
HUB_SIZES = {1_000: "n<1K", 10_000: "1K<n<10K", 100_000: "10K<n<100K", 1_000_000: "100K<n<1M"}  # by upper bound
RESULTS = ("dataset", "method", "setting", "n_shot", "seed", "variant", "classifier", "protocol", "accuracy", "n_test")


def share_run(run, target, data_root="data"):
    """Copy the finished stages of a run into the new folder ``target``; returns its path.

    run: the run's folder; the checksums of its finished stages are verified first. Raises InputError when ``target``
    exists, no stage is finished, a file is damaged, or a file to be shared holds a path of this machine.
    """
    run, target = Path(run), Path(target)
    if target.exists():
        raise InputError(f"{target} exists already: name a new folder.")
    stages = [Stage(path.parent.name, path.parent) for path in sorted(run.glob("*/manifest.json"))]
    if not stages:
        raise InputError(f"{run} holds no finished stage: name a run's folder, such as outputs/tiny/mnist5k_...")
    for stage in stages:
        stage.check_files()
    manifests = {stage.name: stage.manifest() for stage in stages}
    parameters = next(iter(manifests.values()))["parameters"]
    data = load_dataset(parameters["dataset"], data_root, parameters["split_file"])
    with atomic_write(target, keep_existing=True) as temporary:
        temporary.mkdir()
        lists = [run / stage / "shots.txt" for stage in manifests if (run / stage / "shots.txt").is_file()]
        if lists:
            lines = lists[0].read_text(encoding="utf-8").splitlines(keepends=True)
            text = "".join(_without_folders(line) if line.startswith("# split:") else line for line in lines)
            (temporary / "shots.txt").write_text(text, encoding="utf-8")
        if "adapt" in manifests and (run / "adapt" / "adapters").is_dir():
            shutil.copytree(run / "adapt" / "adapters", temporary / "adapters")
            card = make_model_card(manifests["adapt"], data, temporary / "adapters")
            card.save(temporary / "adapters" / "README.md")
        if "generate" in manifests:
            shutil.copytree(run / "generate" / "images", temporary / "images")
            card = make_dataset_card(manifests["generate"], data, temporary / "images")
            card.save(temporary / "images" / "README.md")
        _write_results(run, manifests, temporary / "results.csv")
        _check_for_paths(temporary, run, parameters)
    return target


def make_model_card(manifest, data, folder):
    """The ``ModelCard`` of the adapters in ``folder``."""
    p = manifest["parameters"]
    method = get_method(p["method"], adapter=p.get("adapter") or "")
    card_data = ModelCardData(
        library_name="diffusers",
        pipeline_tag="text-to-image",
        base_model=manifest.get("model", {}).get("hub"),  # None for a folder: its name may look like a hub id
        license="other",
        tags=["lora", "text-to-image", "few-shot", "datadream"],
    )
    return ModelCard.from_template(
        card_data,
        template_path=TEMPLATES / "model_card.md",
        method=method.label,
        dataset=escape_markdown(data.name),
        adapters=sorted(path.name for path in folder.iterdir() if path.is_dir()),
        adapter_per={"dataset": "data set"}.get(method.adapter, method.adapter),
        rank=p["lora_rank"],
        model=_name_model(p["sd_model"]),
        n_shot=p["n_shot"],
        seed=p["seed"],
        facts=_list_facts(manifest, "adapt_epochs", "adapt_batch_size", "adapt_lr", "train_text_encoder", "resolution"),
        origin=describe_origin(data),
        paper=PAPER,
    )


def make_dataset_card(manifest, data, folder):
    """The ``DatasetCard`` of the generated images in ``folder``."""
    p, licence = manifest["parameters"], HUB_LICENCES.get(data.licence, "other")
    with (folder / "metadata.jsonl").open(encoding="utf-8") as file:
        n_images = sum(1 for _ in file)
    card_data = DatasetCardData(
        license=licence,
        license_name="see-the-card" if licence == "other" else None,
        size_categories=next((name for bound, name in HUB_SIZES.items() if n_images < bound), "1M<n<10M"),
        dataset_info={"splits": [{"name": "train", "num_examples": n_images}]},
        task_categories=["image-classification"],
        tags=["synthetic", "datadream"],
        pretty_name=f"{get_method(p['method']).label} images of {escape_markdown(data.name)}",
    )
    return DatasetCard.from_template(
        card_data,
        template_path=TEMPLATES / "dataset_card.md",
        images_per_class=p["images_per_class"],
        classes=[escape_markdown(name) for name in data.class_names],
        resolution=p["resolution"],
        model=_name_model(p["sd_model"]),
        n_shot=p["n_shot"],
        seed=p["seed"],
        facts=_list_facts(manifest, "guidance_scale", "num_inference_steps", "start", "keep"),
        origin=describe_origin(data),
        paper=PAPER,
    )


def describe_origin(data):
    """A sentence with the source and the licence of the real images; it names what the data set does not state."""
    stated = [escape_markdown(data.source)] if data.source else []
    stated += [f"licence: {escape_markdown(data.licence)}"] if data.licence else []
    if missing := " and ".join(name for name in ("source", "licence") if not getattr(data, name)):
        stated.append(f"{missing} of the real images: not stated (`dataset.yaml` can state it)")
    return "; ".join(stated) + "."


def _list_facts(manifest, *names):
    """``{name: text}`` of the named parameters and of the versions, the commit and the split."""
    facts = {name: manifest["parameters"].get(name) for name in names}
    facts = {name: value for name, value in facts.items() if value not in ("", None)}
    versions = manifest["versions"]
    facts |= {
        "software": ", ".join(f"{name} {versions[name]}" for name in ("torch", "diffusers") if name in versions),
        "commit": manifest.get("git"),
        "split": _without_folders(manifest.get("split") or ""),
    }
    return {name: escape_markdown(str(value)) for name, value in facts.items()}


def _without_folders(text):
    """``text`` in which each absolute path is a file name."""
    return re.sub(r"(?<![\w:/])/\S*/", "", text)


def _name_model(model):
    """A model's name for a card: a hub id or a path within the project as it is, else the last part of the path."""
    path = Path(model)
    if path.is_absolute() or ".." in path.parts:
        return path.name
    return path.as_posix() if (ROOT / model).is_dir() or model.count("/") == 1 else path.name


def _check_for_paths(folder, run, parameters):
    """InputError for a file that holds a path of this machine: the project's, the user's or a parameter's."""
    places = {f"{path.absolute()}/" for path in (ROOT, run, Path.home()) if path != Path("/")}
    places |= {value for value in parameters.values() if isinstance(value, str) and Path(value).is_absolute()}
    alternatives = b"|".join(re.escape(place.encode()) for place in sorted(places))
    pattern = re.compile(rb"(?<![\w.-])(" + alternatives + rb")")  # /root/ does not match within train/root/
    for path in (path for path in sorted(folder.rglob("*")) if path.is_file()):
        if match := pattern.search(path.read_bytes()):
            file, place = path.relative_to(folder), match[1].decode()
            raise InputError(f"{file} of {run} holds the path {place}: nothing was shared.")


def _write_results(run, manifests, path):
    """Write a csv row for each classifier of the run, if there is one."""
    stages = [stage for stage in manifests if stage.startswith("train-")]
    rows = [read_json(run / stage / "metrics.json", "run 03_train_clip again") for stage in stages]
    if rows:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, RESULTS, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(row | {"dataset": Path(row["dataset"]).name} for row in rows)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m workflow.scripts.share",
        description="Copy a finished run into a folder for other people, with cards. Nothing is uploaded.",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--to", required=True, help="a new folder")
    parser.add_argument(
        "--data-root", default="data", help="the folder of the data sets, as in the parameter data_root"
    )
    arguments = parser.parse_args()
    try:
        print(share_run(arguments.run, arguments.to, arguments.data_root))
    except InputError as error:
        raise SystemExit(str(error)) from None
