"""Detector: one method as an estimator with scikit-learn's interface for outlier detection."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from oodbench.data.imageset import ImageSet
from oodbench.detector import saving, threshold
from oodbench.detector.engine import (
    Engine,
    Scored,
    check_params,
    concatenate,
    job_of,
    request_of,
    text_list,
    with_labels,
)
from oodbench.detector.images import in_memory, listed, notes
from oodbench.detector.store import DetectorStore
from oodbench.errors import InvalidParameter, NotFitted, UserError, did_you_mean
from oodbench.pipeline.request import RunRequest
from oodbench.storage.files import expand
from oodbench.storage.shared import open_store
from oodbench.storage.store import Store, default_root

if TYPE_CHECKING:
    from oodbench.method import Method

log = logging.getLogger(__name__)

Images = Any  # a folder, paths, PIL images, uint8 arrays: see oodbench.detector.images


class OutlierEstimator:
    """scikit-learn's estimator interface: parameters are the constructor's arguments; fit() sets `_engine`."""

    _estimator_type = "outlier_detector"

    _engine: Engine
    threshold_: float | None

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments, by name; `deep` is ignored, as no argument is an estimator."""
        return {name: getattr(self, name) for name in self._defaults()}

    def set_params(self, **parameters: Any) -> Self:
        """Change arguments of the constructor, with effect from the next fit().

        Arguments:
            parameters  new values, by name
        Returns:
            The detector itself.
        Raises:
            UserError  for a name that is not an argument of the constructor
        """
        known = self._defaults()
        for name, value in parameters.items():
            if name not in known:
                raise UserError(f"no parameter '{name}'{did_you_mean(name, known)}")
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = self._defaults()
        changed = {name: value for name, value in self.get_params().items() if value is not defaults[name]}
        shown = ", ".join(f"{name}={_short(value)}" for name, value in changed.items() if value != defaults[name])
        return f"{type(self).__name__}({shown})"

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_engine")

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags("outlier_detector", TargetTags(required=False), input_tags=InputTags(two_d_array=False))

    @classmethod
    def _defaults(cls) -> dict[str, Any]:
        """Return the constructor's arguments with their defaults."""
        return {name: parameter.default for name, parameter in inspect.signature(cls).parameters.items()}

    def _fitted(self) -> Engine:
        """Return the engine; raise NotFitted before fit()."""
        if not hasattr(self, "_engine"):
            raise NotFitted("this detector is not fitted; call fit(images) first, or Detector.load(folder)")
        return self._engine

    def _threshold(self) -> float:
        """Return the threshold; raise NotFitted if there is none."""
        self._fitted()
        if self.threshold_ is None:
            raise NotFitted("this detector has no threshold; call fit(images) with ID images, or give threshold=")
        return float(self.threshold_)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class Detector(OutlierEstimator):
    """Classify images as in-distribution (+1) or out-of-distribution (-1).

    After fit() it has the attributes threshold_ (None without ID images) and classes_ [k]. Scores equal those of
    `oodbench run` on the same list of images, for a method that calibrates if it is fitted on the same images.

    Arguments:
        method      as in `--methods`: a name, with hyper-parameters in brackets or in `settings`; or a class of Method,
                    or an instance with its hyper-parameters, which may be defined in a notebook
        classes     class names, or the name of a list or file of class names
        encoder     as in `--encoder`
        settings    hyper-parameters of the method, by name
        weights     file of trained weights, for methods that need one; the embedded encoder has its own
        templates   as in `--templates`; "" is the method's own prompts
        tpr         fraction of new ID images that the threshold should accept, above 0 and up to 1; None: no threshold
        threshold   the threshold itself, instead of `tpr`
        device      as in `--device`: "auto", "cpu", "cuda:1", ...
        precision   of the encoder: "fp32", "bf16" or "fp16"
        batch_size  images encoded at once
        workers     threads that decode images; 0 is one per core, at most 16
        seed        seed of all random numbers
        resize      interpolation: "bicubic" or "bilinear"; None is the encoder's own
        on_error    "stop" raises an error for an image that cannot be read; "skip" gives it score NaN and decision -1
        store       folder of the store; None is the default one
        shared      URL of a shared store behind it, as in `--shared`
        keep        whether embeddings of files are stored, so that they are encoded once
        plugins     files of methods, as in `--plugin`, or classes
    """

    def __init__(  # noqa: PLR0913
        self,
        method: str | Method[Any] | type[Method[Any]] = "mcm",
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
        plugins: Sequence[str | Path | type[Method[Any]]] = (),
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
        """Fit the method, and set the threshold that accepts the fraction `tpr` of new ID images.

        A method that calibrates is fitted on `images` except a held-out part, which sets the threshold: a quarter,
        drawn with the seed, or as many as `tpr` needs (19 for 0.95), but at most half. With `validation` it is fitted
        on all of `images`, as in `oodbench run`. Other methods learn nothing from images: `validation`, or else
        `images`, only set the threshold. A warning is logged if there are too few images for `tpr`.

        Arguments:
            images      n ID images; None sets no threshold
            y           [n] class of each image, by which the held-out part is stratified; methods that read labels
                        require it, as class names or their numbers
            validation  other ID images, which set the threshold
        Returns:
            The detector itself.
        Raises:
            UserError  for bad arguments, or images that cannot be read
        """
        if self.weights == saving.SAVED:
            raise UserError(
                "a saved detector of a trained method is fitted again with weights: set_params(weights=FILE)"
            )
        request = self._request()
        params = check_params(self.get_params())
        limit, tpr = params["threshold"], params["tpr"]
        if validation is not None and (limit is not None or tpr is None):
            raise InvalidParameter("validation images set the threshold; leave them out, or give tpr and no threshold")
        store = self._store()
        classes = text_list(self.classes)
        job, encoder = job_of(request, classes, store)
        fitted, held_out = (None if given is None else listed(given, store) for given in (images, validation))
        labels = None if fitted is None else threshold.label_sequence(y, fitted)
        if fitted is not None and labels is not None and job.reads_labels:
            fitted = with_labels(fitted, labels, classes)
        sets = [images for images in (fitted, held_out) if images is not None]
        for note in (*encoder.card.notes, *notes(classes, *sets)):
            log.warning("%s", note)
        engine = Engine(request, job, encoder, classes, store)
        with store.keeping(self._keeps(*sets)), store.remembering():
            if limit is None and tpr is not None:
                if not engine.calibrates or fitted is None:
                    held_out = held_out or fitted
                elif held_out is None:
                    split = threshold.split(fitted, tpr, request.seed, labels)
                    fitted, held_out = split.fitted, split.held_out
                else:
                    threshold.check_disjoint(fitted, held_out, job.label)
            engine.fit(fitted)
            if held_out is not None:
                limit = engine.threshold(held_out, tpr)
        self._begin(engine, limit)
        return self

    def score_samples(self, images: Images) -> npt.NDArray[np.float64]:
        """Score images.

        Arguments:
            images  n images
        Returns:
            [n] scores, higher = more in-distribution; NaN for an image that was skipped.
        """
        return self.score_images(images).scores

    def score_images(self, images: Images) -> Scored:
        """Score images, and return their names, scores and predicted classes at once.

        Arguments:
            images  n images
        Returns:
            `names` (n), `scores` [n], `predictions` [n] (class indices, -1 for none) and `skipped`.
        """
        return concatenate(list(self.stream(images)))

    def list_images(self, images: Images) -> ImageSet:
        """List images once; the list is accepted wherever images are.

        Arguments:
            images  a folder, a file, a dataset's name or reference, a PIL image, a uint8 array [height width 3], or
                    several of these
        Returns:
            The images in their order; files of a folder are sorted by path.
        """
        return listed(images, self._fitted().store)

    def stream(self, images: Images, done: Callable[[int], None] = lambda n: None) -> Iterator[Scored]:
        """Score any number of images in parts of a few thousand, so that memory is bounded.

        Arguments:
            images  n images
            done    called with the number of images of each part that is done
        Returns:
            An iterator over the results of the parts, as in score_images().
        """
        engine = self._fitted()
        images = self.list_images(images)
        with engine.store.keeping(self._keeps(images)):
            yield from engine.scored(images, done)

    def decision_function(self, images: Images) -> npt.NDArray[np.float64]:
        """Return score_samples(images) minus the threshold, [n]: in-distribution from 0 upwards.

        Raises:
            NotFitted  if there is no threshold
        """
        limit = self._threshold()
        return self.score_samples(images) - limit

    def predict(self, images: Images) -> npt.NDArray[np.int64]:
        """Decide which images are in-distribution.

        Arguments:
            images  n images
        Returns:
            [n] of +1 (in-distribution) and -1 (out-of-distribution, or skipped).
        Raises:
            NotFitted  if there is no threshold
        """
        limit = self._threshold()
        return np.where(self.score_samples(images) >= limit, 1, -1)

    def fit_predict(self, images: Images, y: object = None) -> npt.NDArray[np.int64]:
        """Return fit(images, y).predict(images), [n]; images that the method is fitted on score too high."""
        images = list(images) if isinstance(images, Iterator) else images  # read twice
        return self.fit(images, y).predict(images)

    def classify(self, images: Images) -> npt.NDArray[np.object_]:
        """Predict classes, whether the images are in-distribution or not.

        Arguments:
            images  n images
        Returns:
            [n] class names; None for an image that was skipped, or without a prediction of the method.
        """
        return self.class_names_of(self.score_images(images))

    def class_names_of(self, scored: Scored) -> npt.NDArray[np.object_]:
        """Return the predicted class names, [n], of a result of score_images()."""
        self._fitted()
        names: npt.NDArray[np.object_] = np.array([*self.classes_, None], dtype=object)[scored.predictions]
        return names  # index -1 is the last, None

    @property
    def offset_(self) -> float:
        """scikit-learn's name of the threshold: decision_function() is score_samples() minus offset_."""
        return self._threshold()

    def save(self, folder: str | Path, *, with_encoder: bool = False) -> Path:
        """Write the fitted detector to a folder, replacing a detector that was saved there.

        Arguments:
            folder        where to write
            with_encoder  whether the encoder's weights are also copied
        Returns:
            The folder.
        Raises:
            UserError  if the folder holds something else, or cannot be written
        """
        engine = self._fitted()
        fitted = saving.FittedDetector(engine, check_params(self.get_params()), self.threshold_)
        return saving.save(fitted, expand(Path(folder)), with_encoder=with_encoder)

    @classmethod
    def load(cls, folder: str | Path, **changes: Any) -> Detector:
        """Load a saved detector; on the same machine its scores are the same to the last digit.

        Arguments:
            folder   folder that save() wrote
            changes  parameters of this machine, not of the method: device, workers, store, shared, keep, on_error,
                     plugins, and `encoder` if the file of its weights is elsewhere
        Returns:
            The fitted detector.
        Raises:
            UserError  if a file is missing or was changed
        """
        saved = saving.read(expand(Path(folder)))
        detector = cls(**saving.parameters(saved, changes, cls._defaults()))
        request = detector._request()
        engine = saving.load_engine(saved, request, detector._store(saving.saved_store(saved)))
        detector._begin(engine, saved.recipe["threshold"])
        return detector

    def _begin(self, engine: Engine, limit: float | None) -> None:
        """Set the attributes of a fitted detector."""
        self._engine = engine
        self.threshold_ = limit
        self.classes_ = np.array(engine.plan.classes.lines, dtype=object)

    def _store(self, saved: Store | None = None) -> DetectorStore:
        return DetectorStore(open_store(self._root(), self.shared), saved, self.keep)

    def _root(self) -> Path:
        return expand(self.store or default_root())

    def _keeps(self, *sets: ImageSet) -> bool:
        """Return whether embeddings of these images are stored: never those of images in memory."""
        return self.keep and not any(map(in_memory, sets))

    def _request(self) -> RunRequest:
        """Return the request of a run; raise InvalidParameter for arguments of a wrong type or range."""
        params = check_params(self.get_params())
        weights = "" if self.weights == saving.SAVED else self.weights
        return request_of({**params, "weights": weights, "store": self._root()})
