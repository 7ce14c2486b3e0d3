"""The static site, built and read in a browser from files alone: wide, 400 pixels narrow, light and dark."""

import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest

from datadream_utils.params import ROOT

from .conftest import violations

BUILD_SECONDS = 180
LOOKS = [("wide", 1280, "light"), ("wide-dark", 1280, "dark"), ("narrow", 400, "light"), ("narrow-dark", 400, "dark")]
READ = ["index", "results/toy", "notebooks/01_adapt_sd", "notebooks/02_generate", "notebooks/03_train_clip"]
READ += ["notebooks/04_analysis", "notebooks/05_your_own_images", "notebooks/06_beyond_the_paper"]
READ += ["solutions/02_generate", "learn/glossary", "teach/guide", "howto/datasets", "reference/parameters"]
READ += ["reference/api", "reference/api/diffusion/adapt", "figures/gallery"]
EXECUTED = READ[2:9]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site's folder, built from the executed notebooks of mkdocs.yml's run."""
    folder = tmp_path_factory.mktemp("site")
    started = time.monotonic()
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    assert time.monotonic() - started < BUILD_SECONDS
    return folder


@pytest.fixture(scope="module")
def pages(site):
    return sorted(path for path in site.rglob("*.html") if path.name != "404.html")


def test_every_link_and_picture_of_every_page_is_there(site, pages, watch):
    watched, links, anchors = watch(), {}, {}
    for path in pages:
        watched.page.goto(path.as_uri())
        anchors[path] = set(watched.page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)"))
        links[path] = watched.page.evaluate("[...document.querySelectorAll('a[href]')].map(e => e.href)")
        broken = watched.page.evaluate(
            "[...document.images].filter(e => !e.naturalWidth).map(e => e.src.slice(0, 200))"
        )
        assert not broken, (path, broken)
    assert not watched.errors and not watched.outside, (watched.errors, watched.outside)
    for path, targets in links.items():
        for target, anchor in map(urldefrag, targets):
            if urlsplit(target).scheme == "file":
                file = Path(unquote(urlsplit(target).path))
                assert file.is_file() and file.is_relative_to(site), f"{path}: link to {target}"
                assert not anchor or unquote(anchor) in anchors.get(file, {unquote(anchor)}), (
                    f"{path}: {target}#{anchor}"
                )
    assert sum(map(len, links.values())) > 100


@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("look, width, scheme", LOOKS, ids=[look for look, *_ in LOOKS])
def test_a_page_can_be_read(site, watch, name, look, width, scheme):
    watched = watch(width=width, color_scheme=scheme)
    page = watched.page
    page.goto((site / f"{name}.html").as_uri())
    watched.screenshot(f"site-{name.replace('/', '-')}-{look}", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    outside = """[...document.querySelectorAll('article p, article h1, article h2, article li, article img')]
        .filter(e => e.offsetWidth && e.getBoundingClientRect().right > innerWidth + 1
                     && !e.closest('.jp-RenderedHTMLCommon:has(table), .md-typeset__scrollwrap'))
        .map(e => e.outerHTML.slice(0, 100))"""
    assert not page.evaluate(outside), "cut off at the right"
    dark = page.evaluate(
        "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).slice(0, 3).every(x => x < 90)"
    )
    assert dark == (scheme == "dark")
    assert not violations(page)


def test_notebook_pages_say_what_their_figures_show(site, watch):
    page = watch().page
    for name in EXECUTED:
        page.goto((site / f"{name}.html").as_uri())
        words = page.evaluate("[...document.querySelectorAll('article img')].map(e => e.alt)")
        assert words and all(len(text) > 20 for text in words), (name, words)
        assert "No description" not in " ".join(words)
        fewest = 6 if name in EXECUTED[:4] else 3  # 05 and a solution are short
        assert page.locator(".jp-OutputArea-output").count() >= fewest
        assert "without outputs" not in page.locator("article").inner_text()


def test_formulas_are_shown_without_scripts(site, watch):
    page = watch(java_script_enabled=False).page
    page.goto((site / "notebooks" / "01_adapt_sd.html").as_uri())
    assert page.locator("math[display=block]").count() >= 3
    assert (
        "𝔼" in page.locator("article").inner_text()
        and "$" not in page.locator("article .jp-MarkdownOutput").first.inner_text()
    )
    sizes = page.evaluate("[...document.querySelectorAll('math')].map(e => e.getBoundingClientRect().width)")
    assert min(sizes) > 3
