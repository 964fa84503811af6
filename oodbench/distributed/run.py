"""A plan on Ray: shards, then fits, then scores, each as soon as what it reads is in the store."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from oodbench.data.imageset import ImageSet
from oodbench.distributed.cluster import Demand, chosen, connected, layout, nodes
from oodbench.distributed.payload import pack, unmark
from oodbench.distributed.pool import Pool, PoolTask
from oodbench.distributed.worker import Done, leaves, parts
from oodbench.errors import UserError, raise_all
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.events import Watch
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.run import RunState
from oodbench.pipeline.score import find_scores, forget_scores
from oodbench.storage.store import Entry

if TYPE_CHECKING:
    from oodbench.pipeline.extract import ExtractionJob

Scores = dict[str, dict[str, Entry]]
Finish = Callable[..., None]


@dataclass
class Gate:
    """Opens once, when nothing is awaited any more."""

    awaited: int
    opened: Callable[[], None]

    def arrive(self) -> None:
        """One of the things awaited is there."""
        self.awaited -= 1
        if self.awaited == 0:
            self.opened()


@dataclass
class Stages:
    """What is left to do of a plan, and what has become of it so far."""

    plan: Plan
    running: dict[str, FittedMethod]
    scores: Scores
    watch: Watch
    finish: Finish
    pool: Pool
    failed: list[str] = field(default_factory=list)  # tasks that failed by name; methods that need them stay open
    _ready: set[str] = field(default_factory=set)  # digests of lists whose shards are all there
    _gates: dict[str, list[Gate]] = field(default_factory=lambda: defaultdict(list))
    _errors: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))  # label -> set -> why
    _left: dict[str, int] = field(default_factory=dict)
    _stateful: set[str] = field(default_factory=set)

    def run(self) -> None:
        """Carry out everything. UserError for bad input at once, at the end for shards that no worker could make."""
        sets = [i for i, _ in enumerate(self.plan.listings) if self._lacking(i)]
        listings = [self.plan.listings[i] for i in sets]
        if self.plan.calibration and any(one.job.calibrates for one in self.running.values()):
            listings.append(self.plan.calibration)
        needed = {leaf.listing.fingerprint for listing in listings for leaf in leaves(self.plan.work(listing))}
        for group in _groups(list(self.running.values())):
            self._await_fit(group)
        for number, work in enumerate(parts(self.plan)):
            if work.listing.fingerprint in needed:
                self._extract(number, work)
        self.pool.run()
        raise_all(self.failed)

    def _lacking(self, number: int) -> list[str]:
        name = self.plan.listings[number].dataset.name
        return [label for label in self.running if name not in self.scores[label]]

    def _extract(self, number: int, work: ExtractionJob) -> None:
        shards = work.shards()
        listing = work.listing
        missing = [(i, s) for i, s in enumerate(shards) if not work.store.has("embeddings", work.inputs(*s))]
        gate = Gate(len(missing) + 1, lambda: self._complete(listing.fingerprint))
        if missing:
            done = self.watch.extracting(listing.dataset.name, len(listing))
            done(len(listing) - sum(b - a for _, (a, b) in missing))
        for i, (start, stop) in missing:

            def then(result: Done, size: int = stop - start) -> None:
                self._refuse(result)
                if result.error:
                    self.failed.append(result.error)
                else:
                    done(size)
                    gate.arrive()

            name = f"extract[{listing.dataset.name} {i + 1}/{len(shards)}]"
            self.pool.add(PoolTask(name, "extract", (number, start, stop), then, stop - start))
        gate.arrive()

    def _complete(self, digest: str) -> None:
        self._ready.add(digest)
        for gate in self._gates.pop(digest, []):
            gate.arrive()

    def _when_encoded(self, listing: ImageSet | None, opened: Callable[[], None]) -> None:
        """Call when every list that this one is made of is encoded."""
        found = leaves(self.plan.work(listing)) if listing else iter(())
        awaited = {leaf.listing.fingerprint for leaf in found} - self._ready
        gate = Gate(len(awaited) + 1, opened)
        for digest in awaited:
            self._gates[digest].append(gate)
        gate.arrive()

    def _await_fit(self, group: Sequence[FittedMethod]) -> None:
        labels = tuple(one.job.label for one in group)
        calibrates = any(one.job.calibrates for one in group)
        self._when_encoded(self.plan.calibration if calibrates else None, lambda: self._fit(labels))

    def _fit(self, labels: tuple[str, ...]) -> None:
        def then(result: Done) -> None:
            if self._apart(result, labels, self._fit):
                return
            errors = result.errors or {}
            for label in labels:
                if label in errors:
                    self.finish(self.running[label].job, errors[label])
            alive = tuple(label for label in labels if label not in errors)
            if alive:
                self._await_scores(alive)

        self.pool.add(PoolTask(f"fit[{', '.join(labels)}]", "fit", (labels,), then), first=True)

    def _await_scores(self, labels: tuple[str, ...]) -> None:
        lacking = {
            i: tuple(label for label in self._lacking(i) if label in labels) for i in range(len(self.plan.listings))
        }
        for label in labels:
            self._left[label] = sum(label in some for some in lacking.values())
        for number, some in lacking.items():
            if some:
                listing = self.plan.listings[number]
                self._when_encoded(listing, lambda number=number, some=some: self._score(number, some))  # type: ignore[misc]

    def _score(self, number: int, labels: tuple[str, ...]) -> None:
        listing = self.plan.listings[number]

        def then(result: Done) -> None:
            if self._apart(result, labels, lambda some: self._score(number, some)):
                return
            self._stateful.update(result.stateful)
            for label in labels:
                self._take(number, label, (result.errors or {}).get(label, ""))

        self.watch.scoring(listing.dataset.name, labels)
        name = f"score[{listing.dataset.name}: {', '.join(labels)}]"
        self.pool.add(PoolTask(name, "score", (number, labels), then, len(listing)), first=True)

    def _apart(self, result: Done, labels: tuple[str, ...], again: Callable[[tuple[str, ...]], None]) -> bool:
        """What failed by its worker's death is tried method by method, so that one does not take others with it."""
        self._refuse(result)
        if not result.error:
            return False
        if len(labels) == 1:
            self.finish(self.running[labels[0]].job, result.error)
            self._left.pop(labels[0], None)
        else:
            for label in labels:
                again((label,))
        return True

    def _take(self, number: int, label: str, error: str) -> None:
        """A method's scores of one set are there, or failed; the row is written after the last set."""
        if label not in self._left:
            return
        job, listing = self.running[label].job, self.plan.listings[number]
        entry = None if error else find_scores(self.plan, job, listing)
        if entry:
            self.scores[label][listing.dataset.name] = entry
        else:
            lost = f"its scores of {listing.dataset.name} are not in the store {self.plan.store.root}; run again"
            self._errors[label][number] = error or lost
        self._left[label] -= 1
        if not self._left[label]:
            errors = self._errors[label]
            if label in self._stateful:  # what other workers stored of it meanwhile goes, too
                forget_scores(self.plan, job)
            self.finish(job, errors[min(errors)] if errors else "")

    def _refuse(self, result: Done) -> None:
        if result.asked:
            raise UserError(result.error)


def _groups(running: list[FittedMethod]) -> list[list[FittedMethod]]:
    """Methods that read stored features share a pass; those that calibrate, or run the model, go by themselves."""
    alone = {"PIXELS", "ENCODER"}
    light = [one for one in running if not alone & set(one.job.info.needs) and not one.job.calibrates]
    return [*([light] if light else []), *([one] for one in running if one not in light)]


def run(state: RunState) -> None:
    """Compute the missing scores of a plan on the Ray cluster that its request names.

    The counterpart of oodbench.pipeline.run.run, with the same argument and the same results.
    """
    import torch

    plan, request = state.plan, state.plan.request
    threads = torch.get_num_threads()
    with connected(chosen(request.ray, request.device) or "local", request.actors):
        demand = Demand(request.device, request.actors, request.gpus_per_actor, threads)
        where = layout(demand, nodes())
        parcel = pack(plan)
        try:
            pool = Pool(where, parcel, state.watch.told)
            running = {method.job.label: method for method in state.running}
            Stages(plan, running, state.scores, state.watch, state.finish, pool).run()
        finally:
            unmark(parcel)
