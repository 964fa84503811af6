"""Energy: the negative free energy of the logits (Liu et al., NeurIPS 2020, arXiv:2010.03759)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class Energy(Method[None]):
    """Negative free energy of the logits: T * logsumexp(logits / T), where the logits are the scaled cosines.

    The scale decides the result, and papers do not state it. The paper's temperature is 1.

    Released code: OpenOOD and MCM's code use scale 1 (raw cosines); the code of CLIPN and NegLabel uses 100.

    templates    prompts of the class names
    scale        factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    temperature  T of the paper
    """

    formula: ClassVar[str] = r"""
    S(x) = -E(x; f) = T \log \sum_{c=1}^{K} \exp \frac{f_c(x)}{T},
    \qquad f_c(x) = s \, v^\top t_c

    v        embedding of image x, of unit length
    t_c      text embedding of class c of K, of unit length
    E(x; f)  free energy
    s        `scale`
    T        `temperature`
    """
    templates: str = "simple"
    scale: float | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ValueError(f"temperature must be above 0, not {self.temperature}")

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        scale = task.scale if self.scale is None else self.scale
        return self.temperature * task.logsumexp(batch.features, self.templates, scale / self.temperature)
