"""One pass over the batches of a set with several methods, on one thread or several."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.errors import UserError
from oodbench.pipeline.threads import in_order

if TYPE_CHECKING:
    from oodbench.method import Batch, Method, Own, Task
    from oodbench.pipeline.guards import Sample
    from oodbench.pipeline.jobs import Job


@dataclass
class Given:
    """What a method gave, batch by batch; nothing more after its first error."""

    scores: list[npt.NDArray[np.float64]] = field(default_factory=list)
    predictions: list[npt.NDArray[np.int32]] = field(default_factory=list)
    seconds: float = 0.0
    error: Exception | None = None

    def add(self, other: Given) -> None:
        """Append the next batch."""
        self.scores += other.scores
        self.predictions += other.predictions
        self.seconds += other.seconds
        self.error = other.error


@dataclass
class Running:
    """A job under way: its method, what it learnt, and why it failed if it did.

    held      what it has learnt and is set to, by place, when it had learnt it
    sample    a few images that it scores before its first set and after every set
    first     what it gave of them at first
    seen      images scored, and `looked` how many of them when it was last looked at whether it keeps anything of them
    stateful  whether it failed because it does
    """

    job: Job
    method: Method[Any]
    own: Own | None = None
    state: Any = None
    fitted: bool = False
    fit_seconds: float = 0.0
    error: str = ""
    held: dict[str, object] = field(default_factory=dict)
    sample: Sample | None = None
    first: Given = field(default_factory=Given)
    seen: int = 0
    looked: int = 0
    stateful: bool = False


class Changed(UserError):
    """A method changed in place what others read, too."""


def over(
    batches: Callable[[], Iterable[Batch]], group: Sequence[Running], task: Task, threads: int | None
) -> list[Given]:
    """What each method gives for all batches. `threads`: by so many, each on one core; None: in this one, on all.

    Changed stands as the error of the method that did it, when one did; what the others gave is then worthless.
    """
    found = _passed(batches(), group, task, threads, each=False)
    if any(isinstance(one.error, Changed) for one in found):
        # Something was changed: again, in one thread, looking after every method, to find out by whom.
        task.intact()  # puts right what another thread wrote last
        found = _passed(batches(), group, task, threads and 1, each=True)
    return found


def _passed(
    batches: Iterable[Batch], group: Sequence[Running], task: Task, threads: int | None, *, each: bool
) -> list[Given]:
    """One pass; `each`: what was changed is looked for after each method, not after each batch."""
    mine = threading.local()
    found = [Given() for _ in group]

    def made(batch: Batch) -> list[Given]:
        if not hasattr(mine, "task"):
            mine.task = task if threads is None else task.apart()
        return _batch(group, batch, mine.task, found, each=each)

    if threads is None:
        return _joined(found, map(made, batches), 1)
    return _joined(found, in_order(made, batches, threads), threads)


def _joined(found: list[Given], made: Iterable[list[Given]], threads: int) -> list[Given]:
    """Batches added in their order, up to the one in which a method changed something."""
    batches = 0
    for parts in made:
        batches += 1
        for one, part in zip(found, parts, strict=False):
            if one.error is None or isinstance(part.error, Changed):
                one.add(part)
        if any(isinstance(one.error, Changed) for one in found):
            break
    for one in found:
        one.seconds /= max(1, min(threads, batches))  # side by side
    return found


def _batch(group: Sequence[Running], batch: Batch, task: Task, earlier: Sequence[Given], *, each: bool) -> list[Given]:
    """One batch by every method that did not fail; the last one has Changed as its error if any changed something."""
    found: list[Given] = []
    for one, known in zip(group, earlier, strict=True):
        found.append(_scored(one, batch, task) if known.error is None else Given())
        if (each or len(found) == len(group)) and not (task.intact() and batch.intact()):
            found[-1].error = Changed("it changes in place what it was given; clone it first")
            break
    return found


def _scored(one: Running, batch: Batch, task: Task) -> Given:
    import torch

    from oodbench.method import Needs, check_predictions, check_scores

    began, found = time.perf_counter(), Given()
    try:
        # Not inference_mode: a method may need gradients with respect to the pixels.
        with torch.no_grad():
            needs, task = one.method.needs, task.seen_by(one.method.needs, one.own)
            scores = one.method.score(batch.seen_by(needs), task, one.state)
            predictions = one.method.predict(batch.seen_by(needs | Needs.FEATURES), task, one.state)
        found.scores.append(check_scores(scores, batch.size))
        if predictions is not None:
            check_predictions(predictions, batch.size, len(task.classes))
            found.predictions.append(predictions.cpu().numpy().astype(np.int32))
    except Exception as error:
        found.error = error
    found.seconds = time.perf_counter() - began
    return found
