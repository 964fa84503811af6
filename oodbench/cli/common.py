"""What the commands share: errors as one line and exit code 2, logging, --config, tables in a terminal."""

from __future__ import annotations

import codecs
import errno
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli.spellings import config_refusal, refusal
from oodbench.errors import UserError, did_you_mean, printable, redact
from oodbench.storage.files import read_text, write_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from oodbench.results import Result

FOLDER = click.Path(path_type=Path)
_AGAIN = "; what is finished is stored, and the same command goes on from there"
# In place of what stdout cannot encode.
_ALIKE = dict(zip("†‡·–—−×’“”↑↓", '**----x\'""^v', strict=True))


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


class NamesOrCommands(click.Group):
    """A group whose first word may be a command or a name, of which it then calls the command `show`."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            return "show", self.commands["show"], args
        return super().resolve_command(ctx, args)


class CommandGroup(click.Group):
    """Turns errors into one line and exit code 2, and suggests commands."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"no command '{args[0]}'{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """As click's, with one form for all errors, on streams that take every character."""
        carry_out: Any = super().main  # click's overloads name every parameter
        if not standalone_mode:
            return carry_out(*args, standalone_mode=False, **more)
        code: Any = 0
        if logging.lastResort is not None:  # what prints the warnings of commands that set up no log
            logging.lastResort.setFormatter(_Printable("%(message)s"))
        try:
            with _encodable():
                try:
                    code = carry_out(*args, standalone_mode=False, **more)
                except SystemExit as end:
                    code = end.code
                sys.stdout.flush()  # a disk that is full is told now, not when Python ends
        except click.ClickException as error:
            asked = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
            given = args[0] if args else more.get("args")
            if renamed := refusal(asked.partition(" ")[2], list(sys.argv[1:] if given is None else given)):
                tell(renamed)
                sys.exit(2)
            tell(" ".join(error.format_message().split()).rstrip(".") + (f"; see {asked} --help" if asked else ""))
            code = 2
        except click.Abort:
            code = 130
        except OSError as error:
            if error.errno != errno.EPIPE and logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                raise
            _forsake(sys.stdout)
            if error.errno != errno.EPIPE:
                tell(f"the output cannot be written: {_reason(error)}")
                code = 2
            else:
                code = 1  # `| head` has seen enough
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                for line in redact(traceback.format_exc()).rstrip().split("\n"):
                    note(line)
                ctx.exit(2)
            tell(*error.problems)
            ctx.exit(2)
        except KeyboardInterrupt as stop:
            note(f"stopped{_AGAIN}")
            ctx.exit(143 if isinstance(stop, Terminated) else 130)
        except UnicodeEncodeError as error:
            if logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                raise
            tell(f"the name {error.object} is not UTF-8, as libraries need it here; rename it")
            ctx.exit(2)
        except OSError as error:
            # A disk that is full, a folder in place of a file: whatever was being written was written whole, or not.
            if error.errno == errno.EPIPE or logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                raise
            tell(_reason(error) + (_AGAIN if ctx.invoked_subcommand in ("run", "train") else ""))
            ctx.exit(2)


def say(text: str, *, err: bool = False) -> None:
    """Print lines in which nothing but letters, signs and blanks reaches the terminal."""
    click.echo("\n".join(map(printable, text.split("\n"))), file=sys.stderr if err else sys.stdout)


def note(text: str) -> None:
    """Print one line on stderr, whatever names with line breaks stand in it."""
    click.echo(printable(text), file=sys.stderr)


def tell(*problems: str) -> None:
    """Print problems on stderr, a line each; what goes on after a line break and two blanks has lines of its own."""
    for problem in problems:
        first, *rest = re.split(r"\n(?=  )", problem)
        for line in (f"error: {first}", *rest):
            note(line)


def _reason(error: OSError) -> str:
    """An error of the system in words, with the file that it is about."""
    # NumPy tells a full disk as "n requested and m written", and gives no number.
    full = error.strerror is None and "requested and" in str(error)
    why = "No space left on device" if full else error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {why}" if error.filename else why


@contextmanager
def _encodable() -> Iterator[None]:
    """Within it, a character that stdout or stderr cannot encode is written as a sign like it, or as an escape."""
    codecs.register_error("oodbench", _plain)
    changed = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in changed]
    for stream in changed:
        stream.reconfigure(errors="oodbench")
    try:
        yield
    finally:
        for stream, errors in zip(changed, before, strict=True):
            stream.reconfigure(errors=errors)


def _plain(error: UnicodeError) -> tuple[str | bytes, int]:
    """For codecs: † becomes *, so that columns stay aligned, and what has no sign like it `\\u4e00`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ALIKE.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end


def _forsake(stream: Any) -> None:
    """Let go of what a stream holds and cannot write, so that the end of Python does not tell it again."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def configure(ctx: click.Context, param: click.Parameter, path: Path | None) -> None:
    """--config: a TOML file of flags becomes the defaults; flags on the command line win."""
    if path is None:
        return
    import tomllib

    try:
        raw = tomllib.loads(read_text(path, "--config").replace("\r\n", "\n"))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"--config {path}: {error}") from error
    flags = {p.name or "": p for p in ctx.command.params if p.name != "config"}
    spelled = {max(flag.opts, key=len).lstrip("-").replace("-", "_"): name for name, flag in flags.items()}
    defaults: dict[str, Any] = {}
    for key, value in raw.items():
        name = spelled.get(key.replace("-", "_"))
        if name is None and (renamed := config_refusal(ctx.command_path.partition(" ")[2], key)):
            raise UserError(f"--config {path}: {renamed}")
        if name is None:
            raise UserError(
                f"--config {path}: no flag '{key}'{did_you_mean(key, [s.replace('_', '-') for s in spelled])}"
            )
        if name == "settings" and isinstance(value, dict):
            from oodbench.method.parameters import written
            from oodbench.results import flatten

            value = [f"{k}={written(v)}" for k, v in flatten(value).items()]
        elif isinstance(value, list) and not flags[name].multiple:
            paths = name in ("ood", "encoder")  # which may have commas and quotes
            value = ",".join('"{}"'.format(str(v).replace('"', '""')) if paths else str(v) for v in value)
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


def check_output(path: Path | None) -> None:
    """Raise UserError if --output names a folder, or a file in a folder that does not exist."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--output {path}: that is a folder; name a file")
    if not path.absolute().parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.absolute().parent}")


def write_output(path: Path, text: str) -> None:
    """Write the file of --output. Raise UserError if the system refuses."""
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from error


def print_tables(results: Sequence[Result]) -> None:
    from rich.console import Console

    from oodbench import report as tables_of

    console = Console() if sys.stdout.isatty() else Console(width=160)
    for table in tables_of.tables(results):
        console.print(tables_of.console(table))


class _Printable(logging.Formatter):
    """One line for each message, whatever names stand in it, and its traceback on lines of its own.

    Passwords and signatures of URLs are left out.
    """

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(redact(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, redact(super().formatException(ei)).split("\n")))


def log(verbose: bool) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=level, stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(_Printable("%(levelname)s %(name)s: %(message)s"))
    if verbose:
        logging.getLogger("oodbench").setLevel(logging.DEBUG)
