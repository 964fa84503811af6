"""Groups of commands: they print each error as one line, refuse names of earlier versions, and handle SIGTERM."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import click
from click.shell_completion import CompletionItem

from oodbench.cli.help import Command, Sections
from oodbench.cli.options import renamed
from oodbench.cli.output import Formatter, any_encoding, note, print_errors
from oodbench.errors import UserError, did_you_mean, redact

RESUME = "Finished work is saved; rerun the same command to resume."


class Terminated(KeyboardInterrupt):
    """SIGTERM, which a scheduler sends before it stops a job: it ends a command as Ctrl-C does."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """While active, SIGTERM raises Terminated."""
    received = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt as error:
        raise Terminated if received else error from None  # ray replaces the exception of a signal handler
    finally:
        signal.signal(signal.SIGTERM, before)


class NamesOrCommands(click.Group):
    """A group whose first word may be a command or a name; for a name it calls the command `show`."""

    command_class = Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if self.get_command(ctx, args[0]) is None:
            return "show", self.commands["show"], args
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Return the commands and the names that start with the typed text."""
        name = next(one for one in self.commands["show"].params if isinstance(one, click.Argument))
        return [*super().shell_complete(ctx, incomplete), *name.shell_complete(ctx, incomplete)]


class CommandGroup(click.Group):
    """Turns errors into one line and exit code 2, and suggests commands."""

    command_class = Command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and self.get_command(ctx, args[0]) is None:
            raise click.UsageError(f"no command '{args[0]}'{did_you_mean(args[0], self.list_commands(ctx))}")
        return super().resolve_command(ctx, args)

    def main(self, *args: Any, standalone_mode: bool = True, **more: Any) -> Any:
        """Run as click does, but print all errors in one form, to streams that accept every character."""
        click_main: Any = super().main  # its overloads name every parameter
        if not standalone_mode:
            return click_main(*args, standalone_mode=False, **more)
        code: Any = 0
        if logging.lastResort is not None:  # prints the warnings of commands that do not configure logging
            logging.lastResort.setFormatter(Formatter("%(message)s"))
        try:
            with any_encoding():
                try:
                    code = click_main(*args, standalone_mode=False, **more)
                except SystemExit as end:
                    code = end.code
                sys.stdout.flush()  # reports a full disk now and not when Python ends
        except click.exceptions.NoArgsIsHelpError as error:
            click.echo(error.format_message(), err=True)
            code = 2
        except click.ClickException as error:
            arguments = args[0] if args else more.get("args")
            print_errors(_usage_text(error, list(sys.argv[1:] if arguments is None else arguments)))
            code = 2
        except click.Abort:
            code = 130
        except OSError as error:
            if error.errno != errno.EPIPE and logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                raise
            _discard(sys.stdout)
            if error.errno != errno.EPIPE:
                print_errors(f"the output cannot be written: {_os_error_text(error)}")
                code = 2
            else:
                code = 1  # the reader, such as `head`, has closed the pipe
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            if logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                for line in redact(traceback.format_exc()).rstrip().split("\n"):
                    note(line)
                ctx.exit(2)
            print_errors(*error.problems)
            ctx.exit(2)
        except KeyboardInterrupt as stop:
            note(f"stopped. {RESUME}")
            ctx.exit(143 if isinstance(stop, Terminated) else 130)
        except UnicodeEncodeError as error:
            if logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                raise
            print_errors(f"the name {error.object} is not UTF-8, which a library needs here; rename it")
            ctx.exit(2)
        except OSError as error:
            # For example a full disk. Files are written atomically, so none is incomplete.
            if error.errno == errno.EPIPE or logging.getLogger("oodbench").isEnabledFor(logging.DEBUG):
                raise
            resume = f". {RESUME}" if ctx.invoked_subcommand in ("run", "train") else ""
            print_errors(_os_error_text(error) + resume)
            ctx.exit(2)


def _usage_text(error: click.ClickException, arguments: list[str]) -> str:
    """Return the message of click, or the current command for one of an earlier version."""
    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else ""
    if message := renamed(command.partition(" ")[2], arguments):
        return message
    text = " ".join(error.format_message().split()).rstrip(".")
    return f"{text}; see {command} --help" if command else text


def _os_error_text(error: OSError) -> str:
    """Return the name of the file, if the error has one, and the reason."""
    # NumPy reports a full disk as "n requested and m written", without an error number.
    full = error.strerror is None and "requested and" in str(error)
    reason = "No space left on device" if full else error.strerror or str(error) or type(error).__name__
    return f"{error.filename}: {reason}" if error.filename else reason


def _discard(stream: Any) -> None:
    """Discard what a stream cannot write, so that Python does not report it again when it ends."""
    with suppress(OSError, ValueError, AttributeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class MainGroup(Sections, CommandGroup):
    """The command `oodbench`."""
