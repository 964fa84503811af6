"""Events that a run reports, and the file that records each as a JSON line."""

from __future__ import annotations

import dataclasses
import datetime
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError, redact

if TYPE_CHECKING:
    from oodbench.results import Result


@dataclass(frozen=True)
class Event:
    """A change of state of a task or a worker.

    what     started, done, retried or failed; for workers joined or lost
    stage    extract, fit, score, stream, row or worker; on Ray views, too
    name     name of the task, as in `ray list tasks`: extract[imagenet1k 12/25]
    images   number of images of the task
    """

    what: str
    stage: str
    name: str
    images: int = 0
    seconds: float = 0.0
    worker: str = ""
    reason: str = ""


Tell = Callable[[Event], None]
Advance = Callable[[int], None]  # called with the number of images or prompts that were just processed


@dataclass(frozen=True)
class Watch:
    """Callbacks of a run.

    extracting  (dataset, images) -> Advance, before images are encoded
    prompts     (number of prompts) -> Advance, before prompts are encoded
    scoring     (dataset, labels of the methods, images) -> Advance, before a dataset is scored in this process
    finished    (result), after each result is written
    event       (event), for every event
    """

    extracting: Callable[[str, int], Advance] = lambda dataset, images: lambda n: None
    prompts: Callable[[int], Advance] = lambda count: lambda n: None
    scoring: Callable[[str, Sequence[str], int], Advance] = lambda dataset, methods, images: lambda n: None
    finished: Callable[[Result], None] = lambda result: None
    event: Callable[[Event], None] = lambda event: None


@contextmanager
def log_to(path: Path | None) -> Iterator[Tell]:
    """Yield a function that appends an event to a file as a JSON line with its time; without a path it does nothing.

    Raises UserError if the file cannot be written.
    """
    if path is None:
        yield lambda event: None
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a", encoding="utf-8", buffering=1)  # line-buffered: several runs may share the file
    except OSError as error:
        raise UserError(f"--events {path} cannot be written: {error.strerror}; name another file") from error
    lock = threading.Lock()

    def write(event: Event) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"time": now}
        line |= {name: value for name, value in dataclasses.asdict(event).items() if value not in ("", 0)}
        with lock:
            try:
                file.write(redact(json.dumps(line)) + "\n")
            except OSError as error:
                raise UserError(f"--events {path} cannot be written: {error.strerror}; name another file") from error

    try:
        yield write
    finally:
        with suppress(OSError):  # write() has reported what could not be written
            file.close()
