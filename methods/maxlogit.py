"""MaxLogit: the largest logit (Hendrycks et al., ICML 2022, arXiv:1911.11132)."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class MaxLogit(Method[None]):
    """Largest logit: the cosine of the image with its nearest class, times the encoder's logit scale.

    The scale changes no rank, so it is no hyper-parameter.

    templates    prompts of the class names
    """

    templates: str = "simple"

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        return task.largest(batch.features, self.templates, None)
