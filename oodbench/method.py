"""All that the author of a method reads: Method, Needs, Batch, Task, Encoder.

Legend of shapes: b images, d embedding width, w activation width, k class names.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Flag, auto
from typing import ClassVar, Generic, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

__all__ = ["Batch", "Encoder", "Method", "Needs", "Sources", "Task", "Undeclared", "logsumexp"]

State = TypeVar("State")


class Needs(Flag):
    """What a method reads: it decides what is extracted, what is loaded and where the method runs."""

    FEATURES = auto()  # cached embeddings: the images are not touched again
    ACTIVATIONS = auto()  # cached input of the image tower's last linear map
    PIXELS = auto()  # the images themselves, decoded again
    ENCODER = auto()  # score() runs the model
    CALIBRATION = auto()  # fit() reads ID training images


@runtime_checkable
class Encoder(Protocol):
    """A frozen CLIP, differentiable in its input. Embeddings are as the towers give them, not normalised."""

    scale: float  # exp(logit_scale), 100 for most CLIPs
    std: Tensor  # [3 1 1]: what normalised pixels were divided by, for steps in normalised units

    def pixels(self, images: Float[Tensor, "b 3 height width"]) -> Float[Tensor, "b d"]:
        """Embed images in [0, 1]; normalises them by the model's own mean and std."""
        ...

    def project(self, activations: Float[Tensor, "b w"]) -> Float[Tensor, "b d"]:
        """The image tower's last linear map, as stored activations need it."""
        ...

    def text(self, prompts: Sequence[str]) -> Float[Tensor, "k d"]:
        """Embed prompts with the text tower."""
        ...


class Undeclared(RuntimeError):
    """A method read something that its `needs` does not name."""


@dataclass(frozen=True)
class Batch:
    """Some images as a method sees them. Reading a field that the method's `needs` does not name raises Undeclared."""

    needs: Needs
    size: int
    _features: Tensor | None = None
    _embeddings: Tensor | None = None
    _activations: Tensor | None = None
    _pixels: Tensor | None = None

    def _read(self, value: Tensor | None, field: str, need: Needs) -> Tensor:
        if value is None or need not in self.needs:
            if need in self.needs:  # calibration batches come from the store
                raise Undeclared(f"batch.{field} was read, but calibration images come without {field}")
            raise Undeclared(f"batch.{field} was read but not declared: add Needs.{need.name} to the method's `needs`")
        return value

    @property
    def features(self) -> Float[Tensor, "b d"]:
        """Embeddings of unit length."""
        return self._read(self._features, "features", Needs.FEATURES)

    @property
    def embeddings(self) -> Float[Tensor, "b d"]:
        """Embeddings as the encoder gave them."""
        return self._read(self._embeddings, "embeddings", Needs.FEATURES)

    @property
    def activations(self) -> Float[Tensor, "b w"]:
        """Input of the last linear map before the embedding; the embedding itself for a tower without one."""
        return self._read(self._activations, "activations", Needs.ACTIVATIONS)

    @property
    def pixels(self) -> Float[Tensor, "b 3 height width"]:
        """Resized and cropped images in [0, 1], before the model's normalisation."""
        return self._read(self._pixels, "pixels", Needs.PIXELS)

    def versions(self) -> list[int]:
        """Counts of in-place changes: what one method reads, the next one reads, too."""
        tensors = (self._features, self._embeddings, self._activations, self._pixels)
        return [tensor._version for tensor in tensors if tensor is not None]

    def seen_by(self, needs: Needs) -> Batch:
        """The same images for a method with other needs."""
        return Batch(needs, self.size, self._features, self._embeddings, self._activations, self._pixels)


@dataclass(frozen=True)
class Sources:
    """Where a task's answers come from; the harness fills them in."""

    text: Callable[[str], Tensor]  # templates -> class vectors
    words: Callable[[tuple[str, ...]], Tensor]  # prompts -> vectors
    encoder: Callable[[], Encoder]
    calibration: Callable[[], Iterable[Batch]]


