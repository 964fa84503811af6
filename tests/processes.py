"""The command as a process of its own, forked from one that has imported its libraries: a start takes no seconds.

Exit code, signals, working folder, environment, standard output and standard error are those of `oodbench ...` in a
shell. What a start itself does (imports, the entry point, variables that libraries read when they are imported) is
tested with the installed command instead: the fixture `installed`.

This file is also the program of the process that forks: it reads requests from a Unix socket. A request is the words,
the folder and the environment as JSON, with the two streams as file descriptors; the answers are the command's process
id, and, when it ends, its exit status.
"""

from __future__ import annotations

import atexit
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NoReturn

# What the commands import. None of these starts a thread, which a forked process would lack.
LIBRARIES = (
    "torch",
    "torchvision",
    "open_clip",
    "pandas",
    "pyarrow.parquet",
    "scipy.stats",
    "sklearn.metrics",
    "safetensors.torch",
    "rich.progress",
    "oodbench.api",
    "oodbench.cli",
)
_REQUEST = 1 << 20  # bytes


class Command:
    """A running `oodbench`, with the methods of subprocess.Popen.

    Its streams are files, which `communicate` reads; standard error may be a terminal's file descriptor instead.
    """

    def __init__(
        self,
        *words: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        terminal: int | None = None,
    ) -> None:
        self.args = list(map(str, words))
        self.returncode: int | None = None
        self._streams = [tempfile.TemporaryFile() for _ in range(2)]
        out, err = (stream.fileno() for stream in self._streams)
        request = {"words": self.args, "cwd": str(cwd or Path.cwd()), "env": dict(os.environ if env is None else env)}
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(_server()[0])
        socket.send_fds(self._socket, [json.dumps(request).encode()], [out, err if terminal is None else terminal])
        self.pid = int(self._socket.recv(64))

    def __del__(self) -> None:
        for stream in self._streams:
            stream.close()
        self._socket.close()

    def poll(self) -> int | None:
        """Return the exit code, None while the command runs."""
        try:
            return self.wait(0.0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; minus the signal's number if a signal ended the command."""
        if self.returncode is None:
            self._socket.settimeout(None if timeout is None else max(timeout, 0.001))
            try:
                answer = self._socket.recv(64)
            except TimeoutError as error:
                raise subprocess.TimeoutExpired(self.args, timeout or 0.0) from error
            self.returncode = os.waitstatus_to_exitcode(int(answer))
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the end. Return what the command wrote to standard output and to standard error."""
        self.wait(timeout)
        out, err = map(_text, self._streams)
        return out, err

    def send_signal(self, number: int) -> None:
        """Send a signal unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End the command."""
        self.send_signal(signal.SIGKILL)


def command(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, as subprocess.run does."""
    running = Command(*words, cwd=cwd, env={**os.environ, **environment})
    try:
        out, err = running.communicate(timeout=600)
    finally:
        running.kill()
    return subprocess.CompletedProcess(running.args, running.wait(), out, err)


def _text(stream: BinaryIO) -> str:
    """Return what was written to a file that another process wrote."""
    stream.seek(0)
    return stream.read().decode()


@functools.cache
def _server() -> tuple[str, subprocess.Popen[bytes]]:
    """Start the process that forks, once per test process. Return the address of its socket, and the process."""
    address = str(Path(tempfile.mkdtemp(prefix="oodbench-")) / "socket")
    server = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE)
    assert server.stdin is not None
    atexit.register(server.stdin.close)  # the server reads that, and ends
    until = time.monotonic() + 300
    while not Path(address).exists():
        assert server.poll() is None and time.monotonic() < until, "the process that forks does not start"
        time.sleep(0.05)
    return address, server


def serve(address: str) -> NoReturn:
    """Import the libraries, then fork a process for each connection until standard input is closed."""
    import select

    del sys.path[0]  # the folder of this file
    for library in LIBRARIES:
        importlib.import_module(library)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes that wait
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address + ".new")
    listener.listen(64)
    os.rename(address + ".new", address)
    while True:
        if sys.stdin in select.select([sys.stdin, listener], [], [])[0]:
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            _attend(connection)
        connection.close()


def _attend(connection: socket.socket) -> NoReturn:
    """Fork the command, and tell its process id and its exit status."""
    data, streams, _, _ = socket.recv_fds(connection, _REQUEST, 2)
    request = json.loads(data)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        connection.close()
        _be(request["words"], streams, request["cwd"], request["env"])
    for stream in streams:
        os.close(stream)
    connection.sendall(f"{pid}\n".encode())
    _, status = os.waitpid(pid, 0)
    try:
        connection.sendall(str(status).encode())
    except OSError:  # the test did not wait
        pass
    os._exit(0)


def _be(words: list[str], streams: list[int], folder: str, environment: Mapping[str, str]) -> NoReturn:
    """Be the command: set the process up as a shell would, run it, and end."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background process ignores it
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        for number, stream in zip((1, 2), streams, strict=True):
            os.dup2(stream, number)
            os.close(stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = ["oodbench", *words]
        from oodbench.cli import main

        code = _exit_code(main)
        import threading

        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def _exit_code(main: object) -> int:
    """Run the command. Return the exit code, as the interpreter does."""
    import traceback

    try:
        main()  # type: ignore[operator]
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    serve(sys.argv[1])
