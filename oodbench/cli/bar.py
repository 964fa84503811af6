"""What a training shows: a bar with loss, samples/s and time left in a terminal, else a line now and then."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from oodbench.cli.progress import Live

if TYPE_CHECKING:
    from oodbench.training.loop import Report

log = logging.getLogger("oodbench.training")

EVERY = 50  # steps between lines


class Bar(Live):
    """A live view on stderr."""

    def __init__(self) -> None:
        super().__init__()
        self._line: Callable[..., None] = lambda **change: None
        self._steps = 0
        self._speed = 0.0

    def extracting(self, what: str, count: int) -> Callable[[int], None]:
        """A bar for images or captions that are embedded."""
        log.info("embedding %s: %s", what, f"{count:,}")
        return self.counting(f"embed {what}", count, "")

    def start(self, done: int, steps: int) -> None:
        """The bar of the steps themselves."""
        self._steps = steps
        self._line = self.line("train", steps, done)

    def step(self, report: Report) -> None:
        """One step more."""
        self._speed = report.speed if not self._speed else 0.9 * self._speed + 0.1 * report.speed
        told = f"loss {report.loss:.4f}  {self._speed:,.0f} samples/s"
        self._line(advance=1, told=told)
        if not self.shown and (report.step % EVERY == 0 or report.step in (1, self._steps)):
            log.info("step %d of %d: %s, lr %.3g", report.step, self._steps, told, report.lr)
