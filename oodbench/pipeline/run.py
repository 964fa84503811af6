"""Carrying out a plan, in this process or on Ray: extract, fit, score, evaluate, one row as each is ready."""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from oodbench.data.imageset import ImageSet
from oodbench.distributed.cluster import chosen
from oodbench.errors import UserError, raise_all
from oodbench.pipeline import assign_weights as assignment
from oodbench.pipeline import evaluate, extract, rows
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.events import Event
from oodbench.pipeline.jobs import Job
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.request import check_store
from oodbench.pipeline.score import ENGINE, Scorer, feature_batches, find_scores
from oodbench.pipeline.text_embeddings import text_bank, word_bank
from oodbench.results import Result, read
from oodbench.storage.store import Entry

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from oodbench.encoder.openclip import OpenClip
    from oodbench.method import Batch, MethodResources, Task
    from oodbench.pipeline.extract import Embedded

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """What a run tells while it goes on."""

    extracting: Callable[[str, int], Callable[[int], None]] = lambda dataset, images: lambda n: None
    scoring: Callable[[str, Sequence[str]], None] = lambda dataset, methods: None
    finished: Callable[[Result], None] = lambda result: None
    told: Callable[[Event], None] = lambda event: None


@dataclass(frozen=True)
class RunOutcome:
    """The rows of a run in the order of its methods, and what `--methods all` left out."""

    results: tuple[Result, ...]
    left_out: tuple[tuple[str, str], ...]


def run(plan: Plan, watch: Watch | None = None) -> RunOutcome:
    """Carry out a plan. Imports torch only when a score is missing. UserError when the input turns out to be bad."""
    watch = watch or Watch()
    scores: dict[str, dict[str, Entry]] = {}
    for job in plan.jobs:
        found = {listing.dataset.name: find_scores(plan, job, listing) for listing in plan.listings}
        scores[job.label] = {name: entry for name, entry in found.items() if entry}
    results: dict[str, Result] = {}
    left_out = list(plan.left_out)

    def finish(job: Job, error: str = "") -> None:
        entries = scores[job.label]
        result = evaluate.failed(plan, job, error) if error else evaluate.evaluate(plan, job, entries)
        path = rows.write_row(plan, result, entries)
        if result.status == "ok":
            result = read(path)  # the row that is on disk
        results[job.label] = result
        watch.told(Event("done" if result.status == "ok" else "failed", "row", result.label, reason=error))
        watch.finished(result)

    unfinished = []
    for job in plan.jobs:
        if len(scores[job.label]) == len(plan.listings):
            finish(job)
        else:
            unfinished.append(job)
    if unfinished:
        check_store(plan.store.root)
        running, broken = methods_of(plan, unfinished)
        left_out += broken
        where = chosen(plan.request.ray, plan.request.device)
        if where:
            from oodbench.distributed import run as stages

            on_ray = dataclasses.replace(plan, request=dataclasses.replace(plan.request, ray=where))
            stages.score(on_ray, running, scores, watch, finish)
        else:
            _score(plan, running, scores, watch, finish)
    ordered = [results[job.label] for job in plan.jobs if job.label in results]
    return RunOutcome(tuple(ordered), tuple(left_out))


def methods_of(plan: Plan, jobs: Sequence[Job]) -> tuple[list[FittedMethod], list[tuple[str, str]]]:
    """Import the methods that have work to do. One that does not import is an error if named, else left out."""
    running, broken = [], []
    for job in jobs:
        try:
            running.append(FittedMethod(job, job.made()))
        except UserError as error:
            broken.append((job.label, str(error)))
    if plan.request.methods.strip() != "all":
        raise_all([reason for _, reason in broken])
    return running, broken


