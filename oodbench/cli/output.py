"""Output of commands: lines and errors in a terminal, log messages, tables, the file of --output."""

from __future__ import annotations

import codecs
import io
import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.errors import UserError, printable, redact
from oodbench.storage.files import write_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oodbench.report.tables.table import Table

# Replacements for characters that stdout or stderr cannot encode.
_ASCII = dict(zip("†·–—−─×’“”↑↓", '~-----x\'""^v', strict=True))


def say(text: str) -> None:
    """Print lines on stdout, with control characters as escapes."""
    click.echo("\n".join(map(printable, text.split("\n"))), file=sys.stdout)


def note(text: str) -> None:
    """Print a line on stderr. A line break before two blanks is kept; others become escapes."""
    for line in re.split(r"\n(?=  )", text):
        click.echo(printable(line), file=sys.stderr)


def print_contract(name: str, checks: list[tuple[str, str]], warning: str = "") -> None:
    """Print (check, problem or "") and the outcome; exit with code 1 if there is a problem.

    A warning is printed before the outcome and does not change it.
    """
    for check, problem in checks:
        say(printable(redact(f"{'FAIL' if problem else 'ok':5}{check}{': ' + problem if problem else ''}")))
    if warning:
        say(printable(redact(f"warn {warning}")))
    failed = sum(bool(problem) for _, problem in checks)
    outcome = f"breaks the contract in {failed} of {len(checks)} checks" if failed else "keeps the contract"
    say(f"{name}: {outcome}")
    if failed:
        sys.exit(1)


def print_errors(*problems: str) -> None:
    """Print each problem on stderr, as note() does."""
    for problem in problems:
        note(f"error: {problem}")


def print_tables(tables: Iterable[Table]) -> None:
    """Print tables for a terminal, 160 characters wide if stdout is a file or a pipe."""
    from rich.console import Console

    from oodbench.report.formats.terminal import console

    screen = Console() if sys.stdout.isatty() else Console(width=160)
    for table in tables:
        screen.print(console(table))


def check_output(path: Path | None, makes_folder: bool = False) -> None:
    """Raise UserError if --output is a folder, or its parent folder is missing and not created by the command."""
    if path is None:
        return
    if path.is_dir():
        raise UserError(f"--output {path} is a folder; name a file")
    if not makes_folder and not path.absolute().parent.is_dir():
        raise UserError(f"--output {path}: there is no folder {path.absolute().parent}")


def write_output(path: Path, text: str) -> None:
    """Write the file of --output. Raise UserError if the system refuses."""
    try:
        write_text(path, text)
    except OSError as error:
        raise UserError(f"--output {path} cannot be written: {error.strerror or error}") from error


class Formatter(logging.Formatter):
    """One printable line for each log message, with its traceback below it; secrets of URLs are removed."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return printable(redact(super().formatMessage(record)))

    def formatException(self, ei: Any) -> str:
        return "\n".join(map(printable, redact(super().formatException(ei)).split("\n")))


class StderrHandler(logging.Handler):
    """Prints messages to the current sys.stderr, which shows them above active progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), file=sys.stderr)
        except Exception:
            self.handleError(record)


def configure_logging(verbose: bool) -> None:
    """Log warnings to stderr; with `verbose`, log every step, too."""
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, handlers=[StderrHandler()])
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Formatter("%(levelname)s %(name)s: %(message)s"))
    if verbose:
        logging.getLogger("oodbench").setLevel(logging.DEBUG)


@contextmanager
def any_encoding() -> Iterator[None]:
    """While active, stdout and stderr replace characters that their encoding lacks instead of failing."""
    codecs.register_error("oodbench", _replacement)
    changed = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in changed]
    for stream in changed:
        stream.reconfigure(errors="oodbench")
    try:
        yield
    finally:
        for stream, errors in zip(changed, before, strict=True):
            stream.reconfigure(errors=errors)


def _replacement(error: UnicodeError) -> tuple[str | bytes, int]:
    """Handle an error of `codecs`: † becomes ~, so that columns stay aligned, any other character `\\u4e00`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_ASCII.get(c) or c.encode("ascii", "backslashreplace").decode() for c in text), error.end
