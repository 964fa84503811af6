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
    """Log of the largest softmax probability at a high temperature, after one gradient step on the pixels.

    The step changes each pixel, in [0, 1] before the model's normalisation, by epsilon in the direction that raises the
    largest probability. The gradient is that of the sum over the images of a batch, so that the step of an image does
    not depend on the other images.

    Released code: its authors, OpenOOD and MCM's code take the step on normalised pixels and divide it by the standard
    deviation of the normalisation, which is the same step.

    temperature  T of the paper, which divides the scaled cosines
    epsilon      size of the step, in units of pixels in [0, 1]; OpenOOD's default
    zero         step where the gradient is exactly 0: "minus" lowers the pixel, as the released code does (it tests
                 whether the gradient of the loss is >= 0); "none" leaves it unchanged
    templates    prompts of the class names
    scale        factor on the cosines; None takes the encoder's own logit scale (100 for most CLIPs)
    memory       memory in GB for the gradients of the images that are in the model at once
    """

    formula: ClassVar[str] = r"""
    S(x) = \log \max_c S_c(\tilde x; T),
    \qquad S_c(x; T) = \frac{\exp(f_c(x) / T)}{\sum_{j=1}^{K} \exp(f_j(x) / T)}

    \tilde x = x - \varepsilon \, \operatorname{sign}\bigl(-\nabla_x \log \max_c S_c(x; T)\bigr),
    \qquad \operatorname{sign}(0) = 1

    x            pixels of the image, in [0, 1]
    f_c(x)       logit of class c of K: `scale` times the cosine of the image with the class
    T            `temperature`
    \varepsilon  `epsilon`
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
        """Return how many images fit into the model at once."""
        # Bytes per image; the weights, which autograd saves as well, are in both counts and cancel.
        per_image = self._saved_bytes(2, task) - self._saved_bytes(1, task)
        return max(1, int(self.memory * 1e9 / max(per_image, 1)))

    def score(self, batch: Batch, task: Task, state: int) -> Float[Tensor, " b"]:
        parts = batch.pixels.tensor_split(math.ceil(batch.size / state))
        return torch.cat([self._score(pixels, task) for pixels in parts])

    def _score(self, pixels: Tensor, task: Task) -> Tensor:
        with torch.enable_grad():
            variable = pixels.detach().clone().requires_grad_(True)
            loss = -self._log_probability(variable, task).sum()
        (gradient,) = torch.autograd.grad(loss, variable)
        sign = gradient.sign() if self.zero == "none" else torch.where(gradient >= 0, 1.0, -1.0)
        return self._log_probability(pixels - self.epsilon * sign, task)

    def _log_probability(self, pixels: Tensor, task: Task) -> Tensor:
        features = torch.nn.functional.normalize(task.encoder.pixels(pixels), dim=-1)
        logits = task.logits(features, self.templates, self.scale) / self.temperature
        return logits.amax(-1) - logsumexp(logits)

    def _saved_bytes(self, images: int, task: Task) -> int:
        """Return the bytes that autograd saves for the backward pass, each storage once: views share it."""
        saved: dict[int, torch.UntypedStorage] = {}
        blank = torch.zeros(images, 3, *task.encoder.size, device=task.text(self.templates).device)

        def count(tensor: Tensor) -> None:  # a tensor that is returned would be in a reference cycle and never be freed
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()

        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
            self._log_probability(blank.requires_grad_(True), task)
        return sum(storage.nbytes() for storage in saved.values())
