"""The paper's data sets, in their archives' and the hub's own form, through all four notebooks."""

import io
import json

import numpy as np
import papermill
import pytest
from PIL import Image
from scipy.io import savemat
from test_sources import class_folder_archive, hub_rows, pets_archive, touch, write_parquet

from datadream_utils.data.known import read_known
from datadream_utils.params import NOTEBOOKS, ROOT, STAGES, read_params_file


def _flowers(root):
    for i in range(1, 511):
        touch(root / "jpg" / f"image_{i:05d}.jpg")
    savemat(root / "imagelabels.mat", {"labels": np.arange(510)[None] % 102 + 1})


def _imagenet_100(root):
    for split, count in (("train", 2), ("val", 1)):
        for key in read_known("imagenet_100").keys:
            for i in range(count):
                touch(root / split / key / f"{i}.JPEG")


def _parquet(root):
    names = [name for _, name in zip(range(10), read_known("eurosat").keys, strict=False)]
    write_parquet(root / "data", {"train": hub_rows(names, 4), "test": hub_rows(names, 2, start=100)})


FORMS = {
    "eurosat": lambda root: class_folder_archive(root.parent, "eurosat", "2750", 5),
    "dtd": lambda root: class_folder_archive(root.parent, "dtd", "dtd/images", 5),
    "flowers102": _flowers,
    "pets": lambda root: pets_archive(root, 5),
    "imagenet_100": _imagenet_100,
    "eurosat as parquet": _parquet,
}
EVERY_FORM = [pytest.param(form, marks=[pytest.mark.slow] if i else []) for i, form in enumerate(FORMS)]


@pytest.mark.parametrize("form", EVERY_FORM)
def test_all_four_notebooks_run_on_every_form(tmp_path, form):
    name = form.split()[0]
    root = tmp_path / "data" / name
    root.mkdir(parents=True)
    FORMS[form](root)
    rng = np.random.default_rng(0)
    for path in root.rglob("*.[jJ][pP]*"):  # pictures in place of empty files
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (36, 48, 3), dtype=np.uint8)).save(stream, "JPEG")
        path.write_bytes(stream.getvalue())
    parameters = read_params_file(ROOT / "params" / "smoke.yaml")
    parameters |= {"dataset": name, "data_root": str(tmp_path / "data"), "method": "datadream_dset", "n_shot": 1}
    parameters |= {"adapt_epochs": 1, "adapt_batch_size": 16, "images_per_class": 1, "train_epochs": 1, "val_every": 1}
    parameters |= {"train_warmup_epochs": 0.0, "output_root": str(tmp_path / "out"), "figures_dir": str(tmp_path / "f")}
    for stage, notebook in NOTEBOOKS.items():
        known = {key: value for key, value in parameters.items() if key in STAGES[stage].model_fields}
        source, output = ROOT / "notebooks" / f"{notebook}.ipynb", tmp_path / f"{notebook}.ipynb"
        papermill.execute_notebook(str(source), str(output), known, kernel_name="python3", progress_bar=False, cwd=ROOT)
    (metrics,) = (json.loads(path.read_text()) for path in tmp_path.glob("out/*/train-R+S/metrics.json"))
    manifest = json.loads(next(tmp_path.glob("out/*/train-R+S/manifest.json")).read_text())
    assert set(metrics["per_class"]) == set(read_known(name).class_names) and metrics["dataset"] == name
    assert manifest["split"] and manifest["evaluated_on"] == "test"
    first = json.loads(next(tmp_path.glob("out/*/generate/images/metadata.jsonl")).read_text().splitlines()[0])
    domain = read_known(name).facts["domain"]
    assert first["prompt"] == f"a {domain + ' ' if domain else ''}photo of a {read_known(name).class_names[0]}"
    assert list((tmp_path / "f").glob("main_results.md"))
