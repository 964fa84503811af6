"""Method: what the author of one writes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from oodbench.errors import UserError
from oodbench.method.batch import Batch, Needs
from oodbench.method.task import Task, scaled_logsumexp

State = TypeVar("State")
INTEGERS = 1 << 53  # up to here every integer is a float64


@dataclass(frozen=True)
class Method(ABC, Generic[State]):
    """One OOD detection method. A subclass is a frozen dataclass; its fields are the hyper-parameters.

    Every field has a literal default, the paper's released value; `templates: str` names the prompts.
    What is learnt is returned by fit() and handed to score(). Nothing is kept on self: several threads score at once.
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
        return task.best(batch.features, templates)

    def decide(self, batch: Batch, task: Task, state: State) -> Bool[Tensor, " b"] | None:
        """Whether each image is in-distribution by the paper's own rule; None for a method that only ranks."""
        return None

    def explain(self, batch: Batch, task: Task, state: State) -> dict[str, list[tuple[str, float]]]:
        """Why one image, alone in its batch, scores as it does: lists of (name, value) under headings, for people."""
        return {}


def logsumexp(logits: Float[Tensor, "b k"]) -> Float64[Tensor, " b"]:
    """log of the sum of exponentials over classes, summed in float64.

    In float32 a confident softmax is exactly 1 and its images tie; here 1 - p is resolved down to about 1e-14, and the
    raw cosines of a thousand classes (whose logsumexp spreads over 0.02 around 7) keep their order.
    """
    return scaled_logsumexp(logits, 1.0, logits.amax(-1))


def check_scores(scores: object, images: int) -> npt.NDArray[np.float64]:
    """Scores in float64. UserError unless there is one real number per image, which float64 keeps as it is.

    Half precision loses nothing here; images that it made tie before do so still.
    """
    if not isinstance(scores, Tensor) or scores.shape != (images,):
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"score() must return one score per image, a tensor [{images}], not {found}")
    if scores.dtype == torch.bool or scores.is_complex():
        raise UserError(f"score() must return real numbers, not {scores.dtype}")
    if not scores.is_floating_point() and images and max(int(scores.max()), -int(scores.min())) > INTEGERS:
        raise UserError("score() returns integers beyond 2^53, which float64 does not tell apart; return float64")
    wide: npt.NDArray[np.float64] = scores.detach().double().cpu().numpy()
    return wide


def check_predictions(predictions: Tensor, images: int, classes: int) -> None:
    """Raise ValueError unless there is one class index per image."""
    if predictions.shape != (images,) or predictions.is_floating_point():
        raise ValueError(f"predict() must return one class index per image, [{images}], not {list(predictions.shape)}")
    if len(predictions) and not 0 <= int(predictions.min()) <= int(predictions.max()) < classes:
        raise ValueError(f"predict() must return class indices below {classes}, not {int(predictions.max())}")
