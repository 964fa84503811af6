"""Method and TrainedMethod: the classes that an author of a method subclasses, and the checks of what they return."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor, nn

from oodbench.errors import UserError
from oodbench.method.access import Access
from oodbench.method.batch import Batch, Needs
from oodbench.method.encoder import Encoder
from oodbench.method.task import Task, scaled_logsumexp
from oodbench.method.training import Optimiser, Pairs
from oodbench.method.views import View

State = TypeVar("State")
INTEGERS = 1 << 53  # up to here every integer is a float64


@dataclass(frozen=True)
class Method(ABC, Generic[State]):
    """One OOD detection method. A subclass is a frozen dataclass; its fields are the hyper-parameters.

    Every field has a literal default, the paper's released value; `templates: str` names the prompts. fit() returns
    the learned state, which score() gets as `state`. Keep nothing on self: several threads call score() at once.

    Arguments:
        needs       the inputs that the method reads
        access      access that does not follow from `needs`, such as Access(lm_words=True)
        family      a second group of `--methods`, such as "post-hoc" for a score of logits alone, as in GEN
        calibrated  name of the hyper-parameter that calibration images determine when it is None; "" if there is none
        formula     LaTeX of the score, and after an empty line its symbols, one a line: SYMBOL, two spaces, its meaning
    """

    needs: ClassVar[Needs] = Needs.FEATURES
    access: ClassVar[Access] = Access()
    family: ClassVar[str] = ""
    calibrated: ClassVar[str] = ""
    formula: ClassVar[str] = ""

    @property
    def views(self) -> tuple[View, ...]:
        """The views of an image in batch.views, in this order; a method that declares Needs.VIEWS has at least one."""
        return ()

    def fit(self, task: Task) -> State:
        """Compute the state that score() needs, before the first test image.

        Arguments:
            task  class names, text, encoder and calibration images
        Returns:
            The state, which is passed to score(); None for most zero-shot methods.
        """
        return None  # type: ignore[return-value]

    @abstractmethod
    def score(self, batch: Batch, task: Task, state: State) -> Float[Tensor, " b"]:
        """Score images, each independently of the other images of the batch.

        Arguments:
            batch  b images
            task   as in fit()
            state  what fit() returned
        Returns:
            [b] real scores, higher = more in-distribution.
        """

    def text_encodings(self, classes: int) -> int | None:
        """Return how many texts fit() encodes if none is stored, without the class prompts under `templates`.

        The plan of a run shows the number. It must follow from the hyper-parameters, without an encoder.

        Arguments:
            classes  number of class names
        Returns:
            Number of prompts; None if it is not known, or if there are only class prompts.
        """
        return None

    def predict(self, batch: Batch, task: Task, state: State) -> Int64[Tensor, " b"] | None:
        """Predict classes, for ID accuracy: by default the nearest class under the method's own prompts.

        Arguments:
            batch  b images; batch.features may be read whatever `needs` says
            task   as in fit()
            state  what fit() returned
        Returns:
            [b] class indices; None for a method without prompts.
        """
        templates = getattr(self, "templates", None)
        if templates is None:
            return None
        return task.best(batch.features, templates)

    def decide(self, batch: Batch, task: Task, state: State) -> Bool[Tensor, " b"] | None:
        """Decide by the paper's own rule.

        Returns:
            [b] True for in-distribution; None for a method that only ranks.
        """
        return None

    def explain(self, batch: Batch, task: Task, state: State) -> dict[str, list[tuple[str, float]]]:
        """Explain the score of one image, the only one of the batch.

        Returns:
            Lists of (name, value), by heading.
        """
        return {}


@dataclass(frozen=True)
class TrainedMethod(Method[State]):
    """A method with a module that is trained once per encoder, on images and captions.

    It declares Needs.WEIGHTS, and fit() finds the trained weights in task.weights. The loop of `oodbench train` calls
    inputs() once per chunk of a step, embed() with and without gradient, and loss() once for the global batch, whatever
    the chunks and processes: the loss may compare every pair with every other, and its gradient is exact.

    Arguments:
        optimiser  settings of the released training
        trained    names of the hyper-parameters that training fixes
    """

    optimiser: ClassVar[Optimiser] = Optimiser()
    trained: ClassVar[tuple[str, ...]] = ()

    def optimisation(self) -> Optimiser:
        """Return the optimiser's settings for these hyper-parameters: `optimiser`, unless a variant needs others."""
        return self.optimiser

    @abstractmethod
    def module(self, encoder: Encoder) -> nn.Module:
        """Return the module to train, before the first step.

        Arguments:
            encoder  the frozen CLIP
        Returns:
            A module whose state_dict() is saved. Draw random numbers from torch's global generator.
        """

    @abstractmethod
    def inputs(self, pairs: Pairs, encoder: Encoder) -> dict[str, Tensor]:
        """Compute the inputs of embed(), without gradient.

        Arguments:
            pairs    b pairs
            encoder  the frozen CLIP
        Returns:
            [b ...] tensors by name, on the encoder's device.
        """

    @abstractmethod
    def embed(self, module: nn.Module, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the inputs of loss() for each pair.

        It is called under torch.no_grad() first and then with gradient, and must return the same values both times,
        random numbers included.

        Arguments:
            module  the module of module(), as trained so far
            inputs  what inputs() returned
        Returns:
            [b ...] tensors by name, small enough to be kept for the global batch.
        """

    @abstractmethod
    def loss(self, embedded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the terms of the loss over the global batch.

        Arguments:
            embedded  what embed() returned, [size ...] for all pairs of the global batch
        Returns:
            Weighted scalars by name; the loss is their sum.
        """

    def translate(self, state: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rename the tensors of a released checkpoint as module().state_dict() names them.

        Arguments:
            state   the checkpoint, without `module.` prefixes
            frozen  the encoder's own state_dict
        Returns:
            Tensors by name.
        Raises:
            ValueError  if the checkpoint does not fit, or the method has no released layout (the default)
        """
        raise ValueError("the method reads weights written by `oodbench train`, not this checkpoint")

    def release(self, tensors: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Invert translate().

        Arguments:
            tensors  module().state_dict()
            frozen   the encoder's own state_dict
        Returns:
            A state dict as the released code saves it.
        Raises:
            ValueError  if the method has no released layout (the default)
        """
        raise ValueError("the method has no released layout")


@dataclass(frozen=True)
class FewShotMethod(TrainedMethod[State]):
    """A method with a module that is trained on a few labelled ID images, for one encoder and one list of classes.

    `oodbench train METHOD --id SET --shots 16 --seed 1` trains it with the loop of TrainedMethod: inputs() reads
    pairs.labels instead of captions, pairs.patches if `needs` names PATCHES, and pairs.patch_activations if it names
    PATCH_ACTIVATIONS. fit() finds the weights in task.weights; a run refuses weights that were trained for other
    classes.
    """

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.WEIGHTS | Needs.SHOTS

    @abstractmethod
    def module(self, encoder: Encoder, classes: Sequence[str]) -> nn.Module:  # type: ignore[override]
        """Return the module to train, before the first step.

        Arguments:
            encoder  the frozen CLIP
            classes  the k class names, in label order
        Returns:
            A module whose state_dict() is saved: the trained tensors, without the frozen CLIP. Draw random numbers
            from torch's global generator.
        """


def make_module(method: TrainedMethod[Any], encoder: Encoder, classes: Sequence[str]) -> nn.Module:
    """Return the module that a method trains; a FewShotMethod is given the class names."""
    return method.module(encoder, classes) if isinstance(method, FewShotMethod) else method.module(encoder)


def logsumexp(logits: Float[Tensor, "b k"]) -> Float64[Tensor, " b"]:
    """Return the log of the sum of exponentials over classes, summed in float64.

    In float32 a confident softmax is exactly 1 and its images tie; here 1 - p is resolved down to about 1e-14, and the
    raw cosines of a thousand classes (whose logsumexp spreads over 0.02 around 7) keep their order.

    Arguments:
        logits  [b k]
    Returns:
        [b] in float64.
    """
    return scaled_logsumexp(logits, 1.0, logits.amax(-1))


def check_scores(scores: object, images: int, function: str = "score()") -> npt.NDArray[np.float64]:
    """Return scores in float64; raise UserError unless they are one real number per image that float64 represents.

    `function` names their source in the message. The conversion from half precision loses nothing; images that tie in
    half precision still tie.
    """
    if not isinstance(scores, Tensor) or scores.shape != (images,):
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise UserError(f"{function} must return one score per image, a tensor [{images}], not {found}")
    if scores.dtype == torch.bool or scores.is_complex():
        raise UserError(f"{function} must return real numbers, not {scores.dtype}")
    if not scores.is_floating_point() and images and max(int(scores.max()), -int(scores.min())) > INTEGERS:
        raise UserError(f"{function} returns integers beyond 2^53, which float64 cannot distinguish; return float64")
    wide: npt.NDArray[np.float64] = scores.detach().double().cpu().numpy()
    return wide


def check_predictions(predictions: object, images: int, classes: int, function: str = "predict()") -> None:
    """Raise ValueError unless there is one class index per image; `function` names their source in the message."""
    if not isinstance(predictions, Tensor) or predictions.shape != (images,) or predictions.is_floating_point():
        found = list(predictions.shape) if isinstance(predictions, Tensor) else type(predictions).__name__
        raise ValueError(f"{function} must return one class index per image, [{images}], not {found}")
    if len(predictions) and not 0 <= int(predictions.min()) <= int(predictions.max()) < classes:
        raise ValueError(f"{function} must return class indices below {classes}, not {int(predictions.max())}")
