"""Every command in the documents is run, or (where it needs data) parsed.

A block of commands is run unless its first line says what it needs: `# needs: ImageNet-1k`. Blocks of one page run in
order, in an empty folder; a `text` block after one shows lines of its output, `...` standing for what is cut off.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
from PIL import Image

from oodbench.cli import main
from oodbench.data import catalog as catalogue
from oodbench.data.glyphs import render, world
from oodbench.method import registry
from oodbench.method.introspection import MethodInfo
from oodbench.pipeline.jobs import make_jobs
from oodbench.pipeline.request import RunRequest
from tests.first_run import after_first_run
from tests.processes import script_folder

ROOT = Path(__file__).resolve().parents[2]
PAGES = [p.relative_to(ROOT).as_posix() for p in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md"))]]

# Pages whose commands something else runs, as they stand; all others are run here. Of README.md, .ci/run runs the
# blocks of `sh`, and a test below those of `bash`.
ELSEWHERE = {
    "README.md": ".ci/run",
    "docs/adding-a-dataset.md": "tests/data/test_protocols.py",
    "docs/using-a-detector.md": "tests/cli/test_score_command.py",
}


@dataclass(frozen=True)
class Block:
    """A fenced block, and the line of prose before it."""

    language: str
    text: str
    before: str

    @property
    def saved_as(self) -> str:
        """`name.py` of "save this as `name.py`:"."""
        found = re.search(r"as `([\w.-]+)`:$", self.before)
        return found[1] if found else ""

    @property
    def needs(self) -> str:
        """What it needs that is not here."""
        found = re.match(r"(?:#!.+\n)?# needs: (.+)\n", self.text)
        return found[1] if found else ""


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.finditer(r"(?:^|\n)([^\n]*)\n+```(\w+)[^\n]*\n(.*?)```", text, re.DOTALL)
    return [Block(one[2], one[3], one[1].strip()) for one in found]


def commands(page: str) -> list[Block]:
    return [one for one in blocks(page) if one.language in ("sh", "console", "bash", "shell")]


def runs_here(page: str) -> bool:
    return page not in ELSEWHERE and any(not one.needs for one in commands(page))


def spoken(page: str) -> Iterator[tuple[str, bool]]:
    """Every `oodbench ...` of a page, and whether it is a whole command that nothing runs."""
    text = (ROOT / page).read_text(encoding="utf-8")
    unfenced = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    indented = "".join(re.findall(r"(?m)^    \S.*\n", unfenced))
    for one in [*commands(page), Block("sh", f"# needs: a fence\n{indented}", "")]:
        for line in one.text.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|&& |torchrun .* )(oodbench .*)", line.strip())
            if found:
                yield found[1], bool(one.needs)
    for span in re.findall(r"`(oodbench [^`]+)`", unfenced):
        if "..." not in span and not span.split()[1].isupper():
            yield " ".join(span.split()), False


@functools.cache
def installed() -> dict[str, MethodInfo]:
    return registry.methods()


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md" and [*spoken(page)]])
def test_commands_are_valid(page: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands, options and types are valid; for runs that no test executes, also methods, parameters and sets."""
    asked: list[tuple[str, dict[str, Any]]] = []
    own = re.findall(r"oodbench (?:datasets|benchmarks) add ([\w.-]+)", (ROOT / page).read_text(encoding="utf-8"))
    monkeypatch.setattr(click.Command, "invoke", lambda self, ctx: asked.append((self.name or "", ctx.params)))
    monkeypatch.chdir(tmp_path)
    for one in blocks(page):
        if one.saved_as:
            (tmp_path / one.saved_as).write_text(one.text)
    for command, whole in spoken(page):
        asked.clear()
        try:
            main(shlex.split(command, comments=True)[1:], prog_name="oodbench", standalone_mode=False)
        except click.MissingParameter:
            assert not whole, command  # `oodbench train` is a name
        except click.ClickException as error:
            pytest.fail(f"{command}: {error.format_message()}")
        for name, given in asked:
            if name == "run" and whole:
                keys = ("methods", "templates", "plugins", "settings", "sweeps")
                request = RunRequest(**{key: given[key] for key in keys})
                make_jobs(request, None if request.plugins else installed())
                if ":" not in given["id_"] + given["ood"] and given["id_"] not in own:
                    catalogue.protocol(given["id_"], [one for one in given["ood"].split(",") if one])


def test_pages_run_by_other_tests() -> None:
    for page, runner in ELSEWHERE.items():
        assert page in (ROOT / runner).read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_commands_of_the_readme_run_on_own_images(tmp_path: Path) -> None:
    """In a folder with photos/, in which classes are folders, and others/."""
    for i in range(100):
        for folder, split in ((f"photos/{world.CLASSES[i % 50]}", "id-test"), ("others", "letters")):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(render.image(split, i)).save(tmp_path / folder / f"{i}.png")
    path = os.pathsep.join([script_folder(), str(Path(sys.executable).parent), os.environ["PATH"]])
    env = {**os.environ, **after_first_run(tmp_path), "PATH": path}
    own = [one.text for one in commands("README.md") if one.language == "bash"]
    assert own
    for text in own:
        done = subprocess.run(
            ["bash", "-e", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}{done.stderr}"
        (mcm,) = (line.split() for line in done.stdout.splitlines() if line.startswith("MCM "))
        assert float(mcm[1]) > 75  # AUROC; 92 with all images


def same(shown: str, printed: str) -> bool:
    """Whether a printed line is the shown one: words alike, numbers, without marks, within 3 images of 1,000."""
    wanted, found = shown.split(), printed.split()
    if wanted and wanted[-1] == "...":
        wanted.pop()
        found = found[: len(wanted)]

    def alike(a: str, b: str) -> bool:
        try:
            return abs(float(a) - float(b.rstrip("*+"))) <= 0.3
        except ValueError:
            return a == b

    return len(wanted) == len(found) and all(map(alike, wanted, found))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runs_here(page)])
def test_pages_can_be_followed(page: str, tmp_path: Path) -> None:
    """In an empty folder after a first run: save files, run commands and Python, compare the shown output."""
    env = {
        **os.environ,
        **after_first_run(tmp_path),
        "PATH": os.pathsep.join([script_folder(), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": str(tmp_path.parent / "site"),  # where `pip install` goes, instead of into this environment
        "PIP_TARGET": str(tmp_path.parent / "site"),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way of saying: no isolation
    }
    printed = ""
    for one in blocks(page):
        if one.saved_as:
            (tmp_path / one.saved_as).write_text(one.text)
        elif one in commands(page) and not one.needs:
            done = subprocess.run(
                ["bash", "-e", "-c", one.text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
            )
            printed = done.stdout
            assert done.returncode == 0, f"{one.text}\n{done.stdout}{done.stderr}"
        elif one.language == "text" and printed:
            for line in one.text.splitlines():
                assert any(same(line, other) for other in printed.splitlines()), f"{line}\n{printed}"
        elif one.before == "In Python:":
            code = [sys.executable, "-W", "error", "-c", one.text]
            done = subprocess.run(code, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0 and done.stdout, done.stderr
