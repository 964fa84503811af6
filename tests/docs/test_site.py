"""The site: built offline in strict mode, and opened in a browser."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from oodbench.method import registry
from oodbench.method.introspection import MethodInfo, Parameter
from oodbench.report.tables.published import quotes

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
METHODS = [info for info in registry.methods().values() if info.origin == "built-in"]
pytestmark = pytest.mark.slow


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built folder; a warning fails the build, and so would a download."""
    folder = tmp_path_factory.mktemp("site")
    nowhere = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}
    env = {**os.environ, **nowhere, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "WARNING" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A headless Chromium of this machine."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if not found:
        pytest.skip("no Chromium is installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


def parameters(info: MethodInfo) -> tuple[Parameter, ...]:
    return info.parameters


def symbols(info: MethodInfo) -> list[str]:
    return list(info.symbols)


def published(info: MethodInfo) -> list[str]:
    return [one.key for one in quotes().values() if one.method == info.name]


def test_every_page_is_there(site: Path) -> None:
    """Each has its title, is in the navigation, and has all generated parts."""
    pages = [path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")]
    methods = [f"methods/{info.name}.html" for info in METHODS]
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in [*pages, *methods, "contributing.html", "changelog.html"]:
        text = (site / page).read_text(encoding="utf-8")
        assert "<h1" in text and f'href="{page}"' in index.replace('href="./"', 'href="index.html"')
    assert not list(site.rglob("*.py")), "docs/ has code that is not for the site"
    assert f"oodbench {version('oodbench')}" in index and 'rel="edit"' not in index  # no address of the code is known


def test_the_page_of_a_method_is_complete(site: Path) -> None:
    page = (site / "methods/neglabel.html").read_text(encoding="utf-8")
    [info] = [info for info in METHODS if info.name == "neglabel"]
    assert all(f"<code>{one.name}</code>" in page for one in info.parameters)
    headings = re.findall(r"<h2[^>]*>(.*?)<a", page)
    assert headings == [
        *("Formula", "What it computes", "Paper and released code", "Hyper-parameters", "What it sees", "Run it"),
        *("Published results", "BibTeX"),
    ]
    assert 'href="https://arxiv.org/abs/2403.20078"' in page and "jiang2024-2403.20078" in page
    assert "94.21" in page, "the mean AUROC of the paper"


def test_pages_are_self_contained(site: Path, address: str, browser: Browser) -> None:
    """No request leaves for another host, the console stays clean, nothing is missing, all fits a phone.

    The pages of methods are made alike: those with the most hyper-parameters, symbols and published results are opened.
    """
    asked: list[str] = []
    wrong: list[str] = []
    most = {max(METHODS, key=lambda info: len(of(info))).name for of in (parameters, symbols, published)}
    opened = []
    for name in [*(path.name for path in sorted(site.glob("*.html"))), *(f"methods/{name}.html" for name in most)]:
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("request", lambda one: asked.append(one.url))
        page.on("console", lambda one: wrong.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda one: wrong.append(f"{one.status} {one.url}") if one.status >= 400 else None)
        page.goto(f"{address}/{name}")
        opened.append(page)
    for page in opened:  # "networkidle" is half a second without a request
        page.wait_for_load_state("networkidle")
        assert not wrong, f"{page.url}: {wrong}"
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{page.url} is {wide} pixels too wide for a phone"
        page.close()
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()


def test_mathjax_typesets_all_formulas(site: Path, browser: Browser) -> None:
    """Those of a page as the page is opened from its file, and those of all methods without an error."""
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.goto(f"{site.as_uri()}/methods/clipn.html")
    page.evaluate("MathJax.startup.promise")
    displayed = page.locator("mjx-container[display] > svg")
    assert displayed.count() == 2 and page.locator("li mjx-container").count() == 5
    height = displayed.first.evaluate("svg => svg.getBoundingClientRect().height")
    assert 40 < height < 120, "a formula keeps its size on a phone"
    for info in METHODS:
        written = [*info.formulas, *info.symbols]
        made = page.evaluate("all => all.map(one => MathJax.tex2svg(one).outerHTML).join()", written)
        assert made.count("<svg") >= len(written) and "merror" not in made, info.name
    page.close()


@pytest.mark.parametrize("kind", ["server", "files"])
def test_the_search_finds(site: Path, address: str, browser: Browser, kind: str) -> None:
    """Words of a page, and a metric, from a server and from files that are opened without one."""
    page = browser.new_page()
    page.goto(f"{address if kind == 'server' else site.as_uri()}/index.html")
    for word, expected in (("saturation", r"/footguns\.html"), ("FPR95", r"\.html")):
        page.get_by_role("textbox", name="Search").fill(word)
        found = page.locator(".md-search-result__link").filter(has_text=word).first
        found.wait_for()
        assert re.search(expected, found.get_attribute("href") or "")
    page.close()
