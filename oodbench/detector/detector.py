"""Detector: one method as an estimator with scikit-learn's conventions for outliers."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from oodbench.data.imageset import ImageSet
from oodbench.detector import saving as saved
from oodbench.detector import threshold
from oodbench.detector.engine import Engine, Scored, checked, job_of, joined, lines, request_of
from oodbench.detector.images import in_memory, listed, notes
from oodbench.detector.store import DetectorStore
from oodbench.errors import InvalidParameter, NotFitted, UserError, did_you_mean
from oodbench.pipeline.request import RunRequest
from oodbench.storage.files import expand
from oodbench.storage.shared import open_store
from oodbench.storage.store import Store, default_root


class OutlierEstimator:
    """An estimator whose constructor's arguments are its parameters; fit() sets `_engine` and `threshold_`."""

    _estimator_type = "outlier_detector"

    _engine: Engine
    threshold_: float | None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self, **parameters: Any) -> Self:
        """Change arguments of the constructor; they count from the next fit(). UserError for unknown ones."""
        known = self._defaults()
        for name, value in parameters.items():
            if name not in known:
                raise UserError(f"no parameter '{name}'{did_you_mean(name, known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        usual = self._defaults()
        changed = {name: value for name, value in self.get_params().items() if value is not usual[name]}
        shown = ", ".join(f"{name}={_short(value)}" for name, value in changed.items() if value != usual[name])
        return f"{type(self).__name__}({shown})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_engine")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags("outlier_detector", TargetTags(required=False), input_tags=InputTags(two_d_array=False))

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """The constructor's arguments with their defaults."""
        return {name: one.default for name, one in inspect.signature(cls).parameters.items()}

    def _fitted(self) -> Engine:
        if not hasattr(self, "_engine"):
            raise NotFitted("this detector is not fitted; call fit(images) first, or Detector.load(folder)")
        return self._engine

    def _threshold(self) -> float:
        self._fitted()
        if self.threshold_ is None:
            raise NotFitted("this detector has no threshold; call fit(images) with ID images, or give threshold=")
        return float(self.threshold_)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


log = logging.getLogger(__name__)

Images = Any  # a folder, paths, PIL images, uint8 arrays: see oodbench.detector.images


