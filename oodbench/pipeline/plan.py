"""Make a plan from a request. This finds every problem of a request before a model is loaded."""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from oodbench.data import catalog as catalogue
from oodbench.data.calibration import CalibrationImages, Draw, draw, draw_labelled, load_split
from oodbench.data.catalog import Benchmark, Dataset
from oodbench.data.decode import DecodeConfig
from oodbench.data.imageset import ImageSet
from oodbench.data.load import LoadOptions, check_exist, class_names_of, load_images, notes
from oodbench.data.overlap import check_calibration, check_folders
from oodbench.data.paths import data_option, data_root
from oodbench.data.prompts import TextList
from oodbench.encoder.card import EMBEDDED, EncoderCard, parse_encoder
from oodbench.encoder.resolve import ResolvedEncoder, resolve
from oodbench.errors import Missing, ProblemList, UserError, raise_all
from oodbench.method import registry, source_files
from oodbench.method.introspection import MethodInfo
from oodbench.pipeline import assign_weights as assignment
from oodbench.pipeline.encoder_choice import choose_encoder
from oodbench.pipeline.extract import EmbeddingConfig, ExtractionJob
from oodbench.pipeline.jobs import Job, Jobs, make_jobs, readable_jobs, stream_problems
from oodbench.pipeline.request import RunRequest, check_options
from oodbench.pipeline.stream_order import StreamProtocol, canonical_ratio, kept_sizes
from oodbench.pipeline.weights import damaged_files
from oodbench.storage.files import expand
from oodbench.storage.shared import open_store
from oodbench.storage.store import Store

log = logging.getLogger(__name__)

STREAM_OPTIONS = ("stream_order", "stream_seeds", "stream_batch", "stream_ratio")
FindMethods = Callable[[tuple[Path, ...]], Mapping[str, MethodInfo]]


@dataclass(frozen=True)
class OodSet:
    """An OOD set of the benchmark, and its group: "near", "far" or ""."""

    listing: ImageSet
    group: str


@dataclass(frozen=True)
class Plan:
    """A checked request, with everything that its run needs.

    calibration           ID training images for methods that read no labels of them
    jobs                  the methods that will run, those that are only the base of a stream included
    skipped_methods       (name, reason) of methods that a group or `--skip-missing` leaves out
    skipped               a note for every OOD set that --skip-missing skips
    incompatible_methods  (name, reason) of methods of a group that need another kind of encoder
    encoder_note          the encoder that is used without --encoder, and why; "" if the user named it
    labelled              ID training images for methods that read their labels, which are indices into `classes`
    weights_folders       folders whose weights files are rows of few-shot methods
    """

    request: RunRequest
    benchmark: Benchmark
    encoder: ResolvedEncoder
    classes: TextList
    id: ImageSet
    ood: tuple[OodSet, ...]
    calibration: ImageSet | None
    jobs: tuple[Job, ...]
    skipped_methods: tuple[tuple[str, str], ...]
    store: Store
    skipped: tuple[str, ...] = ()
    incompatible_methods: tuple[tuple[str, str], ...] = ()
    encoder_note: str = ""
    labelled: ImageSet | None = None
    weights_folders: tuple[Path, ...] = ()

    @property
    def card(self) -> EncoderCard:
        """Return the card of the encoder."""
        return self.encoder.card

    @property
    def notes(self) -> list[str]:
        """Return notes on the choice of the encoder, possible faults of the image sets, and skipped sets."""
        others = [*(ood.listing for ood in self.ood), *self.calibrations[:1]]
        found = [note for images in others for note in notes(images)]
        if self.request.calibration and not self.calibrations:
            found.append(f"--calibration {self.request.calibration} is ignored: no method of this run calibrates")
        if self.request.shots and not self.labelled:
            found.append(f"--shots {self.request.shots} is ignored: no method of this run reads labels")
        if self.request.shot_seed is not None and not (self.draw.shots and self.labelled):
            found.append(f"--shot-seed {self.request.shot_seed} is ignored: no shots are drawn")
        found += self._stream_notes()
        found += [f"left out: {reason}" for folder in self.weights_folders for reason in damaged_files(folder)]
        for job in self.jobs:
            trained_on = job.weights.images.get("set", self.id.dataset.name) if job.weights else self.id.dataset.name
            if trained_on != self.id.dataset.name:
                found.append(
                    f"{job.label}: its weights were trained on images of '{trained_on}', of the same class names"
                )
        chosen = [self.encoder_note] if self.encoder_note else []
        return [*chosen, *notes(self.id, self.classes), *found, *self.skipped]

    def _stream_notes(self) -> list[str]:
        """Return notes on options that are ignored: those of streams without a stream, and settings of bases."""
        usual = RunRequest()
        given = [name for name in STREAM_OPTIONS if getattr(self.request, name) != getattr(usual, name)]
        if streams := [job for job in self.jobs if job.is_stream]:
            set_methods = {text.partition(".")[0].strip() for text in self.request.settings}
            bases = [(job, base.info.name) for job in streams if (base := self.base_of(job))]
            return [
                f"--set {base}... does not reach the base of {job.label}; write {job.info.name}[base={base}[...]]"
                for job, base in bases
                if base in set_methods
            ]
        if not given:
            return []
        named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        verb = "is" if len(given) == 1 else "are"
        return [f"{named} {verb} ignored: no method of this run learns from the test images"]

    @property
    def embedding_config(self) -> EmbeddingConfig:
        """Return what the embeddings depend on in addition to the images."""
        return EmbeddingConfig(self.card.identity, self.request.precision, self.request.batch_size)

    def extraction_job(self, listing: ImageSet) -> ExtractionJob:
        """Return how the embeddings of an image set are computed."""
        reading = DecodeConfig(self.request.workers or min(os.cpu_count() or 1, 16), self.request.on_error)
        return ExtractionJob(listing, self.embedding_config, reading, self.store)

    def calibration_of(self, job: Job) -> ImageSet | None:
        """Return the ID training images that a method reads; None if it reads none."""
        if not job.calibrates:
            return None
        return self.labelled if job.reads_labels else self.calibration

    @property
    def protocols(self) -> tuple[StreamProtocol, ...]:
        """Return the protocol of every stream of a pair: one for each order and stream seed."""
        return self.request.protocols()

    @property
    def rows(self) -> tuple[Job, ...]:
        """Return the jobs that have rows: all but those that are only the base of a stream."""
        return Jobs(self.jobs).rows

    def base_of(self, job: Job) -> Job | None:
        """Return the job whose scores a stream reads; None for a stream without a base, and for other methods."""
        return next((one for one in self.jobs if job.base and one.label == job.base), None)

    @property
    def draw(self) -> Draw:
        """Return how the ID training images were drawn."""
        return self.request.draw(self.benchmark.shots)

    @property
    def calibrations(self) -> list[ImageSet]:
        """Return the sets of ID training images that methods of this plan read."""
        return [images for images in (self.calibration, self.labelled) if images]

    @property
    def listings(self) -> list[ImageSet]:
        """Return the image sets, the ID set first."""
        return [self.id, *(s.listing for s in self.ood)]


