"""Squared Mahalanobis distances from Gaussians that share one covariance, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from oodbench.method import Task

from ._id_features import class_means, covariance, mean, whitening


@dataclass(frozen=True)
class Gaussians:
    """k Gaussians with one covariance S, after whitening: (z - m)^T S^-1 (z - m) = |(z - origin) W - centre|^2.

    origin    [d] a point near the means, subtracted first so that no digits are lost
    whitening [d r] W, with W W^T = S^-1 or its pseudo-inverse
    centres   [k r] means after whitening
    """

    origin: Tensor
    whitening: Tensor
    centres: Tensor

    def nearest(self, z: Float64[Tensor, "b d"]) -> Float64[Tensor, " b"]:
        """Return the squared distance from the nearest Gaussian."""
        whitened = (z - self.origin) @ self.whitening
        # |x - c|^2 = |x|^2 - (2 x c - |c|^2), and the largest of the brackets is the nearest
        brackets = torch.addmm(-self.centres.square().sum(-1), whitened, self.centres.T, alpha=2)
        return whitened.square().sum(-1) - brackets.amax(-1)


def class_gaussians(task: Task, normalise: bool) -> Gaussians:
    """Return one Gaussian for every class; they share the covariance within the classes."""
    means = task.cached(lambda: class_means(task, normalise), part="means", normalise=normalise)
    within = task.cached(
        lambda: covariance(task, normalise, lambda batch: means[batch.labels]), part="within", normalise=normalise
    )
    return _whitened(means, within)


def background_gaussian(task: Task, normalise: bool) -> Gaussians:
    """Return one Gaussian of all calibration images."""
    centre = task.cached(lambda: mean(task, normalise), part="mean", normalise=normalise)
    total = task.cached(lambda: covariance(task, normalise, lambda _: centre), part="total", normalise=normalise)
    return _whitened(centre[None], total)


def _whitened(means: Tensor, covariance: Tensor) -> Gaussians:
    origin, transform = means.mean(0), whitening(covariance)
    return Gaussians(origin, transform, (means - origin) @ transform)
