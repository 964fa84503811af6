"""Cross-entropy over a vocabulary, computed in parts: 770 targets of 50,000 tokens would need 150 MB at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

PART = 1 << 22  # logits in memory: 16 MB, which the allocator reuses


class _TokenLoss(torch.autograd.Function):
    """Negative log-likelihoods; the logits are not saved for the backward pass, which recomputes them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, table: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        sums = x.new_empty(len(x), dtype=torch.float32)
        own = torch.empty_like(sums)
        for part, logits in _parts(x, table, bias):
            sums[part] = logits.logsumexp(-1)
            own[part] = logits.gather(1, targets[part, None]).squeeze(1)
        ctx.save_for_backward(x, table, bias, targets, sums)
        return sums - own

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, table, bias, targets, sums = ctx.saved_tensors
        by_x, by_bias = torch.zeros_like(x), torch.zeros_like(bias)
        by_table = torch.zeros_like(table) if ctx.needs_input_grad[1] else None
        for part, logits in _parts(x, table, bias):
            gradient = logits.sub_(sums[part, None]).exp_()
            gradient[torch.arange(len(gradient), device=x.device), targets[part]] -= 1
            gradient *= grads[0][part, None]
            by_bias += gradient.sum(0)
            gradient = gradient.to(x.dtype)
            by_x[part] = gradient @ table.to(x.dtype)
            if by_table is not None:
                by_table += gradient.T @ x[part]
        return by_x, by_table, by_bias, None


def token_loss(
    x: Float[Tensor, "m t"], table: Float[Tensor, "v t"], bias: Float[Tensor, " v"], targets: Int64[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """Return the negative log-likelihood of each target, in nats, for the logits x @ table.T + bias."""
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    loss: Tensor = _TokenLoss.apply(x, table, bias, targets)
    return loss


def _parts(x: Tensor, table: Tensor, bias: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield (rows, their logits in float32); products are in the type of x, whatever autocast is set to."""
    rows = max(1, PART // len(table))
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        with torch.autocast(x.device.type, enabled=False):
            yield part, (x[part] @ table.to(x.dtype).T).float() + bias
