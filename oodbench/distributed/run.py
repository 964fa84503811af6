"""Run a plan on Ray: extract shards, fit methods, score images and streams, each task once its inputs are stored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from oodbench.data.imageset import ImageSet
from oodbench.distributed.cluster import ResourceRequest, cluster_address, cluster_nodes, connect, place_workers
from oodbench.distributed.payload import pack, remove_token
from oodbench.distributed.pool import Pool, PoolTask
from oodbench.distributed.worker import TaskResult, extraction_jobs, leaf_jobs
from oodbench.errors import UserError, raise_all
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.extract import ExtractionJob
from oodbench.pipeline.run import RunState, waves
from oodbench.pipeline.score import find_scores, forget_scores
from oodbench.pipeline.stream_order import StreamProtocol
from oodbench.pipeline.streams import find_stream, forget_streams
from oodbench.pipeline.views import missing_views, view_jobs


@dataclass
class Countdown:
    """Calls a function when a number of tasks are done."""

    remaining: int
    callback: Callable[[], None]

    def done(self) -> None:
        """Count one task as done."""
        self.remaining -= 1
        if self.remaining == 0:
            self.callback()


@dataclass
class RunScheduler:
    """Adds the tasks of a plan to the pool in the order of their dependencies, and collects their results."""

    state: RunState
    pool: Pool
    failed: list[str] = field(default_factory=list)  # errors of shards; methods that need these shards do not finish
    _encoded: set[str] = field(default_factory=set)  # fingerprints of image sets whose shards are all stored
    _waiting: dict[str, list[Countdown]] = field(
        default_factory=lambda: defaultdict(list)
    )  # fingerprint -> countdowns that wait for it
    _errors: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))  # label -> set -> error
    _missing_sets: dict[str, int] = field(default_factory=dict)  # label -> sets that are not scored yet
    _stateful: set[str] = field(default_factory=set)
    _waiting_for_base: dict[str, list[Callable[[], None]]] = field(default_factory=lambda: defaultdict(list))
    _streams: dict[str, list[PoolTask]] = field(default_factory=lambda: defaultdict(list))  # label -> its tasks

    def __post_init__(self) -> None:
        self.plan, self.watch = self.state.plan, self.state.watch
        self.methods = {method.job.label: method for method in self.state.running}

    def run(self) -> None:
        """Run all tasks. Raise UserError for bad input at once, and at the end for shards that could not be encoded."""
        streams = [(method, *stream) for method in self.state.streams for stream in self._missing_streams(method)]
        in_streams = {number for _, _, number in streams} | ({0} if streams else set())
        listings = [images for i, images in enumerate(self.plan.listings) if self._unscored(i) or i in in_streams]
        read = (self.plan.calibration_of(method.job) for method in (*self.state.running, *self.state.streams))
        listings += [images for images in read if images]
        needed = {
            leaf.listing.fingerprint for listing in listings for leaf in leaf_jobs(self.plan.extraction_job(listing))
        }
        for group in _groups(waves(self.state)):
            labels = tuple(method.job.label for method in group)
            calibration = self.plan.calibration_of(group[0].job)  # a method that calibrates is a group of its own
            self._when_encoded([calibration], partial(self._fit, labels))
        for method, protocol, number in streams:
            self._stream_when_scored(method, protocol, number)
        for number, job in enumerate(extraction_jobs(self.plan)):
            if job.listing.fingerprint in needed:
                self._extract(number, job)
        self.pool.run()
        raise_all(self.failed)

    def _unscored(self, number: int) -> list[str]:
        """Return the labels of the methods that have no scores of an image set."""
        name = self.plan.listings[number].dataset.name
        return [label for label in self.methods if name not in self.state.scores[label]]

    def _extract(self, number: int, job: ExtractionJob) -> None:
        shards, listing = job.shards(), job.listing
        missing = [(i, shard) for i, shard in enumerate(shards) if not job.store.has("embeddings", job.inputs(*shard))]
        countdown = Countdown(len(missing) + 1, lambda: self._on_encoded(listing.fingerprint))
        if missing:
            progress = self.watch.extracting(listing.dataset.name, len(listing))
            progress(len(listing) - sum(stop - start for _, (start, stop) in missing))
        for i, (start, stop) in missing:

            def on_result(result: TaskResult, size: int = stop - start) -> None:
                _raise_user_error(result)
                if result.error:
                    self.failed.append(result.error)
                else:
                    progress(size)
                    countdown.done()

            name = f"extract[{listing.dataset.name} {i + 1}/{len(shards)}]"
            self.pool.add(PoolTask(name, "extract", (number, start, stop), on_result, stop - start))
        countdown.done()

    def _on_encoded(self, fingerprint: str) -> None:
        self._encoded.add(fingerprint)
        for countdown in self._waiting.pop(fingerprint, []):
            countdown.done()

    def _when_encoded(self, listings: Sequence[ImageSet | None], callback: Callable[[], None]) -> None:
        """Call a function when all lists that some lists take their embeddings from are encoded."""
        leaves = [leaf for listing in listings if listing for leaf in leaf_jobs(self.plan.extraction_job(listing))]
        missing = {leaf.listing.fingerprint for leaf in leaves} - self._encoded
        countdown = Countdown(len(missing) + 1, callback)
        for fingerprint in missing:
            self._waiting[fingerprint].append(countdown)
        countdown.done()

    def _fit(self, labels: tuple[str, ...]) -> None:
        def on_result(result: TaskResult) -> None:
            if self._handle_error(result, labels, self._fit):
                return
            errors = result.method_errors or {}
            for label in labels:
                if label in errors:
                    self.state.finish(self.methods[label].job, errors[label])
            fitted = tuple(label for label in labels if label not in errors)
            if fitted:
                self._score_when_encoded(fitted)

        self.pool.add(PoolTask(f"fit[{', '.join(labels)}]", "fit", (labels,), on_result), first=True)

    def _score_when_encoded(self, labels: tuple[str, ...]) -> None:
        unscored = {
            number: tuple(label for label in self._unscored(number) if label in labels)
            for number in range(len(self.plan.listings))
        }
        for label in labels:
            self._missing_sets[label] = sum(label in some for some in unscored.values())
        for number, some in unscored.items():
            if some:
                self._when_encoded([self.plan.listings[number]], partial(self._encode_views, number, some))

    def _encode_views(self, number: int, labels: tuple[str, ...]) -> None:
        """Encode the missing shards of the views that a method reads, and then score the set."""
        label = labels[0]  # a method that reads views has its own tasks
        method, numbers = self.methods[label], {}
        tasks: list[tuple[ExtractionJob, tuple[int, int]]] = []
        if "VIEWS" in method.job.info.needs:
            numbers = {job.listing.fingerprint: position for position, job in enumerate(extraction_jobs(self.plan))}
            for leaf in leaf_jobs(self.plan.extraction_job(self.plan.listings[number])):
                views = view_jobs(self.plan, method.job, leaf)
                tasks += [(leaf, bounds) for bounds in leaf.shards() if missing_views(views, bounds)]
        errors: list[str] = []

        def then() -> None:
            if errors:
                self._on_scored(number, label, errors[0])
            else:
                self._score(number, labels)

        countdown = Countdown(len(tasks) + 1, then)

        def on_result(result: TaskResult) -> None:
            errors.extend([result.error] if result.error else [])
            countdown.done()

        for leaf, (start, stop) in tasks:
            name = f"views[{leaf.listing.dataset.name} {start}-{stop}: {label}]"
            arguments = (label, numbers[leaf.listing.fingerprint], start, stop)
            self.pool.add(PoolTask(name, "views", arguments, on_result, stop - start))
        countdown.done()

    def _score(self, number: int, labels: tuple[str, ...]) -> None:
        listing = self.plan.listings[number]

        def on_result(result: TaskResult) -> None:
            if self._handle_error(result, labels, partial(self._score, number)):
                return
            self._stateful.update(result.stateful)
            for label in labels:
                self._on_scored(number, label, (result.method_errors or {}).get(label, ""))

        name = f"score[{listing.dataset.name}: {', '.join(labels)}]"
        self.pool.add(PoolTask(name, "score", (number, labels), on_result, len(listing)), first=True)

    def _handle_error(
        self, result: TaskResult, labels: tuple[str, ...], run_again: Callable[[tuple[str, ...]], None]
    ) -> bool:
        """Return whether a task failed. Its methods are then run one by one, so that only the faulty one fails."""
        _raise_user_error(result)
        if not result.error:
            return False
        if len(labels) == 1:
            self.state.finish(self.methods[labels[0]].job, result.error)
            self._missing_sets.pop(labels[0], None)
        else:
            for label in labels:
                run_again((label,))
        return True

    def _on_scored(self, number: int, label: str, error: str) -> None:
        """Record a method's scores of one set, or its error; finish the method after the last set."""
        if label not in self._missing_sets:
            return
        job, listing = self.methods[label].job, self.plan.listings[number]
        entry = None if error else find_scores(self.plan, job, listing)
        if entry:
            self.state.scores[label][listing.dataset.name] = entry
        else:
            lost = f"its scores of {listing.dataset.name} are not in the store {self.plan.store.root}; run again"
            self._errors[label][number] = error or lost
        self._missing_sets[label] -= 1
        if not self._missing_sets[label]:
            errors = self._errors[label]
            if label in self._stateful:  # other workers may have stored scores before it was detected
                forget_scores(self.plan, job)
            self.state.finish(job, errors[min(errors)] if errors else "")
            for add_stream in self._waiting_for_base.pop(label, []) if not errors else ():
                add_stream()

    def _missing_streams(self, method: FittedMethod) -> list[tuple[StreamProtocol, int]]:
        """Return the protocol and the number of the OOD set of every stream that has no scores."""
        missing = []
        for protocol in self.state.missing_streams(method.job):
            stored = self.state.stream_scores[method.job.label, protocol]
            numbers = range(1, len(self.plan.listings))
            missing += [(protocol, i) for i in numbers if self.plan.listings[i].dataset.name not in stored]
        return missing

    def _stream_when_scored(self, method: FittedMethod, protocol: StreamProtocol, number: int) -> None:
        """Add a stream when its images are encoded and its base is finished.

        The check after the last set may find that the base keeps state; then the base fails, and its streams with it.
        """
        job, listings = method.job, self.plan.listings
        read = [listings[0], listings[number], self.plan.calibration_of(job)]
        when_encoded = partial(self._when_encoded, read, partial(self._stream, method, protocol, number))
        if job.base in self.methods:
            self._waiting_for_base[job.base].append(when_encoded)
        else:
            when_encoded()

    def _stream(self, method: FittedMethod, protocol: StreamProtocol, number: int) -> None:
        job, listing = method.job, self.plan.listings[number]
        label, name = job.label, listing.dataset.name

        def on_result(result: TaskResult) -> None:
            _raise_user_error(result)
            self._stateful.update(result.stateful)
            error = result.error or (result.method_errors or {}).get(label, "")
            entry = None if error else find_stream(self.plan, job, listing, protocol)
            if label in self._stateful:  # other workers may store scores after it was detected
                method.stateful = True
                forget_streams(self.plan, job)
            elif entry:
                self.state.add_stream(job, protocol, name, entry)
            if not entry and not method.error:
                lost = f"the scores of its stream of {name} are not in the store {self.plan.store.root}; run again"
                method.error = error or lost
                self.pool.discard(self._streams[label])
                self.state.finish_stream(job, self.state.missing_streams(job)[0], method.error)

        images = len(self.plan.id) + len(listing)
        task = PoolTask(
            f"stream[{name}: {label}; {protocol.name}]", "stream", (label, protocol, number), on_result, images
        )
        self._streams[label].append(task)
        self.pool.add(task, first=True)


