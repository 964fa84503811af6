"""Score images outside a benchmark with one method, using the same plan, task and scorer as a run."""

from __future__ import annotations

import dataclasses
import logging
import math
import numbers
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data.catalog import Benchmark, Dataset
from oodbench.data.imageset import ImageSet
from oodbench.data.prompts import TextList, class_names
from oodbench.detector.store import DetectorStore
from oodbench.detector.threshold import threshold
from oodbench.encoder.card import EMBEDDED, parse_encoder
from oodbench.encoder.resolve import ResolvedEncoder, resolve
from oodbench.errors import InvalidParameter, UserError, raise_all
from oodbench.method import registry
from oodbench.method.parameters import written
from oodbench.pipeline import assign_weights as assignment
from oodbench.pipeline import extract
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.events import Watch
from oodbench.pipeline.extract import EmbeddedSet
from oodbench.pipeline.jobs import Job, make_jobs, stream_problems
from oodbench.pipeline.plan import Plan, misfit
from oodbench.pipeline.request import GivenMethods, RunRequest, check_options, request_from, several
from oodbench.pipeline.score import Scorer
from oodbench.pipeline.task import encoder_loader, make_task, method_resources, pick_device
from oodbench.pipeline.weights import damaged_files

if TYPE_CHECKING:
    from oodbench.method import Method

log = logging.getLogger(__name__)

EMPTY_ID_SET = ImageSet(Dataset("images", "images", "images", ""), Path(), (), (), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Scored:
    """Scores of some images, in their order.

    Arguments:
        names        n names
        scores       [n] higher = more in-distribution; NaN for an image that could not be read
        predictions  [n] class indices, -1 for none
        skipped      `name: reason` of every image that could not be read
    """

    names: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    predictions: npt.NDArray[np.int64]
    skipped: tuple[str, ...] = ()


def job_of(request: RunRequest, classes: TextList, store: DetectorStore) -> tuple[Job, ResolvedEncoder]:
    """Return the only method of a request with its weights, and the encoder; raise UserError as a run does."""
    check_options(request)
    known = registry.methods(request.plugins)
    jobs = make_jobs(request, known)
    raise_all(stream_problems(jobs, request))
    if len(jobs.jobs) != 1 or not jobs.jobs[0].named:
        raise UserError(f"a detector is one method, not {request.methods}; name one, such as mcm or clipn[rule=ctw]")
    spec = parse_encoder(request.encoder or EMBEDDED)
    files = assignment.weights_files(request, known)
    located = assignment.locate(jobs, request, files, spec)
    jobs = assignment.select_jobs(jobs, request, located, spec)
    encoder = resolve(spec, request.resize, store)
    raise_all([f"{job.label}: {reason}" for job in jobs.jobs if (reason := misfit(job, encoder.card))])
    asked = dataclasses.replace(request, id="SET")  # in a command to paste: a detector has class names, and no ID set
    for folder in {path for path in located.values() if path.is_dir()}:
        for reason in damaged_files(folder):
            log.warning("left out: %s", reason)
    found = assignment.attach_weights(jobs, located, encoder, classes, asked, store).jobs
    if len(found) > 1:
        raise UserError(f"a detector has one file of weights, not {len(found)}; name one, as {found[0].weights.path}")  # type: ignore[union-attr]
    return found[0], encoder


def with_labels(images: ImageSet, labels: Sequence[Any], classes: TextList) -> ImageSet:
    """Return images with the classes that `labels` give, by name or number; raise UserError for an unknown class."""
    number = {name: i for i, name in enumerate(classes.lines)}
    wrong = [
        one for one in labels if one not in number and not (isinstance(one, int) and 0 <= one < len(classes.lines))
    ]
    if wrong:
        raise UserError(f"y holds {wrong[0]!r}, which is neither a class name nor a number below {len(classes.lines)}")
    if (repeated := classes.duplicates()) and any(isinstance(one, str) for one in labels):
        raise UserError(f"{len(repeated)} class names occur twice; give y as the numbers of the classes")
    indices = np.array([number.get(one, one) for one in labels], np.int64)
    return dataclasses.replace(images, labels=indices, folders=classes.lines)


def text_list(classes: Any) -> TextList:
    """Return class names, given as the name of a list, a file with one name a line, or the names themselves."""
    if isinstance(classes, str | os.PathLike):
        return class_names(os.fspath(classes))
    how = "give classes=[...], or the name of a class list, or a file with one name a line"
    if classes is not None and not isinstance(classes, Sequence | np.ndarray) and not hasattr(classes, "to_numpy"):
        raise UserError(f"classes takes a list of names, not a {type(classes).__name__}; {how}")  # sets have no order
    names = tuple(classes) if classes is not None else ()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"classes holds {name!r}, which is not a name; {how}")
    if not names:
        raise UserError(f"no class names were given; {how}")
    return TextList("given", tuple(map(str, names)))


