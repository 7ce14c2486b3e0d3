"""What mkdocs lacks: pages from a run's executed notebooks and from the package's modules, MathML, alt texts.

mkdocs calls the ``on_`` functions; a notebook that is missing, failed or has a figure without words stops the build.
"""

import ast
import posixpath
import re
import shutil
import unicodedata
from itertools import chain
from pathlib import Path

import nbformat
from bs4 import BeautifulSoup
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
COLLECTED = ROOT / "build" / "collected"
OVERVIEW = "figures/overview.png"  # beside figures/tiny, which has one too, of a study
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)
API = "reference/api.md"
STORED = "<p><em>Shown as it is stored, without outputs: <code>make site</code> runs it too.</em></p>"
LETTERS = {"double-struck": "DOUBLE-STRUCK", "script": "SCRIPT"}
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)#\s]+)")


def executed_notebooks(extra):
    """``{page: executed notebook}`` of 01 to 04 and 06, for the run and the setting in mkdocs.yml's ``extra``."""
    run = ROOT / extra["run"]
    compared, alone = run / "03_train_clip.ipynb", run / f"03_train_clip-{extra['setting']}.ipynb"
    files = {
        "01_adapt_sd": run / "01_adapt_sd.ipynb",
        "02_generate": run / "02_generate.ipynb",
        "03_train_clip": compared if compared.is_file() else alone,
        "04_analysis": run.parent / "04_analysis.ipynb",
        "06_beyond_the_paper": run.parent / "06_beyond_the_paper.ipynb",
    }
    for file in files.values():
        if not file.is_file():
            raise PluginError(
                f"{file} is not there: run the notebooks first (make site does), or name a run: make site RUN=..."
            )
        _without_error(file)
    return {f"notebooks/{page}.ipynb": file for page, file in files.items()}


def further_notebooks(extra):
    """``{page: notebook}`` of one's own images and the solutions: executed (make site), or else as they are stored."""
    run = ROOT / extra["run"]
    executed = {"notebooks/05_your_own_images.ipynb": run.parent / "05_your_own_images.ipynb"}
    for file in sorted((ROOT / "solutions").glob("*.ipynb")):
        executed[f"solutions/{file.name}"] = run / "solutions" / file.name
    return {page: _without_error(file) if file.is_file() else ROOT / page for page, file in executed.items()}


def _without_error(file):
    if any(output.output_type == "error" for output in _outputs(file)):
        raise PluginError(f"{file} ended with an error: delete it and make it again")
    return file


def _outputs(file):
    return [output for cell in nbformat.read(file, 4).cells for output in cell.get("outputs", [])]


def on_config(config):
    """Add the pages that are made here to the menu of mkdocs.yml."""
    config.extra["rooms"] = rooms = read_rooms()
    sections = {title: pages for entry in config.nav for title, pages in entry.items()}
    sections["Learn"] += sorted([*executed_notebooks(config.extra), *further_notebooks(config.extra)])
    sections["Results"] += [f"figures/{file.name}" for file in tables() if file.stem.startswith("gallery")]
    sections["Reference"] += [API, *({room: [page(module) for module in rooms[room]]} for room in rooms)]
    return config


@event_priority(100)  # before mkdocs-jupyter looks for notebooks
def on_files(files, config):
    for name, file in (executed_notebooks(config.extra) | further_notebooks(config.extra)).items():
        copy = COLLECTED / name  # mkdocs-jupyter wants a file under its page's name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
        files.append(File(name, str(COLLECTED), config.site_dir, config.use_directory_urls))
    for file in sorted(chain.from_iterable((ROOT / "figures" / "tiny").glob(f"*.{kind}") for kind in ("png", "json"))):
        files.append(File.generated(config, f"figures/{file.name}", abs_src_path=str(file)))
    files.append(File.generated(config, "assets/overview.png", abs_src_path=str(ROOT / OVERVIEW)))
    for file in tables():
        files.append(File.generated(config, f"figures/{file.name}", abs_src_path=str(file)))
    for file in sorted((ROOT / "params").rglob("*.yaml")):
        files.append(File.generated(config, file.relative_to(ROOT).as_posix(), abs_src_path=str(file)))
    for name, source in config.extra["elsewhere"].items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for module in chain(*config.extra["rooms"].values()):
        name = module.rpartition(".")[2]
        files.append(File.generated(config, page(module), content=f"# {name}\n\n::: {module}\n"))
    files.append(File.generated(config, API, content=reference(config.extra["rooms"])))
    return files


def tables():
    """The committed tables as Markdown, and the pages that show all figures."""
    return sorted((ROOT / "figures" / "tiny").glob("*.md"))


def read_rooms():
    """``{folder: [module, ...]}`` of the package, the folder itself first: ``datadream_utils.diffusion.adapt``."""
    rooms = {}
    for path in sorted((ROOT / "datadream_utils").rglob("[!_]*.py"), key=lambda path: (path.parent, path)):
        room = path.parent.relative_to(ROOT).as_posix()
        rooms.setdefault(room, []).append(f"{room.replace('/', '.')}.{path.stem}")
    return rooms


def page(module):
    """The page of a module: ``reference/api/diffusion/adapt.md``."""
    return f"reference/api/{module.removeprefix('datadream_utils.').replace('.', '/')}.md"


def reference(rooms):
    """A page that lists the modules of each folder, with the first sentence of each."""
    lines = ["# Modules", "", "The package `datadream_utils`, folder by folder."]
    for room, modules in rooms.items():
        lines += ["", f"## {room}", "", _docstring(ROOT / room / "__init__.py"), "", "| module | |", "|---|---|"]
        for module in modules:
            text = _docstring(ROOT / f"{module.replace('.', '/')}.py")
            link = f"[`{module.rpartition('.')[2]}`]({page(module).removeprefix('reference/')})"
            lines.append(f"| {link} | {text.partition(chr(10))[0]} |")
    return "\n".join(lines)


