"""One training step. Its loss and gradient are those of the whole batch, however the batch is divided into chunks.

The loss may compare every pair with every other, so this follows GradCache (Gao et al. 2021, arXiv:2101.06983):
embed every chunk without gradient; gather the embeddings of all processes; compute the loss and its gradient with
respect to each embedding; then embed each chunk again and backpropagate that gradient through it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from oodbench.errors import Diverged
from oodbench.method import TrainedMethod
from oodbench.method.method import make_module
from oodbench.training.batches import PairBatches, autocast
from oodbench.training.processes import ProcessGroup
from oodbench.training.schedule import Schedule, build_optimiser

Inputs = dict[str, Tensor]


@dataclass(frozen=True)
class StepReport:
    """The result of one step.

    step    number of the step, from 1
    terms   terms of the loss before the step; the loss is their sum
    lr      learning rate
    speed   pairs per second
    """

    step: int
    terms: dict[str, float]
    lr: float
    speed: float

    @property
    def loss(self) -> float:
        """Return the loss before the step."""
        return sum(self.terms.values())


class Trainer:
    """The trained module with its optimiser; step() updates them."""

    def __init__(self, method: TrainedMethod[Any], batches: PairBatches, processes: ProcessGroup, compute: str) -> None:
        schedule = batches.schedule
        torch.manual_seed(schedule.seed)
        device = batches.encoder.device
        self.module = make_module(method, batches.encoder, batches.data.classes).to(device).train()
        self.schedule: Schedule = schedule
        self.parameters = [parameter for parameter in self.module.parameters() if parameter.requires_grad]
        self.optimiser = build_optimiser(self.module, schedule.optimiser)
        self.scaler = torch.amp.GradScaler(device.type, enabled=compute == "fp16")
        self.processes = processes
        self._method, self._batches, self._compute = method, batches, compute
        self._device = device

    def step(self, number: int) -> StepReport:
        """Run step `number`, from 0. Raise Diverged, with the module unchanged, if the loss is not finite."""
        began = time.perf_counter()
        lr = self.schedule.lr(number)
        with _deterministic(self._device):
            terms = self._backward(number, self._inputs(number))
            self._update(number, lr)
        speed = self.schedule.optimiser.batch / (time.perf_counter() - began)
        return StepReport(number + 1, terms, lr, speed)

    def _inputs(self, number: int) -> list[tuple[int, Inputs]]:
        """Return for each chunk the position of its first pair in the global batch, and the inputs of embed()."""
        chunks = list(self._batches.chunks(number, self.processes))
        with torch.no_grad():
            return [(int(pairs.positions[0]), self._method.inputs(pairs, self._batches.encoder)) for pairs in chunks]

    def _embed(self, number: int, start: int, inputs: Inputs) -> dict[str, Tensor]:
        """Embed a chunk. Its position seeds dropout and the like, so that embedding it again gives the same values."""
        torch.manual_seed(int(np.random.SeedSequence((self.schedule.seed, number, start)).generate_state(1)[0]))
        with autocast(self._device, self._compute):
            embedded = self._method.embed(self.module, inputs)
        return {name: value.float() if value.is_floating_point() else value for name, value in embedded.items()}

    def _backward(self, number: int, chunks: list[tuple[int, Inputs]]) -> dict[str, float]:
        """Compute this process's part of the gradients; return the terms of the loss of the global batch."""
        self.optimiser.zero_grad()
        single = len(chunks) == 1  # its graph is kept, and it is not embedded again
        with torch.set_grad_enabled(single):
            embedded = [self._embed(number, start, inputs) for start, inputs in chunks]
        lengths = [len(next(iter(chunk.values()))) for chunk in embedded]
        leaves = {name: self._gather([chunk[name].detach() for chunk in embedded]) for name in embedded[0]}
        with torch.enable_grad():
            terms = self._method.loss(leaves)
            total = torch.stack(list(terms.values())).sum()
        values = {name: float(term.detach()) for name, term in terms.items()}
        if not np.isfinite(sum(values.values())):
            listed = ", ".join(f"{name} {value}" for name, value in values.items())
            raise Diverged(f"the loss of step {number + 1} is not finite ({listed})")
        torch.autograd.backward(self.scaler.scale(total))
        row = self.processes.rank * sum(lengths)
        for i, (start, inputs) in enumerate(chunks):
            rows = slice(row, row + lengths[i])
            row = rows.stop
            with torch.enable_grad():
                chunk = embedded[i] if single else self._embed(number, start, inputs)
            _backpropagate(chunk, leaves, rows)
        return values

    def _gather(self, parts: list[Tensor]) -> Tensor:
        """Return one tensor of the global batch, a leaf of the loss's graph."""
        tensor = self.processes.gather(torch.cat(parts))
        return tensor.requires_grad_() if tensor.is_floating_point() else tensor

    def _update(self, number: int, lr: float) -> None:
        """Sum the gradients over the processes and let the optimiser apply them."""
        for parameter in self.parameters:
            if parameter.grad is None:  # all processes must reduce the same tensors
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        self.processes.all_reduce(gradients)
        if not self.scaler.is_enabled():  # with a scaler, such steps are skipped and the scale is reduced
            norms = torch.stack([gradient.norm() for gradient in gradients])
            if not bool(norms.isfinite().all()):
                raise Diverged(f"the gradient of step {number + 1} is not finite")
        changed = {"lr": lr} if self.schedule.optimiser.kind == "sgd" else {"lr": lr, "eps": self._eps()}
        for group in self.optimiser.param_groups:
            group.update(changed)
        self.scaler.step(self.optimiser)
        self.scaler.update()

    def _eps(self) -> float:
        """Return the eps for torch's AdamW at the next step, which depends on the step for epsilon_hat."""
        settings = self.schedule.optimiser
        if not settings.epsilon_hat:
            return settings.eps
        # The optimiser's step count, because the scaler skips steps.
        done = max((int(state["step"]) for state in self.optimiser.state.values()), default=0)
        return settings.eps / math.sqrt(1 - settings.betas[1] ** (done + 1))


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, use torch's deterministic algorithms.

    Otherwise the gradient of `rows[index]` is summed in the order of the threads, and slowly, as they wait for each
    other. torch warns if an operation has no deterministic algorithm. On a GPU many have none, and this does nothing.
    """
    if device.type != "cpu":
        yield
        return
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    settings.fill_uninitialized_memory = False  # a debugging aid that fills every new tensor with NaN
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        settings.fill_uninitialized_memory = filled


def _backpropagate(embedded: Mapping[str, Tensor], leaves: Mapping[str, Tensor], rows: slice) -> None:
    """Backpropagate the loss's gradient with respect to a chunk's embeddings to the parameters."""
    outputs, gradients = [], []
    for name, value in embedded.items():
        gradient = leaves[name].grad
        if value.requires_grad and gradient is not None:
            outputs.append(value)
            gradients.append(gradient[rows])
    if outputs:
        torch.autograd.backward(outputs, gradients)
