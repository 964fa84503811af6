"""The store: content-addressed entries on disk. An entry is used whole and verified, or not at all.

Layout: <root>/<kind>/<first two of key>/<key>/{entry.json, *.npy}. The key is the sha256 of `inputs`: everything
the content depends on. An entry is written under a temporary name, fsynced, and renamed; entry.json holds length and
sha256 of every array and its own digest, so a truncated or changed file is found and the entry is made again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.data.paths import expand
from oodbench.errors import UserError
from oodbench.storage.entry import (
    DAMAGE,
    Array,
    Entry,
    beside,
    content_digest,
    digest,
    entry,
    file_digest,
    file_stamp,
    fill,
    head_of,
    is_entry,
    is_leftover,
    last_use,
    place,
    remove,
    verified,
)

__all__ = ["Array", "Entry", "Listed", "Store", "content_digest", "default_root", "digest", "file_digest", "file_stamp"]

log = logging.getLogger(__name__)
_DAY = 86_400.0  # seconds


def default_root() -> Path:
    """$OODBENCH_STORE, or `oodbench` in the user's cache folder. UserError for a user without a home folder."""
    try:
        if chosen := os.environ.get("OODBENCH_STORE"):
            return Path(chosen).expanduser()
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "oodbench"
    except RuntimeError as error:
        why = f"$OODBENCH_STORE {chosen}: {error}" if chosen else "this user has no home folder for the store"
        raise UserError(f"{why}; set $OODBENCH_STORE, or give --store, a folder that can be written") from error


@dataclass(frozen=True)
class Listed:
    """An entry as `store ls` shows it."""

    kind: str
    key: str
    path: Path
    bytes: int
    used: float  # seconds since 1970 of the last use
    inputs: dict[str, Any]


class Store:
    """Entries below one folder, shared by any number of processes."""

    url = ""  # of a shared store behind it: see shared.py

    def __init__(self, root: Path) -> None:
        self.root = expand(root)

    def at(self, root: Path) -> Store:
        """The same store at another path."""
        return Store(root)

    def key(self, kind: str, inputs: Mapping[str, Any]) -> str:
        return digest({"kind": kind, **inputs})

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Entry | None:
        """The entry for these inputs, verified; None when there is none or it was damaged (which is logged)."""
        key = self.key(kind, inputs)
        path = self.path(kind, key)
        try:
            found = verified(path, key)
        except DAMAGE as error:
            if os.path.lexists(path):
                log.warning("store entry %s/%s is damaged (%s) and will be made again", kind, key[:12], error)
            return None
        with contextlib.suppress(OSError):  # a store that this user may only read
            os.utime(path / "entry.json")  # the last use, for gc
        return found

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Whether an entry is there, not verified: for plans."""
        return os.path.isfile(self.path(kind, self.key(kind, inputs)) / "entry.json")

    def write(
        self, kind: str, inputs: Mapping[str, Any], arrays: Mapping[str, Array], facts: Mapping[str, Any]
    ) -> Entry:
        """Write an entry. Another process that wrote the same first wins; a damaged one is replaced.

        UserError when the disk is full or the folder may not be written.
        """
        path = self.path(kind, self.key(kind, inputs))
        temporary = beside(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            head = fill(temporary, {"kind": kind, "inputs": dict(inputs), "facts": dict(facts)}, arrays)
            return place(temporary, path) or entry(path, head)
        except OSError as error:
            raise self.unwritable(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def unwritable(self, error: OSError) -> UserError:
        """The error for a write that failed: what to do about a full disk, and what about a file in the way."""
        # numpy tells a full disk as "n requested and m written"
        short = error.strerror is None and "requested" in str(error)
        why = "No space left on device" if short else error.strerror or error
        todo = f"see to the rights of {error.filename or self.root}"
        if short or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            todo = "make room with oodbench store gc"
        return UserError(
            f"the store {self.root} cannot be written ({why}); {todo}, or name another folder with --store"
        )

    def remember(self, kind: str, inputs: Mapping[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Write an entry that only saves time, and give its facts back.

        Where the store cannot be written, the next run finds them out again.
        """
        try:
            self.write(kind, inputs, {}, facts)
        except UserError as error:
            log.debug("not remembered: %s", error)
        return facts

    def forget(self, kind: str, inputs: Mapping[str, Any]) -> None:
        """Remove an entry whose content no longer holds."""
        remove(self.path(kind, self.key(kind, inputs)))

    def entries(self) -> Iterator[Listed]:
        """Every complete entry, in path order; not verified."""
        for folder in sorted(self.root.glob("*/??/*")):
            if not is_entry(folder):
                continue
            try:
                head = head_of(folder)
                size = sum(file.stat().st_size for file in folder.iterdir())
                used = (folder / "entry.json").stat().st_mtime
                listed = Listed(head["kind"], folder.name, folder, size, used, head["inputs"])
            except DAMAGE:
                continue  # removed meanwhile, or damaged: gc sweeps those by age
            yield listed

    def collect(
        self, max_bytes: int | None = None, unused_days: float | None = None, *, dry: bool = False
    ) -> list[Listed]:
        """Remove what has not been used for `unused_days`, then the least recently used until `max_bytes` remain.

        Also sweeps what killed processes left behind more than a day ago. Returns the entries that were removed.
        """
        now = time.time()
        whole = sorted(self.entries(), key=lambda e: e.used)
        gone = [e for e in whole if unused_days is not None and now - e.used > unused_days * _DAY]
        kept = whole[len(gone) :]  # sorted by use: the unused ones lead
        total = sum(e.bytes for e in kept)
        while max_bytes is not None and kept and total > max_bytes:
            total -= kept[0].bytes
            gone.append(kept.pop(0))
        if not dry:
            # One that another run used meanwhile stays.
            gone = [e for e in gone if last_use(e.path) == e.used and remove(e.path)]
            self._sweep({e.path for e in whole}, now - _DAY)
        return gone

    def _sweep(self, whole: Collection[Path], before: float) -> None:
        """Remove temporary folders and damaged entries that nothing has touched since `before`."""
        for folder in self.root.glob("*/??/*"):
            ours = is_leftover(folder) or is_entry(folder)
            with contextlib.suppress(OSError):
                if ours and folder not in whole and folder.stat().st_mtime < before:
                    remove(folder)
