"""Files written whole or not at all, also when the process or the machine dies."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from oodbench.errors import UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A hidden name beside `path` to write to: after the block it is on the disk as `path`; after an error, nowhere.

    Makes the folder. Several processes may write one file: the last one to end wins. A device is written to as it is.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_char_device() or path.is_block_device():  # to replace it would leave a file in the place of /dev/null
        yield path
        return
    partial = path.with_name(f".{path.name[:40]}.{secrets.token_hex(8)}.tmp")  # of two hosts, too
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
        _sync(path.parent)
    except OSError as error:
        if not error.filename or error.filename == str(partial):
            error.filename = str(path)  # the name that the user knows: a full disk is told without one
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def regular(path: Path) -> BinaryIO:
    """A regular file opened for reading; UserError when it is none, without waiting for a FIFO's writer."""
    check_regular(path, os.stat(path).st_mode)  # a socket cannot be opened at all
    number = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        check_regular(path, os.fstat(number).st_mode)
    except UserError:
        os.close(number)
        raise
    return open(number, "rb")


def check_regular(path: Path | str, mode: int) -> None:
    """UserError for what is no regular file."""
    what = irregular(mode)
    if what:
        raise UserError(f"{path} is {what}, no file; take it away")


def irregular(mode: int) -> str:
    """What is no regular file, in words; "" for one."""
    kinds = {
        stat.S_IFDIR: "a folder",
        stat.S_IFIFO: "a FIFO",
        stat.S_IFSOCK: "a socket",
        stat.S_IFCHR: "a character device",
        stat.S_IFBLK: "a block device",
    }
    return kinds.get(stat.S_IFMT(mode), "")
