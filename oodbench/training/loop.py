"""One step of training, whose loss and gradient are those of the whole batch however it is cut into chunks.

The loss may compare every pair with every other. Chunks are embedded without gradient first; the loss of all of them,
gathered over the processes, gives the gradient with respect to each embedding; then each chunk is embedded again and
that gradient goes through it (Gao et al. 2021, arXiv:2101.06983, call it GradCache).
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oodbench.errors import Diverged
from oodbench.method import Pairs, TrainedMethod
from oodbench.training.batches import PairBatches, autocast
from oodbench.training.processes import ProcessGroup
from oodbench.training.schedule import Schedule, groups

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class StepReport:
    """What a step tells: its number from 1, the terms of the loss, whose sum is the loss, and pairs a second."""

    step: int
    terms: dict[str, float]
    lr: float
    speed: float

    @property
    def loss(self) -> float:
        """The loss before the step."""
        return sum(self.terms.values())


class Trainer:
    """A module, its optimiser, and how a step changes them."""

    def __init__(self, method: TrainedMethod[Any], feed: PairBatches, world: ProcessGroup, compute: str) -> None:
        schedule = feed.schedule
        torch.manual_seed(schedule.seed)
        device = feed.encoder.device
        self.module = method.module(feed.encoder).to(device).train()
        self.schedule: Schedule = schedule
        self.parameters = [one for one in self.module.parameters() if one.requires_grad]
        recipe = schedule.optimiser
        parts = [group for group in groups(self.module, recipe) if group["params"]]
        self.optimiser = torch.optim.AdamW(parts, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps)
        self.scaler = torch.amp.GradScaler(device.type, enabled=compute == "fp16")
        self.world = world
        self._method, self._feed, self._compute = method, feed, compute
        self._device = device

    def step(self, number: int) -> StepReport:
        """Carry out a step, counted from 0. Raises Diverged before anything is changed by a loss that is no number."""
        began = time.perf_counter()
        chunks = self._inputs(number)
        terms = self._backward(number, chunks)
        lr = self.schedule.lr(number)
        self._update(number, lr)
        speed = self.schedule.optimiser.batch / (time.perf_counter() - began)
        return StepReport(number + 1, terms, lr, speed)

    def _inputs(self, number: int) -> list[tuple[int, Inputs]]:
        """What embed() reads, and the position where each chunk begins."""
        with torch.no_grad():
            return [(_start(one), self._method.inputs(one, self._feed.encoder)) for one in self._pairs(number)]

    def _pairs(self, number: int) -> list[Pairs]:
        return list(self._feed.chunks(number, self.world))

    def _embed(self, number: int, start: int, inputs: Inputs) -> dict[str, Tensor]:
        """Embed a chunk; what is drawn meanwhile, as by dropout, follows from its place, so it is the same again."""
        torch.manual_seed(int(np.random.SeedSequence((self.schedule.seed, number, start)).generate_state(1)[0]))
        with autocast(self._device, self._compute):
            embedded = self._method.embed(self.module, inputs)
        return {name: one.float() if one.is_floating_point() else one for name, one in embedded.items()}

    def _backward(self, number: int, chunks: list[tuple[int, Inputs]]) -> dict[str, float]:
        """Fill the gradients, summed over all processes; the terms of the loss."""
        self.optimiser.zero_grad()
        whole = len(chunks) == 1  # then its graph is kept, and nothing is embedded twice
        with torch.set_grad_enabled(whole):
            embedded = [self._embed(number, start, inputs) for start, inputs in chunks]
        lengths = [len(next(iter(one.values()))) for one in embedded]
        leaves = {name: self._gathered([one[name].detach() for one in embedded]) for name in embedded[0]}
        with torch.enable_grad():
            terms = self._method.loss(leaves)
            total = torch.stack(list(terms.values())).sum()
        told = {name: float(term.detach()) for name, term in terms.items()}
        if not np.isfinite(sum(told.values())):
            named = ", ".join(f"{name} {value}" for name, value in told.items())
            raise Diverged(f"the loss of step {number + 1} is no number ({named})")
        torch.autograd.backward(self.scaler.scale(total))
        begin = self.world.rank * sum(lengths)
        for i, (start, inputs) in enumerate(chunks):
            own = slice(begin, begin + lengths[i])
            begin = own.stop
            with torch.enable_grad():
                again = embedded[i] if whole else self._embed(number, start, inputs)
            _through(again, leaves, own)
        return told

    def _gathered(self, parts: list[Tensor]) -> Tensor:
        """One tensor of the global batch, a leaf of the loss's graph."""
        tensor = self.world.gather(torch.cat(parts))
        return tensor.requires_grad_() if tensor.is_floating_point() else tensor

    def _update(self, number: int, lr: float) -> None:
        for one in self.parameters:
            if one.grad is None:  # on every process alike, whatever its chunks held
                one.grad = torch.zeros_like(one)
        gradients = [one.grad for one in self.parameters if one.grad is not None]
        self.world.add(gradients)
        if not self.scaler.is_enabled():  # the scaler leaves such steps out, and scales less from then on
            norms = torch.stack([one.norm() for one in gradients])
            if not bool(norms.isfinite().all()):
                raise Diverged(f"the gradient of step {number + 1} is no number")
        eps = self._eps()
        for group in self.optimiser.param_groups:
            group["lr"], group["eps"] = lr, eps
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def _eps(self) -> float:
        """The eps of the next step of torch's AdamW."""
        recipe = self.schedule.optimiser
        if not recipe.epsilon_hat:
            return recipe.eps
        # counted by the optimiser: the scaler leaves steps out
        made = max((int(state["step"]) for state in self.optimiser.state.values()), default=0)
        return recipe.eps / math.sqrt(1 - recipe.betas[1] ** (made + 1))


def _start(pairs: Pairs) -> int:
    return int(pairs.positions[0])


def _through(embedded: Mapping[str, Tensor], leaves: Mapping[str, Tensor], own: slice) -> None:
    """Send the loss's gradient with respect to a chunk's embeddings on to the parameters."""
    outputs, gradients = [], []
    for name, one in embedded.items():
        gradient = leaves[name].grad
        if one.requires_grad and gradient is not None:
            outputs.append(one)
            gradients.append(gradient[own])
    if outputs:
        torch.autograd.backward(outputs, gradients)
