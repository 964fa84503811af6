"""A pool of Ray actors that run tasks. A task whose worker dies is retried, and the worker is replaced."""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from oodbench.distributed.cluster import Placement
from oodbench.distributed.payload import WorkerPayload
from oodbench.distributed.worker import TaskResult, Worker
from oodbench.errors import UserError, printable
from oodbench.pipeline.events import Event, Tell

log = logging.getLogger(__name__)

MAX_TRIES = 3  # of a task, after which it fails
MAX_FAILED_STARTS = 5  # consecutive workers that die before they are ready
POLL_SECONDS = 1.0
WAITING_SECONDS = 30.0  # without any worker, before a warning


@dataclass
class PoolTask:
    """A call of a worker's method.

    name        name in `ray list tasks`
    stage       the worker's method: extract, fit, views, score or stream
    on_result   called with the result; may add tasks to the pool
    images      number of images that the task processes
    tries       number of failed tries
    """

    name: str
    stage: str
    arguments: tuple[Any, ...]
    on_result: Callable[[TaskResult], None]
    images: int = 0
    tries: int = 0


@dataclass
class _Actor:
    name: str
    handle: Any
    ready: bool = False
    task: PoolTask | None = None
    worker: str = ""  # host/process


@dataclass
class Pool:
    """Runs tasks on actors of the connected cluster, one task per actor at a time; no task waits in Ray's queues."""

    placement: Placement
    payload: WorkerPayload
    tell: Tell = lambda event: None
    _waiting: collections.deque[PoolTask] = field(default_factory=collections.deque)
    _waiting_first: collections.deque[PoolTask] = field(default_factory=collections.deque)
    _running: dict[Any, _Actor] = field(default_factory=dict)  # object ref of the running call -> actor
    _idle: list[_Actor] = field(default_factory=list)
    _created: int = 0
    _failed_starts: int = 0  # in a row
    _payload_ref: Any = None
    _without_worker_since: float = 0.0

    def add(self, task: PoolTask, *, first: bool = False) -> None:
        """Add a task; with `first`, before the waiting tasks."""
        (self._waiting_first if first else self._waiting).append(task)

    def discard(self, tasks: Sequence[PoolTask]) -> None:
        """Remove waiting tasks; running tasks continue."""
        self._waiting_first = collections.deque(task for task in self._waiting_first if task not in tasks)
        self._waiting = collections.deque(task for task in self._waiting if task not in tasks)

    def run(self) -> None:
        """Run all tasks, including those that callbacks add. Raise UserError if the workers cannot start."""
        import ray

        self._payload_ref = ray.put(self.payload)
        try:
            while self._waiting_first or self._waiting or any(actor.task for actor in self._running.values()):
                self._schedule()
                finished, _ = ray.wait(list(self._running), num_returns=1, timeout=POLL_SECONDS)
                for reference in finished:
                    self._collect(reference)
                self._warn_without_workers()
        finally:
            actors = (*self._running.values(), *self._idle)
            _clean_up([actor for actor in actors if actor.task is None])
            for actor in actors:
                _kill(actor)
            self._running.clear()
            self._idle.clear()
            self._payload_ref = None

    def _schedule(self) -> None:
        """Give waiting tasks to idle workers, and create workers for the remaining ones."""
        import ray

        while self._idle and (self._waiting_first or self._waiting):
            self._submit(self._idle.pop(), (self._waiting_first or self._waiting).popleft())
        waiting = len(self._waiting_first) + len(self._waiting)
        needed = min(self.placement.actors, waiting + sum(1 for actor in self._running.values() if actor.task))
        while len(self._running) + len(self._idle) < needed:
            self._created += 1
            # The token makes the name unique on the cluster.
            name = f"oodbench worker {self._created} of {self.payload.token['token']}"
            actor_class = ray.remote(Worker).options(
                name=name,
                num_cpus=self.placement.cpus,
                num_gpus=self.placement.gpus,
                scheduling_strategy="SPREAD",
                max_restarts=0,
            )
            handle = actor_class.remote(self._payload_ref, self.placement)
            self._running[handle.begin.options(name="begin").remote()] = _Actor(name, handle)

    def _collect(self, reference: Any) -> None:
        """Process the result of a finished call, after which its worker is idle unless it died."""
        import ray

        actor = self._running.pop(reference)
        task, actor.task = actor.task, None
        try:
            result: TaskResult = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # raised by Ray, for example if a result cannot be pickled
            result = TaskResult(error=str(error.cause or error))
        except ray.exceptions.RayError as error:
            self._on_worker_lost(actor, task, str(error).strip().splitlines()[0])
            return
        if task is None:
            self._on_started(actor, result)
        else:
            self._on_task_done(actor, task, result)
        if actor.ready:
            self._idle.append(actor)

    def _on_started(self, actor: _Actor, result: TaskResult) -> None:
        if result.error and result.user_error:
            raise UserError(result.error)
        if result.error:
            self._on_worker_lost(actor, None, result.error)
            return
        self._failed_starts = 0
        actor.ready, actor.worker = True, result.worker
        self.tell(Event("joined", "worker", actor.name, seconds=round(result.seconds, 3), worker=result.worker))

    def _submit(self, actor: _Actor, task: PoolTask) -> None:
        actor.task = task
        method = getattr(actor.handle, task.stage)
        self.tell(Event("started", task.stage, task.name, worker=actor.worker))
        self._running[method.options(name=printable(task.name)).remote(*task.arguments)] = actor

    def _on_task_done(self, actor: _Actor, task: PoolTask, result: TaskResult) -> None:
        if result.error and not result.user_error:
            self._retry(task, result.error, actor.worker)
            return
        seconds = round(result.seconds, 3)
        what = "failed" if result.error else "done"
        self.tell(Event(what, task.stage, task.name, task.images, seconds, actor.worker, result.error))
        task.on_result(result)

    def _on_worker_lost(self, actor: _Actor, task: PoolTask | None, reason: str) -> None:
        log.warning("%s is lost: %s", actor.name, reason)
        self.tell(Event("lost", "worker", actor.name, worker=actor.worker, reason=reason))
        _kill(actor)
        if task is not None:
            self._retry(task, f"its worker died: {reason}", actor.worker)
            return
        self._failed_starts += 1
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise UserError(
                f"{MAX_FAILED_STARTS} workers in a row died before they were ready: {reason}; see the logs of Ray"
            )

    def _retry(self, task: PoolTask, reason: str, worker: str) -> None:
        """Run a task again before the others, or let it fail after the last try."""
        task.tries += 1
        if task.tries < MAX_TRIES:
            log.warning("retrying %s: %s", task.name, reason)
            self.tell(Event("retried", task.stage, task.name, worker=worker, reason=reason))
            self.add(task, first=True)
            return
        self.tell(Event("failed", task.stage, task.name, worker=worker, reason=reason))
        message = f"{task.name} failed {MAX_TRIES} times, the last time: {reason}"
        task.on_result(TaskResult(error=message, worker=worker))

    def _warn_without_workers(self) -> None:
        if any(actor.ready for actor in self._running.values()):
            self._without_worker_since = 0.0
        elif not self._without_worker_since:
            self._without_worker_since = time.monotonic()
        elif time.monotonic() - self._without_worker_since > WAITING_SECONDS:
            self._without_worker_since = time.monotonic()
            log.warning("still waiting for the cluster to start a worker; ray status shows the missing resources")


def _clean_up(actors: list[_Actor]) -> None:
    """Let workers delete their files; the next worker on a machine deletes the files of those that do not answer."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        ray.wait([actor.handle.end.remote() for actor in actors], num_returns=len(actors), timeout=POLL_SECONDS * 5)


def _kill(actor: _Actor) -> None:
    import ray

    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        ray.kill(actor.handle)
