"""A real Chromium, driven by Playwright: ``make browser``. Screenshots are kept in build/browser."""

import os
import shutil
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from datadream_utils.params import ROOT

SCREENSHOTS = ROOT / "build" / "browser"
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")


def find_browser():
    """The browser to drive: the one named in the environment as CHROME, or one in the usual places."""
    named = os.environ.get("CHROME")
    found = shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)
    if not found:
        looked = f"CHROME={named} is not a program" if named else f"none of {', '.join(NAMES)} is there"
        raise RuntimeError(
            f"No browser: {looked}. Install one (Debian: apt-get install chromium), or set CHROME=/path/to/it"
        )
    return found


@pytest.fixture(scope="session")
def browser():
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start for root, as in most containers
        browser = playwright.chromium.launch(executable_path=find_browser(), chromium_sandbox=os.getuid() != 0)
        yield browser
        browser.close()


class Watched:
    """A page, and what went wrong in it: JavaScript errors, answers like 404, requests that leave this machine."""

    def __init__(self, page):
        self.page, self.errors, self.outside = page, [], []
        page.on("pageerror", lambda error: self.errors.append(f"JavaScript: {error}"))
        page.on("console", lambda message: message.type == "error" and self.errors.append(f"console: {message.text}"))
        page.on(
            "response", lambda answer: answer.status >= 400 and self.errors.append(f"{answer.status}: {answer.url}")
        )
        page.on("requestfailed", self._failed)
        page.route(lambda url: not self._near(url), self._refuse)

    @staticmethod
    def _near(url):
        return urlsplit(url).scheme in ("data", "blob", "file", "about") or urlsplit(url).hostname in (
            "127.0.0.1",
            "localhost",
        )

    def _failed(self, request):
        if request.failure != "net::ERR_ABORTED":  # by the test itself, going on to the next page
            self.errors.append(f"{request.failure}: {request.url}")

    def _refuse(self, route):
        self.outside.append(route.request.url)
        route.abort()

    def screenshot(self, name, **options):
        self.page.screenshot(path=SCREENSHOTS / f"{name}.png", **options)


@pytest.fixture
def watch(browser):
    """``watch(width=..., color_scheme=...)``: a new page that is watched."""
    contexts = []

    def new(width=1280, height=900, **options):
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        return Watched(context.new_page())

    yield new
    for context in contexts:
        context.close()


def violations(page, rules=("wcag2a", "wcag2aa"), within=None):
    """What axe-core finds against WCAG 2 A and AA: ``["rule: text (selector) <its opening tag", ...]``."""
    found = Axe().run(page, context=within, options={"runOnly": list(rules)}).response["violations"]
    return [
        f"{v['id']}: {v['help']} ({node['target'][0]}) {node['html'].partition('>')[0]}"
        for v in found
        for node in v["nodes"]
    ]