def _docstring(path):
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def on_page_markdown(markdown, page, config, files):
    """Links hold in the repository, so that they can be followed there; here they lead to pages of the site."""
    here = page.file.src_uri
    folder = posixpath.dirname(repository_file(here, config))

    def follow(link):
        target = site_page(posixpath.normpath(posixpath.join(folder, link[1])), config)
        return f"]({posixpath.relpath(target, posixpath.dirname(here) or '.')}"

    return LINK.sub(follow, markdown)


def repository_file(page, config):
    """Where the repository has a page of the site."""
    if page in config.extra["elsewhere"]:
        return config.extra["elsewhere"][page]
    return f"figures/tiny/{posixpath.basename(page)}" if page.startswith("figures/") else f"docs/{page}"


def site_page(path, config):
    """Where the site has a file of the repository."""
    for page, source in config.extra["elsewhere"].items():
        if path == source:
            return page
    if path == OVERVIEW:
        return "assets/overview.png"
    return path.removeprefix("docs/").replace("figures/tiny/", "figures/")


def on_page_content(html, page, config, files):
    if not page.file.src_uri.endswith(".ipynb"):
        return html
    soup = BeautifulSoup(html, "html.parser")
    if not _outputs(page.file.abs_src_path):
        soup.insert(0, BeautifulSoup(STORED, "html.parser"))
    describe_pictures(soup, page.file.abs_src_path)
    fold_parameters(soup)
    write_formulas(soup)
    follow_links(soup, page, files, config)
    tidy(soup)
    return str(soup)


def describe_pictures(soup, notebook):
    """Give every picture the alt text that its figure left in the output's metadata (``plots.style``)."""
    words = {
        output.data["image/png"].replace("\n", ""): output.metadata.get("image/png", {}).get("alt", "")
        for output in _outputs(notebook)
        if "image/png" in output.get("data", {})
    }
    for picture in soup.select(".jp-RenderedImage img"):
        data = picture["src"].removeprefix("data:image/png;base64,").replace("\n", "")
        if not words.get(data):
            raise PluginError(f"{notebook}: a figure has no description; give it a title (plots.style)")
        picture["alt"] = words[data]


def fold_parameters(soup):
    """Fold the cell of the parameters, as JupyterLab does, and the one in which papermill has set some."""
    for tag, words in (("parameters", "Parameters"), ("injected-parameters", "Parameters that were set for this page")):
        for cell in soup.select(f".celltag_{tag} .jp-Cell-inputWrapper"):
            box = cell.wrap(soup.new_tag("details"))
            summary = soup.new_tag("summary")
            summary.string = words
            box.insert(0, summary)


def write_formulas(soup):
    """Replace $...$ and $$...$$ by MathML, which browsers show without a script."""
    for node in soup.select(".jp-MarkdownOutput")[:]:
        for text in node.find_all(string=FORMULA):
            if not text.find_parent(["code", "pre"]):
                markup = FORMULA.sub(lambda m: mathml(m[1] or m[2], block=bool(m[1])), _escaped(text))
                text.replace_with(BeautifulSoup(markup, "html.parser"))


def _escaped(text):
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def mathml(latex, block=False):
    """One formula as MathML; what the converter leaves as it was stops the build."""
    latex = latex.replace(r"\lVert", "‖").replace(r"\rVert", "‖").strip()  # \bigl before a word is beyond it
    math = BeautifulSoup(convert(latex, display="block" if block else "inline"), "html.parser")
    for letter in math.find_all("mi", mathvariant=LETTERS.keys().__contains__):
        letter.string = _lettered(letter.string, LETTERS[letter.attrs.pop("mathvariant")])
    if "\\" in math.text:
        raise PluginError(f"formula that latex2mathml cannot read: {latex}")
    return str(math)


def _lettered(letter, style):
    """R as the character ℝ: browsers ignore MathML's ``mathvariant``."""
    for name in (f"MATHEMATICAL {style} CAPITAL {letter}", f"{style} CAPITAL {letter}"):
        try:
            return unicodedata.lookup(name)
        except KeyError:
            continue
    raise PluginError(f"no character {style} {letter}")


def follow_links(soup, page, files, config):
    """Links and pictures of the repository lead to those here; one that leads nowhere stops the build."""
    links = [(link, "href") for link in soup.select("a[href]:not([href*=':'], [href^='#'])")]
    links += [(picture, "src") for picture in soup.select("img[src]:not([src*=':'])")]
    for link, where in links:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), link[where]))
        if not (target := files.get_file_from_path(site_page(path, config))):
            raise PluginError(f"{page.file.abs_src_path}: its link to {link[where]} leads to no page")
        link[where] = target.url_relative_to(page.file)


def tidy(soup):
    """Keep the content and give it the theme's own looks, light and dark, instead of JupyterLab's."""
    for element in soup.select(
        "style, script, .zeroclipboard-container, .clipboard-copy-txt, .celltoolbar, .anchor-link"
    ):
        element.decompose()  # MathJax, Mermaid and a copy button's scripts among them
    for code in soup.select(".highlight-ipynb"):
        code["class"] = "highlight"
    for table in soup.select("table"):
        table.attrs.clear()
    for scrolls in soup.select("pre, math[display=block]"):
        scrolls["tabindex"] = "0"  # the keyboard reaches what scrolls sideways
