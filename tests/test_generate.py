"""Generation: images are functions of (seed, class, index); resuming changes nothing; ImageFolder layout."""

import json

import numpy as np
import pytest
from conftest import same_progress

from datadream_utils.errors import InputError
from datadream_utils.generate import class_adapter, class_prompts, generate, generated_files, image_seed, sample
from datadream_utils.methods import METHODS, get_method
from datadream_utils.run import needs
from datadream_utils.run import stage as run_stage


def test_an_image_is_the_same_alone_and_in_a_batch(pipe):
    prompts, seeds = ["a photo of a seven"] * 5, [image_seed(0, "7", i) for i in range(5)]
    batch = sample(pipe, prompts, seeds, 2.0, 6, 32)
    for i in (0, 3):
        (alone,) = sample(pipe, prompts[:1], seeds[i : i + 1], 2.0, 6, 32)
        assert np.abs(np.asarray(alone, dtype=int) - np.asarray(batch[i], dtype=int)).max() <= 1
    assert np.abs(np.asarray(batch[0], dtype=int) - np.asarray(batch[1], dtype=int)).mean() > 3


def test_every_image_has_its_own_seed():
    seeds = {image_seed(s, c, i) for s in range(3) for c in ("a", "b", "c") for i in range(100)}
    assert len(seeds) == 900


def _generate(pipe, mnist, p):
    stage = run_stage(p, "generate")
    if stage.begin():
        generate(pipe, get_method(p.method), mnist, p, stage, None, same_progress)
    return stage


def test_a_killed_run_resumes_to_the_same_bytes(pipe, mnist, make_params, tmp_path):
    contents = []
    for name in ("once", "resumed"):
        changes = dict(method="fakeit", images_per_class=3, generate_batch_size=2, num_inference_steps=2)
        p = make_params("generate", **changes, output_root=str(tmp_path / name))
        stage = _generate(pipe, mnist, p)
        files = [path for files in generated_files(stage, 10) for path in files]
        if name == "resumed":  # lost: a whole class, half a batch, and the list
            for path in [*files[:3], files[4], stage.folder / "images" / "metadata.jsonl"]:
                path.unlink()
            stage = _generate(pipe, mnist, p)
        contents.append([path.read_bytes() for path in files])
    assert contents[0] == contents[1] and len(set(contents[0])) == 30


def test_the_set_is_an_image_folder_with_metadata(pipe, mnist, make_params):
    p = make_params("generate", method="fakeit", images_per_class=1, num_inference_steps=1)
    folder = _generate(pipe, mnist, p).folder / "images"
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert [row["class_name"] for row in rows] == list(mnist.class_names)
    assert all((folder / row["file_name"]).is_file() for row in rows)
    assert rows[7]["prompt"] == "seven, a digit" and rows[7]["seed"] == image_seed(0, "7", 0)
    on_disk = {str(path.relative_to(folder)) for path in folder.rglob("*.png")}
    assert on_disk == {row["file_name"] for row in rows}


def test_prompts_follow_the_method(mnist):
    assert class_prompts(METHODS["datadream_cls"], mnist)[7] == "a photo of a seven"
    assert class_prompts(METHODS["fakeit"], mnist)[7] == "seven, a digit"


def test_each_class_finds_its_adapter(mnist, make_params):
    p = make_params("adapt")
    stage = run_stage(p, "adapt")
    assert class_adapter(METHODS["datadream_cls"], mnist, 7, stage).name == "0007_seven"
    assert class_adapter(METHODS["datadream_dset"], mnist, 7, stage).name == "all_classes"
    assert class_adapter(METHODS["fakeit"], mnist, 7, stage) is None


def test_stages_out_of_order_say_what_to_run(make_params):
    with pytest.raises(InputError, match="adapt is not finished: run 01_adapt_sd first with the same dataset, method"):
        needs(make_params("generate"), "adapt", "01_adapt_sd")


def test_other_parameters_never_overwrite(make_params, capsys):
    stage = run_stage(make_params("generate"), "generate")
    stage.begin()
    stage.finish()
    with pytest.raises(InputError, match="was made with guidance_scale=2.0, not 3.0: set 'variant'"):
        run_stage(make_params("generate", guidance_scale=3.0), "generate")
    again = run_stage(make_params("generate", num_threads=2), "generate")  # how, not what
    assert not again.begin() and "finished already" in capsys.readouterr().out
    assert run_stage(make_params("generate", guidance_scale=3.0, variant="strong"), "generate").begin()


def test_manifest_tells_how_to_make_it_again(make_params):
    stage = run_stage(make_params("generate"), "generate")
    stage.begin()
    manifest = stage.finish(shots=["a.png"])
    assert manifest == stage.manifest()
    assert manifest["parameters"]["seed"] == 0 and manifest["shots"] == ["a.png"]
    assert {"torch", "diffusers", "transformers", "peft"} <= manifest["versions"].keys()
    assert {"seconds", "device", "git", "python", "num_threads"} <= manifest.keys()
