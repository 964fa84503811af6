"""Run a plan in this process: extract, fit, score, evaluate, and write each result as soon as it is complete."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from oodbench.errors import UserError, raise_all
from oodbench.pipeline import evaluate, rows, stream_results
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.extract import EmbeddedSet
from oodbench.pipeline.jobs import Job, Jobs
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.request import check_store
from oodbench.pipeline.score import Scorer, find_scores
from oodbench.pipeline.stream_order import StreamProtocol
from oodbench.pipeline.streams import find_stream, find_streams, run_stream
from oodbench.pipeline.task import encoder_loader, extract_images, make_task, method_resources, pick_device
from oodbench.pipeline.text_embeddings import missing_class_prompts
from oodbench.results import Result, read
from oodbench.storage.store import Entry

log = logging.getLogger(__name__)

MANY_PROMPTS = 8192  # minutes of a ViT-B's text tower on a CPU


@dataclass(frozen=True)
class RunOutcome:
    """The results of a run in the order of its methods.

    results          one per method that ran; for a method that learns from the test images one per order and seed
    skipped_methods  (name, reason) of the methods of a group that could not run
    """

    results: tuple[Result, ...]
    skipped_methods: tuple[tuple[str, str], ...]


class RunState:
    """A plan with the scores that are stored so far, the methods that still have to score, and the finished results.

    The constructor looks up the stored scores, writes the results that are complete, and imports the other methods, so
    that torch is imported only if a score is missing. Raises UserError if a named method cannot be imported.

    scores         label of the method -> dataset -> stored scores
    running        the methods that have scores missing
    stream_scores  (label, protocol) -> OOD set -> stored scores of the stream
    streams        the methods that learn from the test images and have streams missing
    """

    def __init__(self, plan: Plan, watch: Watch | None = None) -> None:
        self.plan = plan
        self.watch = watch or Watch()
        self.scores: dict[str, dict[str, Entry]] = {}
        self.running: list[FittedMethod] = []
        self.stream_scores: dict[tuple[str, StreamProtocol], dict[str, Entry]] = {}
        self.streams: list[FittedMethod] = []
        self._results: dict[tuple[str, StreamProtocol | None], Result] = {}
        self._skipped = list(plan.skipped_methods)
        unfinished: list[Job] = []
        for job in sorted(plan.jobs, key=lambda job: job.only_base):  # a base is needed for unfinished streams alone
            complete = self._finish_streams(job) if job.is_stream else self._finish_stored(job)
            unneeded = job.only_base and job.label not in {one.base for one in unfinished}
            unfinished += [] if complete or unneeded else [job]
        if unfinished:
            check_store(plan.store.root)
            loaded, broken = load_methods(plan, unfinished)
            reasons = Jobs(tuple(unfinished)).reasons(dict(broken))
            self._skipped += reasons.items()
            loaded = [method for method in loaded if method.job.label not in reasons]
            self.running = [method for method in loaded if not method.job.is_stream]
            self.streams = [method for method in loaded if method.job.is_stream]

    def add_scores(self, job: Job, dataset: str, entry: Entry) -> None:
        """Add the stored scores of one dataset; write the result if they were the last ones missing."""
        self.scores[job.label][dataset] = entry
        self._finish_if_complete(job)

    def add_stream(self, job: Job, protocol: StreamProtocol, dataset: str, entry: Entry) -> None:
        """Add the stored scores of one stream; write the results of the method if it was its last stream.

        Earlier results might be invalid: the check after a later stream may find that it keeps something outside its
        state.
        """
        self.stream_scores[job.label, protocol][dataset] = entry
        if not self.missing_streams(job):
            self._finish_complete_streams(job)

    def finish(self, job: Job, error: str = "") -> None:
        """Write the result of a method: its metrics, or why it failed; streams with this base then fail, too."""
        if not job.only_base:
            entries = self.scores[job.label]
            result = evaluate.failed(self.plan, job, error) if error else evaluate.evaluate(self.plan, job, entries)
            self._write(job, None, result, entries)
        for stream in self.streams if error else ():
            if stream.job.base == job.label and not stream.error:
                stream.error = f"its base {job.label} failed: {error}"
                self.finish_stream(stream.job, self.missing_streams(stream.job)[0], stream.error)

    def finish_stream(self, job: Job, protocol: StreamProtocol, error: str = "") -> None:
        """Write the result of a method for one order and seed of the streams: its metrics, or why it failed."""
        entries = self.stream_scores[job.label, protocol]
        if error:
            if any(method.stateful and method.job.label == job.label for method in self.streams):
                self._remove_rows(job)
            else:
                self._finish_complete_streams(job)
            result = stream_results.failed(self.plan, job, protocol, error)
        else:
            result = stream_results.evaluate(self.plan, job, protocol, entries)
        self._write(job, protocol, result, entries)

    def _remove_rows(self, job: Job) -> None:
        """Remove the rows of a method that was found to keep something outside its state."""
        for key in [key for key in self._results if key[0] == job.label]:
            rows.remove_row(self.plan, self._results.pop(key))

    def missing_streams(self, job: Job) -> list[StreamProtocol]:
        """Return the protocols under which some pair has no stored scores."""
        return [one for one in self.plan.protocols if len(self.stream_scores[job.label, one]) < len(self.plan.ood)]

    def outcome(self) -> RunOutcome:
        """Return all results that were finished, in the order of the plan's methods."""
        keys = [(job.label, one) for job in self.plan.jobs for one in (None, *self.plan.protocols)]
        return RunOutcome(tuple(self._results[key] for key in keys if key in self._results), tuple(self._skipped))

    def _write(self, job: Job, protocol: StreamProtocol | None, result: Result, entries: Mapping[str, Entry]) -> None:
        path = rows.write_row(self.plan, result, entries)
        if result.status == "ok":
            result = read(path)  # an earlier run may have written the same result; its time of creation is kept
        self._results[job.label, protocol] = result
        done = "done" if result.status == "ok" else "failed"
        name = f"{result.label}; {protocol.name}" if protocol else result.label
        self.watch.event(Event(done, "row", name, reason=result.error or ""))
        self.watch.finished(result)

    def _finish_stored(self, job: Job) -> bool:
        """Look up the scores of a method; if none is missing, write its result and return True."""
        found = {listing.dataset.name: find_scores(self.plan, job, listing) for listing in self.plan.listings}
        self.scores[job.label] = {name: entry for name, entry in found.items() if entry}
        return self._finish_if_complete(job)

    def _finish_streams(self, job: Job) -> bool:
        """Look up the streams of a method, and write the results of those that are complete; return whether all are."""
        for protocol in self.plan.protocols:
            self.stream_scores[job.label, protocol] = find_streams(self.plan, job, protocol)
        self._finish_complete_streams(job)
        return not self.missing_streams(job)

    def _finish_complete_streams(self, job: Job) -> None:
        """Write the results of a method, each once, for the orders and seeds whose streams are all stored."""
        missing = self.missing_streams(job)
        for protocol in self.plan.protocols:
            if protocol not in missing and (job.label, protocol) not in self._results:
                self.finish_stream(job, protocol)

    def _finish_if_complete(self, job: Job) -> bool:
        complete = len(self.scores[job.label]) == len(self.plan.listings)
        if complete:
            self.finish(job)
        return complete


