"""GEN: generalised entropy (Liu et al., CVPR 2023, doi:10.1109/CVPR52729.2023.02293)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Task


@dataclass(frozen=True)
class GEN(Method[None]):
    """Negative generalised entropy of the largest probabilities: -sum over the top M of p^gamma (1 - p)^gamma.

    It reads no images but the test image. The probabilities are the softmax of the scaled cosines over all classes, and
    are not normalised again over the largest; p and 1 - p are computed in float64, so that a confident softmax keeps
    its digits. The scale decides the result. With fewer than M classes all are summed.

    Released code: pytorch-ood averages instead of summing, which gives the same ranking, clamps p to 1e-7, which does
    not, and sums all classes by default.

    gamma      exponent
    top        M of the paper, which has 100 for ImageNet
    templates  prompts of the class names
    scale      factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    """

    formula: ClassVar[str] = r"""
    S(x) = -\sum_{j=1}^{M} p_{i_j}^{\gamma} \bigl(1 - p_{i_j}\bigr)^{\gamma},
    \qquad p_{i_1} \ge p_{i_2} \ge \dots \ge p_{i_K}

    p       softmax of the scaled cosines of the image with the K classes
    \gamma  `gamma`
    M       `top`
    """
    family: ClassVar[str] = "post-hoc"
    gamma: float = 0.1
    top: int = 100
    templates: str = "simple"
    scale: float | None = None

    def __post_init__(self) -> None:
        if not self.gamma > 0 or self.top < 1:
            raise ValueError(f"gamma={self.gamma} must be above 0, and top={self.top} at least 1")

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        logits = task.logits(batch.features, self.templates, self.scale)
        if self.top < logits.shape[1]:
            logits = logits.topk(self.top, sorted=False).values
        log_p = logits.double() - task.logsumexp(batch.features, self.templates, self.scale)[:, None]
        log_rest = log_p.expm1().neg_().clamp_(min=0).log_()  # log(1 - p), -inf at p = 1
        return -(log_rest.add_(log_p).mul_(self.gamma)).exp_().sum(-1)
