"""MCM: maximum concept matching (Ming et al., NeurIPS 2022, arXiv:2211.13445)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class MCM(Method[None]):
    """Largest softmax probability of the cosines divided by the temperature, as its logarithm.

    The temperature divides the cosine itself, not CLIP's logit of 100 times the cosine: temperature 0.01 is MSP.
    The logarithm ranks as the probability does and keeps its digits (a thousand classes give about 0.0011 each).

    templates    prompts of the class names; the paper's is "a photo of a {}", without a period
    temperature  tau of the paper
    """

    templates: str = "simple"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        logits = batch.features, self.templates, 1 / self.temperature
        return task.largest(*logits) - task.logsumexp(*logits)
