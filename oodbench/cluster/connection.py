"""Whether a run goes to Ray, to which cluster, and how many workers of which size fit there."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from oodbench.errors import UserError

OFF = ("no", "none", "off")
OBJECTS = 256 * 2**20  # bytes of shared memory that a cluster of one's own takes: only plans lie there


@dataclass(frozen=True)
class Demand:
    """What a user asks of the cluster; `actors` 0: as many as fit. `threads` are those of the driver's torch."""

    device: str
    actors: int
    gpus: float
    threads: int = 1


@dataclass(frozen=True)
class Layout:
    """Workers: how many, what each takes, how many share a node at most, and threads of torch on a CPU."""

    actors: int
    gpus: float
    cpus: float
    share: int
    device: str
    threads: int = 1

    def words(self) -> str:
        """As --dry-run prints it."""
        size = f"{self.gpus:g} GPU and {self.cpus:g} CPU" if self.gpus else f"{self.cpus:g} CPU"
        return f"{self.actors} workers with {size} each, at most {self.share} on a node"


def chosen(asked: str, device: str) -> str:
    """Where a run goes: "" for this process. By itself: RAY_ADDRESS when set, `local` with several GPUs in sight."""
    if asked:
        return "" if asked in OFF else asked
    if os.environ.get("RAY_ADDRESS"):
        return "auto"
    if device not in ("auto", "cuda"):
        return ""
    import torch

    return "local" if torch.cuda.device_count() > 1 else ""


@contextlib.contextmanager
def connected(where: str, actors: int = 0) -> Iterator[None]:
    """A connection to `local` (a cluster of one's own, ended with it), `auto` or an address; one that is there is used.

    UserError when there is no cluster. SIGTERM keeps the meaning that it had before.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a driver without GPUs is told nothing new
    import ray

    if ray.is_initialized():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if where == "local":
        cpus = max(os.cpu_count() or 1, actors)
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECTS}
    try:
        ray.init(address=where, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"--ray {where}: no Ray cluster answers there ({reason}); "
            "start one with ray start --head, or use --ray local for this machine alone"
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # ray exits with 15, whatever is under way
        yield
    finally:
        ray.shutdown()


def nodes() -> list[dict[str, float]]:
    """The resources (CPU, GPU, ...) of every living node of the cluster that is connected."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def here() -> list[dict[str, float]]:
    """What `--ray local` would offer, without starting it."""
    import torch

    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def layout(demand: Demand, offered: list[dict[str, float]]) -> Layout:
    """How many workers fit: one per GPU, or two where there is none. UserError when none fits."""
    if demand.device.startswith("cuda:"):
        raise UserError(f"--device {demand.device} names one GPU; on Ray use --device cuda, and --actors 1 for one")
    total = sum(node.get("GPU", 0) for node in offered)
    if demand.device == "cuda" and not total:
        raise UserError("--device cuda: the Ray cluster has no GPU; use --device cpu, or start nodes with --num-gpus")
    on_gpu = demand.device in ("auto", "cuda") and total > 0
    gpus = demand.gpus if on_gpu else 0.0
    fits = [_fits(node, gpus) for node in offered]
    if not sum(fits):
        size = f"{gpus:g} GPU and 1 CPU" if on_gpu else "1 CPU"
        raise UserError(f"no node of the Ray cluster has {size} for a worker; see ray status, or --gpus-per-actor")
    actors = min(demand.actors or (sum(fits) if on_gpu else 2), sum(fits))
    share = max(1, min(max(fits), math.ceil(actors / sum(1 for n in fits if n))))
    device = "cuda" if on_gpu else "cpu" if demand.device == "auto" else demand.device
    return Layout(actors, gpus, 1.0, share, device, demand.threads)


def _fits(node: dict[str, float], gpus: float) -> int:
    cpus = int(node.get("CPU", 0))
    if not gpus:
        return cpus
    have = node.get("GPU", 0)
    whole = int(have // gpus) if gpus >= 1 else int(have) * int(1 // gpus + 1e-9)  # a fraction stays on one GPU
    return min(cpus, whole)
