"""Means and covariances of the calibration images' embeddings in float64, whitening, and the residual space.

They read the images batch by batch, so that memory does not grow with their number.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from oodbench.method import Batch, Task, UserError

log = logging.getLogger(__name__)

WIDTH = 256  # dimensions of the principal space, the default of OpenOOD


def vectors(batch: Batch, normalise: bool) -> Float64[Tensor, "b d"]:
    """Return embeddings in float64, of unit length or as the encoder gave them."""
    return (batch.features if normalise else batch.embeddings).double()


def norm(z: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
    """Return the Euclidean lengths of vectors."""
    lengths: Tensor = torch.linalg.vector_norm(z, dim=-1)
    return lengths


def calibration(task: Task) -> Iterator[Batch]:
    """Yield the batches of calibration images; raise UserError if there are none."""
    images = 0
    for batch in task.calibration():
        images += batch.size
        yield batch
    if not images:
        raise UserError("there are no calibration images; name some: --calibration REF")


def mean(task: Task, normalise: bool) -> Float64[Tensor, " d"]:
    """Return the mean of the calibration images' embeddings."""
    images, total = 0, torch.empty(0)
    for batch in calibration(task):
        part = vectors(batch, normalise).sum(0)
        total = total + part if images else part
        images += batch.size
    return total / images


def class_means(task: Task, normalise: bool) -> Float64[Tensor, "k d"]:
    """Return the mean embedding of the calibration images of every class; a class without images is a UserError."""
    totals, counts = class_sums(task, lambda batch: (vectors(batch, normalise), batch.labels))
    check_classes(task, counts)
    return totals / counts[:, None]


def class_sums(
    task: Task, rows: Callable[[Batch], tuple[Tensor, Tensor]]
) -> tuple[Float64[Tensor, "k d"], Float64[Tensor, " k"]]:
    """Return sums by class of rows(batch) -> (float64 vectors [n d], their classes [n]), and how many there are."""
    totals, counts = torch.empty(0), torch.empty(0)
    for batch in calibration(task):
        values, classes = rows(batch)
        if not totals.numel():
            totals = values.new_zeros(len(task.classes), values.shape[1])
            counts = values.new_zeros(len(task.classes))
        totals.index_add_(0, classes, values)
        counts.index_add_(0, classes, values.new_ones(len(classes)))
    return totals, counts


def check_classes(task: Task, counts: Tensor) -> None:
    """Raise UserError if a class has no calibration image."""
    empty = [name for name, count in zip(task.classes, counts.tolist(), strict=True) if not count]
    if empty:
        raise UserError(
            f"{len(empty)} of {len(task.classes)} classes have no calibration image, '{empty[0]}' first; take more "
            "images (--calibration-limit all, no --limit)"
        )


def covariance(task: Task, normalise: bool, centre: Callable[[Batch], Tensor] | None = None) -> Float64[Tensor, "d d"]:
    """Return the mean of (z - centre) (z - centre)^T over the calibration images; without a centre, of z z^T.

    centre(batch) -> [d], or [b d] by image. It is subtracted before the product, which keeps all digits.
    """
    images, total = 0, torch.empty(0)
    for batch in calibration(task):
        z = vectors(batch, normalise)
        z = z if centre is None else z - centre(batch)
        total = total.addmm_(z.T, z) if images else z.T @ z
        images += batch.size
    return total / images


def whitening(covariance: Float64[Tensor, "d d"]) -> Float64[Tensor, "d r"]:
    """Return W with W W^T = the inverse of a covariance, or its pseudo-inverse of rank r, with a warning."""
    values, directions = torch.linalg.eigh(covariance)
    positive = values > _rounding(values)
    rank, width = int(positive.sum()), len(values)
    if not rank:
        raise UserError(
            "the covariance of the calibration images within their classes is 0: no class has two different images; "
            "give at least two a class, such as --shots 2"
        )
    if rank < width:
        log.warning(
            "the covariance of the calibration images has rank %d of %d: its pseudo-inverse is used, and differences "
            "outside of these %d dimensions do not count; more images give a full rank",
            rank,
            width,
            rank,
        )
    scaled: Tensor = directions[:, positive] / values[positive].sqrt()
    return scaled


def residual_space(task: Task, normalise: bool, dim: int | None) -> Float64[Tensor, "d r"]:
    """Return an orthonormal basis of all but the `dim` principal directions of the calibration images' embeddings.

    The covariance is not centred. Without `dim` it is 256, the default of OpenOOD, or half of a width below 512, as in
    ViM's own code.
    """
    second_moment = task.cached(lambda: covariance(task, normalise), normalise=normalise)
    values, directions = torch.linalg.eigh(second_moment)  # ascending
    width = len(values)
    dim = min(WIDTH, width // 2) if dim is None else dim
    if dim >= width:
        raise UserError(f"dim={dim} of {width} dimensions leaves no residual; set dim to {width - 1} or less")
    if values[width - dim - 1] <= _rounding(values):
        rank = int((values > _rounding(values)).sum())
        if rank < 2:
            raise UserError(
                "the calibration images all have the same embedding up to its length; give images that differ"
            )
        raise UserError(
            f"the calibration images span {rank} of {width} dimensions, so that dim={dim} leaves no residual; set dim "
            f"to {rank - 1} or less, or give more images"
        )
    space: Tensor = directions[:, : width - dim]
    return space


def _rounding(values: Tensor) -> Tensor:
    """Return the threshold up to which eigenvalues, in ascending order, count as 0, as in numpy.linalg.matrix_rank."""
    return values[-1].clamp(min=0) * len(values) * torch.finfo(values.dtype).eps
