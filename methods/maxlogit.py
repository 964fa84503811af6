"""MaxLogit: the largest logit (Hendrycks et al., ICML 2022, arXiv:1911.11132)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class MaxLogit(Method[None]):
    """Largest logit: the cosine of the image with its nearest class, times the encoder's logit scale.

    The scale does not change the ranking, so it is not a hyper-parameter.

    templates  prompts of the class names
    """

    formula: ClassVar[str] = r"""
    S(x) = \max_c \; s \, v^\top t_c

    v    embedding of image x, of unit length
    t_c  text embedding of class c, of unit length
    s    logit scale of the encoder (100 for most CLIPs)
    """
    templates: str = "simple"

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        return task.largest(batch.features, self.templates, None)
