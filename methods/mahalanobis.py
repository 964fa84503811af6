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

    m_c is the mean of the calibration images with label c, S their covariance within the classes (divided by the number
    of images), both in float64. A class without images is an error; of a singular S the pseudo-inverse is used, as in
    OpenOOD (scikit-learn), and said. pytorch-ood does not divide S, adds 1e-6 to its diagonal, and halves the distance.
    The paper's ensemble of layers and its step on the pixels are left out, as in OpenOOD's MDS.

    The Mahalanobis rows of CLIP papers are of other code: MCM's, which CoVer, OODD and CMA copy, takes numbers of
    batches for numbers of images, and the covariance of all images for that within classes.

    normalise  whether z has unit length; otherwise as the encoder gives it, as OpenOOD takes a classifier's features
    """

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION | Needs.LABELS
    normalise: bool = True

    def fit(self, task: Task) -> Gaussians:
        return class_gaussians(task, self.normalise)

    def score(self, batch: Batch, task: Task, state: Gaussians) -> Float[Tensor, " b"]:
        return -state.nearest(vectors(batch, self.normalise))
