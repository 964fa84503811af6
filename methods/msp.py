"""MSP: the largest softmax probability (Hendrycks & Gimpel, ICLR 2017, arXiv:1610.02136)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class MSP(Method[None]):
    """Largest softmax probability of the logits, as its logarithm.

    The logarithm ranks as the probability does but does not saturate at 1. With scale 1 this is MCM.

    templates    prompts of the class names
    scale        factor on the cosines; None is the encoder's own logit scale (100 for most CLIPs)
    """

    templates: str = "simple"
    scale: float | None = None

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        logits = batch.features, self.templates, self.scale
        return task.largest(*logits) - task.logsumexp(*logits)