class Task:
    """All that is known before a test image: class names, text, encoder, calibration images. Holds no OOD sample.

    classes      the ID class names, in label order (duplicates are kept)
    scale        the encoder's own logit scale
    seed         the run's seed, for methods that draw
    """

    def __init__(self, classes: Sequence[str], scale: float, sources: Sources, seed: int = 0) -> None:
        self.classes = tuple(classes)
        self.scale = scale
        self.seed = seed
        self._sources = sources
        self._needs = ~Needs(0)
        self._banks: dict[str, tuple[Tensor, int]] = {}  # templates -> class vectors, count of in-place changes
        self._last: dict[str, tuple[Tensor, Tensor, int]] = {}  # the same of cosines, and the features they are of

    def seen_by(self, needs: Needs) -> Task:
        """The same task for a method with other needs; what is remembered is shared."""
        view = copy.copy(self)
        view._needs = needs
        return view

    def intact(self) -> bool:
        """Whether nothing that is remembered was changed in place; if something was, all of it is forgotten."""
        sound = all(bank._version == before for bank, before in self._banks.values())
        sound = sound and all(cosines._version == before for _, cosines, before in self._last.values())
        if not sound:
            self._banks.clear()
            self._last.clear()
        return sound

    @property
    def encoder(self) -> Encoder:
        """The model itself, loaded when first asked for. Declare Needs.ENCODER to run it in score()."""
        return self._sources.encoder()

    def calibration(self) -> Iterable[Batch]:
        """ID training images of the split that the protocol names, for fit()."""
        if Needs.CALIBRATION not in self._needs:
            raise Undeclared(
                "calibration images were read but not declared: add Needs.CALIBRATION to the method's `needs`"
            )
        return (batch.seen_by(self._needs) for batch in self._sources.calibration())

    def words(self, prompts: Sequence[str]) -> Float[Tensor, "n d"]:
        """One unit vector per prompt, of any number of prompts; encoded once per encoder and kept in the store."""
        return self._sources.words(tuple(prompts))

    def text(self, templates: str) -> Float[Tensor, "k d"]:
        """One unit vector per class: prompts normalised, averaged over the templates, normalised again.

        `templates` is a prompt set's name, a file with one template a line, or a single template with `{}` in it.
        """
        if templates not in self._banks:
            bank = self._sources.text(templates)
            self._banks[templates] = (bank, bank._version)
        return self._banks[templates][0]

    def logits(self, features: Float[Tensor, "b d"], templates: str, scale: float | None) -> Float[Tensor, "b k"]:
        """`scale` times the cosine of every image with every class; scale None is the encoder's own (mostly 100).

        The cosines of the last batch are remembered, so that methods with the same prompts share one product. Do not
        change the result in place.
        """
        last = self._last.get(templates)
        if last is None or last[0] is not features:
            cosines = features @ self.text(templates).T
            last = self._last[templates] = (features, cosines, cosines._version)
        cosines = last[1]
        factor = self.scale if scale is None else scale
        return cosines if factor == 1 else cosines * factor


@dataclass(frozen=True)
class Method(ABC, Generic[State]):
    """One OOD detection method. A subclass is a frozen dataclass; its fields are the hyper-parameters.

    Every field has a literal default, the paper's released value; `templates: str` names the prompts.
    What is learnt is returned by fit() and handed to score(): nothing is kept on self.
    """

    needs: ClassVar[Needs] = Needs.FEATURES
    calibrated: ClassVar[str] = ""  # the hyper-parameter that calibration images give when it is None, if there is one

    def fit(self, task: Task) -> State:
        """What the method learns before it sees a test image; None for most zero-shot methods."""
        return None  # type: ignore[return-value]

    @abstractmethod
    def score(self, batch: Batch, task: Task, state: State) -> Float[Tensor, " b"]:
        """One score per image, higher = more in-distribution; each image on its own, whatever else is in the batch."""

    def predict(self, batch: Batch, task: Task, state: State) -> Int64[Tensor, " b"] | None:
        """Class index of each image, for ID accuracy; may read batch.features whatever `needs` says.

        By default the best class under the method's own prompts, None if it has none.
        """
        templates = getattr(self, "templates", None)
        if templates is None:
            return None
        return task.logits(batch.features, templates, None).argmax(-1)


def logsumexp(logits: Float[Tensor, "b k"]) -> Float64[Tensor, " b"]:
    """log of the sum of exponentials over classes, summed in float64.

    In float32 a confident softmax is exactly 1 and its images tie; here 1 - p is resolved down to about 1e-14, and the
    raw cosines of a thousand classes (whose logsumexp spreads over 0.02 around 7) keep their order.
    """
    top = logits.amax(-1, keepdim=True)
    return top.squeeze(-1).double() + (logits - top).exp().sum(-1, dtype=torch.float64).log()


def check_predictions(predictions: Tensor, images: int, classes: int) -> None:
    """Raise ValueError unless there is one class index per image."""
    if predictions.shape != (images,) or predictions.is_floating_point():
        raise ValueError(f"predict() must return one class index per image, [{images}], not {list(predictions.shape)}")
    if len(predictions) and not 0 <= int(predictions.min()) <= int(predictions.max()) < classes:
        raise ValueError(f"predict() must return class indices below {classes}, not {int(predictions.max())}")
