"""Shards: any division of a stage makes the files of the whole; only the last run, without a shard, finishes it."""

import json
from itertools import chain

import pytest

from datadream_utils.diffusion.adapt import adapt, plan_adapters
from datadream_utils.diffusion.generate import generate, make_recipe, read_metadata
from datadream_utils.errors import InputError
from datadream_utils.runs.run import open_run
from datadream_utils.runs.shards import part_of


@pytest.mark.parametrize("n", [0, 1, 3, 10, 17])
@pytest.mark.parametrize("parts", [1, 2, 3, 4, 20])
def test_the_parts_are_the_whole_in_fair_shares(n, parts):
    shares = [part_of(range(n), f"{k}/{parts}") for k in range(1, parts + 1)]
    assert list(chain(*shares)) == part_of(range(n), "") == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and len(shares[0]) == max(map(len, shares))


@pytest.mark.parametrize("shard", ["5/4", "a", "0/4", "1/0", "1/", "-1/2", "1/2/3", " 1/2", "1.0/2", "²/4"])
def test_what_is_no_part_is_refused(make_params, shard):
    with pytest.raises(InputError, match="is no part of the work: write '2/4' for the second of four, '' for all"):
        open_run(make_params("adapt"), shard)


def _contents(folder):
    kinds = (".csv", ".safetensors", ".png", ".jsonl", ".txt")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in kinds and path.name != "checksums.txt"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("method, made", [("datadream_cls", [6, 3, 1]), ("datadream_dset", [1, 0, 0])])
def test_adapting_by_shards(pipe, make_run, tmp_path, capsys, method, made):
    """Groups of three, three and three and one adapters, divided by three; one adapter, which the first part makes."""

    def run_adapt(folder, shard=""):
        changes = dict(method=method, n_shot=1, adapt_epochs=1, adapters_together=3, checkpoint_every=1)
        run = make_run("adapt", shard=shard, output_root=str(tmp_path / folder), **changes)
        adapt(pipe, plan_adapters(run), run)
        return run.stage

    whole = run_adapt("whole")
    for k in (3, 1, 2):
        before = len(list((tmp_path / "parts").glob("*/adapt/adapters/*")))
        stage = run_adapt("parts", f"{k}/3")
        assert len(list(stage.folder.glob("adapters/*"))) - before == made[k - 1]
        assert not stage.finished and f"Part {k}-of-3 is done" in capsys.readouterr().out
    first = stage.folder / "shards" / "1-of-3.json"
    first.write_text(json.dumps(json.loads(first.read_text()) | {"peak_memory_mb": 10**6}))
    records = [json.loads((stage.folder / "shards" / f"{k}-of-3.json").read_text()) for k in (1, 2, 3)]
    run_adapt("parts", "1/3")
    assert "Part 1-of-3" in (printed := capsys.readouterr().out) and "done already" in printed
    stage = run_adapt("parts")
    assert stage.finished and _contents(stage.folder) == _contents(whole.folder)
    assert stage.manifest()["shards"] == records and whole.manifest()["shards"] == []
    parts = sum(record["seconds"] for record in records)
    assert stage.manifest()["seconds"] >= parts - 0.06  # rounded to a tenth
    assert stage.manifest()["peak_memory_mb"] == 10**6  # the largest of any part


def test_generating_by_shards(pipe, make_run, tmp_path):
    changes = dict(method="fakeit", n_shot=1, images_per_class=2, num_inference_steps=1)
    stages = []
    for folder, shards in {"whole": [""], "parts": ["2/3", "3/3", "1/3", ""]}.items():
        for shard in shards:
            run = make_run("generate", output_root=str(tmp_path / folder), shard=shard, **changes)
            generate(pipe, make_recipe(run), run)
            assert run.stage.finished == (run.folder / "images" / "metadata.jsonl").exists() == (not shard)
            if shard:
                assert len(list(run.folder.glob("images/*/*.png"))) == {"2/3": 6, "3/3": 12, "1/3": 20}[shard]
        stages.append(run.stage)
    whole, parts = (_contents(stage.folder) for stage in stages)
    assert whole == parts and len(read_metadata(stages[1])) == 20
