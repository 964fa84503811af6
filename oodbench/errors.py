"""The one error a user sees as a message instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from oodbench.storage.urls import hidden

T = TypeVar("T")
_SHOWN = 12  # names that an error lists


class UserError(Exception):
    """Bad input: what was given, what exists, what to do. The CLI prints it without a traceback and exits 2.

    Several arguments are several problems, a line each; a line of one that begins with two blanks goes on with it.
    Passwords, tokens and signatures of URLs are left out of the message.
    """

    def __init__(self, *problems: object) -> None:
        super().__init__(*(hidden(str(one)) for one in problems))

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one by one."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Missing(UserError):
    """A dataset, or a part of it, that is not there. `--skip-missing` goes on without it when it is an OOD set."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A clause `; did you mean 'x'?` naming the option closest to `name`, or what exists when none is close."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"; known: {', '.join(known[:_SHOWN])}{more}" if known else ""


class Unlabelled(UserError):
    """A set whose images have no classes: good enough for an OOD set, and nothing is wrong with it."""


class Collected:
    """Problems of several steps, to be told at once."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """What a step gives; None, and its problems are kept, when it raises UserError."""
        try:
            return step(*arguments)
        except UserError as error:
            self.problems += error.problems
            return None


def raise_all(problems: Sequence[str]) -> None:
    """Raise every problem of one request at once, so that a user mends them in one go."""
    if problems:
        raise UserError(*dict.fromkeys(problems))
