"""The Ray cluster of a run: its address, the connection, and the number and size of workers that fit on it."""

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
_LOCK_FILE = ".lock"  # locked while the worker runs; the system releases the lock however the process ends


class WorkerFolder:
    """A temporary folder of one worker process, with a lock that tells other processes that it is in use."""

    def __init__(self) -> None:
        remove_stale_folders()
        self.path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        self._lock = (self.path / f"{_LOCK_FILE}.new").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        (self.path / f"{_LOCK_FILE}.new").rename(self.path / _LOCK_FILE)  # others see no lock file, or a locked one

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_stale_folders() -> None:
    """Remove the folders that dead workers left on this machine."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # Skips folders of other users, folders in use, and folders that were removed meanwhile.
        with suppress(OSError), (folder / _LOCK_FILE).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


NO_RAY = ("no", "none", "off")
_VARIABLE = "RAY_ADDRESS"
_ANSWER_SECONDS = 5.0  # within which an address must answer
# The beginning of a gRPC connection; the server answers with a frame of type 4.
_GRPC_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0"
_MAX_SOCKET_PATH = 107  # bytes; the limit of Linux
_SESSION = "/session_2026-01-01_00-00-00_000000_0000000/sockets/plasma_store"  # path that Ray appends to its folder
OBJECT_STORE_BYTES = 256 * 2**20  # shared memory of a local cluster: only plans are kept there


@dataclass(frozen=True)
class ResourceRequest:
    """The workers that a user asks for.

    device    auto, cpu or cuda
    actors    number of workers; 0 for as many as fit
    gpus      GPUs per worker; may be a fraction
    threads   threads of the driver's torch
    """

    device: str
    actors: int
    gpus: float
    threads: int = 1


@dataclass(frozen=True)
class Placement:
    """The workers that fit on the cluster.

    actors        number of workers
    gpus, cpus    resources of each
    max_per_node  largest number of workers on a node
    threads       threads of torch in a worker on a CPU
    """

    actors: int
    gpus: float
    cpus: float
    max_per_node: int
    device: str
    threads: int = 1

    def describe(self) -> str:
        """Return the line that --dry-run prints."""
        size = f"{self.gpus:g} GPU and {self.cpus:g} CPU" if self.gpus else f"{self.cpus:g} CPU"
        return f"{self.actors} workers with {size} each, at most {self.max_per_node} on a node"


def cluster_address(requested: str, device: str) -> str:
    """Return the address that Ray connects to, `local` to start a cluster, or "" to run in this process.

    If none is requested, that is $RAY_ADDRESS, or `local` on a machine with several GPUs.
    """
    if requested:
        return "" if requested in NO_RAY else requested
    if address := os.environ.get(_VARIABLE):
        return "local" if address == "local" else "auto"
    if device not in ("auto", "cuda"):
        return ""
    import torch

    return "local" if torch.cuda.device_count() > 1 else ""


@contextlib.contextmanager
def connect(address: str, actors: int = 0) -> Iterator[None]:
    """Connect to `auto` or an address, or start a cluster for the duration with `local`; reuse an open connection.

    Raise UserError if there is no cluster. The handler of SIGTERM is kept.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray warns about it on a driver without GPUs
    import ray

    if ray.is_initialized():
        yield
        return
    sigterm_handler = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        cpus = max(os.cpu_count() or 1, actors)
        options |= {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
        options |= _session_folder()
    else:
        _check_address(address)
    try:
        ray.init(address=address, **options)
    except Exception as error:  # Ray raises plain Exceptions when one of its processes does not start
        reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        with contextlib.suppress(Exception):
            ray.shutdown()  # the processes that did start
        if address == "local":
            raise UserError(f"--ray local: Ray did not start ({reason}); try again, or use --ray no") from error
        raise UserError(_no_cluster_message(address, reason)) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, sigterm_handler)  # Ray's handler exits at once
        yield
    finally:
        ray.shutdown()
        remove_stale_folders()  # killed workers leave their folders


