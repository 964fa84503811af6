"""Processes that start at once: a server imports torch, open_clip and Ray, and forks what is asked of it.

Every worker of a Ray cluster and every command imports them, which takes longer than what the tests make them do. As a
script, this module is what Ray runs instead of its own `setup_worker.py`: it asks the server, and waits.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

VARIABLE = "OODBENCH_TESTS_PRELOADED"  # path of the server's socket
RAY = "ray"  # the first word of a request that Ray makes; else the words are those of a command
START_SECONDS = 600  # for the imports of the server, on a busy machine


@dataclass
class Forked:
    """A process that the server forked. The server tells its number, and its exit status when it ends."""

    output: Path  # a file of its standard output
    errors: Path
    _server: socket.socket
    pid: int = field(init=False)
    returncode: int | None = None

    def __post_init__(self) -> None:
        self.pid = int.from_bytes(self._server.recv(4))

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End it without a warning, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait(60)

    def poll(self) -> int | None:
        """Return the exit status, -N after signal N; None while it runs."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.returncode = int.from_bytes(self._server.recv(4), signed=True)
            self._server.close()
        return self.returncode

    def wait(self, seconds: float) -> int:
        """Return the exit status; raise TimeoutError if it runs for longer."""
        if self.returncode is None and not select.select([self._server], [], [], seconds)[0]:
            raise TimeoutError(f"process {self.pid} runs for over {seconds} s: {self.errors.read_text()[-2000:]}")
        code = self.poll()
        assert code is not None
        return code


def ask(words: list[str], files: tuple[int, int], environment: dict[str, str]) -> socket.socket:
    """Ask for a process with these files as standard output and error; return the connection that tells of it."""
    server = socket.socket(socket.AF_UNIX)
    server.connect(environment[VARIABLE])
    request = json.dumps({"words": words, "environment": environment, "folder": os.getcwd()}).encode()
    socket.send_fds(server, [len(request).to_bytes(4)], files)
    server.sendall(request)
    return server


def fork_command(*words: str, output: Path) -> Forked:
    """Run the command `oodbench WORDS` in a new process that has made its imports; it writes to OUTPUT.out and .err."""
    out, errors = output.with_suffix(".out"), output.with_suffix(".err")
    with out.open("wb") as file, errors.open("wb") as other:
        return Forked(out, errors, ask(["oodbench", *words], (file.fileno(), other.fileno()), dict(os.environ)))


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The path of the socket of a server, which ends afterwards or with this process."""
    path = str(folder / "s")
    command = [sys.executable, __file__, "--serve", path]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log)
    try:
        end = time.monotonic() + START_SECONDS
        while not os.path.exists(path):
            assert running.poll() is None and time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.05)
        yield path
    finally:
        assert running.stdin
        running.stdin.close()
        running.wait(60)


def serve(path: str) -> None:
    """Fork a process for each request until standard input ends."""
    # Not ray: it reads the variables that it gives its workers when it is imported.
    import pandas  # noqa: F401
    import pyarrow  # noqa: F401

    import oodbench.cli.run
    import oodbench.distributed.training
    import oodbench.distributed.worker
    import oodbench.encoder.openclip  # noqa: F401

    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)
    running: dict[int, tuple[int, socket.socket]] = {}  # pidfd of a process -> its number, whom to tell
    while True:
        ready = select.select([0, listener.fileno(), *running], [], [])[0]
        if 0 in ready:
            return
        for ended in [file for file in ready if file in running]:
            pid, asker = running.pop(ended)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with asker, suppress(OSError):  # who asked may be gone
                asker.sendall(code.to_bytes(4, signed=True))
            os.close(ended)
        if listener.fileno() in ready:
            asker, _ = listener.accept()
            size, files, _, _ = socket.recv_fds(asker, 4, 2)
            with asker.makefile("rb") as stream:
                request = json.loads(stream.read(int.from_bytes(size)))
            if (pid := os.fork()) == 0:
                listener.close()
                become(request, files)
            for file in files:
                os.close(file)
            running[os.pidfd_open(pid)] = pid, asker
            with suppress(OSError):
                asker.sendall(pid.to_bytes(4))


def become(request: dict[str, Any], files: list[int]) -> None:
    """Turn this fork into the process that was asked for; do not return."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start tests in the background that ignore it
    first, *words = request["words"]
    if first != RAY:
        from oodbench.cli import main

        sys.argv = request["words"]
        main()
    # What Ray's setup_worker.py does, but for exec.
    from ray._private.runtime_env.context import RuntimeEnvContext

    parser = argparse.ArgumentParser()
    parser.add_argument("--serialized-runtime-env-context", default="{}")
    parser.add_argument("--language")
    known, sys.argv = parser.parse_known_args(words)
    os.environ.update(RuntimeEnvContext.deserialize(known.serialized_runtime_env_context).env_vars)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        serve(sys.argv[2])
    else:
        with ask([RAY, *sys.argv[1:]], (1, 2), dict(os.environ)) as answers:
            answers.recv(4)
            answers.recv(4)
