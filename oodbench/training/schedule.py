"""What a step does, from its number alone: which pairs it sees, at which learning rate."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

    from oodbench.method import Optimiser


@dataclass(frozen=True)
class Schedule:
    """Steps over a corpus; an epoch's last pairs that fill no batch are left out, others each epoch.

    pairs   in the corpus
    steps   of the whole training
    """

    optimiser: Optimiser
    pairs: int
    steps: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return self.pairs // self.optimiser.batch

    def epoch(self, step: int) -> int:
        """Epoch of a step, from 0."""
        return step // self.per_epoch

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Pairs of a step's global batch."""
        epoch, number = divmod(step, self.per_epoch)
        size = self.optimiser.batch
        return _order(self.seed, epoch, self.pairs)[number * size : (number + 1) * size]

    def lr(self, step: int) -> float:
        """Learning rate: linear warm-up, then a cosine that would reach 0 with the step after the last."""
        peak, warmup = self.optimiser.lr, self.optimiser.warmup
        if step < warmup:
            return peak * (step + 1) / warmup
        if not self.optimiser.cosine:
            return peak
        done = (step - warmup) / max(self.steps - warmup, 1)
        return peak * 0.5 * (1 + math.cos(math.pi * done))


@lru_cache(maxsize=2)  # the epoch, and the next one for what is prepared ahead
def _order(seed: int, epoch: int, pairs: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(pairs)


def groups(module: nn.Module, optimiser: Optimiser) -> list[dict[str, Any]]:
    """Parameters with and without weight decay."""
    named = [(name, one) for name, one in module.named_parameters() if one.requires_grad]
    no_decay = {name for name, one in named if one.ndim < 2 or any(part in name for part in optimiser.no_decay)}
    return [
        {"params": [one for name, one in named if name not in no_decay], "weight_decay": optimiser.weight_decay},
        {"params": [one for name, one in named if name in no_decay], "weight_decay": 0.0},
    ]