class Engine:
    """A method, fitted at its first use, with its inputs.

    facts   number and digest of the images that calibrated it and of those that set the threshold; None for none
    """

    def __init__(
        self, request: RunRequest, job: Job, encoder: ResolvedEncoder, classes: TextList, store: DetectorStore
    ) -> None:
        self.store = store
        self.plan = Plan(
            request=request,
            benchmark=Benchmark("images", "images", "images"),
            encoder=encoder,
            classes=classes,
            id=EMPTY_ID_SET,
            ood=(),
            calibration=None,
            jobs=(job,),
            skipped_methods=(),
            store=store,
        )
        self.device = pick_device(request.device)
        self.encoder = encoder_loader(self.plan, self.device)
        self.method: Method[Any] = job.build()
        self.fitted = FittedMethod(job, self.method)
        self.scorer = self._scorer()
        self.facts: dict[str, dict[str, Any] | None] = {"calibration": None, "threshold": None}

    @property
    def calibrates(self) -> bool:
        """Whether the method is calibrated on ID images."""
        return self.plan.jobs[0].calibrates

    def fit(self, calibration: ImageSet | None) -> None:
        """Fit the method; raise UserError if it fails, or if it calibrates and there are no images."""
        job = self.plan.jobs[0]
        if job.calibrates and calibration is None:
            hint = f", or set {job.info.calibrated} explicitly" if job.info.calibrated else ""
            raise UserError(
                f"{job.label} calibrates on ID images: fit it with some (--threshold-from or --calibration){hint}"
            )
        if job.reads_labels and calibration is not None and (calibration.labels < 0).any():
            raise UserError(
                f"{job.label} reads the class of every image: fit(images, y=class names or their numbers); "
                "on the command line: --id SET --calibration folder:DIR"
            )
        images = calibration if job.calibrates else None
        self.plan = dataclasses.replace(self.plan, calibration=images, labelled=images)
        self.facts["calibration"] = _facts(calibration) if calibration and job.calibrates else None
        self.fitted = FittedMethod(job, self.method)
        self.scorer = self._scorer()
        self.scorer.fit([self.fitted])
        if self.fitted.error:
            raise UserError(f"{job.label}: {self.fitted.error}")

    def restore(self, state: Any) -> None:
        """Use a state that an earlier fit() returned."""
        self.fitted.state, self.fitted.fitted = state, True

    def scored(self, images: ImageSet, done: Callable[[int], None] = lambda n: None) -> Iterator[Scored]:
        """Score images in parts of a few thousand, with the same digits as a run on the same list."""
        for part in self.parts(images):
            yield self._score(part)
            done(len(part.listing))

    def threshold(self, images: ImageSet, tpr: float) -> float:
        """Return the score that accepts a fraction of new ID images, from images that the method was not fitted on."""
        if self._is_held_out(images):  # embedded together with the calibration images, as one list
            scores = self._score(extract.extract(self.plan.extraction_job(images), self.encoder)).scores
        else:
            scores = np.concatenate([part.scores for part in self.scored(images)])
        valid = scores[~np.isnan(scores)]
        if not len(valid):
            raise UserError(f"none of the {len(images)} images for the threshold can be read")
        limit = threshold(valid, tpr)
        self.facts["threshold"] = {**_facts(images), "read": len(valid), "tpr": tpr, "value": limit}
        return limit

    def _is_held_out(self, images: ImageSet) -> bool:
        """Return whether these images and the calibration images are parts of the same list."""
        calibration = self.plan.calibration
        if calibration is None or not calibration.origins or not images.origins:
            return False
        return images.origins[0].source is calibration.origins[0].source

    def parts(self, images: ImageSet) -> Iterator[EmbeddedSet]:
        """Iterate over the embeddings of a list, one shard at a time, each as a list of its own."""
        for start, stop in self.plan.extraction_job(images).shards():
            part = images.select(range(start, stop))  # without the list that it may be derived from
            entry = extract.extract_shard(self.plan.extraction_job(part), (0, len(part)), self.encoder)
            if entry.facts["skipped"] and self.plan.request.on_error == "stop":
                from oodbench.data.decode import unreadable_error

                raise unreadable_error(part, *entry.facts["skipped"][0])
            yield EmbeddedSet(part, (entry,), (0,))

    def _score(self, part: EmbeddedSet) -> Scored:
        """Score the images of a part that could be read."""
        n = len(part.listing)
        scores, predictions = np.full(n, np.nan), np.full(n, -1, np.int64)
        positions = part.positions
        if len(positions):
            values = self.scorer.values(self.fitted, part)
            scores[positions] = values.scores
            if values.predictions is not None:
                predictions[positions] = values.predictions
        return Scored(part.listing.names, scores, predictions, part.skipped)

    def _scorer(self) -> Scorer:
        self.fitted.resources = method_resources(self.plan, self.fitted.job, self.device)
        return Scorer(self.plan, make_task(self.plan, self.encoder, self.device, Watch()), self.device)


