"""Files and errors: written whole or not at all, names suggested, sentences in a box."""

import resource

import pytest

from datadream_utils.errors import BOX, InputError, box, suggest
from datadream_utils.files import atomic_write, digest


def test_a_file_or_folder_appears_whole_and_replaces_another(tmp_path):
    for content in ("one", "two"):
        with atomic_write(tmp_path / "a" / "file") as temporary:
            temporary.write_text(content)
            assert not (tmp_path / "a" / "file").exists() or content == "two"
        with atomic_write(tmp_path / "a" / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert (tmp_path / "a" / "file").read_text() == "two"
    assert [path.name for path in (tmp_path / "a" / "folder").iterdir()] == ["two"]
    with pytest.raises(ZeroDivisionError), atomic_write(tmp_path / "a" / "folder") as temporary:
        temporary.mkdir()
        print(1 / 0)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["file", "folder"]
    assert (tmp_path / "a" / "folder" / "two").exists()


def test_a_folder_that_another_process_made_first_stays(tmp_path):
    (tmp_path / "data").mkdir()
    with atomic_write(tmp_path / "data", keep_existing=True) as temporary:  # an empty one is filled
        temporary.mkdir()
        (temporary / "first").touch()
    with atomic_write(tmp_path / "data", keep_existing=True) as temporary:
        temporary.mkdir()
        (temporary / "second").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "first"]
    with pytest.raises(OSError, match="strange"), atomic_write(tmp_path / "data", keep_existing=True):
        raise OSError("strange")


def test_places_where_no_file_can_be_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    for place, reason in {
        "folder": "a folder has that name",
        "file/x.csv": "a file stands where a folder must",
        "file/deeper/x.csv": "a file stands where a folder must",
        "x" * 300: "its name is too long",
    }.items():
        with pytest.raises(InputError, match=f"cannot be written: {reason}"):  # noqa: SIM117
            with atomic_write(tmp_path / place) as temporary:
                temporary.write_text("x")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]


def test_a_limit_on_the_size_of_files_is_named(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(InputError, match="x cannot be written: it is larger than files may be"):  # noqa: SIM117
            with atomic_write(tmp_path / "x") as temporary:
                temporary.write_bytes(bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_suggestion_is_one_word_or_a_short_list():
    assert suggest("adpat", ["adapt", "generate"]) == " Did you mean 'adapt'?"
    assert suggest("x", ["adapt", "generate"]) == " Known: adapt, generate."
    assert suggest("x", [f"class {i}" for i in range(1000)]) == ""


def test_a_sentence_is_boxed_between_words():
    top, text, bottom = box("InputError: " + "word " * 40 + "\nsecond line")
    lines = text.splitlines()
    assert len(lines) == 4 and lines[-1].endswith("second line") and all(len(line) < BOX + 12 for line in lines)
    assert top.count("─") == bottom.count("─") == BOX
    assert (
        "InputError: a.png is gone: put it back." in InputError("a.png is gone: put it back.")._render_traceback_()[1]
    )


def test_a_digest_names_the_file_that_is_gone(tmp_path):
    (tmp_path / "a").write_text("a", encoding="utf-8")
    with pytest.raises(InputError, match="b is not there any more"):
        digest([tmp_path / "a", tmp_path / "b"])
    assert digest([tmp_path / "a"]) == digest([tmp_path / "a"]) != digest([tmp_path / "a"] * 2)
