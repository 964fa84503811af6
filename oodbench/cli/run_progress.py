"""The progress of a run: images, images/s per worker, what was tried again or failed, time left."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from oodbench.cli.progress import Live
from oodbench.pipeline.events import Event
from oodbench.pipeline.run import Watch
from oodbench.results import Result

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