def load_methods(plan: Plan, jobs: Sequence[Job]) -> tuple[list[FittedMethod], list[tuple[str, str]]]:
    """Import the methods of some jobs; return them, and (label, reason) of those of a group that cannot be imported.

    Raises UserError if a method that the user named cannot be imported.
    """
    running: list[FittedMethod] = []
    broken: list[tuple[str, str]] = []
    problems: list[str] = []
    for job in jobs:
        try:
            running.append(FittedMethod(job, job.build()))
        except UserError as error:
            if job.named:
                problems += error.problems
            broken.append((job.label, str(error)))
    raise_all(problems)
    return running, broken


def waves(state: RunState) -> list[list[FittedMethod]]:
    """Return the methods with missing scores in ascending order of cost; methods that are scored together form a list.

    A wave is one pass over the stored features of all image sets, and its rows are written before the next one begins.
    First come methods without a fit(), and those that have scored another set of the plan, so that the inputs of fit()
    are stored; then those whose fit() may encode thousands of prompts or images, or that have more than MANY_PROMPTS
    class prompts to encode; then those that read pixels, for which all images are decoded again; then those that read
    views, for which all images are encoded again. Methods that read patches come first if embeddings are missing,
    because one pass computes both, else last.
    """
    from oodbench.method import Method, Needs

    patches = any(method.job.info.patch_fields for method in state.running)
    missing = patches and any(state.plan.extraction_job(listing).missing() for listing in state.plan.listings)

    def cost(method: FittedMethod) -> int:
        job = method.job
        if job.info.patch_fields:
            return -1 if missing else 4
        if Needs.VIEWS in method.method.needs:
            return 3
        if Needs.PIXELS in method.method.needs:
            return 2
        fits = type(method.method).fit is not Method.fit and not state.scores[job.label]
        prompts = missing_class_prompts(state.plan, job.templates) if job.templates else 0
        return int(fits or prompts > MANY_PROMPTS)

    ordered = sorted(state.running, key=cost)  # a stable sort: within a wave in the order of the plan
    return [list(wave) for _, wave in itertools.groupby(ordered, key=cost)]


