"""The picture of the method that the command draws from a finished run."""

import json

import numpy as np
import pytest
from conftest import write_stage
from PIL import Image

from datadream_utils.errors import InputError
from workflow.scripts import overview


def _write_run(root, dataset):
    """A run with one shot whose generate stage has two green pictures of each of two classes."""
    folder = root / "run" / "generate" / "images"
    names = [f"{label}/{i}.png" for label in (0, 1) for i in (0, 1)]
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (0, 200, 0)).save(folder / name)
    rows = [json.dumps({"file_name": name, "label": int(name[0])}) for name in names]
    (folder / "metadata.jsonl").write_text("\n".join(rows), encoding="utf-8")
    write_stage(root, "run", "generate", dataset=str(dataset), n_shot=1, split_file="", shots_file="")
    return root / "run"


def test_the_command_draws_the_shots_and_images_of_a_run(folder_dataset, tmp_path, monkeypatch, capsys):
    run = _write_run(tmp_path / "outputs", folder_dataset)
    pictures = [np.asarray(image.get_array()) for image in overview.draw_run(run).axes[0].images]
    assert [picture.shape[0] for picture in pictures[2:6]] == [8] * 4 and (pictures[2] == (0, 200, 0)).all()
    assert len(pictures) == 2 + 4 + 4  # a shot, two images and two test pictures of each class
    monkeypatch.setattr("sys.argv", ["overview", str(run), str(tmp_path / "here" / "mine.png")])
    overview.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / "here" / "mine.png")
    assert "02 draw; drawn images" in Image.open(tmp_path / "here" / "mine.png").info["Description"]


def test_a_run_without_images_is_named(folder_dataset, tmp_path):
    write_stage(tmp_path / "outputs", "run", "adapt", dataset=str(folder_dataset))
    with pytest.raises(InputError, match="run has no generated images: run 02_generate first"):
        overview.draw_run(tmp_path / "outputs" / "run")
