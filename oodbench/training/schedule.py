"""The pairs and the learning rate of a step, computed from the step number alone, and torch's optimiser."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.errors import UserError
from oodbench.training.shots import GLYPHS

if TYPE_CHECKING:
    import torch
    from torch import nn

    from oodbench.method import Optimiser
    from oodbench.training.plan import TrainPlan


@dataclass(frozen=True)
class Schedule:
    """The steps of a training. An incomplete last batch of an epoch is dropped; the order differs between epochs.

    optimiser   batch size, learning rate and the other settings of the recipe
    pairs       pairs in the corpus
    steps       steps of the whole training
    """

    optimiser: Optimiser
    pairs: int
    steps: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Return the number of steps in an epoch."""
        return self.pairs // self.optimiser.batch

    def epoch(self, step: int) -> int:
        """Return the epoch of a step, from 0."""
        return step // self.per_epoch

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the pairs in a step's global batch."""
        epoch, number = divmod(step, self.per_epoch)
        size = self.optimiser.batch
        return _epoch_order(self.seed, epoch, self.pairs)[number * size : (number + 1) * size]

    @property
    def epochs(self) -> int:
        """Return the number of epochs, the last of which may be incomplete."""
        return self.epoch(self.steps - 1) + 1

    @property
    def warmup(self) -> int:
        """Return the number of steps of the warm-up."""
        return self.optimiser.warmup or self.optimiser.warmup_epochs * self.per_epoch

    def lr(self, step: int) -> float:
        """Return the learning rate: the warm-up, then a cosine that would reach 0 at the step after the last.

        A cosine that changes once an epoch spans the epochs of the whole training, counted from the end of the warm-up.
        """
        settings, warmup = self.optimiser, self.warmup
        if step < warmup:
            return settings.lr * (step + 1) / warmup if settings.warmup_lr is None else settings.warmup_lr
        if not settings.cosine:
            return settings.lr
        if settings.per_epoch:
            done = (self.epoch(step) - self.epoch(warmup)) / self.epochs
        else:
            done = (step - warmup) / max(self.steps - warmup, 1)
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def build_schedule(plan: TrainPlan, pairs: int) -> Schedule:
    """Return the schedule of the steps. Raise UserError if the corpus has fewer pairs than a batch.

    With fewer labelled images than a batch, the batch is all images.
    """
    optimiser, batch = plan.optimiser, plan.optimiser.batch
    if plan.shots and pairs < batch:  # images were skipped after the batch was planned
        optimiser = dataclasses.replace(optimiser, batch=(batch := pairs))
    if pairs < batch:
        raise UserError(
            f"the corpus {plan.request.captions or GLYPHS} has {pairs:,} pairs, fewer than one batch of {batch:,}; "
            f"use a smaller batch, such as --batch-size {max(1, pairs // 2)}"
        )
    steps = plan.request.steps or optimiser.epochs * (pairs // batch)
    schedule = Schedule(optimiser, pairs, steps, plan.request.seed)
    if schedule.warmup >= steps:
        asked = f"--warmup {schedule.warmup}"
        if epochs := optimiser.warmup_epochs:
            asked = f"the warm-up of {plan.job.label}, {epochs} epoch{'s'[: epochs > 1]} or {schedule.warmup} steps,"
        raise UserError(f"{asked} must be less than the {steps} steps of the training; give fewer, such as --warmup 0")
    return schedule


@lru_cache(maxsize=2)  # this epoch and the next one, whose images are prefetched
def _epoch_order(seed: int, epoch: int, pairs: int) -> npt.NDArray[np.int64]:
    return np.random.default_rng((seed, epoch)).permutation(pairs)


def parameter_groups(module: nn.Module, optimiser: Optimiser) -> list[dict[str, Any]]:
    """Return the parameter groups of the optimiser: with weight decay, and without it."""
    named = [(name, tensor) for name, tensor in module.named_parameters() if tensor.requires_grad]
    no_decay = {name for name, tensor in named if tensor.ndim < 2 or any(part in name for part in optimiser.no_decay)}
    return [
        {"params": [tensor for name, tensor in named if name not in no_decay], "weight_decay": optimiser.weight_decay},
        {"params": [tensor for name, tensor in named if name in no_decay], "weight_decay": 0.0},
    ]


def build_optimiser(module: nn.Module, settings: Optimiser) -> torch.optim.Optimizer:
    """Return AdamW or SGD for the parameters of a module that are trained."""
    import torch

    groups = [group for group in parameter_groups(module, settings) if group["params"]]
    if settings.kind == "sgd":
        return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(groups, lr=settings.lr, betas=settings.betas, eps=settings.eps)
