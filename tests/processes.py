"""Processes that start fast: a server imports torch, open_clip and pandas once, and forks for every request.

A forked process has the requested arguments, folder, environment, standard output and standard error, receives signals
and ends with its own exit status. This starts commands (`Command`, `command`), other Python programs, the `oodbench` of
shell scripts (`script_folder`) and the workers of Ray clusters (`RAY_WORKER`). The start itself (imports, the entry
point, variables that libraries read when they are imported) is tested with the installed command instead.

Run as a script, this file is the server or the client that sends a request and waits.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

VARIABLE = "OODBENCH_TESTS_PROCESSES"  # holds the path of the server's socket
RAY_WORKER = __file__  # what Ray runs instead of its own setup_worker.py
START_SECONDS = 300  # for the imports of the server


class Command:
    """A running `oodbench`, or another Python program, with the methods of subprocess.Popen.

    Its streams are files, which `communicate` reads; standard error may be a terminal's file descriptor instead.
    """

    def __init__(
        self,
        *words: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        terminal: int | None = None,
        program: str | Path = "oodbench",
    ) -> None:
        self.args = list(map(str, words))
        self.returncode: int | None = None
        self._streams = [tempfile.TemporaryFile() for _ in range(2)]
        out, err = (stream.fileno() for stream in self._streams)
        environment = dict(os.environ if env is None else env)
        files = (out, err if terminal is None else terminal)
        self._server = ask(server(), [str(program), *self.args], files, str(cwd or Path.cwd()), environment)
        self.pid = int.from_bytes(self._server.recv(4))

    def __del__(self) -> None:
        for stream in self._streams:
            stream.close()
        self._server.close()

    def poll(self) -> int | None:
        """Return the exit code, minus the number of the signal that ended the command; None while it runs."""
        if self.returncode is None and select.select([self._server], [], [], 0)[0]:
            self.returncode = int.from_bytes(self._server.recv(4), signed=True)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code when the command ends. Raise subprocess.TimeoutExpired if it runs for longer."""
        if self.returncode is None and not select.select([self._server], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0, stderr=self._text(1).encode())
        code = self.poll()
        assert code is not None
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end. Return what the command wrote to standard output and to standard error."""
        self.wait(timeout)
        return self._text(0), self._text(1)

    def send_signal(self, number: int) -> None:
        """Send a signal unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command without a warning, and wait until it is gone."""
        self.send_signal(signal.SIGKILL)
        self.wait(60)

    def _text(self, stream: int) -> str:
        """Return what was written so far."""
        size = os.fstat(self._streams[stream].fileno()).st_size
        return os.pread(self._streams[stream].fileno(), size, 0).decode(errors="replace")


def command(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as subprocess.run does."""
    running = Command(*words, cwd=cwd, env={**os.environ, **environment})
    try:
        out, err = running.communicate(timeout=600)
    finally:
        running.kill()
    return subprocess.CompletedProcess(running.args, running.wait(), out, err)


@functools.cache
def script_folder() -> str:
    """Return a folder for the front of PATH with a client of the server under the name `oodbench`."""
    folder = Path(tempfile.mkdtemp(prefix="oodbench-bin-"))
    program = folder / "oodbench"
    python = f"{sys.executable} -S -E"  # without site-packages, so that it starts in milliseconds
    program.write_text(f'#!/bin/sh\n{VARIABLE}={server()} exec {python} {__file__} --command "$@"\n')
    program.chmod(0o755)
    return str(folder)


@functools.cache
def server() -> str:
    """Start the server of this process, unless it runs. Return the path of its socket."""
    path = str(Path(tempfile.mkdtemp(prefix="oodbench-")) / "socket")
    log = Path(path).with_name("log")
    with log.open("wb") as file:
        running = subprocess.Popen([sys.executable, __file__, "--serve", path], stdin=subprocess.PIPE, stderr=file)
    assert running.stdin is not None

    def end() -> None:
        assert running.stdin is not None
        running.stdin.close()  # the server reads that, and ends
        running.wait(60)

    atexit.register(end)
    until = time.monotonic() + START_SECONDS
    while not os.path.exists(path):
        assert running.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.05)
    return path


def ask(
    path: str, words: Sequence[str], files: tuple[int, int], folder: str, environment: Mapping[str, str]
) -> socket.socket:
    """Request a process with these standard streams. The connection returns its process id and its exit status."""
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    request = json.dumps({"words": list(words), "folder": folder, "environment": dict(environment)}).encode()
    socket.send_fds(connection, [len(request).to_bytes(4)], files)
    connection.sendall(request)
    return connection


def serve(path: str) -> None:
    """Fork a process for each request until standard input ends."""
    # Not ray: it reads the variables that it gives its workers when it is imported. None of these starts a thread,
    # which a forked process would lack.
    import pandas  # noqa: F401
    import sklearn.metrics  # noqa: F401

    import oodbench.api
    import oodbench.cli.run
    import oodbench.distributed.training
    import oodbench.distributed.worker
    import oodbench.encoder.openclip  # noqa: F401

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"{path}.new")
    listener.listen(64)
    os.rename(f"{path}.new", path)
    running: dict[int, tuple[int, socket.socket]] = {}  # pidfd of a process -> its process id, whom to tell
    while True:
        waited: list[int | socket.socket] = [0, listener, *running]
        ready = select.select(waited, [], [])[0]
        if 0 in ready:
            return
        for ended in [one for one in running if one in ready]:
            pid, asker = running.pop(ended)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            with asker, suppress(OSError):  # who asked may be gone
                asker.sendall(code.to_bytes(4, signed=True))
            os.close(ended)
        if listener in ready:
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


def become(request: dict[str, Any], files: Sequence[int]) -> NoReturn:
    """Turn this fork into the requested process."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, file in enumerate(files, 1):
        os.dup2(file, number)
        os.close(file)
    # As the interpreter opens them when it starts.
    sys.stdout = open(1, "w", buffering=1 if os.isatty(1) else -1, encoding="utf-8", closefd=False)
    sys.stderr = open(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.path[:0] = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    os.chdir(request["folder"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start tests in the background that ignore it
    sys.argv = request["words"]
    if sys.argv[0] == "oodbench":
        from oodbench.cli import main

        main()
        sys.exit()
    import runpy

    if sys.argv[0] == "ray":  # what Ray's setup_worker.py does, but for exec
        import argparse

        from ray._private.runtime_env.context import RuntimeEnvContext

        parser = argparse.ArgumentParser()
        parser.add_argument("--serialized-runtime-env-context", default="{}")
        parser.add_argument("--language")
        known, sys.argv = parser.parse_known_args()
        os.environ.update(RuntimeEnvContext.deserialize(known.serialized_runtime_env_context).env_vars)
    runpy.run_path(sys.argv[0], run_name="__main__")
    sys.exit()


def wait_for(words: Sequence[str]) -> int:
    """Request a process with the streams and the environment of this one. Return its exit code."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    with ask(os.environ[VARIABLE], words, (1, 2), os.getcwd(), environment) as answers:
        pid = int.from_bytes(answers.recv(4))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda caught, frame: os.kill(pid, caught))
        return int.from_bytes(answers.recv(4), signed=True)


if __name__ == "__main__":
    if sys.argv[1] == "--serve":
        del sys.path[0]  # the folder of this file
        serve(sys.argv[2])
    elif sys.argv[1] == "--command":
        code = wait_for(["oodbench", *sys.argv[2:]])
        sys.exit(code if code >= 0 else 128 - code)
    else:
        wait_for(["ray", *sys.argv[1:]])
