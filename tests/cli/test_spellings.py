"""Names of commands and options in earlier versions: refused with the current command, before anything is done."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import oodbench
from oodbench.cli import main
from oodbench.cli.options import RENAMED as OPTIONS
from oodbench.cli.options import RENAMED_COMMANDS as COMMANDS
from oodbench.errors import UserError

# What each command needs in addition to the option; {} marks the place of the option.
WORDS = {
    "run": "run --methods mcm {} --limit 5",
    "train": "train clipn {} --steps 2",
    "score": "score images --method mcm {}",
    "explain": "explain {} image.png",
    "report": "report {} --results gone",
    "weights": "weights file.safetensors {}",
    "datasets check": "datasets --data DIR check glyphs {}",
}
FLAGS = {"--json": {"explain"}, "--pictures": {"report"}, "--no-pictures": {"report"}}  # options without a value
VALUES = {"--batch": "32"}
OLD = [(command, option) for command, options in OPTIONS.items() for option in options]


def value_of(command: str, option: str) -> str:
    return "" if command in FLAGS.get(option, ()) else VALUES.get(option, "some-name")


def refused(arguments: Sequence[str], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, list[str]]:
    """Return the reason of a refusal and the words of the command that it shows."""
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(main, list(arguments), prog_name="oodbench")
    assert done.exit_code == 2 and not done.stdout, done.output
    error, shown = done.stderr.splitlines()
    assert error.startswith("error: ") and error.endswith("; write") and shown.startswith("  oodbench ")
    assert not list(folder.iterdir())
    return error, shlex.split(shown)[1:]


def parsed(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, dict[str, object]]:
    """Return the name and the values of a command that click accepts, without carrying it out."""
    calls: list[tuple[str, dict[str, object]]] = []
    with monkeypatch.context() as patch:
        patch.setattr(click.Command, "invoke", lambda self, ctx: calls.append((self.name or "", ctx.params)))
        main(arguments, prog_name="oodbench", standalone_mode=False)
    return calls[-1]


@pytest.mark.parametrize(("command", "option"), OLD, ids=" ".join)
@pytest.mark.parametrize("form", ["{} {}", "{}={}"])
def test_an_old_option_is_refused_with_the_new_one(
    command: str, option: str, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = value_of(command, option)
    given = form.format(option, value) if value else option
    error, shown = refused(WORDS[command].format(given).split(), tmp_path, monkeypatch)
    new = OPTIONS[command][option]
    assert f"{option} is now {new}; " in error
    expected = WORDS[command].format(form.format(new, value) if value else new).split()
    assert shown == expected
    _, values = parsed(shown, monkeypatch)
    if value:
        assert value in map(str, values.values())


def test_every_command_of_the_table_was_tried() -> None:
    assert set(WORDS) == set(OPTIONS)
    for command, options in OPTIONS.items():
        group, _, name = command.rpartition(" ")
        parent = main.commands[group] if group else main
        assert isinstance(parent, click.Group)
        known = {spelled for param in parent.commands[name].params for spelled in (*param.opts, *param.secondary_opts)}
        assert not known & set(options)
        assert all(f"--{new}" in known for line in options.values() for new in line.replace("--", " ").split()[:1])


def test_several_old_options_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["train", "clipn", "--batch", "8", "--out", "a b.safetensors"]
    error, shown = refused(arguments, tmp_path, monkeypatch)
    assert error == "error: --batch is now --batch-size, --out is now --output; write"
    assert shown == ["train", "clipn", "--batch-size", "8", "--output", "a b.safetensors"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        *((f"{old} mine.py", f"{new} mine.py") for old, new in COMMANDS.items()),
        ("methods neglabel --negatives", "methods negatives neglabel"),
        ("methods --negatives", "methods negatives"),
        ("methods neglabel --id mos --negatives", "methods negatives neglabel --id mos"),
        ("methods --negatives --plugin mine.py mine", "methods negatives --plugin mine.py mine"),
    ],
)
def test_old_commands_are_refused(old: str, new: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error, shown = refused(old.split(), tmp_path, monkeypatch)
    assert " is now oodbench methods " in error and shown == new.split()
    assert parsed(shown, monkeypatch)[0] == new.split()[1]


@pytest.mark.parametrize(
    ("command", "option"), [(command, option) for command, option in OLD if command in ("run", "train")]
)
def test_a_config_file_with_an_old_name_is_refused(
    command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("old.toml").write_text(f"{option[2:]} = 1\n")
    arguments = [*WORDS[command].format("").split(), "--config", "old.toml"]
    done = CliRunner().invoke(main, arguments, prog_name="oodbench")
    new = OPTIONS[command][option][2:]
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: --config old.toml: '{option[2:]}' is now '{new}'; write {new} = ...\n"
    assert [path.name for path in tmp_path.iterdir()] == ["old.toml"]


def test_secrets_of_a_refused_command_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ["run", "--out", "x", "--tracking-uri", "http://me:s3cret@host:5000"]
    error, shown = refused(arguments, tmp_path, monkeypatch)
    assert "s3cret" not in error + " ".join(shown) and shown[:3] == ["run", "--results", "x"]


def test_python_takes_results_and_warns_of_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def carry_out(request: object, **_: object) -> object:
        raise UserError(str(request.out))  # type: ignore[attr-defined]

    monkeypatch.setattr("oodbench.api.run_and_record", carry_out)
    call: Callable[..., object] = oodbench.run
    with pytest.raises(UserError, match=r"^new$"):
        call("mcm", results="new")
    with pytest.warns(DeprecationWarning, match="write results="), pytest.raises(UserError, match=r"^old$"):
        call("mcm", out="old")
    with pytest.raises(UserError, match="old name of results="):
        call("mcm", out="old", results="new")
