"""Residual: distance from the principal space of ID images (Wang et al., CVPR 2022, arXiv:2203.10807)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._id_features import norm, residual_space, vectors


@dataclass(frozen=True)
class Residual(Method[Tensor]):
    """Negative norm of the part of an embedding that lies outside the principal space of the calibration images.

    It is ViM without the logits, and reads no labels. The principal space is spanned by the first `dim` eigenvectors of
    the covariance, which is not centred, in float64: the paper's origin -W^+ b is 0 on CLIP, whose classifier has no
    bias.

    Released code: OpenOOD takes the space from its validation images; here it is that of the calibration images.

    dim        dimensions of the principal space, below the embedding's; None is 256, OpenOOD's default of ViM, or half
               of an embedding below 512 as in the authors' code (OpenOOD's own Residual has 512, too many for CLIP)
    normalise  whether embeddings have unit length; otherwise they are as the encoder gives them
    """

    formula: ClassVar[str] = r"""
    S(x) = -\lVert R^\top z \rVert

    z  embedding of image x, of unit length
    R  orthonormal basis of the residual space: all eigenvectors of the mean of $z_i z_i^\top$ but the first `dim`,
       where $z_i$ is the embedding of calibration image i
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION
    dim: int | None = None
    normalise: bool = True

    def __post_init__(self) -> None:
        if self.dim is not None and self.dim < 1:
            raise ValueError(f"dim={self.dim} must be at least 1")

    def fit(self, task: Task) -> Tensor:
        """Return a basis of the residual space, [d r]."""
        return residual_space(task, self.normalise, self.dim)

    def score(self, batch: Batch, task: Task, state: Tensor) -> Float[Tensor, " b"]:
        return -norm(vectors(batch, self.normalise) @ state)
