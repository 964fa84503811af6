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
    """How well the centred embedding points to its predicted class: w_p (z - mean) / |z - mean| + alpha |z|_1.

    w_p is the scaled vector of the predicted class, and the mean is that of the calibration images, without labels. The
    second term is the sum of absolute values, as in the released code, OpenOOD and pytorch-ood; alpha 0, the default of
    pytorch-ood, leaves it out. Embeddings of unit length differ little in it; with normalise=false it is the norm that
    the paper means.

    alpha      weight of the norm; 1e-4 is the default of the released code, which chooses it on OOD validation images
    normalise  whether z has unit length; otherwise as the encoder gives it
    templates  prompts of the class names
    scale      factor on the class vectors; None is the encoder's own logit scale (100 for most CLIPs)
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