def _score(
    plan: Plan,
    running: Sequence[FittedMethod],
    scores: dict[str, dict[str, Entry]],
    watch: Watch,
    finish: Callable[..., None],
) -> None:
    device = pick_device(plan.request.device)
    encoder = loader(plan, device)
    scorer = Scorer(plan, task_of(plan, encoder, device, watch), device)
    for one in running:
        one.own = own(plan, one.job, device)
    for listing in plan.listings:
        waiting = [one for one in running if listing.dataset.name not in scores[one.job.label] and not one.error]
        if not waiting:
            continue
        embedded = _extracted(plan, listing, encoder, watch)
        labels = [one.job.label for one in waiting]
        watch.scoring(listing.dataset.name, labels)
        task = f"score[{listing.dataset.name}: {', '.join(labels)}]"
        watch.told(Event("started", "score", task))
        began = time.perf_counter()
        scorer.score(waiting, embedded)
        watch.told(Event("done", "score", task, len(listing), round(time.perf_counter() - began, 3)))
        for one in waiting:
            entry = find_scores(plan, one.job, listing)
            if entry:
                scores[one.job.label][listing.dataset.name] = entry
            if one.error:
                finish(one.job, one.error)
            elif len(scores[one.job.label]) == len(plan.listings):
                finish(one.job)


def _extracted(plan: Plan, listing: ImageSet, encoder: Callable[[], OpenClip], watch: Watch) -> Embedded:
    work = plan.work(listing)
    missing = work.missing()
    if not missing:
        return extract.extract(work, encoder)
    task, began = f"extract[{listing.dataset.name}]", time.perf_counter()
    watch.told(Event("started", "extract", task))
    embedded = extract.extract(work, encoder, watch.extracting(listing.dataset.name, work.images()))
    watch.told(Event("done", "extract", task, missing, round(time.perf_counter() - began, 3)))
    return embedded


def task_of(plan: Plan, encoder: Callable[[], OpenClip], device: str, watch: Watch) -> Task:
    """What the plan's methods know before a test image, answered from the store where it is there."""
    import torch

    from oodbench.method import Sources, Task

    def text(templates: str) -> torch.Tensor:
        return torch.from_numpy(text_bank(plan, templates, encoder)).to(device)

    def words(prompts: tuple[str, ...]) -> torch.Tensor:
        return torch.from_numpy(word_bank(plan, prompts, encoder)).to(device)

    def calibration() -> Iterable[Batch]:
        assert plan.calibration  # a plan without them has no method that declares them
        embedded = _extracted(plan, plan.calibration, encoder, watch)
        return feature_batches(embedded, device)

    sources = Sources(text, words, encoder, calibration)
    return Task(plan.classes.lines, plan.card.scale, sources, plan.request.seed)


def own(plan: Plan, job: Job, device: str) -> MethodResources:
    """What a job's method alone is given: its weights, and the store for what it makes of them."""
    import torch

    from oodbench.method import MethodResources

    images = None  # that fit() reads: which, and what their embeddings depend on
    if plan.calibration and job.calibrates:
        images = {"list": plan.calibration.digest, **plan.work(plan.calibration).inputs(0, len(plan.calibration))}

    def keep(depends: Mapping[str, object], make: Callable[[], torch.Tensor]) -> torch.Tensor:
        inputs = {
            **assignment.kept_inputs(job, plan.classes.digest, depends),
            "encoder": plan.card.identity,
            "precision": plan.request.precision,
            "seed": plan.request.seed,
            "engine": ENGINE,
            "calibration": images,
        }
        entry = plan.store.find("kept", inputs)
        if entry is None:
            arrays = {"kept": make().detach().cpu().numpy()}
            entry = plan.store.write("kept", inputs, arrays, {"method": job.info.name})
        return torch.from_numpy(np.array(entry.array("kept"))).to(device)

    return MethodResources(functools.cache(lambda: assignment.load(job, plan.encoder, plan.store, device)), keep)


def pick_device(asked: str) -> str:
    """`auto` is the GPU when there is one. UserError when the device asked for is not there."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=asked)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]
        raise UserError(f"--device {asked} cannot be used: {reason}; without a GPU, use --device cpu") from error
    return asked


def loader(plan: Plan, device: str) -> Callable[[], OpenClip]:
    """Gives the plan's encoder, loaded at the first call."""

    @functools.cache
    def load() -> OpenClip:
        from oodbench.encoder.openclip import OpenClip

        log.info("loading %s on %s", plan.card.name, device)
        return OpenClip(plan.encoder, device, plan.request.precision)

    return load
