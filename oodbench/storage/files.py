"""Paths and files: expansion of `~`, checked reading, atomic writing."""

from __future__ import annotations

import codecs
import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from oodbench.errors import UserError


def expand(path: Path | str, given: str = "the path") -> Path:
    """Return a path with `~` replaced by the home folder. Raise UserError if there is no home folder.

    given  the option or variable that the path comes from, for the message
    """
    try:
        if "\0" in str(path):
            raise RuntimeError("a file name cannot contain a NUL byte")
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{given} {path} cannot be read: {error}") from error


def real_path(path: Path | str) -> Path:
    """Expand `~`, make the path absolute and resolve links; unlike Path.resolve, do not raise for a circular link."""
    return Path(os.path.realpath(expand(path)))


def read_text(path: Path, given: str) -> str:
    """Return the text of a file: UTF-8 with or without a byte order mark, or UTF-16 with one.

    Raise UserError, with a message that begins with `given`, for anything else.
    """
    try:
        if path.exists() and not path.is_file() and not str(path).startswith("/dev/fd/"):  # `<(...)` of a shell
            raise UserError(f"{given} {path} is not a file")
        raw = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise UserError(f"{given} {path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{given} {path} is not text in UTF-8 (byte {error.start + 1}); save it in UTF-8") from error


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` after the block, and removed if the block raises.

    The content is fsynced before the rename, so that it survives a power failure. Creates the parent folder. If several
    processes write the same file, the last one wins. A device is written to directly.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_char_device() or path.is_block_device():  # replacing it would leave a file instead of /dev/null
        yield path
        return
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")  # unique across hosts, too
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        if not error.filename or error.filename == str(partial):
            error.filename = str(path)  # the path the user knows; the error for a full disk has none
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def locked(path: Path, busy: str, *, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on a lock file, created if necessary. Raise UserError(busy) if another process holds it.

    With `wait`, wait for the other process instead.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(busy) from error
        yield


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raise UserError for anything else, without waiting for the writer of a FIFO."""
    check_regular(path, os.stat(path).st_mode)  # a socket cannot be opened at all
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        check_regular(path, os.fstat(number).st_mode)
    except UserError:
        os.close(number)
        raise
    return open(number, "rb")


def check_regular(path: Path | str, mode: int) -> None:
    """Raise UserError if a file mode is not that of a regular file."""
    if what := irregular(mode):
        raise UserError(f"{path} is {what}, not a file; remove it")


def irregular(mode: int) -> str:
    """Return the kind of a special file, such as "a FIFO"; "" for a regular file."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return kinds.get(stat.S_IFMT(mode), "")
