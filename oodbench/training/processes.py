"""The processes that train together: a single one, those that torchrun started, or an existing process group."""

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

# The other processes wait while one embeds its part of the corpus, which may take days.
TIMEOUT = datetime.timedelta(days=7)


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among `size` processes; the result of a training does not depend on their number."""

    rank: int
    size: int
    device: str

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and reports progress."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            dist.barrier()

    def gather(self, own: Tensor) -> Tensor:
        """Return the rows of all processes in the order of their ranks; every process has the same number of rows."""
        if self.size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(parts, own.contiguous())
        return torch.cat(parts)

    def all_reduce(self, gradients: Sequence[Tensor]) -> None:
        """Sum gradients over the processes, in place."""
        if self.size == 1:
            return
        flat: Float[Tensor, " n"] = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def max_over_ranks(self, number: int) -> int:
        """Return the largest number of any process."""
        if self.size == 1:
            return number
        shared = torch.tensor([number], device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def broadcast(self, number: int) -> int:
        """Return the number of rank 0."""
        if self.size == 1:
            return number
        shared = torch.tensor([number], device=self.device)
        dist.broadcast(shared, 0)
        return int(shared)


@contextmanager
def process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the existing process group, or create one for the duration if torchrun started several processes."""
    if dist.is_available() and dist.is_initialized():
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), _local_device(device))
        return
    size = _environment_number("WORLD_SIZE", "1")
    local = _local_device(device)
    if size == 1:
        yield ProcessGroup(0, 1, local)
        return
    if local.startswith("cuda"):
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if local.startswith("cuda") else "gloo", timeout=TIMEOUT)
    try:
        yield ProcessGroup(dist.get_rank(), dist.get_world_size(), local)
    finally:
        dist.destroy_process_group()


def _local_device(requested: str) -> str:
    """Return the device of this process: each of several processes has its own GPU."""
    device = pick_device(requested)
    if device == "cuda" and os.environ.get("LOCAL_RANK"):
        return f"cuda:{_environment_number('LOCAL_RANK', '')}"
    return device


def _environment_number(name: str, default: str) -> int:
    """Return a number that torchrun sets in the environment."""
    text = os.environ.get(name, default)
    if not text.isdecimal():
        raise UserError(f"${name} must be a number, not {text!r}: torchrun sets it; unset it for a single process")
    return int(text)
