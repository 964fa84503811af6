"""The documentation is up to date: generated parts, links, the annotated method."""

from __future__ import annotations

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from oodbench.cli import main

ROOT = Path(__file__).resolve().parents[2]
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


def test_every_file_has_a_docstring() -> None:
    for path in [p for f in ("oodbench", "methods", "tests", "docs") for p in (ROOT / f).rglob("*.py")]:
        assert path.read_text(encoding="utf-8").startswith(('"""', 'r"""')), path


def test_the_annotated_method_equals_its_source() -> None:
    """The concatenated pieces of code equal methods/mcm.py."""
    page = (ROOT / "docs/adding-a-method.md").read_text(encoding="utf-8")
    section = page[page.index("## One method") : page.index("## Your own")]
    pieces = re.findall(r"```python\n(.*?)```\n\n> ", section, re.DOTALL)
    rest = (ROOT / "methods/mcm.py").read_text(encoding="utf-8")
    for piece in pieces:
        rest = rest.lstrip("\n")
        assert rest.startswith(piece)
        rest = rest.removeprefix(piece)
    assert not rest and len(pieces) > 4


def test_pages_of_methods_have_commands_that_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    """Click parses the commands of every method; links to other methods lead to their pages."""
    monkeypatch.syspath_prepend(ROOT / "docs")
    pages = importlib.import_module("method_pages")
    made = {info.name: pages.page(info) for infos in pages.built_in().values() for info in infos}
    assert {path.stem for path in ROOT.glob("methods/[a-z]*.py")} == set(made)
    for name, page in made.items():
        [script] = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
        for line in script.splitlines():
            program, first, *rest = shlex.split(line, comments=True)
            command = main.commands[first]
            if isinstance(command, click.Group):
                command, rest = command.commands[rest[0]], rest[1:]
            assert program == "oodbench" and command.make_context(first, rest)
        assert not re.findall(r"[a-z;,]\$[a-zA-Z\\]", page), "a blank is missing before a formula"
        links = [link for link in re.findall(r"\]\((\w+)\.md\)", page)]
        assert set(links) <= set(made) - {name}
    assert "neglabel" in made["csp"] and "](neglabel.md)" in made["csp"]


def test_sections_of_python_are_lists() -> None:
    """Every line of a section Arguments or Raises is an item; no docstring has its sections in another form."""
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    sections = re.findall(r"\*\*(?:Arguments|Raises)\*\*\n\n(.*?)\n\n(?=\*\*|#|```|<!--|\Z)", page + "\n\n", re.DOTALL)
    assert len(sections) > 50
    for line in "\n".join(sections).splitlines():
        assert re.match(r"- `[^`]+`: \S", line), line
    assert not re.findall(r"(?m)^(?:Arguments|Returns|Raises):", page)


@pytest.mark.parametrize("path", sorted(ROOT.glob("datasets/benchmarks/*-1.toml")), ids=lambda path: path.stem)
def test_benchmarks_of_selected_classes_state_their_number(path: Path) -> None:
    """The titles of the declarations say how many classes are ID and OOD, and so does the list of benchmarks."""
    title = tomllib.loads(path.read_text(encoding="utf-8"))["title"]
    page = (ROOT / "docs/benchmarks.md").read_text(encoding="utf-8")
    [found] = re.findall(rf"\| `{path.stem}`[^|]*\| (.*?) \| (.*?) \|", page)
    if match := re.fullmatch(r"(\S+), (\d+) classes against \d+, split 1", title):
        assert found == (f"{match[1]} ({match[2]} classes)", f"{match[1]} (all other classes)")
    else:
        assert title == "CIFAR+10, split 1" and found == ("CIFAR-10 (4 classes)", "CIFAR-100 (10 classes)")


@pytest.mark.parametrize("page", PAGES)
def test_rows_of_tables_have_the_cells_of_their_head(page: str) -> None:
    """A bar within a cell would begin another one."""
    text = re.sub(r"(?ms)^ *```.*?^ *```$", "", (ROOT / page).read_text(encoding="utf-8"))
    for table in re.findall(r"(?m)(?:^\|.*\n)+", text):
        cells = {line: len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(set(cells.values())) == 1, cells


def test_cluster_scripts_are_valid() -> None:
    """bash reads the one for Slurm; the one for Kubernetes is YAML whose command exists. Nothing here runs them."""
    page = (ROOT / "docs/scaling-out.md").read_text(encoding="utf-8")
    script, manifest = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("bash", "yaml"))
    assert script and manifest
    read = subprocess.run(["bash", "-n"], input=script[1], capture_output=True, text=True, check=False)
    assert read.returncode == 0 and not read.stderr, read.stderr
    job = yaml.safe_load(manifest[1])
    command = shlex.split(job["spec"]["entrypoint"])
    assert command[:2] == ["oodbench", "run"] and main.commands["run"].make_context("run", command[2:])
    groups = [job["spec"]["rayClusterSpec"]["headGroupSpec"], *job["spec"]["rayClusterSpec"]["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        [mount] = pod["containers"][0]["volumeMounts"]
        assert mount["name"] in {volume["name"] for volume in pod["volumes"]}