class Detector(OutlierEstimator):
    """Tells images of known classes from others: +1 in-distribution, -1 out-of-distribution.

    method      as in `--methods`: a name, with hyper-parameters in brackets or in `settings`
    classes     class names, or the name of a list or file of them
    tpr         share of new ID images that the threshold is to keep; None sets no threshold
    threshold   the threshold itself, instead
    weights     file of trained weights, for methods that need one; the embedded encoder has its own
    shared      URL of a store behind that of this machine, as in `--shared`
    keep        whether embeddings of files are kept in the store, so that they are encoded once
    on_error    "skip" gives an image that cannot be read the score NaN and the decision -1

    After fit(): threshold_ (None without images), classes_. Scores are those of `oodbench run` on the same list, those
    of a method that calibrates if it learnt from the same images (see fit).
    """

    def __init__(  # noqa: PLR0913
        self,
        method: str = "mcm",
        *,
        classes: str | Path | Sequence[str] | None = None,
        encoder: str = "glyphs",
        settings: Mapping[str, Any] | None = None,
        weights: str | Path = "",
        templates: str = "",
        tpr: float | None = 0.95,
        threshold: float | None = None,
        device: str = "auto",
        precision: str = "fp32",
        batch_size: int = 128,
        workers: int = 0,
        seed: int = 0,
        resize: str | None = None,
        on_error: str = "stop",
        store: str | Path | None = None,
        shared: str = "",
        keep: bool = True,
        plugins: Sequence[str | Path] = (),
    ) -> None:
        self.method = method
        self.classes = classes
        self.encoder = encoder
        self.settings = settings
        self.weights = weights
        self.templates = templates
        self.tpr = tpr
        self.threshold = threshold
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.resize = resize
        self.on_error = on_error
        self.store = store
        self.shared = shared
        self.keep = keep
        self.plugins = plugins

    def fit(self, images: Images = None, y: object = None, validation: Images = None) -> Detector:
        """Learn what the method learns, and set the threshold that keeps `tpr` of new ID images; without images, none.

        A method that calibrates learns from `images`, but for a part that is held out to set the threshold: a quarter,
        drawn with the seed, or as many as `tpr` takes at least (19 for 0.95), but at most half. `validation`, ID images
        that are not among `images`, sets the threshold instead; the method then learns from all of `images`, and scores
        as in `oodbench run`. For all other methods, `validation` or else `images` sets the threshold.

        `y` [n], the class of each image, gives every class its share of the held-out part; nothing is learnt from it.
        Too few images for `tpr` are a logged warning. UserError for bad input.
        """
        if self.weights == saved.SAVED:
            raise UserError(
                "a saved detector of a trained method is fitted anew with weights: set_params(weights=FILE)"
            )
        request = self._request()
        params = checked(self.get_params())
        limit, tpr = params["threshold"], params["tpr"]
        if validation is not None and (limit is not None or tpr is None):
            raise InvalidParameter("validation images set the threshold; leave them out, or give tpr and no threshold")
        store = self._store()
        classes = lines(self.classes)
        job, encoder = job_of(request, store)
        learnt, judged = (None if given is None else listed(given, store) for given in (images, validation))
        labels = None if learnt is None else threshold.label_sequence(y, learnt)
        for note in (*encoder.card.notes, *notes(classes, *(one for one in (learnt, judged) if one is not None))):
            log.warning("%s", note)
        engine = Engine(request, job, encoder, classes, store)
        with store.keeping(self._kept(learnt) and self._kept(judged)), store.remembering():
            if limit is None and tpr is not None:
                if not engine.calibrates or learnt is None:
                    judged = judged or learnt
                elif judged is None:
                    parts = threshold.parts(learnt, tpr, request.seed, labels)
                    learnt, judged = parts.learnt, parts.held_out
                else:
                    threshold.check_apart(learnt, judged, job.label)
            engine.fit(learnt)
            if judged is not None:
                limit = engine.threshold(judged, tpr)
        self._begin(engine, limit)
        return self

    def score_samples(self, images: Images) -> npt.NDArray[np.float64]:
        """[n] scores, higher = more in-distribution; NaN for an image that was skipped."""
        return self.score_images(images).scores

    def score_images(self, images: Images) -> Scored:
        """Names, scores and class indices at once."""
        return joined(list(self.stream(images)))

    def listed(self, images: Images) -> ImageSet:
        """The images as a list, which score_samples() and the others also take."""
        return listed(images, self._fitted().store)

    def stream(self, images: Images, done: Callable[[int], None] = lambda n: None) -> Iterator[Scored]:
        """The same part by part, a few thousand images each, for as many images as there are."""
        engine = self._fitted()
        found = self.listed(images)
        with engine.store.keeping(self._kept(found)):
            yield from engine.scored(found, done)

    def decision_function(self, images: Images) -> npt.NDArray[np.float64]:
        """[n] scores less the threshold: from 0 upwards in-distribution."""
        threshold = self._threshold()
        return self.score_samples(images) - threshold

    def predict(self, images: Images) -> npt.NDArray[np.int64]:
        """[n] of +1 (in-distribution) and -1 (out-of-distribution, or not readable)."""
        threshold = self._threshold()
        return np.where(self.score_samples(images) >= threshold, 1, -1)

    def fit_predict(self, images: Images, y: object = None) -> npt.NDArray[np.int64]:
        """fit(), then predict() of the same images, of which those that the method learnt from score too high."""
        images = list(images) if isinstance(images, Iterator) else images  # which is read twice
        return self.fit(images, y).predict(images)

    def classify(self, images: Images) -> npt.NDArray[np.object_]:
        """[n] class names that the method predicts, whether in-distribution or not; None where there is none."""
        return self.named(self.score_images(images))

    def named(self, scored: Scored) -> npt.NDArray[np.object_]:
        """[n] class names of scored images."""
        self._fitted()
        named: npt.NDArray[np.object_] = np.array([*self.classes_, None], dtype=object)[scored.predictions]
        return named  # -1 is the last, None

    @property
    def offset_(self) -> float:
        """scikit-learn's name of the threshold: decision_function is score_samples less it."""
        return self._threshold()

    def save(self, folder: str | Path, *, with_encoder: bool = False) -> Path:
        """Write one folder with the recipe and what was learnt; `with_encoder` copies the encoder's weights, too.

        An older detector there is replaced; any other folder that is not empty is a UserError.
        """
        engine = self._fitted()
        learnt = saved.Fitted(engine, checked(self.get_params()), self.threshold_)
        return saved.save(learnt, expand(Path(folder)), with_encoder=with_encoder)

    @classmethod
    def load(cls, folder: str | Path, **changes: Any) -> Detector:
        """A saved detector; its scores are the same to the last digit on the same machine.

        changes  parameters of this place rather than of the method: device, workers, store, shared, keep, on_error,
                 plugins, and `encoder` when the file of its weights lies elsewhere
        UserError naming a file that is missing or changed.
        """
        found = saved.read(expand(Path(folder)))
        one = cls(**saved.parameters(found, changes, cls._defaults()))
        request = one._request()
        one._begin(saved.engine(found, request, one._store(saved.store(found))), found.recipe["threshold"])
        return one

    def _begin(self, engine: Engine, threshold: float | None) -> None:
        self._engine = engine
        self.threshold_ = threshold
        self.classes_ = np.array(engine.plan.classes.lines, dtype=object)

    def _store(self, saved: Store | None = None) -> DetectorStore:
        return DetectorStore(open_store(self._root(), self.shared), saved, self.keep)

    def _root(self) -> Path:
        return expand(self.store or default_root())

    def _kept(self, images: ImageSet | None) -> bool:
        """Whether embeddings of images are kept: never of images in memory."""
        return self.keep and not (images is not None and in_memory(images))

    def _request(self) -> RunRequest:
        """The request of a run. InvalidParameter for arguments that are not what they should be."""
        params = checked(self.get_params())
        weights = "" if self.weights == saved.SAVED else self.weights
        return request_of({**params, "weights": weights, "store": self._root()})
