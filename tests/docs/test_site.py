"""The site: built offline and strictly, and read in a browser as a visitor does."""

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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parents[2]
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


def test_every_page_is_there(site: Path) -> None:
    """Each with its title, in the navigation, and no generated part left as a comment alone."""
    pages = [path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")]
    index = (site / "index.html").read_text(encoding="utf-8")
    for page in [*pages, "contributing.html", "changelog.html"]:
        text = (site / page).read_text(encoding="utf-8")
        assert "<h1" in text and f'href="{page}"' in index.replace('href="./"', 'href="index.html"')
    assert not list(site.rglob("*.py")), "docs/ has code that is not for the site"


def test_pages_stand_on_their_own(site: Path, address: str, browser: Browser) -> None:
    """No request leaves for another host, the console stays clean, nothing is missing, all fits a phone."""
    asked: list[str] = []
    wrong: list[str] = []
    names = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
    assert len(names) > 20
    opened = []
    for name in names:
        page = browser.new_page(viewport={"width": 400, "height": 800})
        page.on("request", lambda one: asked.append(one.url))
        page.on("console", lambda one: wrong.append(one.text) if one.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda one: wrong.append(f"{one.status} {one.url}") if one.status >= 400 else None)
        page.goto(f"{address}/{name}")
        opened.append(page)
    for name, page in zip(names, opened, strict=True):  # "networkidle" is half a second without a request
        page.wait_for_load_state("networkidle")
        assert not wrong, f"{page.url}: {wrong}"
        wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{name} is {wide} pixels too wide for a phone"
        page.close()
    assert {url for url in asked if not url.startswith((address, "data:", "blob:"))} == set()


def test_the_search_finds(address: str, browser: Browser) -> None:
    page = browser.new_page()
    page.goto(f"{address}/index.html")
    page.get_by_role("textbox", name="Search").click()
    page.get_by_role("textbox", name="Search").type("saturation")
    found = page.locator(".md-search-result__link").first
    found.wait_for()
    assert re.search(r"/footguns\.html", found.get_attribute("href") or "")
    page.close()