def _raise_user_error(result: TaskResult) -> None:
    if result.user_error:
        raise UserError(result.error)


def _groups(waves: Sequence[Sequence[FittedMethod]]) -> list[list[FittedMethod]]:
    """Return the methods of each task: those of a wave that only read features share a task, each other has its own."""
    separate = {"PIXELS", "ENCODER", "PATCHES", "PATCH_ACTIVATIONS", "VIEWS"}
    groups: list[list[FittedMethod]] = []
    for wave in waves:
        shared = [one for one in wave if not separate & set(one.job.info.needs) and not one.job.calibrates]
        groups += [*([shared] if shared else []), *([method] for method in wave if method not in shared)]
    return groups


def run(state: RunState) -> None:
    """Compute the missing scores of a plan on the Ray cluster that its request names.

    It has the argument and the results of oodbench.pipeline.run.run.
    """
    import torch

    plan, request = state.plan, state.plan.request
    resources = ResourceRequest(request.device, request.actors, request.gpus_per_actor, torch.get_num_threads())
    with connect(cluster_address(request.ray, request.device) or "local", request.actors):
        placement = place_workers(resources, cluster_nodes())
        payload = pack(plan)
        try:
            RunScheduler(state, Pool(placement, payload, state.watch.event)).run()
        finally:
            remove_token(payload)
