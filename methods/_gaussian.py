"""Squared Mahalanobis distances from Gaussians that share one covariance, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64
from torch import Tensor

from oodbench.method import Task

from ._id_features import class_means, covariance, mean, norm, whitening


@dataclass(frozen=True)
class Gaussians:
    """k Gaussians with one covariance S, after whitening: (z - m)^T S^-1 (z - m) = |z W + shift - centre|^2.

    whitening  [d r] W, with W W^T = S^-1 or its pseudo-inverse
    shift      [r] that moves the mean of all centres to 0, so that squares do not lose the digits of differences
    centres    [k r] means c after whitening and shift
    offsets    [k] -|c|^2
    """

    whitening: Tensor
    shift: Tensor
    centres: Tensor
    offsets: Tensor

    def nearest(self, z: Float64[Tensor, "b d"]) -> Float64[Tensor, " b"]:
        """Return the squared distance from the nearest Gaussian."""
        whitened = torch.addmm(self.shift, z, self.whitening)
        # |x - c|^2 = |x|^2 - (2 x c - |c|^2), and the largest of the brackets is the nearest
        brackets = torch.addmm(self.offsets, whitened, self.centres.T, alpha=2)
        return norm(whitened).square() - brackets.amax(-1)


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
    centres = (means - origin) @ transform
    return Gaussians(transform, -origin @ transform, centres, -centres.square().sum(-1))
