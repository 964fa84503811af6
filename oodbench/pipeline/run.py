"""Run a plan in this process: extract, fit, score, evaluate, and write each result as soon as it is complete."""

from __future__ import annotations

import functools
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from oodbench.errors import UserError, raise_all
from oodbench.pipeline import evaluate, rows
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.events import Event, Watch
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.request import check_store
from oodbench.pipeline.score import Scorer, find_scores
from oodbench.pipeline.task import encoder_loader, extract_images, make_task, method_resources, pick_device
from oodbench.pipeline.text_embeddings import missing_class_prompts
from oodbench.results import Result, read
from oodbench.storage.store import Entry

log = logging.getLogger(__name__)

MANY_PROMPTS = 8192  # minutes of a ViT-B's text tower on a CPU


@dataclass(frozen=True)
class RunOutcome:
    """The results of a run in the order of its methods.

    results          one per method that ran
    skipped_methods  (name, reason) of the methods of a group that could not run
    """

    results: tuple[Result, ...]
    skipped_methods: tuple[tuple[str, str], ...]


class RunState:
    """A plan with the scores that are stored so far, the methods that still have to score, and the finished results.

    The constructor looks up the stored scores, finishes the methods that need no more, and imports the others, so
    that torch is imported only if a score is missing. Raises UserError if a named method cannot be imported.

    scores   label of the method -> dataset -> stored scores
    running  the methods that have scores missing
    """

    def __init__(self, plan: Plan, watch: Watch | None = None) -> None:
        self.plan = plan
        self.watch = watch or Watch()
        self.scores: dict[str, dict[str, Entry]] = {}
        self.running: list[FittedMethod] = []
        self._results: dict[str, Result] = {}
        self._skipped = list(plan.skipped_methods)
        for job in plan.jobs:
            found = {listing.dataset.name: find_scores(plan, job, listing) for listing in plan.listings}
            self.scores[job.label] = {name: entry for name, entry in found.items() if entry}
        unfinished = [job for job in plan.jobs if not self._finish_if_complete(job)]
        if unfinished:
            check_store(plan.store.root)
            self.running, broken = load_methods(plan, unfinished)
            self._skipped += broken

    def add_scores(self, job: Job, dataset: str, entry: Entry) -> None:
        """Add the stored scores of one dataset; write the result if they were the last ones missing."""
        self.scores[job.label][dataset] = entry
        self._finish_if_complete(job)

    def finish(self, job: Job, error: str = "") -> None:
        """Write the result of a method: its metrics, or the reason why it failed."""
        entries = self.scores[job.label]
        result = evaluate.failed(self.plan, job, error) if error else evaluate.evaluate(self.plan, job, entries)
        path = rows.write_row(self.plan, result, entries)
        if result.status == "ok":
            result = read(path)  # an earlier run may have written the same result; its time of creation is kept
        self._results[job.label] = result
        self.watch.event(Event("done" if result.status == "ok" else "failed", "row", result.label, reason=error))
        self.watch.finished(result)

    def outcome(self) -> RunOutcome:
        """Return all results that were finished, in the order of the plan's methods."""
        ordered = [self._results[job.label] for job in self.plan.jobs if job.label in self._results]
        return RunOutcome(tuple(ordered), tuple(self._skipped))

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
    """Return the methods that have scores missing in the order of their costs, those scored together in one list.

    A wave is one pass over the stored features of all image sets, and its rows are written before the next one begins.
    First come methods without a fit(), and those that scored another set of the plan before, so that what fit() needs
    is stored; then those whose fit() may encode thousands of prompts or images, or that have more than MANY_PROMPTS
    prompts of classes to encode; then those that read pixels, for which all images are decoded again; then those that
    read views, for which all images are encoded again. Those that read patches come before all others while embeddings
    are missing, which one pass computes with the patches, else last.
    """
    from oodbench.method import Method, Needs

    patches = any(Needs.PATCHES in method.method.needs for method in state.running)
    missing = patches and any(state.plan.work(listing).missing() for listing in state.plan.listings)

    def cost(method: FittedMethod) -> int:
        job = method.job
        if Needs.PATCHES in method.method.needs:
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

    Raises UserError if an image cannot be read, the device is not there, or the store cannot be written.
    """
    from oodbench.method import Needs

    plan, watch = state.plan, state.watch
    device = pick_device(plan.request.device)
    encoder = encoder_loader(plan, device)
    scorer = Scorer(plan, make_task(plan, encoder, device, watch), device, watch)
    embeddings = functools.cache(lambda number: extract_images(plan, plan.listings[number], encoder, watch))
    for method in state.running:
        method.resources = method_resources(plan, method.job, device)
    for wave, (number, listing) in itertools.product(waves(state), enumerate(plan.listings)):
        name = listing.dataset.name
        waiting = [method for method in wave if name not in state.scores[method.job.label] and not method.error]
        if not waiting:
            continue
        if not any(Needs.PATCHES in method.method.needs for method in waiting):
            embeddings(number)  # else they are computed with the patches
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
