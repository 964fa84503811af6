"""Files written whole or not at all, also when the process or the machine dies."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
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
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
