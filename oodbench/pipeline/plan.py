"""From what a user asked to what will be done. Every problem of a request is found here, before a model is loaded."""

from __future__ import annotations

import dataclasses
import logging
import os
from dataclasses import dataclass

from oodbench.data import catalog as catalogue
from oodbench.data.catalog import Benchmark, Dataset
from oodbench.data.decode import DecodeConfig
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, class_names, load_calibration, load_images, notes
from oodbench.data.overlap import check_folders
from oodbench.data.prompts import TextList
from oodbench.encoder.card import EMBEDDED, EncoderCard, parse_encoder
from oodbench.encoder.resolve import Resolved, resolve
from oodbench.errors import Missing, ProblemList, UserError, raise_all
from oodbench.pipeline import assign_weights as assignment
from oodbench.pipeline.extract import EmbeddingConfig, ExtractionJob
from oodbench.pipeline.jobs import Job, Jobs, make_jobs
from oodbench.pipeline.request import RunRequest, check_options
from oodbench.storage.files import expand
from oodbench.storage.shared import open_store
from oodbench.storage.store import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OodSet:
    """An OOD set of the benchmark and its group ("near", "far" or "")."""

    listing: ImageSet
    group: str


@dataclass(frozen=True)
class Plan:
    """A request that can be carried out."""

    request: RunRequest
    benchmark: Benchmark
    encoder: Resolved
    classes: TextList
    id: ImageSet
    ood: tuple[OodSet, ...]
    calibration: ImageSet | None
    jobs: tuple[Job, ...]
    skipped_methods: tuple[tuple[str, str], ...]  # with --methods all: name, reason
    store: Store
    skipped: tuple[str, ...] = ()  # with --skip-missing: a note for every OOD set that is not there
    incompatible_methods: tuple[
        tuple[str, str], ...
    ] = ()  # with --methods all: methods for another kind of encoder, with reason

    @property
    def card(self) -> EncoderCard:
        return self.encoder.card

    @property
    def notes(self) -> list[str]:
        """What may mislead about the image sets, and the sets that --skip-missing left out."""
        others = [*(one.listing for one in self.ood), *([self.calibration] if self.calibration else [])]
        about = [note for one in others for note in notes(one)]
        return [*notes(self.id, self.classes), *about, *self.skipped]

    @property
    def recipe(self) -> EmbeddingConfig:
        return EmbeddingConfig(self.card.identity, self.request.precision, self.request.batch_size)

    def work(self, listing: ImageSet) -> ExtractionJob:
        """How one of the lists is embedded."""
        reading = DecodeConfig(self.request.workers or min(os.cpu_count() or 1, 16), self.request.on_error)
        return ExtractionJob(listing, self.recipe, reading, self.store)

    @property
    def listings(self) -> list[ImageSet]:
        """The ID set first, then the OOD sets."""
        return [self.id, *(s.listing for s in self.ood)]


