"""ODIN: temperature and a step on the pixels (Liang et al., ICLR 2018, arXiv:1706.02690)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from oodbench.method import Batch, Method, Needs, Task, logsumexp


@dataclass(frozen=True)
class ODIN(Method[int]):
    """The largest softmax probability at a high temperature, after a small step that makes CLIP surer; its logarithm.

    Each pixel, in [0, 1] before the model's normalisation, moves by epsilon along the sign of the gradient of the log
    of the largest probability. The released code, OpenOOD and MCM's code take the step on normalised pixels and divide
    it by the standard deviation that these were divided by, which is the same step. The gradient is of the sum over
    images, so that no image's step depends on the others.

    temperature   T of the paper; divides the scaled cosines
    epsilon       size of the step, in units of pixels in [0, 1]; OpenOOD's default
    zero          what a gradient of exactly 0 does: "minus" moves the pixel down, as the released code (which asks
                  whether the gradient of the loss is >= 0), "none" leaves it
    templates     the prompts
    scale         factor on the cosines; None is the encoder's own logit scale (100 for most CLIPs)
    memory        GB that the gradients of the images which go through the model at once may take
    """

    needs: ClassVar[Needs] = Needs.FEATURES | Needs.PIXELS | Needs.ENCODER
    temperature: float = 1000.0
    epsilon: float = 0.0014
    zero: Literal["minus", "none"] = "minus"
    templates: str = "simple"
    scale: float | None = None
    memory: float = 2.0

    def __post_init__(self) -> None:
        if self.temperature <= 0 or self.memory <= 0:
            raise ValueError(f"temperature ({self.temperature}) and memory ({self.memory}) must be above 0")

    def fit(self, task: Task) -> int:
        """How many images go through the model at once."""
        # What one more image adds; the weights, which autograd keeps too, are in both counts.
        one_more = self._kept_bytes(2, task) - self._kept_bytes(1, task)
        return max(1, int(self.memory * 1e9 / max(one_more, 1)))

    def score(self, batch: Batch, task: Task, state: int) -> Float[Tensor, " b"]:
        parts = batch.pixels.tensor_split(math.ceil(batch.size / state))
        return torch.cat([self._score(pixels, task) for pixels in parts])

    def _score(self, pixels: Tensor, task: Task) -> Tensor:
        with torch.enable_grad():
            moving = pixels.detach().clone().requires_grad_(True)
            loss = -self._log_probability(moving, task).sum()
        (gradient,) = torch.autograd.grad(loss, moving)
        sign = gradient.sign() if self.zero == "none" else torch.where(gradient >= 0, 1.0, -1.0)
        return self._log_probability(pixels - self.epsilon * sign, task)

    def _log_probability(self, pixels: Tensor, task: Task) -> Tensor:
        features = torch.nn.functional.normalize(task.encoder.pixels(pixels), dim=-1)
        logits = task.logits(features, self.templates, self.scale) / self.temperature
        return logits.amax(-1) - logsumexp(logits)

    def _kept_bytes(self, images: int, task: Task) -> int:
        """What autograd keeps for the way back, each piece of memory once: weights are seen from many sides."""
        kept: dict[int, torch.UntypedStorage] = {}
        blank = torch.zeros(images, 3, *task.encoder.size, device=task.text(self.templates).device)

        def count(tensor: Tensor) -> None:  # returned tensors would hold each other in a ring and never be freed
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
            self._log_probability(blank.requires_grad_(True), task)
        return sum(storage.nbytes() for storage in kept.values())
