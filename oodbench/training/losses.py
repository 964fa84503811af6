"""The loss curve of a training: one JSON line per step in losses.jsonl."""

from __future__ import annotations

import contextlib
import json
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from oodbench.errors import UserError
from oodbench.storage.files import write_text

if TYPE_CHECKING:
    from oodbench.training.loop import StepReport

FILE_NAME = "losses.jsonl"
FINAL_STEPS = 100  # steps over which the final loss terms are averaged


class LossLog:
    """Appends a line per step to losses.jsonl. Lines after step `done` are dropped: a resumed training repeats them.

    Only the main process writes.
    """

    def __init__(self, folder: Path, done: int, is_main: bool) -> None:
        self.path = folder / FILE_NAME
        self._recent: deque[dict[str, Any]] = deque(maxlen=FINAL_STEPS)
        self._file: IO[str] | None = None
        if not is_main:
            return
        try:
            kept = [line for line in read_losses(self.path) if line["step"] <= done]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        self._recent.extend(kept[-FINAL_STEPS:])

    def __enter__(self) -> LossLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            with contextlib.suppress(OSError):  # a full disk was reported when the line was added
                self._file.close()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be written ({error.strerror or error}); the last checkpoint stays")

    def add(self, report: StepReport) -> None:
        """Append the line of a step."""
        line = {
            "step": report.step,
            "loss": report.loss,
            "terms": report.terms,
            "lr": report.lr,
            "samples_per_second": round(report.speed, 2),
            "time": round(time.time(), 3),
        }
        if self._file:
            try:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()
            except OSError as error:
                raise self._unwritable(error) from error
        self._recent.append(line)

    def means(self) -> dict[str, float]:
        """Return every term of the loss, averaged over the last steps (at most 100)."""
        terms = [line["terms"] for line in self._recent]
        return {name: sum(step[name] for step in terms) / len(terms) for name in (terms[-1] if terms else {})}


def read_losses(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file as dictionaries, up to the first incomplete line."""
    steps: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                steps.append(json.loads(text))
            except ValueError:
                break
    return steps