def make_plans(requests: Sequence[RunRequest]) -> list[Plan]:
    """Plan several requests; the files of the methods are read once. Raise UserError with the problems of the first."""
    methods = functools.cache(registry.methods)
    return [make_plan(request, methods) for request in requests]


def make_plan(request: RunRequest, methods: FindMethods = registry.methods, *, needs_ood: bool = True) -> Plan:
    """Check a request and return the plan of its run. Raise UserError with every problem that was found.

    `methods` returns all methods by name; it is called once. Without `needs_ood` no OOD set is listed.
    """
    request = dataclasses.replace(request, out=expand(request.out))
    store = open_store(request.store, request.shared)
    collected = ProblemList()
    attempt = collected.attempt
    ood_needed = needs_ood and not request.skip_missing
    attempt(check_exist, (request.id, *(request.ood if ood_needed else ()), request.calibration))
    attempt(check_options, request)
    known = attempt(methods, request.plugins)
    jobs = attempt(make_jobs, request, known) if known is not None else None
    jobs = attempt(readable_jobs, jobs) if jobs else None
    if jobs and not needs_ood:
        jobs = attempt(_without_streams, jobs, request)
    find_protocol = functools.partial(catalogue.protocol, needs_ood=needs_ood)
    protocol = attempt(find_protocol, request.id, request.ood, request.classes)
    files = attempt(assignment.weights_files, request, known) if known is not None else None
    benchmark = protocol.benchmark if protocol else Benchmark("", "", "", encoder=EMBEDDED)
    choose = functools.partial(choose_encoder, is_run=needs_ood)
    choice = attempt(choose, request, jobs or Jobs(()), files or {}, benchmark)
    spec = attempt(parse_encoder, choice.text) if choice else None
    located = attempt(assignment.locate, jobs, request, files, spec) if jobs and files is not None and spec else None
    jobs = attempt(assignment.select_jobs, jobs, request, located, spec) if located is not None else None
    id_set = classes = None
    calibration = CalibrationImages()
    ood: list[OodSet] = []
    missing: dict[str, str] = {}  # OOD sets that --skip-missing skips -> reason
    absent: list[str] = []  # all missing sets
    if protocol:
        if not needs_ood:
            protocol = dataclasses.replace(protocol, ood=())
        if request.clean_names:
            protocol = dataclasses.replace(protocol, id=dataclasses.replace(protocol.id, clean_names=True))
        attempt(check_benchmark, protocol.benchmark, needs_ood)
        # With problems to report, contents are not hashed and glyphs, which are rendered to be listed, are not loaded.
        faulty = bool(collected.problems)
        options = LoadOptions(
            data_root(request.data),
            store,
            strict=request.strict and not faulty,
            limit=request.limit,
            allow_partial=request.allow_partial,
        )

        def load(dataset: Dataset, labelled: bool) -> ImageSet | None:
            if faulty and dataset.loader == "glyphs" and not dataset.classes:
                return None
            try:
                return load_images(dataset, options, labelled=labelled)
            except Missing:
                if dataset.declared:  # `datasets get` cannot get a folder that a user named
                    absent.append(dataset.name)
                raise

        id_set = attempt(load, protocol.id, True)
        classes = attempt(class_names_of, id_set) if id_set else None
        for dataset, group in protocol.ood:
            try:
                images = load(dataset, False)
                ood += [OodSet(images, group)] if images else []
            except UserError as error:
                if request.skip_missing and isinstance(error, Missing):
                    missing[dataset.name] = f"skipped: {error}"
                else:
                    collected.problems += error.problems
        if len(absent) > 1 and not missing and protocol.benchmark.name in catalogue.benchmarks():
            everything = f"oodbench datasets get {protocol.benchmark.name}{data_option(options.data_root)}"
            collected.problems[-1] += f"\n  to get all {len(absent)} missing sets: {everything}"
        protocol = attempt(protocol.without, missing) if missing else protocol
        if id_set:
            attempt(check_folders, id_set, [ood_set.listing for ood_set in ood])
        if id_set and jobs and any(job.is_stream for job in jobs.jobs):
            collected.problems += _ratio_problems(request, id_set, [one.listing for one in ood])
        if id_set and jobs and protocol:
            found = attempt(_calibration, protocol.benchmark, id_set, request, options, jobs)
            calibration, jobs = found or (calibration, jobs)
    raise_all(collected.problems)  # before the encoder is resolved, because reading a checkpoint takes seconds
    assert jobs and located is not None and protocol and choice and spec and id_set and classes
    resolved = resolve(spec, request.resize, store, strict=request.strict)
    jobs, incompatible_methods = _compatible_jobs(jobs, resolved.card)
    jobs = assignment.attach_weights(jobs, located, resolved, classes, request, store)
    return Plan(
        request=dataclasses.replace(request, encoder=choice.text),
        benchmark=protocol.benchmark,
        encoder=resolved,
        classes=classes,
        id=id_set,
        ood=tuple(ood),
        calibration=calibration.unlabelled,
        labelled=calibration.labelled,
        weights_folders=tuple(dict.fromkeys(path for path in located.values() if path.is_dir())),
        jobs=jobs.jobs,
        skipped_methods=jobs.skipped_methods,
        store=store,
        skipped=tuple(missing.values()),
        incompatible_methods=incompatible_methods,
        encoder_note=choice.reason,
    )