def _check_address(address: str) -> None:
    """Raise UserError unless a gRPC server answers at once: Ray itself would retry for many minutes."""
    resolved = os.environ.get(_VARIABLE) or address if address == "auto" else address
    host, _, port = resolved.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65_535:
        return  # `auto` without $RAY_ADDRESS, or an address that Ray itself rejects
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
            if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
                return
            connection.sendall(_GRPC_PREFACE)
            answer = connection.recv(9)
    except (OSError, ValueError) as error:  # ValueError: an invalid host name
        raise UserError(_no_cluster_message(address, str(error))) from error
    if answer[3:4] != b"\4":
        raise UserError(_no_cluster_message(address, "the server there does not speak gRPC, as Ray does"))


def _no_cluster_message(address: str, reason: str) -> str:
    variable = os.environ.get(_VARIABLE) if address == "auto" else ""
    named = f"${_VARIABLE} {variable}" if variable else f"--ray {address}"
    change = f"unset {_VARIABLE}, " if variable else ""
    return (
        f"{named}: no Ray cluster answers there ({reason}); start one with ray start --head, {change}"
        "use --ray local for this machine alone, or --ray no for this process"
    )


def _session_folder() -> dict[str, str]:
    """Return the option for Ray's folder of sockets if the default path is too long for a socket or not ASCII."""
    usual = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or tempfile.gettempdir()) / "ray"
    if len(f"{usual}{_SESSION}") <= _MAX_SOCKET_PATH and str(usual).isascii():
        return {}
    folder = Path("/tmp/ray")
    if os.access(folder if folder.is_dir() else folder.parent, os.W_OK):
        return {"_temp_dir": str(folder)}
    raise UserError(f"Ray cannot create its sockets in {usual}: its path is too long; set $RAY_TMPDIR to a short one")


def cluster_nodes() -> list[dict[str, float]]:
    """Return the resources (CPU, GPU, ...) of every living node of the connected cluster."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def local_nodes() -> list[dict[str, float]]:
    """Return the resources that `--ray local` would have, without starting it."""
    import torch

    return [{"CPU": float(os.cpu_count() or 1), "GPU": float(torch.cuda.device_count())}]


def place_workers(request: ResourceRequest, nodes: list[dict[str, float]]) -> Placement:
    """Return how many workers fit on the nodes: one per GPU, or two if there is no GPU, unless requested otherwise.

    Raise UserError if none fits.
    """
    if request.device.startswith("cuda:"):
        raise UserError(f"--device {request.device} names one GPU; on Ray use --device cuda, with --actors 1 for one")
    total = sum(node.get("GPU", 0) for node in nodes)
    if request.device == "cuda" and not total:
        raise UserError("--device cuda: the Ray cluster has no GPU; use --device cpu, or start nodes with --num-gpus")
    on_gpu = request.device in ("auto", "cuda") and total > 0
    gpus = request.gpus if on_gpu else 0.0
    fit = [_workers_that_fit(node, gpus) for node in nodes]
    if not sum(fit):
        size = f"{gpus:g} GPU and 1 CPU" if on_gpu else "1 CPU"
        raise UserError(f"no node of the Ray cluster has {size} for a worker; see ray status, or --gpus-per-actor")
    actors = min(request.actors or (sum(fit) if on_gpu else 2), sum(fit))
    max_per_node = max(1, min(max(fit), math.ceil(actors / sum(1 for n in fit if n))))
    device = "cuda" if on_gpu else "cpu" if request.device == "auto" else request.device
    return Placement(actors, gpus, 1.0, max_per_node, device, request.threads)


def _workers_that_fit(node: dict[str, float], gpus: float) -> int:
    """Return how many workers fit on a node."""
    cpus = int(node.get("CPU", 0))
    if not gpus:
        return cpus
    available = node.get("GPU", 0)
    per_gpu = int(1 // gpus + 1e-9)  # workers with a fraction of a GPU do not span two GPUs
    return min(cpus, int(available // gpus) if gpus >= 1 else int(available) * per_gpu)
