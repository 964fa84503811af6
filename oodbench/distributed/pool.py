"""Tasks on a pool of workers: one at a time each, tried again elsewhere when a worker dies, which is replaced."""

from __future__ import annotations

import collections
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from oodbench.distributed.cluster import Placement
from oodbench.distributed.payload import WorkerPayload
from oodbench.distributed.worker import Done, Worker
from oodbench.errors import UserError, printable
from oodbench.pipeline.events import Event, Tell

log = logging.getLogger(__name__)

TRIES = 3  # of a task, before it fails by name
STARTS = 5  # workers in a row that die before they have begun
POLL = 1.0  # seconds
PATIENCE = 30.0  # seconds without any worker, after which that is told


@dataclass
class PoolTask:
    """A call of a worker's method; `then` is told what came out, and may give the pool more to do."""

    name: str  # as in `ray list tasks`
    stage: str
    arguments: tuple[Any, ...]
    then: Callable[[Done], None]
    images: int = 0
    tries: int = 0
    began: float = 0.0


@dataclass
class _Actor:
    name: str
    handle: Any
    ready: bool = False
    task: PoolTask | None = None
    place: str = ""


@dataclass
class Pool:
    """Workers on the cluster that is connected. Only one task per worker is under way: nothing piles up there."""

    layout: Placement
    parcel: WorkerPayload
    tell: Tell = lambda event: None
    _todo: collections.deque[PoolTask] = field(default_factory=collections.deque)
    _soon: collections.deque[PoolTask] = field(default_factory=collections.deque)
    _flying: dict[Any, _Actor] = field(default_factory=dict)
    _idle: list[_Actor] = field(default_factory=list)
    _started: int = 0
    _dead: int = 0  # in a row, before they began
    _reference: Any = None
    _alone: float = 0.0

    def add(self, task: PoolTask, *, first: bool = False) -> None:
        """A task to be done; `first`: before those that wait."""
        (self._soon if first else self._todo).append(task)

    def run(self) -> None:
        """Do all tasks, those that they bring included. UserError when workers refuse to begin."""
        import ray

        self._reference = ray.put(self.parcel)
        try:
            while self._soon or self._todo or any(actor.task for actor in self._flying.values()):
                self._start()
                ready, _ = ray.wait(list(self._flying), num_returns=1, timeout=POLL)
                for reference in ready:
                    self._land(reference)
                self._tell_waiting()
        finally:
            actors = (*self._flying.values(), *self._idle)
            _dismiss([actor for actor in actors if actor.task is None])
            for actor in actors:
                _end(actor)
            self._flying.clear()
            self._idle.clear()
            self._reference = None

    def _start(self) -> None:
        """Work for those that wait, and as many more workers as there is work for, up to the layout's number."""
        import ray

        while self._idle and (self._soon or self._todo):
            self._send(self._idle.pop(), (self._soon or self._todo).popleft())
        waiting = len(self._soon) + len(self._todo)
        wanted = min(self.layout.actors, waiting + sum(1 for a in self._flying.values() if a.task))
        while len(self._flying) + len(self._idle) < wanted:
            self._started += 1
            name = f"oodbench worker {self._started} of {self.parcel.token['token']}"  # no other's may be the same
            made = ray.remote(Worker).options(
                name=name,
                num_cpus=self.layout.cpus,
                num_gpus=self.layout.gpus,
                scheduling_strategy="SPREAD",
                max_restarts=0,
            )
            handle = made.remote(self._reference, self.layout)
            actor = _Actor(name, handle)
            self._flying[handle.begin.options(name="begin").remote()] = actor

    def _land(self, reference: Any) -> None:
        """Take what a worker gave back, and give it more to do."""
        import ray

        actor = self._flying.pop(reference)
        task, actor.task = actor.task, None
        try:
            done: Done = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # not of ours: what cannot be sent, for one
            done = Done(error=str(error.cause or error))
        except ray.exceptions.RayError as error:
            self._lost(actor, task, str(error).strip().splitlines()[0])
            return
        if task is None:
            self._begun(actor, done)
        else:
            self._settle(actor, task, done)
        if actor.ready:
            self._idle.append(actor)

    def _begun(self, actor: _Actor, done: Done) -> None:
        if done.error and done.asked:
            raise UserError(done.error)
        if done.error:
            self._lost(actor, None, done.error)
            return
        self._dead = 0
        actor.ready, actor.place = True, done.place
        self.tell(Event("joined", "worker", actor.name, seconds=round(done.seconds, 3), worker=done.place))

    def _send(self, actor: _Actor, task: PoolTask) -> None:
        actor.task, task.began = task, time.perf_counter()
        method = getattr(actor.handle, task.stage)
        self.tell(Event("started", task.stage, task.name, worker=actor.place))
        self._flying[method.options(name=printable(task.name)).remote(*task.arguments)] = actor

    def _settle(self, actor: _Actor, task: PoolTask, done: Done) -> None:
        if done.error and not done.asked:
            self._again(task, done.error, actor.place)
            return
        seconds = round(done.seconds, 3)
        what = "failed" if done.error else "done"
        self.tell(Event(what, task.stage, task.name, task.images, seconds, actor.place, done.error))
        task.then(done)

    def _lost(self, actor: _Actor, task: PoolTask | None, reason: str) -> None:
        log.warning("%s is lost: %s", actor.name, reason)
        self.tell(Event("lost", "worker", actor.name, worker=actor.place, reason=reason))
        _end(actor)
        if task is not None:
            self._again(task, f"its worker died: {reason}", actor.place)
            return
        self._dead += 1
        if self._dead >= STARTS:
            raise UserError(f"{STARTS} workers in a row died before they began: {reason}; see the logs of Ray")

    def _again(self, task: PoolTask, reason: str, place: str) -> None:
        task.tries += 1
        if task.tries < TRIES:
            log.warning("%s is tried again: %s", task.name, reason)
            self.tell(Event("retried", task.stage, task.name, worker=place, reason=reason))
            self.add(task, first=True)
            return
        self.tell(Event("failed", task.stage, task.name, worker=place, reason=reason))
        task.then(Done(error=f"{task.name} failed {TRIES} times, the last time: {reason}", place=place))

    def _tell_waiting(self) -> None:
        if any(actor.ready for actor in self._flying.values()):
            self._alone = 0.0
        elif not self._alone:
            self._alone = time.monotonic()
        elif time.monotonic() - self._alone > PATIENCE:
            self._alone = time.monotonic()
            log.warning("still waiting for the cluster to start a worker; ray status shows what it lacks")


def _dismiss(actors: list[_Actor]) -> None:
    """Have workers clean up after themselves, which those that do not answer leave to the next on their machine."""
    import ray

    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        ray.wait([actor.handle.end.remote() for actor in actors], num_returns=len(actors), timeout=POLL * 5)


def _end(actor: _Actor) -> None:
    import ray

    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        ray.kill(actor.handle)
