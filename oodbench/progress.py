"""The progress bars of a run: images, images/s and time left; nothing at all when not in a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any

from oodbench.events import Event
from oodbench.result import Result
from oodbench.runner import Watch


class Progress:
    """A live view on stderr; `watch` is what the runner talks to."""

    def __init__(self) -> None:
        self._live: Any = None
        self.watch = Watch(self._extracting, self._scoring, self._finished, self._told)
        self._rows = 0
        self._counts = dict.fromkeys(("workers", "retried", "failed"), 0)

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._live = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[rate]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._live.__enter__()
            self._state = self._live.add_task("starting", total=None, rate="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.__exit__(kind, error, trace)

    def _extracting(self, dataset: str, images: int) -> Callable[[int], None]:
        live = self._live
        if live is None:
            return lambda n: None
        task = live.add_task(f"encode {dataset}", total=images, rate="")

        def done(n: int) -> None:
            live.advance(task, n)
            speed = live.tasks[task].speed
            live.update(task, rate=f"{speed:,.0f} images/s" if speed else "")

        return done

    def _scoring(self, dataset: str, methods: Any) -> None:
        if self._live is not None:
            self._live.update(self._state, description=f"score {dataset}: {', '.join(methods)}")

    def _told(self, event: Event) -> None:
        """Workers, tasks that were tried again, tasks and methods that failed: on the line of the state."""
        change = {"joined": ("workers", 1), "lost": ("workers", -1), "retried": ("retried", 1), "failed": ("failed", 1)}
        if event.what in change:
            name, step = change[event.what]
            self._counts[name] = max(0, self._counts[name] + step)
            if self._live is not None:
                counts = ", ".join(f"{n} {name}" for name, n in self._counts.items() if n)
                self._live.update(self._state, rate=counts)

    def _finished(self, result: Result) -> None:
        self._rows += 1
        if self._live is not None:
            self._live.update(self._state, completed=self._rows)
