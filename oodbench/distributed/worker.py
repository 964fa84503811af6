"""What runs on the cluster: one process per GPU that loads the encoder once, makes shards, fits and scores."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oodbench.distributed.cluster import WorkerFolder
from oodbench.distributed.payload import WorkerPayload, unpack
from oodbench.errors import UserError
from oodbench.pipeline.extract import ExtractionJob, extract, shard

if TYPE_CHECKING:
    from oodbench.distributed.cluster import Placement
    from oodbench.pipeline.batches import FittedMethod
    from oodbench.pipeline.plan import Plan


@dataclass(frozen=True)
class Done:
    """What a task gives back: small, for everything large lies in the store.

    error   why it failed; "" otherwise
    asked   whether the user's input is at fault, so that trying again is of no use
    errors  with fit and score: label -> why that method failed
    stateful  labels of those that keep something from one image to the next: no score of theirs may stay
    """

    seconds: float = 0.0
    error: str = ""
    asked: bool = False
    errors: dict[str, str] | None = None
    place: str = ""
    stateful: tuple[str, ...] = ()


def parts(plan: Plan) -> list[ExtractionJob]:
    """Every list that is encoded itself, in an order that driver and workers share; derived lists take from these."""
    lists = [*plan.listings, *([plan.calibration] if plan.calibration else [])]
    found: dict[str, ExtractionJob] = {}
    for listing in lists:
        for work in leaves(plan.work(listing)):
            found.setdefault(work.listing.fingerprint, work)
    return list(found.values())


def leaves(work: ExtractionJob) -> Iterator[ExtractionJob]:
    """The lists at the bottom of a derived one, or the list itself."""
    if not work.listing.origins:
        yield work
    for origin in work.origins():
        yield from leaves(origin)


class Worker:
    """The actor. Its methods never raise: what went wrong is told, so that only a dead process looks like one."""

    def __init__(self, parcel: WorkerPayload, layout: Placement) -> None:
        self._parcel, self._layout = parcel, layout
        self._running: dict[str, FittedMethod] = {}
        self._scratch = WorkerFolder()

    def begin(self) -> Done:
        """Unpack and check: versions, sources, store and device."""
        return self._told(self._begin)

    def extract(self, part: int, start: int, stop: int) -> Done:
        """Make one shard of one list, unless it is in the store."""
        return self._told(lambda: self._extract(part, (start, stop)))

    def fit(self, labels: tuple[str, ...]) -> Done:
        """Fit methods, so that what they share is in the store before they score in several places."""
        return self._told(lambda: self._fit(labels))

    def score(self, number: int, labels: tuple[str, ...]) -> Done:
        """Score one set of the plan with some of its methods."""
        return self._told(lambda: self._score(number, labels))

    def end(self) -> None:
        """Remove what this process wrote outside the store; no more is asked of it."""
        self._scratch.remove()

    def _told(self, work: Callable[[], dict[str, str] | None]) -> Done:
        began = time.perf_counter()
        place = f"{socket.gethostname()}/{os.getpid()}"
        try:
            errors = work()
        except UserError as error:
            return Done(time.perf_counter() - began, str(error), True, None, place)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            said = f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"
            return Done(time.perf_counter() - began, said, False, None, place)
        stateful = tuple(label for label, one in self._running.items() if one.stateful)
        return Done(time.perf_counter() - began, "", False, errors, place, stateful)

    def _begin(self) -> None:
        import dataclasses

        import torch

        from oodbench.pipeline.events import Watch
        from oodbench.pipeline.score import Scorer
        from oodbench.pipeline.task import encoder_loader, make_task, pick_device

        cores = max(1, min((os.cpu_count() or 1) // self._layout.share, 16))
        # Ray gives every worker one thread. On CPUs the digits of embeddings follow their number: that of the driver.
        torch.set_num_threads(self._layout.threads if self._layout.device == "cpu" else cores)
        plan = unpack(self._parcel, self._scratch.path)
        request = dataclasses.replace(plan.request, workers=plan.request.workers or cores)
        self.plan = dataclasses.replace(plan, request=request)
        self.device = pick_device(self._layout.device)
        self._parts = parts(self.plan)
        self._jobs = {job.label: job for job in self.plan.jobs}
        self._encoder = encoder_loader(self.plan, self.device)
        self._scorer = Scorer(self.plan, make_task(self.plan, self._encoder, self.device, Watch()), self.device)

    def _extract(self, part: int, bounds: tuple[int, int]) -> None:
        shard(self._parts[part], bounds, self._encoder)

    def _fit(self, labels: tuple[str, ...]) -> dict[str, str]:
        fresh = self._fresh(labels)
        self._scorer.fit(fresh)
        return {one.job.label: one.error for one in fresh if one.error}

    def _score(self, number: int, labels: tuple[str, ...]) -> dict[str, str]:
        fresh = self._fresh(labels)
        listing = self.plan.listings[number]
        self._scorer.score(fresh, extract(self.plan.work(listing), self._encoder))
        return {one.job.label: one.error for one in fresh if one.error}

    def _fresh(self, labels: tuple[str, ...]) -> list[FittedMethod]:
        """The methods, kept from task to task with what they learnt; one that failed begins anew."""
        from oodbench.pipeline.batches import FittedMethod
        from oodbench.pipeline.task import method_resources

        for label in labels:
            if label not in self._running or self._running[label].error:
                job = self._jobs[label]
                self._running[label] = FittedMethod(job, job.build(), method_resources(self.plan, job, self.device))
        return [self._running[label] for label in labels]