def make_plan(request: RunRequest) -> Plan:
    """Check a request and plan it. Raises UserError with every problem that was found."""
    request = dataclasses.replace(request, out=expand(request.out))
    store = open_store(request.store, request.shared)
    collected = ProblemList()
    attempt = collected.attempt
    attempt(check_options, request)
    jobs = attempt(make_jobs, request)
    protocol = attempt(catalogue.protocol, request.id, request.ood, request.classes)
    files = None
    spec = attempt(parse_encoder, request.encoder or (protocol.benchmark.encoder if protocol else "") or EMBEDDED)
    if jobs and spec:
        files = attempt(assignment.given, request)
        jobs = attempt(assignment.check, jobs, request, files, spec) if files is not None else None
    id_set = classes = calibration = None
    ood: list[OodSet] = []
    absent: dict[str, str] = {}  # OOD sets that --skip-missing leaves out, with the reason
    if protocol:
        attempt(check_benchmark, protocol.benchmark, request)
        # With problems to report, contents are not hashed and glyphs, which are drawn to be listed, are not loaded.
        faulty = bool(collected.problems)
        options = LoadOptions(
            catalogue.data_root(request.data),
            store,
            strict=request.strict and not faulty,
            limit=request.limit,
            allow_partial=request.allow_partial,
        )

        def load(dataset: Dataset, labelled: bool) -> ImageSet | None:
            if faulty and dataset.loader == "glyphs" and not dataset.classes:
                return None
            return load_images(dataset, options, labelled=labelled)

        id_set = attempt(load, protocol.id, True)
        classes = attempt(class_names, id_set) if id_set else None
        for dataset, group in protocol.ood:
            try:
                images = load(dataset, False)
                ood += [OodSet(images, group)] if images else []
            except UserError as error:
                if request.skip_missing and isinstance(error, Missing):
                    absent[dataset.name] = f"skipped: {error}"
                else:
                    collected.problems += error.problems
        protocol = attempt(protocol.without, absent) if absent else protocol
        if id_set:
            attempt(check_folders, id_set, [one.listing for one in ood])
        if id_set and jobs and protocol:
            calibration, jobs = attempt(_calibration, protocol.benchmark, id_set, request, options, jobs) or (
                None,
                jobs,
            )
    raise_all(collected.problems)  # before the encoder: reading a checkpoint takes seconds
    assert jobs and files is not None and protocol and spec and id_set and classes
    resolved = resolve(spec, request.resize, store, strict=request.strict)
    jobs, incompatible_methods = _served(jobs, resolved.card, request)
    jobs = assignment.attach(jobs, files, resolved, spec, store, strict=request.strict)
    return Plan(
        request=request,
        benchmark=protocol.benchmark,
        encoder=resolved,
        classes=classes,
        id=id_set,
        ood=tuple(ood),
        calibration=calibration,
        jobs=jobs.jobs,
        skipped_methods=jobs.skipped_methods,
        store=store,
        skipped=tuple(absent.values()),
        incompatible_methods=incompatible_methods,
    )


def _served(jobs: Jobs, card: EncoderCard, request: RunRequest) -> tuple[Jobs, tuple[tuple[str, str], ...]]:
    """The jobs that the encoder can serve, and (name, reason) of the others, which are an error if named.

    `all` does not mean those: nothing that a user could do is missing, so only --dry-run and -v tell them.
    """
    mute = [job for job in jobs.jobs if card.caption_error and "CAPTIONS" in job.info.needs]
    if request.methods.strip() != "all":
        raise_all([f"{job.label}: {card.caption_error}" for job in mute])
    incompatible_methods = tuple((job.label, card.caption_error) for job in mute)
    for label, reason in incompatible_methods:
        log.info("left out: %s: %s", label, reason)
    rest = tuple(job for job in jobs.jobs if job not in mute)
    return Jobs(rest, jobs.skipped_methods), incompatible_methods


def _instead(job: Job) -> str:
    return f"\n  or do without: {job.by_hand}" if job.by_hand else ""


def _calibration(
    benchmark: Benchmark, id_set: ImageSet, request: RunRequest, options: LoadOptions, jobs: Jobs
) -> tuple[ImageSet | None, Jobs]:
    """The calibration images, listed only when a method asks for them; and the jobs that can run."""
    asking = [job for job in jobs.jobs if job.calibrates]
    if not asking:
        return None, jobs
    name = benchmark.calibration or id_set.dataset.train
    try:
        if not name:
            able = ", ".join(d.name for d in catalogue.datasets().values() if d.train)
            raise UserError(f"'{id_set.dataset.name}' has no training split in the catalogue; sets that do: {able}")
        return load_calibration(catalogue.dataset(name), options, request.seed), jobs
    except UserError as error:
        reason = f"calibrates on ID training images: {error}"
    if request.methods.strip() != "all":
        raise UserError(*(f"{job.label} {reason}{_instead(job)}" for job in asking))
    rest = tuple(job for job in jobs.jobs if job not in asking)
    if not rest:
        raise UserError(f"no method can run: {'; '.join(job.label for job in asking)} {reason}")
    return None, Jobs(rest, (*jobs.skipped_methods, *((job.label, reason) for job in asking)))


def check_benchmark(benchmark: Benchmark, request: RunRequest) -> None:
    """Raise UserError if a benchmark has no OOD set, no encoder, or its ID set among the OOD sets."""
    names = [name for name, _ in benchmark.sets()]
    problems = []
    if not names:
        problems.append(f"benchmark '{benchmark.name}' has no OOD set; name some with --ood")
    if benchmark.id in names:
        problems.append(f"'{benchmark.id}' is both the ID set and an OOD set")
    if not (request.encoder or benchmark.encoder):
        problems.append(f"benchmark '{benchmark.name}' needs an encoder; name one, e.g. --encoder ViT-B-16/openai")
    raise_all(problems)
