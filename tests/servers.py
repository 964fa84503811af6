"""Real servers for tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

START_SECONDS = 240  # its imports take a while on a busy machine


def unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Server:
    uri: str
    group: int  # process group


@contextmanager
def serving(folder: Path, port: int, database: Path | None = None) -> Iterator[Server]:
    """An `mlflow server` process on this port, ended with its workers afterwards; `database` is copied first."""
    folder.mkdir(exist_ok=True)
    if database and not (folder / "server.db").exists():
        shutil.copy(database, folder / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", str(folder / "artifacts"), "--workers", "1"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # two more processes that nothing here needs
    with (folder / "log").open("w") as log:
        # A separate working folder, because the server writes files there.
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        end = time.monotonic() + START_SECONDS
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=2).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"mlflow server did not start: {(folder / 'log').read_text()[-2000:]}")
                time.sleep(0.3)
        yield Server(uri, process.pid)
    finally:
        with suppress(ProcessLookupError):  # the test has ended it
            os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(15)


@contextmanager
def forwarding(port: int, server: str) -> Iterator[list[int]]:
    """A port that forwards to a server, and the sizes of the messages from clients, about one per request.

    Afterwards it refuses, and its connections are cut, as by a kill of the server.
    """
    host, _, number = server.removeprefix("http://").rpartition(":")
    ends: list[socket.socket] = []
    threads: list[threading.Thread] = []
    sizes: list[int] = []

    def start(target: Callable[..., None], *arguments: Any) -> None:
        threads.append(threading.Thread(target=target, args=arguments))
        threads[-1].start()

    def pump(source: socket.socket, sink: socket.socket, sizes: list[int]) -> None:
        with suppress(OSError):
            while part := source.recv(1 << 16):
                sizes.append(len(part))
                sink.sendall(part)
            sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near = listener.accept()[0]
                far = socket.create_connection((host, int(number)))
                ends.extend((near, far))
                start(pump, near, far, sizes)
                start(pump, far, near, [])

    listener = socket.create_server(("127.0.0.1", port))
    start(accept)
    try:
        yield sizes
    finally:
        for end in (listener, *ends):
            with suppress(OSError):  # the other side may have ended it
                end.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
        for end in (listener, *ends):
            end.close()
