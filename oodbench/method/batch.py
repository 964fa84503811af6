"""Needs and Batch: the inputs that a method declares, and one batch of images with these inputs."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, fields, replace
from enum import Flag, auto
from typing import Any

from jaxtyping import Float, Float64, Int64
from torch import Tensor

from oodbench.errors import Undeclared
from oodbench.method.checksum import SharedTensors


class Needs(Flag):
    """What a method reads. It decides what is extracted, what is loaded and where the method runs; combine with `|`."""

    FEATURES = auto()  # cached embeddings: the images are not read again
    ACTIVATIONS = auto()  # cached input of the image tower's last linear map
    PIXELS = auto()  # the images themselves, decoded again
    ENCODER = auto()  # score() runs the model
    CALIBRATION = auto()  # fit() reads ID training images
    WEIGHTS = auto()  # fit() reads weights from `oodbench train` or from a released checkpoint
    CAPTIONS = auto()  # score() lets the encoder write captions, which only a CoCa can
    LABELS = auto()  # fit() reads the classes of the calibration images; declare it with CALIBRATION
    PATCHES = auto()  # patch features in the joint space, computed in the same pass as the embeddings
    VIEWS = auto()  # embeddings of declared transforms of every image, one more pass each
    STREAM = auto()  # the test images in the order of a stream, from which it learns: a StreamMethod
    SHOTS = auto()  # its weights are trained on a few labelled ID images: a FewShotMethod; declare it with WEIGHTS
    PATCH_ACTIVATIONS = auto()  # input of the image tower's last linear map for every patch, from the same pass


@dataclass(frozen=True)
class Batch:
    """A batch of images as a method reads it.

    Arguments:
        needs  inputs that the method declares
        size   number of images
    Raises:
        Undeclared  if a field is read that `needs` does not name
    """

    needs: Needs
    size: int
    _features: Tensor | None = None
    _embeddings: Tensor | None = None
    _activations: Tensor | None = None
    _pixels: Tensor | None = None
    _labels: Tensor | None = None
    _patches: Tensor | None = None
    _views: Tensor | None = None
    _base: Tensor | None = None
    _patch_activations: Tensor | None = None
    _shared: SharedTensors = field(
        default_factory=SharedTensors, repr=False, compare=False
    )  # tensors that any method has read

    def _read(self, value: Tensor | None, name: str, need: Needs) -> Tensor:
        if value is None or need not in self.needs:
            if need is Needs.LABELS and need in self.needs:
                raise Undeclared("batch.labels was read, but test images have none: labels are for fit()")
            if need in self.needs:  # calibration batches come from the store
                raise Undeclared(f"batch.{name} was read, but calibration images come without {name}")
            raise Undeclared(f"batch.{name} was read but not declared: add Needs.{need.name} to the method's `needs`")
        return self._shared.track(value)

    @property
    def features(self) -> Float[Tensor, "b d"]:
        """[b d] image embeddings of unit length. Needs.FEATURES."""
        return self._read(self._features, "features", Needs.FEATURES)

    @property
    def embeddings(self) -> Float[Tensor, "b d"]:
        """[b d] image embeddings, not normalised. Needs.FEATURES."""
        return self._read(self._embeddings, "embeddings", Needs.FEATURES)

    @property
    def activations(self) -> Float[Tensor, "b w"]:
        """[b w] input of the image tower's last linear map, or the embedding itself without one. Needs.ACTIVATIONS."""
        return self._read(self._activations, "activations", Needs.ACTIVATIONS)

    @property
    def pixels(self) -> Float[Tensor, "b 3 height width"]:
        """[b 3 height width] resized and cropped images in [0, 1], before the model's normalisation. Needs.PIXELS."""
        return self._read(self._pixels, "pixels", Needs.PIXELS)

    @property
    def labels(self) -> Int64[Tensor, " b"]:
        """[b] class indices of calibration images, into task.classes; test images have none. Needs.LABELS."""
        return self._read(self._labels, "labels", Needs.LABELS)

    @property
    def patches(self) -> Float[Tensor, "b n d"]:
        """[b n d] features of n image patches in the joint space, of unit length, float32. Needs.PATCHES."""
        return self._read(self._patches, "patches", Needs.PATCHES)

    @property
    def patch_activations(self) -> Float[Tensor, "b n w"]:
        """[b n w] features of n image patches before the last linear map, float32. Needs.PATCH_ACTIVATIONS."""
        return self._read(self._patch_activations, "patch_activations", Needs.PATCH_ACTIVATIONS)

    @property
    def views(self) -> Float[Tensor, "b v d"]:
        """[b v d] embeddings of the v views that the method declares, of unit length. Needs.VIEWS."""
        return self._read(self._views, "views", Needs.VIEWS)

    @property
    def base(self) -> Float64[Tensor, " b"]:
        """[b] scores of the method that the hyper-parameter `base` of a StreamMethod names, higher = ID."""
        if self._base is None:
            raise Undeclared('batch.base was read, but no method is named: add the hyper-parameter base: str = "mcm"')
        return self._read(self._base, "base", Needs.STREAM)

    def intact(self) -> bool:
        """Return whether no method wrote into a tensor that other methods read as well."""
        return self._shared.intact()

    def copy(self) -> Batch:
        """Return a copy of the batch and its tensors, which may be written to."""
        values = {name: getattr(self, name) for name in _TENSORS}
        clones: dict[str, Any] = {name: None if value is None else value.clone() for name, value in values.items()}
        return replace(self, **clones, _shared=SharedTensors())

    def part(self, rows: slice) -> Batch:
        """Return some of the images."""
        values = {name: getattr(self, name) for name in _TENSORS}
        parts: dict[str, Any] = {name: None if value is None else value[rows] for name, value in values.items()}
        return replace(self, **parts, size=len(range(self.size)[rows]), _shared=SharedTensors())

    def for_method(self, needs: Needs) -> Batch:
        """Return the same images for a method with other needs."""
        return replace(self, needs=needs)

    def seen_by(self, needs: Needs) -> Batch:
        """Return for_method(needs); the old name."""
        warnings.warn("Batch.seen_by is now Batch.for_method", DeprecationWarning, stacklevel=2)
        return self.for_method(needs)


_TENSORS = tuple(each.name for each in fields(Batch) if each.name not in ("needs", "size", "_shared"))
