"""Shards: any division of a stage makes the files of the whole; only the last run, without a shard, finishes it."""

import json
from itertools import chain

import nbformat
import papermill
import pytest
from conftest import same_progress

from datadream_utils.data.dataset import few_shot
from datadream_utils.diffusion.adapt import adapt, finish_adapt, plan_adapters
from datadream_utils.diffusion.generate import generate, metadata
from datadream_utils.diffusion.recipe import Recipe
from datadream_utils.errors import InputError
from datadream_utils.params import NOTEBOOKS, ROOT, read_params_file
from datadream_utils.runs.shards import part_of
from datadream_utils.runs.stage import stage as run_stage


@pytest.mark.parametrize("n", [0, 1, 3, 10, 17])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 20])
def test_the_parts_are_the_whole_in_fair_shares(n, parts):
    shares = [part_of(range(n), f"{k}/{parts}") for k in range(1, parts + 1)]
    assert list(chain(*shares)) == part_of(range(n), "") == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and len(shares[0]) == max(map(len, shares))


@pytest.mark.parametrize("shard", ["5/4", "a", "0/4", "1/0", "1/", "-1/2", "1/2/3", " 1/2", "1.0/2", "²/4"])
@pytest.mark.parametrize("stage", ["adapt", "generate"])
def test_what_is_no_part_is_refused(make_params, stage, shard):
    with pytest.raises(InputError, match="is no part of the work: write '2/4' for the second of four, '' for all"):
        make_params(stage, shard=shard)


def _contents(folder):
    kinds = (".csv", ".safetensors", ".png", ".jsonl", ".txt")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in kinds and path.name != "checksums.txt"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _adapt(pipe, data, p):
    stage, shots = run_stage(p, "adapt"), few_shot(data, p.n_shot, p.seed)
    if stage.begin():
        adapt(pipe, plan_adapters(p.system, data, shots), p, stage, same_progress)
        finish_adapt(stage, data, shots, p, "cpu")
    return stage


@pytest.mark.parametrize("method, made", [("datadream_cls", [6, 3, 1]), ("datadream_dset", [1, 0, 0])])
def test_adapting_by_shards(pipe, mnist, make_params, tmp_path, capsys, method, made):
    """Groups of three, three and three and one adapters, divided by three; one adapter, which the first part makes."""
    changes = dict(method=method, n_shot=1, adapt_epochs=1, adapters_together=3, checkpoint_every=1)
    whole = _adapt(pipe, mnist, make_params("adapt", **changes, output_root=str(tmp_path / "whole")))
    for k in (3, 1, 2):
        before = len(list((tmp_path / "parts").glob("*/adapt/adapters/*")))
        stage = _adapt(
            pipe, mnist, make_params("adapt", **changes, output_root=str(tmp_path / "parts"), shard=f"{k}/3")
        )
        assert len(list(stage.folder.glob("adapters/*"))) - before == made[k - 1]
        assert not stage.finished and f"Part {k}-of-3 is done" in capsys.readouterr().out
    records = [json.loads((stage.folder / "shards" / f"{k}-of-3.json").read_text()) for k in (1, 2, 3)]
    _adapt(pipe, mnist, make_params("adapt", **changes, output_root=str(tmp_path / "parts"), shard="1/3"))
    assert "Part 1-of-3" in (said := capsys.readouterr().out) and "done already" in said
    stage = _adapt(pipe, mnist, make_params("adapt", **changes, output_root=str(tmp_path / "parts")))
    assert stage.finished and _contents(stage.folder) == _contents(whole.folder)
    assert stage.manifest()["shards"] == records and whole.manifest()["shards"] == []
    parts = sum(record["seconds"] for record in records)
    assert stage.manifest()["seconds"] >= parts - 0.06  # rounded to a tenth


def test_generating_by_shards(pipe, mnist, make_params, tmp_path):
    changes = dict(method="fakeit", n_shot=1, images_per_class=2, num_inference_steps=1)
    stages = []
    for folder, shards in {"whole": [""], "parts": ["2/3", "3/3", "1/3", ""]}.items():
        for shard in shards:
            p = make_params("generate", **changes, output_root=str(tmp_path / folder), shard=shard)
            stage, shots = run_stage(p, "generate"), few_shot(mnist, 1, 0)
            assert stage.begin()
            generate(pipe, Recipe(p.system, mnist, shots, 0), p, stage, None, None, same_progress)
            stage.finish("cpu")
            assert stage.finished == (stage.folder / "images" / "metadata.jsonl").exists() == (not shard)
            if shard:
                assert len(list(stage.folder.glob("images/*/*.png"))) == {"2/3": 6, "3/3": 12, "1/3": 20}[shard]
        stages.append(stage)
    assert _contents(stages[0].folder) == _contents(stages[1].folder) and len(metadata(stages[1])) == 20


@pytest.mark.slow
def test_the_notebooks_by_shards(tmp_path):
    """A part ends without error and says what is missing; the last run shows the pictures."""
    values = read_params_file(ROOT / "params" / "smoke.yaml") | {"adapters_together": 3, "data_root": str(tmp_path)}
    contents, texts = [], []
    for folder, shards in {"whole": [""], "parts": ["1/2", "2/2", ""]}.items():
        for stage in ("adapt", "generate"):
            for k, shard in enumerate(shards):
                source = ROOT / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb"
                output = tmp_path / f"{folder}-{stage}-{k}.ipynb"
                known = values | {"output_root": str(tmp_path / folder), "shard": shard}
                options = dict(kernel_name="python3", progress_bar=False, cwd=ROOT)
                papermill.execute_notebook(str(source), str(output), known, **options)
                shown = [cell.get("outputs") for cell in nbformat.read(output, 4).cells]
                texts.append((shard, "shard = '' after all parts" in json.dumps(shown)))
        contents.append({path.name: _contents(path) for path in (tmp_path / folder).glob("*/*")})
    assert all(said == bool(shard) for shard, said in texts) and len(texts) == 8
    assert contents[0] == contents[1] and contents[0].keys() == {"adapt", "generate"}
