"""StreamMethod: the class of a method that learns from the test images while it scores them."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NoReturn

from jaxtyping import Float, Int64
from torch import Tensor

from oodbench.method.batch import Batch, Needs
from oodbench.method.method import Method, State
from oodbench.method.task import Task


@dataclass(frozen=True)
class StreamMethod(Method[State]):
    """A method that learns from the test images: test-time adaptation. Its results have a table of their own.

    For every pair of the ID set and an OOD set, and for every stream seed, the images of both sets come mixed in the
    order of the stream protocol (docs/streams.md), unlabelled and in batches. begin() is called for each stream, and
    everything that is learned belongs to the state that step() returns. A hyper-parameter `base: str = "mcm"` names
    another method, and batch.base has its score of each image; users write `oodd[base=neglabel[groups=10]]`.

    Arguments:
        needs        FEATURES, ACTIVATIONS, CALIBRATION, LABELS, WEIGHTS and ENCODER are possible together with STREAM
        sees_itself  whether step() may learn from an image before it scores that image
    """

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.STREAM
    sees_itself: ClassVar[bool] = False

    @abstractmethod
    def begin(self, task: Task) -> State:
        """Return the state before the first image of a stream.

        Arguments:
            task  class names, text, encoder and calibration images; task.cached() stores what many streams share
        Returns:
            The state that the first step() is given. It is the same whenever begin() is called.
        """

    @abstractmethod
    def step(
        self, batch: Batch, task: Task, state: State
    ) -> tuple[Float[Tensor, " b"], State] | tuple[Float[Tensor, " b"], State, Int64[Tensor, " b"]]:
        """Score the next images of a stream and learn from them.

        Arguments:
            batch  the next b images, ID and OOD mixed
            task   as in begin()
            state  what begin() or the step before returned; it may be changed in place
        Returns:
            [b] real scores, higher = more in-distribution; the state for the next step; and optionally [b] class
            indices. Without these the predictions are those of predict(), or of the base if predict() returns None.
        """

    def score(self, batch: Batch, task: Task, state: State) -> NoReturn:
        """Raise TypeError: images of a stream are scored by begin() and step(), in their order."""
        raise TypeError(f"{type(self).__name__} learns from a stream of images: call begin() and step(), not score()")
