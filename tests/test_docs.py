"""The documents say what is true: generated parts, commands, the method that the page on methods shows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from oodbench import registry
from oodbench.contract import verdict

ROOT = Path(__file__).resolve().parents[1]


def test_generated_parts_are_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_the_method_of_the_page_keeps_the_contract(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "adding-a-method.md").read_text()
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code
    path = tmp_path / "nearest.py"
    path.write_text(code[1])
    assert not [problem for _, problem in verdict(registry.methods([path])["nearest"]) if problem]


@pytest.mark.parametrize(
    "page", [p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]
)
def test_links_lead_to_files(page: str) -> None:
    text = (ROOT / page).read_text()
    for link in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link
    for named in re.findall(r"`((?:docs|oodbench|tests|datasets|methods)/[\w./-]+\.\w+)`", text):
        assert (ROOT / named).exists(), named


def test_every_file_says_what_it_is_for() -> None:
    for path in [*ROOT.glob("oodbench/**/*.py"), *ROOT.glob("methods/*.py"), *ROOT.glob("tests/*.py")]:
        assert path.read_text().startswith('"""'), path
