"""Passes over the classes of every image: logsumexp, and the best class."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

BLOCK = 1 << 16  # logits at once: 256 KB


def scaled_logsumexp(cosines: Float[Tensor, "b k"], factor: float, top: Float[Tensor, " b"]) -> Float64[Tensor, " b"]:
    """logsumexp(factor * cosines), digit for digit; `top` is their largest. Summed in float64.

    A few rows at a time, so that they stay in the processor's cache.
    """
    # Fewer rows than threads, and torch would divide a row among them: another order of summation.
    rows = max(2 * torch.get_num_threads(), BLOCK // max(cosines.shape[1], 1))
    count = -(-len(cosines) // rows) if cosines.device.type == "cpu" else 1
    sums = []
    parts = (torch.tensor_split(one, max(count, 1)) for one in (cosines, top[:, None]))
    for part, highest in zip(*parts, strict=True):
        # In place on what is new here, which gradients allow: none of these needs what it was given.
        below = part - highest if factor == 1 else (part * factor).sub_(highest)
        sums.append(below.exp_().sum(-1, dtype=torch.float64))
    return top.double() + torch.cat(sums).log()


def first_largest(cosines: Float[Tensor, "b k"]) -> Int64[Tensor, " b"]:
    """argmax(-1), the first of equals."""
    if cosines.device.type != "cpu":
        return cosines.argmax(-1)
    return torch.from_numpy(cosines.detach().numpy().argmax(-1))  # ten times as fast as torch's there
