"""From what a user asked to what will be done. Every problem of a request is found here, before a model is loaded."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from oodbench import catalogue, prompts
from oodbench.catalogue import Benchmark, Dataset
from oodbench.encoder.card import EMBEDDED, EncoderCard, parse_encoder
from oodbench.encoder.resolve import Resolved, resolve
from oodbench.errors import UserError, raise_all
from oodbench.extract import Reading, Recipe, Work
from oodbench.images import CALIBRATION_LIMIT, Listing, listing
from oodbench.jobs import Job, Jobs, make_jobs
from oodbench.prompts import Lines
from oodbench.request import RunRequest, check_options
from oodbench.store import Store, default_root

T = TypeVar("T")


@dataclass(frozen=True)
class OodSet:
    """An OOD set of the benchmark and its group ("near", "far" or "")."""

    listing: Listing
    group: str


@dataclass(frozen=True)
class Plan:
    """A request that can be carried out."""

    request: RunRequest
    benchmark: Benchmark
    encoder: Resolved
    classes: Lines
    id: Listing
    ood: tuple[OodSet, ...]
    calibration: Listing | None
    jobs: tuple[Job, ...]
    left_out: tuple[tuple[str, str], ...]  # with --methods all: name, reason
    store: Store

    @property
    def card(self) -> EncoderCard:
        return self.encoder.card

    @property
    def recipe(self) -> Recipe:
        return Recipe(self.card.identity, self.request.precision, self.request.batch_size)

    def work(self, listing: Listing) -> Work:
        """How one of the lists is embedded."""
        reading = Reading(self.request.workers or min(os.cpu_count() or 1, 16), self.request.on_error)
        return Work(listing, self.recipe, reading, self.store)

    @property
    def listings(self) -> list[Listing]:
        """The ID set first, then the OOD sets."""
        return [self.id, *(s.listing for s in self.ood)]


def make_plan(request: RunRequest) -> Plan:
    """Check a request and plan it. Raises UserError with every problem that was found."""
    store = Store(request.store or default_root())
    collected: list[str] = []

    def attempt(step: Callable[..., T], *arguments: Any) -> T | None:
        try:
            return step(*arguments)
        except UserError as error:
            collected.append(str(error))
            return None

    attempt(check_options, request)
    jobs = attempt(make_jobs, request)
    benchmark = attempt(catalogue.benchmark, request.id, request.ood)
    spec = attempt(parse_encoder, request.encoder or (benchmark.encoder if benchmark else "") or EMBEDDED)
    id_set = classes = None
    ood: list[OodSet] = []
    if benchmark:
        attempt(_check_benchmark, benchmark, request)
        id_dataset = attempt(catalogue.dataset, benchmark.id, request.classes)
        id_set = attempt(_listed, id_dataset, request, True, store) if id_dataset else None
        classes = attempt(_classes, id_set) if id_set else None
        for name, group in benchmark.sets():
            dataset = attempt(catalogue.dataset, name)
            listed = attempt(_listed, dataset, request, False, store) if dataset else None
            if listed:
                ood.append(OodSet(listed, group))
        if id_set:
            attempt(_check_folders, id_set, ood)
    raise_all(collected)  # before the encoder: reading a checkpoint takes seconds
    assert jobs and benchmark and spec and id_set and classes
    resolved = resolve(spec, request.resize, store)
    calibration, jobs = _calibration(benchmark, id_set, request, store, jobs)
    return Plan(
        request=dataclasses.replace(request, out=request.out.expanduser()),
        benchmark=benchmark,
        encoder=resolved,
        classes=classes,
        id=id_set,
        ood=tuple(ood),
        calibration=calibration,
        jobs=jobs.jobs,
        left_out=jobs.left_out,
        store=store,
    )


def _check_benchmark(benchmark: Benchmark, request: RunRequest) -> None:
    names = [name for name, _ in benchmark.sets()]
    problems = []
    if not names:
        problems.append(f"benchmark '{benchmark.name}' has no OOD set; name some with --ood")
    if benchmark.id in names:
        problems.append(f"'{benchmark.id}' is both the ID set and an OOD set")
    if not (request.encoder or benchmark.encoder):
        problems.append(f"benchmark '{benchmark.name}' needs an encoder; name one, e.g. --encoder ViT-B-16/openai")
    raise_all(problems)


def _listed(dataset: Dataset, request: RunRequest, labelled: bool, store: Store) -> Listing:
    data = catalogue.data_root(request.data)
    whole = listing(dataset, data, labelled=labelled, strict=request.strict, store=store)
    if (
        dataset.count is not None
        and len(whole) != dataset.count
        and not request.allow_partial
        and request.limit is None
    ):
        raise UserError(
            f"dataset '{dataset.name}': {whole.folder} holds {len(whole)} of {dataset.count} images; "
            "complete it, or run on what is there with --allow-partial"
        )
    return whole.limit(request.limit)


def _classes(id_set: Listing) -> Lines:
    """The class names of an ID set: a list as long as its class folders, or the folders' own names."""
    named = id_set.dataset.classes
    if not named:
        return Lines("folders", tuple(folder.replace("_", " ") for folder in id_set.folders))
    lines = prompts.class_names(named)
    if len(lines.lines) != len(id_set.folders):
        raise UserError(
            f"dataset '{id_set.dataset.name}': class list '{named}' has {len(lines.lines)} names, "
            f"{id_set.folder} has {len(id_set.folders)} class folders"
        )
    return lines


def _check_folders(id_set: Listing, ood: Sequence[OodSet]) -> None:
    """ID and OOD under two names, or one inside the other, would share images."""
    if id_set.dataset.loader == "glyphs":
        return
    home = id_set.folder.resolve()
    for one in ood:
        other = one.listing.folder.resolve()
        if one.listing.dataset.loader != "glyphs" and (other == home or other in home.parents or home in other.parents):
            raise UserError(
                f"'{id_set.dataset.name}' and '{one.listing.dataset.name}' share images: {other} is, holds or lies in "
                f"{home}; ID and OOD must differ"
            )


def _calibration(
    benchmark: Benchmark, id_set: Listing, request: RunRequest, store: Store, jobs: Jobs
) -> tuple[Listing | None, Jobs]:
    """The calibration images, listed only when a method asks for them; and the jobs that can run."""
    asking = [job for job in jobs.jobs if "CALIBRATION" in job.info.needs]
    if not asking:
        return None, jobs
    name = benchmark.calibration or id_set.dataset.train
    try:
        if not name:
            raise UserError(f"'{id_set.dataset.name}' has no training split to calibrate on")
        found = _listed(catalogue.dataset(name), dataclasses.replace(request, allow_partial=True), True, store)
        return found.sample(CALIBRATION_LIMIT, request.seed), jobs
    except UserError as error:
        reason = str(error)
    if request.methods.strip() != "all":
        raise UserError("\n".join(f"{job.label} calibrates on ID training images: {reason}" for job in asking))
    rest = tuple(job for job in jobs.jobs if job not in asking)
    return None, Jobs(rest, (*jobs.left_out, *((job.label, reason) for job in asking)))
