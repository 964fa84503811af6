"""One method on images that belong to no benchmark: the same plan, task and scorer as a run, part by part."""

from __future__ import annotations

import dataclasses
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
from oodbench.encoder.resolve import Resolved, resolve
from oodbench.errors import InvalidParameter, UserError
from oodbench.method.parameters import written
from oodbench.pipeline import assign_weights as assignment
from oodbench.pipeline import extract
from oodbench.pipeline.batches import FittedMethod
from oodbench.pipeline.events import Watch
from oodbench.pipeline.extract import Embedded
from oodbench.pipeline.jobs import Job, make_jobs
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.request import RunRequest, check_options, request_from
from oodbench.pipeline.score import Scorer
from oodbench.pipeline.task import encoder_loader, make_task, method_resources, pick_device

if TYPE_CHECKING:
    from oodbench.method import Method

EMPTY_ID_SET = ImageSet(Dataset("images", "images", "images", ""), Path(), (), (), np.zeros(0, np.int64))


@dataclass(frozen=True)
class Scored:
    """Scores of some images in their order.

    names        n names
    scores       [n], higher = more in-distribution; NaN where an image could not be read
    predictions  [n] class indices, -1 where there is none
    skipped      `name: reason` of the images that could not be read
    """

    names: tuple[str, ...]
    scores: npt.NDArray[np.float64]
    predictions: npt.NDArray[np.int64]
    skipped: tuple[str, ...] = ()


def job_of(request: RunRequest, store: DetectorStore) -> tuple[Job, Resolved]:
    """The one method of a request with its weights, and its encoder. UserError as a run raises it."""
    check_options(request)
    jobs = make_jobs(request)
    if len(jobs.jobs) != 1 or request.methods.strip() == "all":
        raise UserError(f"a detector is one method, not {request.methods}; name one, such as mcm or clipn[rule=ctw]")
    spec = parse_encoder(request.encoder or EMBEDDED)
    files = assignment.given(request)
    jobs = assignment.check(jobs, request, files, spec)
    encoder = resolve(spec, request.resize, store)
    (job,) = assignment.attach(jobs, files, encoder, spec, store).jobs
    return job, encoder


def lines(classes: Any) -> TextList:
    """Class names: the name of a list, a file with one a line, or the names themselves."""
    if isinstance(classes, str | os.PathLike):
        return class_names(os.fspath(classes))
    how = "give classes=[...], or the name of a class list, or a file with one name a line"
    if classes is not None and not isinstance(classes, Sequence | np.ndarray) and not hasattr(classes, "to_numpy"):
        raise UserError(f"classes takes a list of names, not a {type(classes).__name__}; {how}")  # sets have no order
    names = tuple(classes) if classes is not None else ()
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"classes holds {name!r}, which is no name; {how}")
    if not names:
        raise UserError(f"no class names were given; {how}")
    return TextList("given", tuple(map(str, names)))


class Engine:
    """A method, fitted when it is first needed, and all that it reads.

    facts   which images it learnt from and which set the threshold; None for either where there were none
    """

    def __init__(
        self, request: RunRequest, job: Job, encoder: Resolved, classes: TextList, store: DetectorStore
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
        self.running = FittedMethod(job, self.method)
        self.scorer = self._scorer()
        self.facts: dict[str, dict[str, Any] | None] = {"calibration": None, "threshold": None}

    @property
    def calibrates(self) -> bool:
        """Whether the method learns from ID images."""
        return self.plan.jobs[0].calibrates

    def fit(self, calibration: ImageSet | None) -> None:
        """Let the method learn; images calibrate a method that asks for them. UserError when it cannot."""
        job = self.plan.jobs[0]
        if job.calibrates and calibration is None:
            hint = f", or set {job.info.calibrated} by hand" if job.info.calibrated else ""
            raise UserError(
                f"{job.label} calibrates on ID images: fit it with some (--threshold-from or --calibration){hint}"
            )
        self.plan = dataclasses.replace(self.plan, calibration=calibration if job.calibrates else None)
        self.facts["calibration"] = _facts(calibration) if calibration and job.calibrates else None
        self.running = FittedMethod(job, self.method)
        self.scorer = self._scorer()
        self.scorer.fit([self.running])
        if self.running.error:
            raise UserError(f"{job.label}: {self.running.error}")

    def adopt(self, state: Any) -> None:
        """Take what an earlier fit() returned."""
        self.running.state, self.running.fitted = state, True

    def scored(self, images: ImageSet, done: Callable[[int], None] = lambda n: None) -> Iterator[Scored]:
        """Scores part by part, a few thousand images each; digits are those of a run on the same list."""
        for part in self.parts(images):
            yield self._scored(part)
            done(len(part.listing))

    def threshold(self, images: ImageSet, tpr: float) -> float:
        """The score that keeps a share of new ID images, set on some that the method has not learnt from."""
        if self._is_held_out(images):  # embedded with the images to learn from, as one list
            scores = self._scored(extract.extract(self.plan.work(images), self.encoder)).scores
        else:
            scores = np.concatenate([one.scores for one in self.scored(images)])
        read = scores[~np.isnan(scores)]
        if not len(read):
            raise UserError(f"not one of the {len(images)} images that are to set the threshold can be read")
        found = threshold(read, tpr)
        self.facts["threshold"] = {**_facts(images), "read": len(read), "tpr": tpr, "value": found}
        return found

    def _is_held_out(self, images: ImageSet) -> bool:
        """Whether the images are the rest of those that the method learnt from."""
        learnt = self.plan.calibration
        both = learnt.origins and images.origins if learnt else ()
        return bool(both) and learnt is not None and images.origins[0].source is learnt.origins[0].source

    def parts(self, images: ImageSet) -> Iterator[Embedded]:
        """Embeddings of the shards of a list, each as a list of its own: never more than one is held."""
        for start, stop in self.plan.work(images).shards():
            part = images.select(range(start, stop))  # a part of a derived list counts as images of its own
            entry = extract.shard(self.plan.work(part), (0, len(part)), self.encoder)
            if entry.facts["skipped"] and self.plan.request.on_error == "stop":
                from oodbench.data.decode import unreadable

                raise unreadable(part, *entry.facts["skipped"][0])
            yield Embedded(part, (entry,), (0,))

    def _scored(self, part: Embedded) -> Scored:
        n = len(part.listing)
        scores, predictions = np.full(n, np.nan), np.full(n, -1, np.int64)
        positions = part.positions
        if len(positions):
            found = self.scorer.values(self.running, part)
            scores[positions] = found.scores
            if found.predictions is not None:
                predictions[positions] = found.predictions
        return Scored(part.listing.names, scores, predictions, part.skipped)

    def _scorer(self) -> Scorer:
        self.running.resources = method_resources(self.plan, self.running.job, self.device)
        return Scorer(self.plan, make_task(self.plan, self.encoder, self.device, Watch()), self.device)


def _facts(images: ImageSet) -> dict[str, Any]:
    return {"n": len(images), "digest": images.digest}


def joined(parts: Sequence[Scored]) -> Scored:
    """Several parts as one."""
    return Scored(
        tuple(name for part in parts for name in part.names),
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.predictions for part in parts]),
        tuple(reason for part in parts for reason in part.skipped),
    )


