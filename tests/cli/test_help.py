"""Help: options in groups, commands in the order of use, examples; lists that fit a terminal; completion."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from oodbench.cli import main
from oodbench.cli.help import FEW, OPTION_GROUPS, SECTIONS, cut
from oodbench.data import catalog
from oodbench.data.released import releases
from oodbench.method import registry
from tests.conftest import Cli

OTHER = {"config", "seed", "dry_run", "verbose", "help", "tpr", "threshold", "threshold_from", "save", "detector"}


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command with its words."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))


ALL = dict(commands())


def test_every_option_of_a_run_or_a_training_is_in_a_group() -> None:
    grouped = {name for names in OPTION_GROUPS.values() for name in names.split()}
    for words in (("run",), ("train",)):
        own = {p.name for p in ALL[words].params if isinstance(p, click.Option)}
        assert own - grouped <= OTHER, words
    assert len(" ".join(OPTION_GROUPS.values()).split()) == len(grouped)


def test_the_help_of_a_run_has_each_option_once(cli: Cli) -> None:
    out = cli("run", "--help").stdout
    headings = [line[:-1] for line in out.split("\n") if re.fullmatch(r"[A-Z].*:", line)]
    assert headings[:3] == ["Methods", "Images", "Encoder"] and headings[-1] == "Other options" and "Examples:" in out
    for option in (p for p in ALL[("run",)].params if isinstance(p, click.Option)):
        assert len(re.findall(rf"^  .*{option.opts[-1]}\b(?!-)", out, re.MULTILINE)) >= 1, option.opts
    assert "[fp32|bf16|fp16]" in out and "[first|nearest|interpolate]" in out
    assert len(ALL[("benchmarks", "show")].params) < FEW and "Options:" in cli("benchmarks", "show", "--help").stdout


def test_commands_are_listed_in_the_order_of_use(cli: Cli) -> None:
    listed = re.findall(r"^  ([a-z]+)  +[A-Z]", cli("--help").stdout, re.MULTILINE)
    order = [name for names in SECTIONS.values() for name in names.split() if name in main.commands]
    assert listed == order and set(order) == set(main.commands)  # a new command has a section
    assert not re.search(r"\.\.\.$", cli("--help").stdout.partition("Compare methods")[2], re.MULTILINE)  # none is cut


@pytest.mark.parametrize("words", [words for words, command in ALL.items() if command.epilog], ids=" ".join)
def test_examples_are_commands_with_their_own_options(words: tuple[str, ...]) -> None:
    lines = (ALL[words].epilog or "").split("\n")[2:]
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        command: click.Command = main
        found = 0
        while (
            isinstance(command, click.Group) and arguments[found : found + 1] and arguments[found] in command.commands
        ):
            command, found = command.commands[arguments[found]], found + 1
        known = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        assert program == "oodbench" and found, line
        assert {one for one in arguments if one.startswith("-")} <= known, line


@pytest.mark.parametrize("kind", ["weights", "words"])
def test_lists_of_releases_fit_80_columns(kind: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("OODBENCH_DATA", "data")
    lines = cli("get", kind).stdout.split("\n")
    assert max(map(len, lines)) <= 80
    for one in releases(kind).values():
        place = next(i for i, line in enumerate(lines) if line.startswith(f"{one.name} "))
        assert one.title in lines[place] and lines[place + 1].endswith(f": {one.command(Path('data'))}")
    assert "where, or how to get it" in cli("get", kind, "--wide").stdout


@pytest.mark.parametrize(
    "command", ["methods", "methods list", "datasets", "datasets list", "benchmarks", "benchmarks list"]
)
def test_lists_fit_80_columns(command: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = cli(*command.split()).stdout.split("\n")
    assert max(map(len, lines[:-2])) <= 80
    names = [*registry.methods()] if command.startswith("methods") else [*catalog.benchmarks()]
    assert all(any(line.startswith(f"{name} ") for line in lines) for name in names)
    wide = cli(*command.split(), "--wide").stdout
    assert "arXiv:" in wide and "…" not in wide


def test_filters_and_json(cli: Cli, tmp_path: Path) -> None:
    listed = json.loads(cli("methods", "--group", "post-hoc", "--json").stdout)
    assert {one["method"] for one in listed} == set(registry.group("post-hoc", registry.methods()))
    assert all("post-hoc" in one["groups"] and one["paper"] for one in listed)
    (tmp_path / "dtd/images").mkdir(parents=True)
    found = json.loads(cli("datasets", "list", "--found", "--json", "--data", str(tmp_path)).stdout)
    assert "textures" in {one["dataset"] for one in found} and "sun" not in {one["dataset"] for one in found}
    assert [one["benchmark"] for one in json.loads(cli("benchmarks", "--json").stdout)] == [*catalog.benchmarks()]


def test_cutting_keeps_the_names() -> None:
    rows = [("name", "title"), ("a-very-long-name-of-a-set", "x" * 40)]
    assert cut(rows, 40) == [("name", "title"), ("a-very-long-name-of-a-set", "x" * 12 + "…")]
    assert cut(rows, 200) == rows


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("run --methods mcm,neg", {"mcm,neglabel", "mcm,negrefine"}),
        ("run --id imagenet1", {"imagenet1k", "imagenet10"}),
        ("run --ood sun,text", {"sun,textures"}),
        ("run --encoder ViT-B-32", {"ViT-B-32/"}),
        ("run --precision b", {"bf16"}),
        ("train cl", {"clipn"}),
        ("rep", {"report"}),
        ("datasets get imagenet-", {"imagenet-a", "imagenet-r"}),
        ("datasets check sun te", {"textures"}),
        ("methods ne", {"negatives", "neglabel"}),
        ("methods check negl", {"neglabel"}),
        ("benchmarks show m", {"mos"}),
        ("get weights cli", {"clipn", "clipn-2"}),
    ],
)
def test_bash_completes(typed: str, offered: set[str], cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    words = typed.split()
    monkeypatch.setenv("COMP_WORDS", f"oodbench {typed}")
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    monkeypatch.setenv("_OODBENCH_COMPLETE", "bash_complete")
    from click.testing import CliRunner

    out = CliRunner().invoke(main, [], prog_name="oodbench").output
    assert offered <= {line.partition(",")[2] for line in out.split("\n")}


@pytest.mark.slow
def test_python_m_oodbench_and_bash_itself(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "oodbench", "--version"], capture_output=True, text=True, check=True)
    assert "oodbench" in done.stdout
    script = tmp_path / "complete.sh"
    script.write_text(
        'eval "$(_OODBENCH_COMPLETE=bash_source oodbench)"\nCOMP_WORDS=(oodbench run --methods mcm,negl)\n'
        "COMP_CWORD=3\n"
        '_oodbench_completion oodbench\nprintf "%s\\n" "${COMPREPLY[@]}"\n'
    )
    folder = str(Path(sys.executable).parent)
    environment = {**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.split() == ["mcm,neglabel"]
