"""The Ray actor that runs tasks: it loads the encoder once, then encodes shards, fits methods and scores images."""

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
from oodbench.pipeline.extract import ExtractionJob, extract, extract_shard

if TYPE_CHECKING:
    from oodbench.distributed.cluster import Placement
    from oodbench.pipeline.batches import FittedMethod
    from oodbench.pipeline.plan import Plan
    from oodbench.pipeline.stream_order import StreamProtocol


@dataclass(frozen=True)
class TaskResult:
    """The result of a worker's task. It is small, as embeddings and scores are written to the store.

    seconds         duration of the task
    error           why it failed, or ""
    user_error      whether the input is at fault, so that a retry would fail, too
    method_errors   for fit, score and stream: label -> why that method failed
    worker          host/process that ran it
    stateful        labels of methods that keep state from one image to the next: their scores must be discarded
    """

    seconds: float = 0.0
    error: str = ""
    user_error: bool = False
    method_errors: dict[str, str] | None = None
    worker: str = ""
    stateful: tuple[str, ...] = ()


def extraction_jobs(plan: Plan) -> list[ExtractionJob]:
    """Return the image lists to encode, in the same order in driver and workers."""
    lists = [*plan.listings, *plan.calibrations]
    jobs: dict[str, ExtractionJob] = {}
    for listing in lists:
        for job in leaf_jobs(plan.extraction_job(listing)):
            jobs.setdefault(job.listing.fingerprint, job)
    return list(jobs.values())


def leaf_jobs(job: ExtractionJob) -> Iterator[ExtractionJob]:
    """Yield the lists that a derived list takes its embeddings from, or the list itself if it is not derived."""
    if not job.listing.origins:
        yield job
    for origin in job.origins():
        yield from leaf_jobs(origin)


class Worker:
    """The actor. Its tasks return errors instead of raising them, so that only a dead process raises a RayError."""

    def __init__(self, payload: WorkerPayload, placement: Placement) -> None:
        self._payload, self._placement = payload, placement
        self._methods: dict[str, FittedMethod] = {}
        self._folder = WorkerFolder()

    def begin(self) -> TaskResult:
        """Unpack the plan and check code version, methods, store and device."""
        return self._run(self._begin)

    def extract(self, job: int, start: int, stop: int) -> TaskResult:
        """Encode one shard of one list, unless it is in the store."""
        return self._run(lambda: self._extract(job, (start, stop)))

    def views(self, label: str, job: int, start: int, stop: int) -> TaskResult:
        """Encode one shard of one list in the views of a method, unless they are in the store."""
        return self._run(lambda: self._encode_views(label, job, (start, stop)))

    def fit(self, labels: tuple[str, ...]) -> TaskResult:
        """Fit methods once, so that shared embeddings are in the store before several workers score with them."""
        return self._run(lambda: self._fit(labels))

    def score(self, number: int, labels: tuple[str, ...]) -> TaskResult:
        """Score one image set of the plan with some of its methods."""
        return self._run(lambda: self._score(number, labels))

    def stream(self, label: str, protocol: StreamProtocol, number: int) -> TaskResult:
        """Score the stream of the ID set and one OOD set of the plan with a StreamMethod."""
        return self._run(lambda: self._stream(label, protocol, number))

    def end(self) -> None:
        """Delete the files that this process wrote outside the store; it is the last task."""
        self._folder.remove()

    def _run(self, task: Callable[[], dict[str, str] | None]) -> TaskResult:
        began = time.perf_counter()
        worker = f"{socket.gethostname()}/{os.getpid()}"
        try:
            method_errors = task()
        except UserError as error:
            return TaskResult(time.perf_counter() - began, str(error), True, worker=worker)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({os.path.basename(frame.filename)}:{frame.lineno})"
            return TaskResult(time.perf_counter() - began, reason, worker=worker)
        stateful = tuple(label for label, method in self._methods.items() if method.stateful)
        return TaskResult(time.perf_counter() - began, "", False, method_errors, worker, stateful)

    def _begin(self) -> None:
        import dataclasses

        import torch

        from oodbench.pipeline.events import Watch
        from oodbench.pipeline.score import Scorer
        from oodbench.pipeline.task import encoder_loader, make_task, pick_device

        cores = max(1, min((os.cpu_count() or 1) // self._placement.max_per_node, 16))
        # Ray sets one thread per worker. On CPUs, the last digits of embeddings depend on the number of threads, so
        # workers use that of the driver.
        torch.set_num_threads(self._placement.threads if self._placement.device == "cpu" else cores)
        plan = unpack(self._payload, self._folder.path)
        request = dataclasses.replace(plan.request, workers=plan.request.workers or cores)
        self._plan = dataclasses.replace(plan, request=request)
        self._device = pick_device(self._placement.device)
        self._extraction_jobs = extraction_jobs(self._plan)
        self._jobs = {job.label: job for job in self._plan.jobs}
        self._encoder = encoder_loader(self._plan, self._device)
        task = make_task(self._plan, self._encoder, self._device, Watch())
        self._scorer = Scorer(self._plan, task, self._device)

    def _extract(self, job: int, bounds: tuple[int, int]) -> None:
        extract_shard(self._extraction_jobs[job], bounds, self._encoder)

    def _encode_views(self, label: str, job: int, bounds: tuple[int, int]) -> None:
        from oodbench.pipeline.views import encode_shard, view_jobs

        encode_shard(view_jobs(self._plan, self._jobs[label], self._extraction_jobs[job]), bounds, self._encoder)

    def _fit(self, labels: tuple[str, ...]) -> dict[str, str]:
        methods = self._load_methods(labels)
        self._scorer.fit(methods)
        return {method.job.label: method.error for method in methods if method.error}

    def _score(self, number: int, labels: tuple[str, ...]) -> dict[str, str]:
        methods = self._load_methods(labels)
        listing = self._plan.listings[number]
        self._scorer.score(methods, listing, lambda: extract(self._plan.extraction_job(listing), self._encoder))
        return {method.job.label: method.error for method in methods if method.error}

    def _stream(self, label: str, protocol: StreamProtocol, number: int) -> dict[str, str]:
        from oodbench.pipeline.streams import run_stream

        (method,) = self._load_methods((label,))
        listings = self._plan.listings
        run_stream(
            self._scorer,
            method,
            protocol,
            number,
            lambda i: extract(self._plan.extraction_job(listings[i]), self._encoder),
        )
        return {label: method.error} if method.error else {}

    def _load_methods(self, labels: tuple[str, ...]) -> list[FittedMethod]:
        """Return methods with the state of earlier tasks; a method that failed is built again."""
        from oodbench.pipeline.batches import FittedMethod
        from oodbench.pipeline.task import method_resources

        for label in labels:
            if label not in self._methods or self._methods[label].error:
                job = self._jobs[label]
                resources = method_resources(self._plan, job, self._device)
                self._methods[label] = FittedMethod(job, job.build(), resources)
        return [self._methods[label] for label in labels]
