"""What the commands share: errors as one line and exit code 2, logging, --config, tables in a terminal."""

from __future__ import annotations

import logging
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from oodbench.errors import UserError, did_you_mean
from oodbench.urls import hidden

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oodbench.result import Result

FOLDER = click.Path(path_type=Path)


class Terminated(KeyboardInterrupt):
    """SIGTERM, as pre-emption sends it: ends a command as Ctrl-C does."""


@contextmanager
def stoppable() -> Iterator[None]:
    """Within it, SIGTERM raises Terminated."""
    asked = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked = True
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Terminated if asked else error from None  # ray makes its own of what a handler raises
    finally:
        signal.signal(signal.SIGTERM, before)


class Integers(click.ParamType):  # type: ignore[type-arg]  # generic in its stubs alone
    """Whole numbers separated by commas; one is written as it is."""

    name = "integers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        try:
            return tuple(int(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is no whole number, nor several as 0,1,2", param, ctx)


class Group(click.Group):
    """Turns UserError into one line and exit code 2, and suggests commands."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"no command '{args[0]}'{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                click.echo(hidden(traceback.format_exc()), err=True, nl=False)
                ctx.exit(2)
            for problem in str(error).splitlines():
                click.echo(problem if problem.startswith("  ") else f"error: {problem}", err=True)
            ctx.exit(2)
        except KeyboardInterrupt as stop:
            click.echo("stopped; what is finished is stored, and the same command goes on from there", err=True)
            ctx.exit(143 if isinstance(stop, Terminated) else 130)


def configure(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """--config: a TOML file of flags becomes the defaults; flags on the command line win."""
    if path is None:
        return
    import tomllib

    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"--config {path}: {error}") from error
    flags = {p.name or "": p for p in ctx.command.params if p.name != "config"}
    spelled = {max(flag.opts, key=len).lstrip("-").replace("-", "_"): name for name, flag in flags.items()}
    defaults: dict[str, Any] = {}
    for key, value in raw.items():
        name = spelled.get(key.replace("-", "_"))
        if name is None:
            raise UserError(
                f"--config {path}: no flag '{key}'{did_you_mean(key, [s.replace('_', '-') for s in spelled])}"
            )
        if name == "settings" and isinstance(value, dict):
            from oodbench.result import flatten
            from oodbench.values import written

            value = [f"{k}={written(v)}" for k, v in flatten(value).items()]
        elif isinstance(value, list) and not flags[name].multiple:
            quote = '"' if name == "ood" else ""  # a path may have a comma
            value = ",".join(f"{quote}{v}{quote}" for v in value)
        elif flags[name].multiple and not isinstance(value, list):
            value = [value]
        _check_flag(f"--config {path}: '{key}'", flags[name], value)
        defaults[name] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}


def _check_flag(where: str, flag: click.Parameter, value: Any) -> None:
    """Refuse a TOML value that click would bend to its type, such as 1.7 for a seed."""
    kind: Any = {"integer": int, "boolean": bool, "float": (int, float), "integers": (int, str)}.get(
        flag.type.name, str
    )
    for one in value if flag.multiple else [value]:
        if not isinstance(one, kind) or (kind is not bool and isinstance(one, bool)):
            raise UserError(f"{where} takes a {flag.type.name}, not {one!r}")


def print_tables(results: Sequence[Result]) -> None:
    from rich.console import Console

    from oodbench import report as tables_of

    console = Console() if sys.stdout.isatty() else Console(width=160)
    for table in tables_of.tables(results):
        console.print(tables_of.console(table))


class _Hiding(logging.Formatter):
    """Log lines, and the tracebacks in them, without passwords and signatures of URLs."""

    def format(self, record: logging.LogRecord) -> str:
        return hidden(super().format(record))


def log(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Hiding("%(levelname)s %(name)s: %(message)s"))
    if verbose:
        logging.getLogger("oodbench").setLevel(logging.DEBUG)
