"""The documents say what is true: generated parts, links, the method with notes in the margin."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [p.relative_to(ROOT).as_posix() for p in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]]


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    for named in re.findall(r"`((?:docs|oodbench|tests|datasets|methods)/[\w./-]+\.\w+)`", text):
        assert (ROOT / named).exists(), named


def test_every_file_says_what_it_is_for() -> None:
    for path in [p for f in ("oodbench", "methods", "tests", "docs") for p in (ROOT / f).rglob("*.py")]:
        assert path.read_text(encoding="utf-8").startswith('"""'), path


def test_the_notes_in_the_margin_are_on_the_method_as_it_is() -> None:
    """The pieces of code, one after the other, are methods/mcm.py to the character."""
    page = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
    section = page[page.index("## One method") : page.index("## Your own")]
    pieces = re.findall(r"```python\n(.*?)```\n\n> ", section, re.DOTALL)
    rest = (ROOT / "methods/mcm.py").read_text(encoding="utf-8")
    for piece in pieces:
        rest = rest.lstrip("\n")
        assert rest.startswith(piece)
        rest = rest.removeprefix(piece)
    assert not rest and len(pieces) > 4
