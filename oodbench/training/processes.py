"""The processes that train together: one, those that torchrun started, or a group that is there already."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from oodbench.errors import UserError
from oodbench.pipeline.task import pick_device

# The others wait while one embeds its share of the corpus, which may take days.
PATIENCE = datetime.timedelta(days=7)


@dataclass(frozen=True)
class ProcessGroup:
    """This process's place among `size`; results do not depend on how many there are."""

    rank: int
    size: int
    device: str

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            dist.barrier()

    def gather(self, own: Tensor) -> Tensor:
        """The rows of all processes, in their order; each has the same number."""
        if self.size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    def add(self, gradients: Sequence[Tensor]) -> None:
        """Sum gradients over the processes, in place."""
        if self.size == 1:
            return
        flat: Float[Tensor, " n"] = torch.cat([one.reshape(-1) for one in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [one.numel() for one in gradients])
        for one, part in zip(gradients, parts, strict=True):
            one.copy_(part.view_as(one))

    def most(self, number: int) -> int:
        """The largest number that any process has."""
        if self.size == 1:
            return number
        shared = torch.tensor([number], device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def told(self, number: int) -> int:
        """The number that the first process has."""
        if self.size == 1:
            return number
        shared = torch.tensor([number], device=self.device)
        dist.broadcast(shared, 0)
        return int(shared)


@contextmanager
def joined(device: str) -> Iterator[ProcessGroup]:
    """The world of this process; a group is made, and taken down at the end, only where torchrun asks for one."""
    if dist.is_available() and dist.is_initialized():
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), _own(device))
        return
    size = _given("WORLD_SIZE", "1")
    chosen = _own(device)
    if size == 1:
        yield ProcessGroup(0, 1, chosen)
        return
    if chosen.startswith("cuda"):
        torch.cuda.set_device(chosen)
    dist.init_process_group("nccl" if chosen.startswith("cuda") else "gloo", timeout=PATIENCE)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def _own(asked: str) -> str:
    """The device of this process: with several, each has a GPU of its own."""
    device = pick_device(asked)
    return f"cuda:{_given('LOCAL_RANK', '')}" if device == "cuda" and os.environ.get("LOCAL_RANK") else device


def _given(name: str, default: str) -> int:
    """A number that torchrun sets in the environment."""
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise UserError(f"${name} is {text!r}, which is no number: torchrun sets it, one process alone needs none")
    return int(text)
