"""Needs and Batch: what a method reads of the images, and says that it reads."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Flag, auto

from jaxtyping import Float
from torch import Tensor

from oodbench.errors import Undeclared
from oodbench.method.checksum import Lent


class Needs(Flag):
    """What a method reads: it decides what is extracted, what is loaded and where the method runs."""

    FEATURES = auto()  # cached embeddings: the images are not touched again
    ACTIVATIONS = auto()  # cached input of the image tower's last linear map
    PIXELS = auto()  # the images themselves, decoded again
    ENCODER = auto()  # score() runs the model
    CALIBRATION = auto()  # fit() reads ID training images
    WEIGHTS = auto()  # fit() reads what `oodbench train` or a release gave
    CAPTIONS = auto()  # score() lets the encoder write captions, which only a CoCa can


@dataclass(frozen=True)
class Batch:
    """Some images as a method sees them. Reading a field that the method's `needs` does not name raises Undeclared."""

    needs: Needs
    size: int
    _features: Tensor | None = None
    _embeddings: Tensor | None = None
    _activations: Tensor | None = None
    _pixels: Tensor | None = None
    _lent: Lent = field(default_factory=Lent, repr=False, compare=False)  # what was read of it, by any method

    def _read(self, value: Tensor | None, name: str, need: Needs) -> Tensor:
        if value is None or need not in self.needs:
            if need in self.needs:  # calibration batches come from the store
                raise Undeclared(f"batch.{name} was read, but calibration images come without {name}")
            raise Undeclared(f"batch.{name} was read but not declared: add Needs.{need.name} to the method's `needs`")
        return self._lent.out(value)

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

    def intact(self) -> bool:
        """Whether no method wrote into what it read: what one method reads, the next one reads, too."""
        return self._lent.intact()

    def copy(self) -> Batch:
        """The same images in memory of their own."""

        def own(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.clone()

        return Batch(
            self.needs,
            self.size,
            own(self._features),
            own(self._embeddings),
            own(self._activations),
            own(self._pixels),
        )

    def seen_by(self, needs: Needs) -> Batch:
        """The same images for a method with other needs."""
        return Batch(needs, self.size, self._features, self._embeddings, self._activations, self._pixels, self._lent)
