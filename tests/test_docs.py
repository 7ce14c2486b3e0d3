"""The README and the documentation: links resolve, every page is in the menu, what they name is there."""

import ast
import importlib.util
import re
import shlex
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

from datadream_utils.catalogue import FIGURES, TABLES
from datadream_utils.data.known import known_names, read_known
from datadream_utils.params import ROOT, parameter_names
from workflow.scripts.reference import tables, write_tables
from workflow.scripts.study import read_study

README = ROOT / "README.md"
PAGES = sorted((ROOT / "docs").rglob("*.md"))


class Menu(yaml.SafeLoader):
    """Reads mkdocs.yml, which takes some values from the environment."""


Menu.add_constructor("!ENV", lambda loader, node: loader.construct_sequence(node))
MENU = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Menu)
ELSEWHERE = MENU["extra"]["elsewhere"]  # {page of the site: its file in the repository}
WRITTEN = [*PAGES, *(ROOT / file for file in ELSEWHERE.values())]
ALL = [README, *WRITTEN]
SITE_HAS = ("docs/", "notebooks/", "solutions/", "figures/tiny/", "figures/overview.png", "params/")  # docs/hooks.py
LINK = re.compile(r"\]\((?![a-z]+:)([^)\s]*)\)")
FENCE = re.compile(r"^```.*?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def relative(path):
    return path.relative_to(ROOT).as_posix()


def prose(path):
    """The text of a page without its fenced blocks."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def anchors(path):
    """The anchors of a page's headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands():
    """``(page, words)`` of every command in the fenced blocks and between backticks of all pages."""
    for path in ALL:
        text = path.read_text(encoding="utf-8")
        lines = [line for block in FENCE.findall(text) for line in block.splitlines()]
        lines += [" ".join(code.split()) for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(path))]
        for line in lines:
            line = line.split(" #")[0].strip().removeprefix("!")
            if re.match(r"(\S*/)?(make|python|snakemake|papermill|pip|accelerate|torchrun) ", line):
                yield relative(path), shlex.split(line)


COMMANDS = list(commands())


def starting_with(program):
    return [(page, words) for page, words in COMMANDS if words[0].rpartition("/")[2] == program]


def test_the_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150 and len(text.split()) <= 1400


def test_the_two_commands_and_the_state_come_first():
    lines = README.read_text(encoding="utf-8").splitlines()
    first_screen = "\n".join(lines[:30])
    assert "make demo" in first_screen and "make lab" in first_screen and "## Status" in first_screen


@pytest.mark.parametrize("path", ALL, ids=relative)
def test_every_relative_link_resolves(path):
    for link in LINK.findall(prose(path)):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists() and file.is_relative_to(ROOT), link
        assert not anchor or anchor in anchors(file), link
        if path != README:  # the site has no other files
            assert relative(file).startswith(SITE_HAS) or relative(file) in ELSEWHERE.values(), link


def test_every_page_is_in_the_menu_once():
    entries = chain(
        *(pages if isinstance(pages, list) else [pages] for entry in MENU["nav"] for pages in entry.values())
    )
    pages = [path.relative_to(ROOT / "docs").as_posix() for path in PAGES]
    assert sorted(entries) == sorted([*pages, *ELSEWHERE])


def test_every_page_can_be_reached_from_the_readme():
    reached, waiting = set(), [README]
    while waiting:
        path = waiting.pop()
        if path.suffix == ".md" and path not in reached:
            reached.add(path)
            waiting += [
                (path.parent / link.partition("#")[0]).resolve() for link in LINK.findall(prose(path)) if link[0] != "#"
            ]
    assert set(PAGES) - {ROOT / "docs" / "index.md"} <= reached


def test_files_named_in_text_exist():
    """Paths between backticks; files that a run makes are under outputs/."""
    name = re.compile(
        r"`((?:params|notebooks|solutions|docs|models|workflow|datadream_utils|figures|benchmarks|tests)/[\w./*-]+)`"
    )
    named = {(relative(path), file) for path in ALL for file in name.findall(prose(path))}
    missing = [(page, file) for page, file in named if not any(ROOT.glob(file))]
    assert len(named) > 20 and not missing


def test_make_targets_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets, found = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE)), starting_with("make")
    variables = set(re.findall(r"\b([A-Z]+)\b", makefile))
    for page, (_, *words) in found:
        for word in words:
            if word != "...":
                assert (word.split("=")[0] in variables) if "=" in word else word in targets, (page, word)
    assert {"demo", "lab", "test", "results", "site", "pretrain", "browser"} <= {
        word for _, words in found for word in words
    }


