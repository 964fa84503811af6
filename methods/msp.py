"""MSP: the largest softmax probability (Hendrycks & Gimpel, ICLR 2017, arXiv:1610.02136)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class MSP(Method[None]):
    """Largest softmax probability of the logits, as its logarithm.

    The logits are the cosines of the image with the class names, times CLIP's logit scale. The logarithm gives the same
    ranking as the probability, but does not saturate at 1. With scale=1 the score is MCM's.

    templates  prompts of the class names
    scale      factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \max_c \frac{\exp f_c(x)}{\sum_{j=1}^{K} \exp f_j(x)},
    \qquad f_c(x) = s \, v^\top t_c

    v    embedding of image x, of unit length
    t_c  text embedding of class c of K, of unit length
    s    `scale`
    """
    templates: str = "simple"
    scale: float | None = None

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        logits = batch.features, self.templates, self.scale
        return task.largest(*logits) - task.logsumexp(*logits)
