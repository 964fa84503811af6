"""The curves of a training as lines of JSON, losses.jsonl in its folder: what was learnt at which step, how fast."""

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

NAME = "losses.jsonl"
LAST = 100  # steps over which the final means are taken


class Curves:
    """The file, open for the next step; lines of steps that are done again after a resume are dropped.

    Of several processes only the first writes.
    """

    def __init__(self, folder: Path, done: int, writes: bool) -> None:
        self.path = folder / NAME
        self._last: deque[dict[str, Any]] = deque(maxlen=LAST)
        self._file: IO[str] | None = None
        if not writes:
            return
        try:
            kept = [line for line in lines(self.path) if line["step"] <= done]
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))
            self._file = self.path.open("a", encoding="utf-8")
        except OSError as error:
            raise self._unwritable(error) from error
        self._last.extend(kept[-LAST:])

    def __enter__(self) -> Curves:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file:
            with contextlib.suppress(OSError):  # of a full disk, which was told when the line was added
                self._file.close()

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(f"{self.path} cannot be written ({error.strerror or error}); the last checkpoint stays")

    def add(self, report: StepReport) -> None:
        """Append a step."""
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
        self._last.append(line)

    def means(self) -> dict[str, float]:
        """Every term of the loss, mean of the last hundred steps."""
        terms = [line["terms"] for line in self._last]
        return {name: sum(one[name] for one in terms) / len(terms) for name in (terms[-1] if terms else {})}


def lines(path: Path) -> list[dict[str, Any]]:
    """The steps of a file; a torn line ends it."""
    found: list[dict[str, Any]] = []
    if path.is_file():
        for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found.append(json.loads(text))
            except ValueError:
                break
    return found
