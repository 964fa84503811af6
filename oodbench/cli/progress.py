"""Live: bars on stderr for all that takes long; nothing at all where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from oodbench.printable import printable


class Live:
    """Lines with a name, a bar, a count, words of their own and the time left. Without a terminal, calls do nothing."""

    def __init__(self) -> None:
        self._view: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._view = progress.Progress(
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[told]}", markup=False),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._view.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._view is not None:
            self._view.__exit__(kind, error, trace)

    @property
    def shown(self) -> bool:
        """Whether anybody sees it."""
        return self._view is not None

    def line(self, name: str, total: int | None, done: int = 0) -> Callable[..., None]:
        """A new line; what is given back takes rich's changes of it: advance, completed, description, told."""
        if self._view is None:
            return lambda **change: None
        task = self._view.add_task(printable(name), total=total, completed=done, told="")
        return lambda **change: self._view.update(task, **{key: _seen(value) for key, value in change.items()})

    def counting(self, name: str, total: int, unit: str) -> Callable[[int], None]:
        """A new line that is told of every few more, and says how many a second."""
        if self._view is None:
            return lambda n: None
        task = self._view.add_task(printable(name), total=total, told="")

        def done(n: int) -> None:
            self._view.advance(task, n)
            state = self._view.tasks[task]
            speed = f"{state.speed:,.0f} {unit}".strip() + "/s" if state.speed else ""
            self._view.update(task, told=speed, visible=not state.finished)

        return done


def _seen(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value
