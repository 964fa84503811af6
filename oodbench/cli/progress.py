"""Progress on stderr for runs, trainings, downloads and slow imports. It is shown only if stderr is a terminal."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from oodbench.errors import printable
from oodbench.pipeline.events import Advance, Event, Watch

if TYPE_CHECKING:
    from oodbench.results import Result
    from oodbench.training.loop import StepReport

log = logging.getLogger("oodbench.training")
run_log = logging.getLogger("oodbench.run")

LOG_EVERY = 50  # training steps between two log messages
SPINNER_AFTER = 1.0  # seconds
_COUNTS = {"joined": ("workers", 1), "lost": ("workers", -1), "retried": ("retried", 1), "failed": ("failed", 1)}


@contextmanager
def spinner(text: str) -> Iterator[None]:
    """Show a text next to a spinner on stderr if the block takes more than a second and stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    status = Console(stderr=True).status(printable(text))
    timer = threading.Timer(SPINNER_AFTER, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


@contextmanager
def text_progress() -> Iterator[Watch]:
    """Yield a Watch that shows bars for the prompts and calibration images that are encoded to fit a method."""
    with spinner("importing torch"):
        import torch  # noqa: F401
    with ProgressBars("images") as bars:
        yield Watch(
            extracting=lambda dataset, images: bars.count(f"encode {dataset}", images),
            prompts=lambda count: bars.count("encode prompts", count, "prompts"),
        )


class ProgressBars:
    """Progress bars, each with a name, a count, a text and the time left, while the `with` block is active."""

    def __init__(self, unit: str = "") -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        self.unit = unit
        self.visible = sys.stderr.isatty()
        self._progress = progress.Progress(
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(bar_width=24),  # the only column that shrinks in a narrow terminal
            (progress.DownloadColumn if unit == "bytes" else progress.MofNCompleteColumn)(
                table_column=Column(no_wrap=True)
            ),
            progress.TextColumn("{task.fields[text]}", markup=False),
            progress.TimeRemainingColumn(table_column=Column(no_wrap=True)),
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

    def add(self, name: str, total: int | None, done: int = 0, *, timed: bool = True) -> Callable[..., None]:
        """Add a bar. Return the function that changes it: advance, completed, description, text.

        A bar that is not `timed` pulses, and shows no time left.
        """
        task = self._progress.add_task(self._short(name), total=total, completed=done, text="", start=timed)

        def update(**changes: Any) -> None:
            texts = {key: self._short(value, 2 / 5) for key, value in changes.items() if isinstance(value, str)}
            self._progress.update(task, **(changes | texts))

        return update

    def count(self, name: str, total: int, unit: str = "") -> Advance:
        """Add a bar that shows its speed in `unit`s and disappears when it is full. Return the function to advance it.

        A total of 0 means that it is unknown. `unit` is that of all bars by default.
        """
        task = self._progress.add_task(self._short(name), total=total or None, text="")

        def advance(n: int) -> None:
            self._progress.advance(task, n)
            state = self._progress.tasks[task]
            self._progress.update(task, text=_speed_text(state.speed, unit or self.unit), visible=not state.finished)

        return advance

    def _short(self, text: str, part: float = 1 / 3) -> str:
        """Return printable text, without its middle if it is longer than a fraction of the terminal's width."""
        text, limit = printable(text), int(self._progress.console.width * part)
        return text if len(text) <= limit else f"{text[: limit // 2]}…{text[-(limit - limit // 2 - 1) :]}"


def _speed_text(speed: float | None, unit: str) -> str:
    if not speed:
        return ""
    if unit == "bytes":
        from oodbench.cli.listings import bytes_text

        return f"{bytes_text(int(speed))}/s"
    return f"{speed:,.0f} {unit}".strip() + "/s"


class RunProgress(ProgressBars):
    """Progress of a run of `rows` methods; the run calls `watch`. Without a terminal, stages are logged."""

    def __init__(self, rows: int | None = None) -> None:
        super().__init__("images")
        self.watch = Watch(self._extracting, self._prompts, self._scoring, self._finished, self._event)
        self._state = self.add("rows", rows, timed=False)
        self._results = 0
        self._stage = "starting"
        self._counts = dict.fromkeys(("workers", "retried", "failed"), 0)
        self._speeds: dict[str, float] = {}  # worker -> images/s of its last shard
        self._show_state()

    def summary(self) -> str:
        """Return the state of the workers: `4 workers, 310-330 images/s each, 1 retried`."""
        counts = {name: f"{n} {name}" for name, n in self._counts.items() if n}
        slow, fast = (f"{choose(self._speeds.values(), default=0):,.0f}" for choose in (min, max))
        each = f"{slow if slow == fast else f'{slow}-{fast}'} images/s each" if self._speeds else ""
        return ", ".join(
            filter(None, [counts.get("workers", ""), each, counts.get("retried", ""), counts.get("failed", "")])
        )

    def _extracting(self, dataset: str, images: int) -> Advance:
        return self.count(f"encode {dataset}", images)

    def _prompts(self, count: int) -> Advance:
        run_log.info("encoding %s prompts", f"{count:,}")
        return self.count("encode prompts", count, "prompts")

    def _scoring(self, dataset: str, methods: Sequence[str], images: int) -> Advance:
        return self.count(f"score {dataset}", images)

    def _finished(self, result: Result) -> None:
        self._results += 1
        self._show_state()

    def _event(self, event: Event) -> None:
        """Show the last stage, count workers, retries and failures, and keep the speed of each worker."""
        if event.what in _COUNTS:
            name, step = _COUNTS[event.what]
            self._counts[name] = max(0, self._counts[name] + step)
        if event.what == "started":
            self._stage = event.name
            run_log.info("%s", event.name)
        if event.what == "lost":
            self._speeds.pop(event.worker, None)
        if event.worker and event.images and event.seconds and (event.what, event.stage) == ("done", "extract"):
            self._speeds[event.worker] = event.images / event.seconds
        self._show_state()

    def _show_state(self) -> None:
        self._state(completed=self._results, text="; ".join(filter(None, [self.summary(), self._stage])))


class TrainProgress(ProgressBars):
    """Progress of a training; without a terminal, it is logged every few steps."""

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
        """Add the bar of the training steps; `done` of them are already finished."""
        self._steps = steps
        self._bar = self.add("train", steps, done)

    def step(self, report: StepReport) -> None:
        """Advance by one step."""
        self._speed = report.speed if not self._speed else 0.9 * self._speed + 0.1 * report.speed
        text = f"loss {report.loss:.4f}  {self._speed:,.0f} samples/s"
        self._bar(advance=1, text=text)
        if not self.visible and (report.step % LOG_EVERY == 0 or report.step in (1, self._steps)):
            log.info("step %d of %d: %s, lr %.3g", report.step, self._steps, text, report.lr)
