"""ViM: virtual-logit matching (Wang et al., CVPR 2022, arXiv:2203.10807)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task, logsumexp

from ._id_features import norm, residual_space, vectors


@dataclass(frozen=True)
class Virtual:
    """The virtual logit alpha * |z R|.

    space  [d r] basis R of the residual space
    alpha  mean largest logit / mean residual of the calibration images
    """

    space: Tensor
    alpha: float


@dataclass(frozen=True)
class ViM(Method[Virtual]):
    """Energy minus the virtual logit: logsumexp(W z) - alpha |residual of z|.

    The residual of an embedding z is its part outside the principal space of the calibration images: the span of the
    first `dim` eigenvectors of their covariance, which is not centred, in float64. The factor alpha makes virtual
    logits as large as the largest logits on the calibration images; no labels are read. W is the scaled class vectors
    and has no bias, so that the paper's origin u = -W^+ b is 0. Nothing is clipped. The paper's score is the softmax
    probability of the virtual logit among all logits; this one is its log-odds with the sign reversed.

    dim        dimensions of the principal space, below the embedding's; None is 256, the default of OpenOOD, or half of
               an embedding below 512 as in the authors' code (the paper's 512 and 1000 are for widths 768 and 2048)
    normalise  whether z has unit length; otherwise z is as the encoder gives it, and the logits are W z as well
    templates  prompts of the class names
    scale      factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \sum_{c=1}^{K} e^{w_c^\top z} - \alpha \lVert R^\top z \rVert, \qquad
    \alpha = \frac{\sum_i \max_c w_c^\top z_i}{\sum_i \lVert R^\top z_i \rVert}

    z    embedding of image x, of unit length
    z_i  embedding of calibration image i
    w_c  `scale` times the text embedding of class c of K
    R    orthonormal basis of the residual space: all eigenvectors of the mean of $z_i z_i^\top$ but the first `dim`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION
    dim: int | None = None
    normalise: bool = True
    templates: str = "simple"
    scale: float | None = None

    def __post_init__(self) -> None:
        if self.dim is not None and self.dim < 1:
            raise ValueError(f"dim={self.dim} must be at least 1")

    def fit(self, task: Task) -> Virtual:
        space = residual_space(task, self.normalise, self.dim)
        largest = residual = 0.0
        for batch in task.calibration():
            largest += float(self._logits(batch, task).amax(-1).double().sum())
            residual += float(self._residual(batch, space).sum())
        return Virtual(space, largest / residual)

    def score(self, batch: Batch, task: Task, state: Virtual) -> Float[Tensor, " b"]:
        if self.normalise:
            energy = task.logsumexp(batch.features, self.templates, self.scale)  # shared with other methods
        else:
            energy = logsumexp(self._logits(batch, task))
        return energy - state.alpha * self._residual(batch, state.space)

    def _logits(self, batch: Batch, task: Task) -> Tensor:
        logits = task.logits(batch.features, self.templates, self.scale)
        return logits if self.normalise else logits * norm(batch.embeddings)[:, None]

    def _residual(self, batch: Batch, space: Tensor) -> Tensor:
        return norm(vectors(batch, self.normalise) @ space)
