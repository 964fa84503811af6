"""Regular files only: what is opened is a file, not a FIFO, which would be waited for, or a device without an end."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from oodbench.errors import UserError


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