def _compatible_jobs(jobs: Jobs, card: EncoderCard) -> tuple[Jobs, tuple[tuple[str, str], ...]]:
    """Return the jobs that the encoder can serve, and (name, reason) of the others. Raise UserError if they were named.

    Methods of groups that need another kind of encoder are expected, so only --dry-run and -v list them.
    """
    reasons = jobs.reasons({job.label: reason for job in jobs.jobs if (reason := misfit(job, card))})
    raise_all([f"{job.label}: {reasons[job.label]}" for job in jobs.rows if job.label in reasons and job.named])
    incompatible_methods = tuple(reasons.items())
    for label, reason in incompatible_methods:
        log.info("skipped: %s: %s", label, reason)
    return Jobs(jobs.without(reasons), jobs.skipped_methods), incompatible_methods


def misfit(job: Job, card: EncoderCard) -> str:
    """Return why the encoder cannot serve a method, or ""."""
    if "CAPTIONS" in job.info.needs and card.caption_error:
        return card.caption_error
    if job.info.patch_fields and not card.plugin and card.patch_error:
        return card.patch_error
    wanted = set(job.info.patch_fields)
    if "ACTIVATIONS" in job.info.needs or "patch_activations" in wanted:
        wanted |= {"activations", "project"}
    if card.plugin and "text_tower" in source_files.attributes(job.info.path, job.info.module):
        wanted.add("text_tower")
    lacking = sorted(part for part in wanted if card.lacks(part))
    return f"{card.name} has no {' and no '.join(f'{part}()' for part in lacking)}" if lacking else ""


