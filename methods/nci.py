"""NCI: neural-collapse-inspired detector (Liu & Qin, CVPR 2025, arXiv:2311.01479)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._id_features import mean, norm, vectors

ZERO = 1e-12  # the least distance from the mean that is divided by


@dataclass(frozen=True)
class NCI(Method[Tensor]):
    """Projection of the centred embedding on the weight of its class: w_p (z - mean) / |z - mean| + alpha |z|_1.

    w_p is the scaled text embedding of the predicted class; the mean is that of the calibration images, without labels.
    Embeddings of unit length differ little in the second term; with normalise=false it is the norm that the paper
    means.

    Released code: the second term is the sum of absolute values in the released code, OpenOOD and pytorch-ood. alpha =
    0, the default of pytorch-ood, leaves it out.

    alpha      weight of the norm; 1e-4 is the default of the released code, which chooses it on OOD validation images
    normalise  whether z has unit length; otherwise it is as the encoder gives it
    templates  prompts of the class names
    scale      factor on the class vectors; None takes the encoder's own logit scale (100 for most CLIPs)
    """

    formula: ClassVar[str] = r"""
    S(x) = \frac{w_{\hat y}^\top (z - \mu_G)}{\lVert z - \mu_G \rVert_2} + \alpha \lVert z \rVert_1

    z           embedding of image x, of unit length
    w_{\hat y}  `scale` times the text embedding of the predicted class
    \mu_G       mean embedding of the calibration images
    \alpha      `alpha`
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION
    alpha: float = 1e-4
    normalise: bool = True
    templates: str = "simple"
    scale: float | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.alpha):
            raise ValueError(f"alpha must be a number, not {self.alpha}")

    def fit(self, task: Task) -> Tensor:
        """Return the mean embedding, [d]."""
        return mean(task, self.normalise)

    def score(self, batch: Batch, task: Task, state: Tensor) -> Float[Tensor, " b"]:
        scale = task.scale if self.scale is None else self.scale
        predicted = task.best(batch.features, self.templates)
        w = scale * task.text(self.templates)[predicted].double()
        z = vectors(batch, self.normalise)
        centred = z - state
        towards = (w * centred).sum(-1) / norm(centred).clamp(min=ZERO)
        return towards + self.alpha * z.abs().sum(-1)
