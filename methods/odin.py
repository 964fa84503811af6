"""ODIN: temperature and a step on the pixels (Liang et al., ICLR 2018, arXiv:1706.02690)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task, logsumexp


@dataclass(frozen=True)
class ODIN(Method[None]):
    """The largest softmax probability at a high temperature, after a small step that makes CLIP surer; its logarithm.

    Each pixel moves by epsilon, in units of the model's normalised pixels, along the sign of the gradient of the log of
    the largest probability. The gradient is of the sum over images, so that no image's step depends on the others.

    temperature   T of the paper; divides the scaled cosines
    epsilon       size of the step
    zero          what a gradient of exactly 0 does: "minus" moves the pixel down, as the released code (which asks
                  whether the gradient of the loss is >= 0), "none" leaves it
    templates     the prompts
    scale         factor on the cosines; None is the encoder's own logit scale (100 for most CLIPs)
    micro_batch   images that go through the model with gradients at once; memory grows with it
    """

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.PIXELS | Needs.ENCODER
    temperature: float = 1000.0
    epsilon: float = 0.0014
    zero: Literal["minus", "none"] = "minus"
    templates: str = "simple"
    scale: float | None = None
    micro_batch: int = 32

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.micro_batch < 1:
            raise ValueError("temperature must be above 0, micro_batch at least 1")

    def score(self, batch: Batch, task: Task, state: None) -> Float[Tensor, " b"]:
        return torch.cat([self._score(pixels, task) for pixels in torch.split(batch.pixels, self.micro_batch)])

    def _score(self, pixels: Tensor, task: Task) -> Tensor:
        with torch.enable_grad():
            moving = pixels.detach().clone().requires_grad_(True)
            loss = -self._log_probability(moving, task).sum()
        (gradient,) = torch.autograd.grad(loss, moving)
        sign = gradient.sign() if self.zero == "none" else torch.where(gradient >= 0, 1.0, -1.0)
        return self._log_probability(pixels - self.epsilon * task.encoder.std * sign, task)

    def _log_probability(self, pixels: Tensor, task: Task) -> Tensor:
        features = torch.nn.functional.normalize(task.encoder.pixels(pixels), dim=-1)
        logits = task.logits(features, self.templates, self.scale) / self.temperature
        return logits.amax(-1) - logsumexp(logits)