def _facts(images: ImageSet) -> dict[str, Any]:
    return {"n": len(images), "digest": images.digest}


def concatenate(parts: Sequence[Scored]) -> Scored:
    """Return the results of several parts as one."""
    return Scored(
        tuple(name for part in parts for name in part.names),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        tuple(reason for part in parts for reason in part.skipped),
    )


_REQUEST_FIELDS = (  # arguments that are fields of a request, with the same name
    "encoder",
    "templates",
    "device",
    "precision",
    "batch_size",
    "workers",
    "seed",
    "resize",
    "on_error",
    "plugins",
    "shared",
)


def check_params(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constructor's arguments, NumPy scalars as Python's; raise InvalidParameter with all wrong ones."""
    plain = _without_numpy(params)
    if isinstance(plain["settings"], Mapping):
        plain["settings"] = _without_numpy(plain["settings"])
    problems = [
        f"{name} takes {takes}, not {plain[name]!r}" for name, (fits, takes) in _TAKES.items() if not fits(plain[name])
    ]
    if problems:
        raise InvalidParameter(*problems)
    if not isinstance(plain["method"], str):
        given = GivenMethods.of(plain["method"])
        plain |= {"method": given.text, "plugins": [*several(plain["plugins"]), *given.plugins]}
    return plain


def finite(value: object) -> bool:
    """Return whether a value is a finite real number."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def request_of(params: Mapping[str, Any]) -> RunRequest:
    """Return the request of a run for checked arguments; `store` must be a folder."""
    name = params["method"].partition("[")[0].strip()
    return request_from(
        methods=params["method"],
        settings=[f"{name}.{key}={written(value)}" for key, value in (params["settings"] or {}).items()],
        weights=[f"{name}={params['weights']}"] if params["weights"] else [],
        store=params["store"],
        out=tempfile.gettempdir(),  # nothing is written there
        **{name: params[name] for name in _REQUEST_FIELDS},
    )


def _without_numpy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _is_fraction(value: object) -> bool:
    return value is None or (finite(value) and 0 < float(value) <= 1)  # type: ignore[arg-type]


def _is_path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_integer(least: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_settings(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value))


def _is_method(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    from oodbench.method import Method

    return issubclass(value if isinstance(value, type) else type(value), Method)


def _are_plugins(value: object) -> bool:
    return value is not None and all(
        _is_path(one) or (isinstance(one, type) and _is_method(one)) for one in several(value)
    )


_TAKES: dict[str, tuple[Callable[[object], bool], str]] = {
    "method": (_is_method, "the name of a method, or a class or instance of Method"),
    "encoder": (_is_text, "text, such as 'ViT-B-16/openai'"),
    "settings": (_is_settings, "a dictionary of hyper-parameters, or None"),
    "weights": (_is_path, "a path"),
    "templates": (_is_text, "text: a prompt set's name, a file, or 'a photo of a {}'"),
    "tpr": (_is_fraction, "a fraction above 0 and up to 1, such as 0.95, or None"),
    "threshold": (lambda value: value is None or finite(value), "a finite number, or None"),
    "device": (_is_text, "text, such as 'auto' or 'cuda:1'"),
    "precision": (_is_text, "text: fp32, bf16 or fp16"),
    "batch_size": (_is_integer(1), "a whole number from 1 upwards"),
    "workers": (_is_integer(0), "a whole number from 0 upwards"),
    "seed": (_is_integer(0), "a whole number from 0 upwards"),
    "resize": (lambda value: value is None or isinstance(value, str), "text: bicubic or bilinear, or None"),
    "on_error": (_is_text, "text: stop or skip"),
    "store": (lambda value: value is None or _is_path(value), "a path, or None"),
    "shared": (_is_text, "a URL"),
    "keep": (lambda value: isinstance(value, bool), "True or False"),
    "plugins": (_are_plugins, "paths of files, or classes of methods"),
}
