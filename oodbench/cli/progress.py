"""Progress bars on stderr for runs, trainings and downloads. Nothing is drawn if stderr is not a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from oodbench.errors import printable
from oodbench.pipeline.events import Event, Watch

if TYPE_CHECKING:
    from oodbench.results import Result
    from oodbench.training.loop import StepReport

log = logging.getLogger("oodbench.training")

LOG_EVERY = 50  # training steps between two lines of the log
_COUNTS = {"joined": ("workers", 1), "lost": ("workers", -1), "retried": ("retried", 1), "failed": ("failed", 1)}


class ProgressBars:
    """Lines with a name, a bar, a count, a text and the time left, while the `with` block is active."""

    def __init__(self, unit: str = "") -> None:
        from rich import progress
        from rich.console import Console

        self.unit = unit
        self.visible = sys.stderr.isatty()
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.DownloadColumn() if unit == "bytes" else progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[text]}", markup=False),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            disable=not self.visible,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def add(self, name: str, total: int | None, done: int = 0) -> Callable[..., None]:
        """Add a bar. Return the function that changes it: advance, completed, description, text."""
        task = self._progress.add_task(printable(name), total=total, completed=done, text="")

        def update(**changes: Any) -> None:
            safe: dict[str, Any]
            safe = {key: printable(value) if isinstance(value, str) else value for key, value in changes.items()}
            self._progress.update(task, **safe)

        return update

    def count(self, name: str, total: int) -> Callable[[int], None]:
        """Add a bar that shows its speed. Return the function that advances it; a total of 0 is not known."""
        task = self._progress.add_task(printable(name), total=total or None, text="")

        def advance(n: int) -> None:
            self._progress.advance(task, n)
            state = self._progress.tasks[task]
            self._progress.update(task, text=self._speed_text(state.speed), visible=not state.finished)

        return advance

    def _speed_text(self, speed: float | None) -> str:
        if not speed:
            return ""
        if self.unit == "bytes":
            from oodbench.cli.listings import bytes_text

            return f"{bytes_text(int(speed))}/s"
        return f"{speed:,.0f} {self.unit}".strip() + "/s"


class RunProgress(ProgressBars):
    """Progress of a run; `watch` is what the run calls."""

    def __init__(self) -> None:
        super().__init__("images")
        self.watch = Watch(self._extracting, self._scoring, self._finished, self._event)
        self._state = self.add("starting", None)
        self._results = 0
        self._counts = dict.fromkeys(("workers", "retried", "failed"), 0)
        self._speeds: dict[str, float] = {}  # worker -> images/s of its last shard

    def summary(self) -> str:
        """Return the state of the workers: `4 workers, 310-330 images/s each, 1 retried`."""
        counts = {name: f"{n} {name}" for name, n in self._counts.items() if n}
        slow, fast = (f"{choose(self._speeds.values(), default=0):,.0f}" for choose in (min, max))
        each = f"{slow if slow == fast else f'{slow}-{fast}'} images/s each" if self._speeds else ""
        return ", ".join(
            filter(None, [counts.get("workers", ""), each, counts.get("retried", ""), counts.get("failed", "")])
        )

    def _extracting(self, dataset: str, images: int) -> Callable[[int], None]:
        return self.count(f"encode {dataset}", images)

    def _scoring(self, dataset: str, methods: Any) -> None:
        self._state(description=f"score {dataset}: {', '.join(methods)}")

    def _finished(self, result: Result) -> None:
        self._results += 1
        self._state(completed=self._results)

    def _event(self, event: Event) -> None:
        """Count workers, retries and failures, and keep the speed of each worker."""
        if event.what in _COUNTS:
            name, step = _COUNTS[event.what]
            self._counts[name] = max(0, self._counts[name] + step)
        if event.what == "lost":
            self._speeds.pop(event.worker, None)
        if event.worker and event.images and event.seconds and (event.what, event.stage) == ("done", "extract"):
            self._speeds[event.worker] = event.images / event.seconds
        self._state(text=self.summary())


class TrainProgress(ProgressBars):
    """Progress of a training; without a terminal, a line of the log every few steps."""

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0
        self._speed = 0.0
        self._bar: Callable[..., None] = lambda **changes: None

    def extracting(self, what: str, count: int) -> Callable[[int], None]:
        """Add a bar for images or captions that are embedded before the first step."""
        log.info("embedding %s: %s", what, f"{count:,}")
        return self.count(f"embed {what}", count)

    def begin(self, done: int, steps: int) -> None:
        """Add the bar of the training steps, `done` of which were made before."""
        self._steps = steps
        self._bar = self.add("train", steps, done)

    def step(self, report: StepReport) -> None:
        """Advance by one step."""
        self._speed = report.speed if not self._speed else 0.9 * self._speed + 0.1 * report.speed
        text = f"loss {report.loss:.4f}  {self._speed:,.0f} samples/s"
        self._bar(advance=1, text=text)
        if not self.visible and (report.step % LOG_EVERY == 0 or report.step in (1, self._steps)):
            log.info("step %d of %d: %s, lr %.3g", report.step, self._steps, text, report.lr)
