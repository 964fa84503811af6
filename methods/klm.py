"""KL matching: divergence from the classes' typical softmax (Hendrycks et al., ICML 2022, arXiv:1911.11132)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task

from ._id_features import class_sums

LEAST = torch.finfo(torch.float64).tiny  # below this a mean probability is 0 in float64, and its logarithm infinite


@dataclass(frozen=True)
class KLMatching(Method[Tensor]):
    """Negative KL divergence of the softmax from the nearest typical softmax: -min over c of KL(p || d_c).

    d_c is the mean softmax of the calibration images that are predicted as class c, in float64; their labels are not
    read. Classes that are predicted for no calibration image are left out. The means take k x k x 8 bytes (8 MB for
    1000 classes).

    Released code: OpenOOD gives classes that are never predicted a one-hot d_c, whose divergence is infinite unless p
    is one-hot as well. OpenOOD and the paper calibrate on validation images; here it is the calibration images.

    templates  prompts of the class names
    scale      factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    """

    formula: ClassVar[str] = r"""
    S(x) = -\min_c \mathrm{KL}\bigl(p(x) \,\Vert\, d_c\bigr), \qquad
    d_c = \frac{1}{|\mathcal{I}_c|} \sum_{i \in \mathcal{I}_c} p(x_i)

    p(x)           softmax of the scaled cosines of image x with the classes
    x_i            calibration image i
    \mathcal{I}_c  calibration images that are predicted as class c
    """
    needs: ClassVar[Needs] = Needs.FEATURES | Needs.CALIBRATION
    templates: str = "simple"
    scale: float | None = None

    def fit(self, task: Task) -> Tensor:
        """Return log d_c of the m predicted classes, [m k]."""
        sums, counts = class_sums(
            task, lambda batch: (self._log_p(batch, task).exp(), task.best(batch.features, self.templates))
        )
        return (sums[counts > 0] / counts[counts > 0, None]).clamp(min=LEAST).log()

    def score(self, batch: Batch, task: Task, state: Tensor) -> Float[Tensor, " b"]:
        log_p = self._log_p(batch, task)
        p = log_p.exp()
        return (p @ state.T).amax(-1) - (p * log_p).sum(-1)

    def _log_p(self, batch: Batch, task: Task) -> Float64[Tensor, "b k"]:
        logits = task.logits(batch.features, self.templates, self.scale)
        return logits.double() - task.logsumexp(batch.features, self.templates, self.scale)[:, None]
