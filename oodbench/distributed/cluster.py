"""Whether a run goes to Ray, to which cluster, and how many workers of which size fit there."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.errors import UserError

_PREFIX = "oodbench-worker-"
_LOCK = ".lock"  # held while the worker lives: the system lets go of it when a process dies, in whatever way


class WorkerFolder:
    """A folder of this process."""

    def __init__(self) -> None:
        sweep()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.path / f"{_LOCK}.new").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / f"{_LOCK}.new").rename(self.path / _LOCK)  # a sweeper sees none, or one that is held

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep() -> None:
    """Remove the folders of workers on this machine that have died."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Another user's, one that is held, one removed meanwhile: not for us.
        with suppress(OSError), (folder / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


OFF = ("no", "none", "off")
_VARIABLE = "RAY_ADDRESS"
_SECONDS = 5.0  # that an address has to answer
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"  # gRPC's beginning; a frame of kind 4 answers it
_SOCKET = 107  # bytes that Linux takes for the path of a socket
_SESSION = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # what Ray puts below its folder
OBJECTS = 256 * 2**20  # bytes of shared memory that a cluster of one's own takes: only plans lie there


@dataclass(frozen=True)
class Demand:
    """What a user asks of the cluster; `actors` 0: as many as fit. `threads` are those of the driver's torch."""

    device: str
    actors: int
    gpus: float
    threads: int = 1


@dataclass(frozen=True)
class Placement:
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
    if address := os.environ.get(_VARIABLE):
        return "local" if address == "local" else "auto"
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
        options |= _session_folder()
    else:
        _probe(where)
    try:
        ray.init(address=where, **options)
    except Exception as error:  # of any kind: Ray raises bare ones when a process of its own does not start
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        with contextlib.suppress(Exception):
            ray.shutdown()  # what did start
        if where == "local":
            raise UserError(f"--ray local: Ray does not start here ({reason}); try again, or use --ray no") from error
        raise UserError(_unanswered(where, reason)) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # ray exits with 15, whatever is under way
        yield
    finally:
        ray.shutdown()
        sweep()  # of workers that were killed


def _probe(where: str) -> None:
    """UserError unless something answers at an address within seconds: Ray itself would try for many minutes."""
    address = os.environ.get(_VARIABLE) or where if where == "auto" else where
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        return  # `auto`, which Ray looks for on this machine, or what it refuses by itself
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            connection.sendall(_HELLO)
            answer = connection.recv(9)
    except (OSError, ValueError) as error:  # ValueError: a host name that is none
        raise UserError(_unanswered(where, str(error))) from error
    if answer[3:4] != b"\4":
        raise UserError(_unanswered(where, "what listens there does not speak gRPC, as Ray does"))


def _unanswered(where: str, reason: str) -> str:
    chosen = os.environ.get(_VARIABLE) if where == "auto" else ""
    named = f"${_VARIABLE} {chosen}" if chosen else f"--ray {where}"
    change = f"unset {_VARIABLE}, " if chosen else ""
    return (
        f"{named}: no Ray cluster answers there ({reason}); start one with ray start --head, {change}"
        "use --ray local for this machine alone, or --ray no for this process"
    )


def _session_folder() -> dict[str, str]:
    """Where Ray puts its sockets, when the folder for temporary files has a name too long for them or not in ASCII."""
    usual = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()) / "ray"
    if len(f"{usual}{_SESSION}") <= _SOCKET and str(usual).isascii():
        return {}
    folder = Path("/tmp/ray")
    if os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
        return {"_temp_dir": str(folder)}
    raise UserError(f"Ray cannot put its sockets below {usual}: its name is too long; set $RAY_TMPDIR to a short one")


def nodes() -> list[dict[str, float]]:
    """The resources (CPU, GPU, ...) of every living node of the cluster that is connected."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def here() -> list[dict[str, float]]:
    """What `--ray local` would offer, without starting it."""
    import torch

    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def layout(demand: Demand, offered: list[dict[str, float]]) -> Placement:
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
    return Placement(actors, gpus, 1.0, share, device, demand.threads)


def _fits(node: dict[str, float], gpus: float) -> int:
    cpus = int(node.get("CPU", 0))
    if not gpus:
        return cpus
    have = node.get("GPU", 0)
    whole = int(have // gpus) if gpus >= 1 else int(have) * int(1 // gpus + 1e-9)  # a fraction stays on one GPU
    return min(cpus, whole)