def _ratio_problems(request: RunRequest, id_set: ImageSet, ood: Sequence[ImageSet]) -> list[str]:
    """Return the OOD sets that have too few images for the ratio of streams."""
    try:
        ratio = canonical_ratio(request.stream_ratio)
    except UserError:
        return []  # check_options() reports it
    return [
        f"--stream-ratio {ratio} leaves no image of {id_set.dataset.name} ({len(id_set):,}) and {one.dataset.name} "
        f"({len(one):,}); name a ratio that they allow, such as --stream-ratio 1:1, or all"
        for one in ood
        if not any(kept_sizes(len(id_set), len(one), ratio))
    ]


def _without_streams(jobs: Jobs, request: RunRequest) -> Jobs:
    """Return the jobs that score images one by one, without streams of groups. Raise UserError for a named stream."""
    raise_all(stream_problems(jobs, request))
    reasons = {job.label: "learns from a test stream; use oodbench run" for job in jobs.rows if job.is_stream}
    if len(reasons) == len(jobs.rows):
        raise UserError(f"no method can run: {'; '.join(' '.join(pair) for pair in reasons.items())}")
    return Jobs(jobs.without(reasons), (*jobs.skipped_methods, *reasons.items()))


def _alternative(job: Job) -> str:
    """Return how the user can run a method without calibration images, or ""."""
    return f"\n  or do without: {job.uncalibrated_option}" if job.uncalibrated_option else ""


def _calibration(
    benchmark: Benchmark, id_set: ImageSet, request: RunRequest, options: LoadOptions, jobs: Jobs
) -> tuple[CalibrationImages, Jobs]:
    """Return the calibration images that methods read, and the jobs that can run."""
    calibrating = [job for job in jobs.jobs if job.calibrates]
    if not calibrating:
        return CalibrationImages(), jobs
    images: dict[bool, ImageSet] = {}  # for the methods that read labels, and for those that do not
    reasons: dict[bool, str] = {}  # why they cannot calibrate
    how = request.draw(benchmark.shots)
    try:
        split = training_split(request.calibration or benchmark.calibration, id_set, options)
    except UserError as error:
        reasons = {False: str(error), True: str(error)}
    for labelled in {job.reads_labels for job in calibrating} - set(reasons):
        try:
            images[labelled] = draw_labelled(split, id_set, options, how) if labelled else draw(split, options, how)
        except UserError as error:
            reasons[labelled] = str(error)
    failed = [job for job in calibrating if job.reads_labels in reasons]
    if failed and (request.shots or (request.calibration and len(failed) == len(calibrating))):
        raise UserError(*dict.fromkeys(reasons[job.reads_labels] for job in failed))
    own = {job.label: f"calibrates on ID training images: {reasons[job.reads_labels]}" for job in failed}
    why = jobs.reasons(own, ", which ")
    named = [job for job in jobs.rows if job.label in why and job.named]
    raise_all([f"{job.label} {why[job.label]}{_alternative(job)}" for job in named])
    others = jobs.without(why)
    if not others:
        raise UserError(f"no method can run: {'; '.join(' '.join(pair) for pair in why.items())}")
    skipped = (*jobs.skipped_methods, *why.items())
    return CalibrationImages(images.get(False), images.get(True)), Jobs(others, skipped)


def training_split(name: str, id_set: ImageSet, options: LoadOptions) -> ImageSet:
    """Return the ID training images, by default those of the ID set. Raise UserError if they cannot be used."""
    name = name or id_set.dataset.train
    if not name:
        raise UserError(
            f"'{id_set.dataset.name}' has no training split in the catalogue; name its training images with "
            "--calibration, such as --calibration folder:PATH"
        )
    split = load_split(catalogue.dataset(name), options)
    check_calibration(id_set, split)
    return split


def check_benchmark(benchmark: Benchmark, needs_ood: bool = True) -> None:
    """Raise UserError if a benchmark has no OOD set, or its ID set among the OOD sets."""
    names = [name for name, _ in benchmark.sets()]
    problems = []
    if not names and needs_ood:
        problems.append(f"benchmark '{benchmark.name}' has no OOD set; name some with --ood")
    if benchmark.id in names:
        problems.append(f"'{benchmark.id}' is both the ID set and an OOD set")
    raise_all(problems)
