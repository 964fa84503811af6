"""MCM: maximum concept matching (Ming et al., NeurIPS 2022, arXiv:2211.13445)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class MCM(Method[None]):
    """Largest softmax probability of the cosines divided by the temperature, as its logarithm.

    The temperature divides the cosine itself, not CLIP's logit of 100 times the cosine: with temperature 0.01 the score
    is MSP's. The logarithm gives the same ranking as the probability, and keeps its digits (a thousand classes have
    about 0.0011 each).

    templates    prompts of the class names; the paper's is "a photo of a {}", without a period
    temperature  tau of the paper
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \max_i \frac{\exp(s_i(x) / \tau)}{\sum_{j=1}^{K} \exp(s_j(x) / \tau)}

    s_i(x)  cosine of the embedding of image x with the text embedding of class i of K
    \tau    `temperature`
    """
    templates: str = "simple"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        logits = batch.features, self.templates, 1 / self.temperature
        return task.largest(*logits) - task.logsumexp(*logits)