def run(state: RunState) -> None:
    """Compute the missing scores of a plan in this process, wave by wave, one dataset after the other.

    Raises UserError if an image cannot be read, the device does not exist, or the store cannot be written.
    """
    plan, watch = state.plan, state.watch
    device = pick_device(plan.request.device)
    encoder = encoder_loader(plan, device)
    scorer = Scorer(plan, make_task(plan, encoder, device, watch), device, watch)
    embeddings = functools.cache(lambda number: extract_images(plan, plan.listings[number], encoder, watch))
    for method in (*state.running, *state.streams):
        method.resources = method_resources(plan, method.job, device)
    for wave, (number, listing) in itertools.product(waves(state), enumerate(plan.listings)):
        name = listing.dataset.name
        waiting = [method for method in wave if name not in state.scores[method.job.label] and not method.error]
        if not waiting:
            continue
        if not any(method.job.info.patch_fields for method in waiting):
            embeddings(number)  # otherwise the pass for the patches computes them
        scorer.fit(waiting)
        task = f"score[{name}: {', '.join(method.job.label for method in waiting)}]"
        watch.event(Event("started", "score", task))
        began = time.perf_counter()
        scorer.score(waiting, listing, functools.partial(embeddings, number))
        watch.event(Event("done", "score", task, len(listing), round(time.perf_counter() - began, 3)))
        for method in waiting:
            if method.error:
                state.finish(method.job, method.error)
            elif entry := find_scores(plan, method.job, listing):
                state.add_scores(method.job, name, entry)
    for method in state.streams:
        _run_streams(state, scorer, method, embeddings)


def _run_streams(
    state: RunState, scorer: Scorer, method: FittedMethod, embeddings: Callable[[int], EmbeddedSet]
) -> None:
    """Compute the missing streams of one method: order by order, seed by seed, one pair after the other."""
    plan, watch, job = state.plan, state.watch, method.job
    for protocol, (number, listing) in itertools.product(
        state.missing_streams(job), enumerate(plan.listings[1:], start=1)
    ):
        name = listing.dataset.name
        if method.error or name in state.stream_scores[job.label, protocol]:
            continue
        task = f"stream[{name}: {job.label}; {protocol.name}]"
        watch.event(Event("started", "stream", task))
        began = time.perf_counter()
        run_stream(scorer, method, protocol, number, embeddings)
        watch.event(Event("done", "stream", task, len(plan.id) + len(listing), round(time.perf_counter() - began, 3)))
        if method.error:
            state.finish_stream(job, protocol, method.error)
        elif entry := find_stream(plan, job, listing, protocol):
            state.add_stream(job, protocol, name, entry)