_SAME = (
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


def checked(params: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, NumPy scalars among them and in `settings` as plain ones. InvalidParameter for all wrong ones."""
    plain = _plain(params)
    if isinstance(plain["settings"], Mapping):
        plain["settings"] = _plain(plain["settings"])
    problems = [
        f"{name} takes {takes}, not {plain[name]!r}" for name, (fits, takes) in _TAKES.items() if not fits(plain[name])
    ]
    if problems:
        raise InvalidParameter(*problems)
    return plain


def finite(value: object) -> bool:
    """Whether a value is a real number that can be a threshold."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)


def request_of(params: Mapping[str, Any]) -> RunRequest:
    """The request of one method, of arguments that are checked; `store` must be a folder."""
    name = params["method"].partition("[")[0].strip()
    return request_from(
        methods=params["method"],
        settings=[f"{name}.{key}={written(value)}" for key, value in (params["settings"] or {}).items()],
        weights=[f"{name}={params['weights']}"] if params["weights"] else [],
        store=params["store"],
        out=tempfile.gettempdir(),  # nothing is written there
        **{name: params[name] for name in _SAME},
    )


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value.item() if isinstance(value, np.generic) else value for name, value in values.items()}


def _share(value: object) -> bool:
    return value is None or (finite(value) and 0 < float(value) <= 1)  # type: ignore[arg-type]


def _path(value: object) -> bool:
    return isinstance(value, str | os.PathLike)


def _text(value: object) -> bool:
    return isinstance(value, str)


def _whole(least: int) -> Callable[[object], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and value >= least


def _named(value: object) -> bool:
    return value is None or (isinstance(value, Mapping) and all(isinstance(key, str) for key in value))


def _paths(value: object) -> bool:
    return _path(value) or (isinstance(value, list | tuple) and all(map(_path, value)))


_TAKES: dict[str, tuple[Callable[[object], bool], str]] = {
    "method": (lambda value: isinstance(value, str) and bool(value.strip()), "the name of a method"),
    "encoder": (_text, "text, such as 'ViT-B-16/openai'"),
    "settings": (_named, "a dictionary of hyper-parameters, or None"),
    "weights": (_path, "a path"),
    "templates": (_text, "text: a prompt set's name, a file, or 'a photo of a {}'"),
    "tpr": (_share, "a share above 0 and up to 1, such as 0.95, or None"),
    "threshold": (lambda value: value is None or finite(value), "a finite number, or None"),
    "device": (_text, "text, such as 'auto' or 'cuda:1'"),
    "precision": (_text, "text: fp32, bf16 or fp16"),
    "batch_size": (_whole(1), "a whole number from 1 upwards"),
    "workers": (_whole(0), "a whole number from 0 upwards"),
    "seed": (_whole(0), "a whole number from 0 upwards"),
    "resize": (lambda value: value is None or isinstance(value, str), "text: bicubic or bilinear, or None"),
    "on_error": (_text, "text: stop or skip"),
    "store": (lambda value: value is None or _path(value), "a path, or None"),
    "shared": (_text, "a URL"),
    "keep": (lambda value: isinstance(value, bool), "True or False"),
    "plugins": (_paths, "paths of files"),
}