def test_modules_and_their_options_exist():
    found = [(page, words[words.index("-m") + 1 :]) for page, words in COMMANDS if "-m" in words]
    found = [(page, module, options) for page, (module, *options) in found if module not in ("pytest", "venv")]
    for page, module, options in found:
        spec = importlib.util.find_spec(module)
        assert spec is not None, (page, module)
        source = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
        known = {node.value for node in ast.walk(source) if isinstance(node, ast.Constant)}
        for option in (word for word in options if re.match(r"-\D", word)):
            assert option in known, (page, module, option)
        for file in (word for word in options if word.startswith("params/")):
            assert (ROOT / file).is_file(), (page, file)
    assert {"workflow.scripts.classify", "workflow.scripts.estimate", "workflow.scripts.collect"} <= {
        m for _, m, _ in found
    }


def test_studies_and_targets_exist():
    for page, words in starting_with("snakemake"):
        for file in (word for word in words if word.startswith(("params/", "workflow/"))):
            assert (ROOT / file).exists(), (page, file)
            if file.startswith("params/studies/"):
                assert read_study(ROOT / file).runs()
        if not words[1].startswith("-"):
            assert words[1] in {*FIGURES, *TABLES, "all", "runs", "tables", "figures"}, (page, words[1])


def test_papermill_is_given_notebooks_files_and_parameters_that_exist():
    found = starting_with("papermill")
    for page, words in found:
        for word in words:
            if word.startswith(("notebooks/", "params/")) and "$n" not in word:
                assert (ROOT / word).is_file(), (page, word)
    given = [(page, words[i + 1]) for page, words in COMMANDS for i, word in enumerate(words) if word in ("-p", "-r")]
    known = {*parameter_names(), "params_file", "NAME"}
    assert len(found) > 5 and not [(page, name) for page, name in given if name not in known]


def test_optional_parts_that_are_installed_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    named = {name for _, words in starting_with("pip") for word in words for name in re.findall(r"^\.\[(\w+)\]$", word)}
    assert named and named <= set(extras)


def test_tables_made_from_the_code_are_up_to_date(tmp_path):
    for page, _ in tables():
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text((ROOT / "docs" / page).read_text(encoding="utf-8"), encoding="utf-8")
    assert not write_tables(tmp_path), "run python -m workflow.scripts.reference"


def test_the_tables_have_every_parameter_and_data_set():
    text = {page: "\n".join(table for (p, _), table in tables().items() if p == page) for page, _ in tables()}
    assert all(f"| `{name}`" in text["reference/parameters.md"] for name in parameter_names())
    assert all(f"| `{name}`" in text["howto/datasets.md"] for name in [*known_names(), "mnist5k", "uci_digits"])
    row = next(line for line in text["howto/datasets.md"].splitlines() if "`eurosat`" in line)
    assert [cell.strip() for cell in row.split("|")[2:5]] == ["10", "5400", "8100"] and "MIT" in row


def test_a_page_without_its_marks_is_refused(tmp_path):
    for page, _ in tables():
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text("no marks", encoding="utf-8")
    with pytest.raises(ValueError, match="has no marks"):
        write_tables(tmp_path)


def messages():
    """Every text in the project's code, "…" where a value stands in it."""
    found = []
    for path in chain(*((ROOT / folder).rglob("*.py") for folder in ("datadream_utils", "workflow"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_troubleshooting_quotes_what_the_code_says():
    """A quoted text, at its "…" open for anything, is one of the code's."""
    page = prose(ROOT / "docs" / "howto" / "troubleshooting.md")
    quoted = [text for text in re.findall(r"^- `([^`]+)`", page, re.MULTILINE) if " " in text]
    code = messages()
    assert len(quoted) > 25
    for text in quoted:
        pieces = [re.escape(piece) for piece in text.split("…")]
        assert any(re.search(".*".join(pieces), one, re.DOTALL) for one in code), text


def test_the_differences_count_the_mended_class_names():
    known = {name: read_known(name) for name in known_names()}
    text = " ".join((ROOT / "docs" / "about" / "differences.md").read_text(encoding="utf-8").split())
    mended = {
        name: sum(ours != theirs for ours, theirs in zip(data.class_names, data.authors_names, strict=True))
        for name, data in known.items()
    }
    assert (
        f"{sum(mended.values())} differ, of them {mended['sun397']} of SUN397's 397 and {mended['food101']} of" in text
    )


def test_the_glossary_has_each_term_once():
    terms = re.findall(
        r"^\*\*(.+?)\.?\*\*", (ROOT / "docs" / "learn" / "glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(terms) >= 25 and len(set(terms)) == len(terms)
    assert {"LoRA adapter", "Shot", "Prompt", "CLIP", "S, R, R+S"} <= set(terms)


def test_the_guide_names_sections_that_the_notebooks_have():
    guide = (ROOT / "docs" / "teach" / "guide.md").read_text(encoding="utf-8")
    named = re.findall(r"\| (0[1-6]), sections? (\d+)(?: and (\d+))?", guide)
    assert len(named) > 10
    for notebook, *sections in named:
        (path,) = (ROOT / "notebooks").glob(f"{notebook}_*.ipynb")
        headings = re.findall(r"## (\d+) ", path.read_text(encoding="utf-8"))
        assert {section for section in sections if section} <= set(headings), (notebook, sections)
