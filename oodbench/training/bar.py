"""What a training shows: a bar with loss, samples/s and time left in a terminal, else a line now and then."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from oodbench.training.loop import Report

log = logging.getLogger("oodbench.training")

EVERY = 50  # steps between lines


class Bar:
    """A live view on stderr."""

    def __init__(self) -> None:
        self._live: Any = None
        self._task: Any = None
        self._steps = 0
        self._speed = 0.0

    def __enter__(self) -> Bar:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._live = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[told]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def extracting(self, what: str, count: int) -> Callable[[int], None]:
        """A bar for images or captions that are embedded."""
        log.info("embedding %s: %s", what, f"{count:,}")
        live = self._live
        if live is None:
            return lambda n: None
        task = live.add_task(f"embed {what}", total=count, told="")

        def done(n: int) -> None:
            live.advance(task, n)
            speed = live.tasks[task].speed
            live.update(task, told=f"{speed:,.0f}/s" if speed else "", visible=not live.tasks[task].finished)

        return done

    def start(self, done: int, steps: int) -> None:
        """The bar of the steps themselves."""
        self._steps = steps
        if self._live is not None:
            self._task = self._live.add_task("train", total=steps, completed=done, told="")

    def step(self, report: Report) -> None:
        """One step more."""
        self._speed = report.speed if not self._speed else 0.9 * self._speed + 0.1 * report.speed
        told = f"loss {report.loss:.4f}  {self._speed:,.0f} samples/s"
        if self._live is not None:
            self._live.update(self._task, advance=1, told=told)
        elif report.step % EVERY == 0 or report.step in (1, self._steps):
            log.info("step %d of %d: %s, lr %.3g", report.step, self._steps, told, report.lr)
