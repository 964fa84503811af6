"""Live: bars on stderr for all that takes long; nothing at all where stderr is no terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from oodbench.errors import printable
from oodbench.pipeline.events import Event, Watch
from oodbench.results import Result

if TYPE_CHECKING:
    from oodbench.training.loop import StepReport


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


_CHANGES = {"joined": ("workers", 1), "lost": ("workers", -1), "retried": ("retried", 1), "failed": ("failed", 1)}


class Progress(Live):
    """A live view on stderr; `watch` is what the runner talks to."""

    def __init__(self) -> None:
        super().__init__()
        self.watch = Watch(self._extracting, self._scoring, self._finished, self._told)
        self._rows = 0
        self._counts = dict.fromkeys(("workers", "retried", "failed"), 0)
        self._speeds: dict[str, float] = {}  # worker -> images/s of its last shard

    def __enter__(self) -> Progress:
        super().__enter__()
        self._state: Callable[..., None] = self.line("starting", None)
        return self

    def _extracting(self, dataset: str, images: int) -> Callable[[int], None]:
        return self.counting(f"encode {dataset}", images, "images")

    def _scoring(self, dataset: str, methods: Any) -> None:
        self._state(description=f"score {dataset}: {', '.join(methods)}")

    def _told(self, event: Event) -> None:
        """Workers and their speed, tasks tried again, what failed: on the line of the state."""
        if event.what in _CHANGES:
            name, step = _CHANGES[event.what]
            self._counts[name] = max(0, self._counts[name] + step)
        if event.what == "lost":
            self._speeds.pop(event.worker, None)
        if event.worker and event.images and event.seconds and (event.what, event.stage) == ("done", "extract"):
            self._speeds[event.worker] = event.images / event.seconds
        self._state(told=self.words())

    def words(self) -> str:
        """`4 workers, 310-330 images/s each, 1 retried`."""
        counts = {name: f"{n} {name}" for name, n in self._counts.items() if n}
        slow, fast = (f"{pick(self._speeds.values(), default=0):,.0f}" for pick in (min, max))
        each = f"{slow if slow == fast else f'{slow}-{fast}'} images/s each" if self._speeds else ""
        said = [counts.get("workers", ""), each, counts.get("retried", ""), counts.get("failed", "")]
        return ", ".join(filter(None, said))

    def _finished(self, result: Result) -> None:
        self._rows += 1
        self._state(completed=self._rows)


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

    def step(self, report: StepReport) -> None:
        """One step more."""
        self._speed = report.speed if not self._speed else 0.9 * self._speed + 0.1 * report.speed
        told = f"loss {report.loss:.4f}  {self._speed:,.0f} samples/s"
        self._line(advance=1, told=told)
        if not self.shown and (report.step % EVERY == 0 or report.step in (1, self._steps)):
            log.info("step %d of %d: %s, lr %.3g", report.step, self._steps, told, report.lr)
