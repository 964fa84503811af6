"""RMD: relative Mahalanobis distance (Ren et al., ICML UDL workshop 2021, arXiv:2106.09022)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._gaussian import Gaussians, background_gaussian, class_gaussians
from ._id_features import vectors


@dataclass(frozen=True)
class RMD(Method[tuple[Gaussians, Gaussians]]):
    """Negative Mahalanobis distance from the nearest class, less that from one Gaussian of all calibration images.

    The class distances are those of `mahalanobis`, with labels; the background distance is the squared distance from
    the mean of all calibration images under their full covariance. Both covariances are divided by the number of
    images, in float64. A class without images is an error. If a covariance is singular, its pseudo-inverse is used and
    a warning says so.

    Released code: pytorch-ood divides neither covariance, which gives the same ranking, and adds 1e-6 to their
    diagonals.

    normalise  whether z has unit length; otherwise it is as the encoder gives it, as OpenOOD takes a classifier's
               features
    """

    formula: ClassVar[str] = r"""
    S(x) = -\min_k \bigl(\mathrm{MD}_k(z) - \mathrm{MD}_0(z)\bigr)

    \mathrm{MD}_k(z) = (z - \mu_k)^\top \Sigma^{-1} (z - \mu_k), \qquad
    \mathrm{MD}_0(z) = (z - \mu_0)^\top \Sigma_0^{-1} (z - \mu_0)

    z       embedding of image x, of unit length
    \mu_k   mean of the calibration images of class k
    \Sigma  covariance within the classes
    \mu_0   mean of all calibration images; $\Sigma_0$ is their covariance
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS
    normalise: bool = True

    def fit(self, task: Task) -> tuple[Gaussians, Gaussians]:
        """Return the Gaussians of the classes, and that of all images."""
        return class_gaussians(task, self.normalise), background_gaussian(task, self.normalise)

    def score(self, batch: Batch, task: Task, state: tuple[Gaussians, Gaussians]) -> Float[Tensor, " b"]:
        classes, background = state
        z = vectors(batch, self.normalise)
        return background.nearest(z) - classes.nearest(z)
