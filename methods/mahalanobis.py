"""Mahalanobis: distance from the nearest class (Lee et al., NeurIPS 2018, arXiv:1807.03888)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._gaussian import Gaussians, class_gaussians
from ._id_features import vectors


@dataclass(frozen=True)
class Mahalanobis(Method[Gaussians]):
    """Negative squared Mahalanobis distance from the nearest class mean: max over c of -(z - m_c)^T S^-1 (z - m_c).

    The means are those of the calibration images with each label, S is their covariance within the classes (divided by
    the number of images), both in float64. A class without images is an error. If S is singular, its pseudo-inverse is
    used and a warning says so. The paper's ensemble of layers and its step on the pixels are left out, as in OpenOOD's
    MDS.

    Released code: OpenOOD (scikit-learn) uses the pseudo-inverse as well. pytorch-ood does not divide S, adds 1e-6 to
    its diagonal, and halves the distance. The Mahalanobis rows of CLIP papers come from other code: MCM's, which CoVer,
    OODD and CMA copy, takes numbers of batches for numbers of images, and the covariance of all images for that within
    classes.

    normalise  whether z has unit length; otherwise it is as the encoder gives it, as OpenOOD takes a classifier's
               features
    """

    formula: ClassVar[str] = r"""
    S(x) = \max_c \; -(z - \hat\mu_c)^\top \hat\Sigma^{-1} (z - \hat\mu_c)

    \hat\mu_c = \frac{1}{N_c} \sum_{i: y_i = c} z_i, \qquad
    \hat\Sigma = \frac{1}{N} \sum_c \sum_{i: y_i = c} (z_i - \hat\mu_c)(z_i - \hat\mu_c)^\top

    z    embedding of image x, of unit length
    z_i  embedding of calibration image i of N, with label $y_i$; $N_c$ of them have label c
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS
    normalise: bool = True

    def fit(self, task: Task) -> Gaussians:
        return class_gaussians(task, self.normalise)

    def score(self, batch: Batch, task: Task, state: Gaussians) -> Float[Tensor, " b"]:
        return -state.nearest(vectors(batch, self.normalise))
