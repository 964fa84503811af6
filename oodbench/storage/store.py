"""The store: content-addressed entries on disk. An entry is used whole and verified, or not at all.

Layout: <root>/<kind>/<first two of key>/<key>/{entry.json, *.npy}. The key is the sha256 of `inputs`: everything
the content depends on. An entry is written under a temporary name, fsynced, and renamed; entry.json holds length and
sha256 of every array and its own digest, so a truncated or changed file is found and the entry is made again.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.errors import UserError
from oodbench.storage.files import expand

Array = npt.NDArray[Any]

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # what reading a broken entry may raise
_RENUMBERING = frozenset(("fuse", "fuseblk", "cifs", "smb3", "vboxsf"))  # unless their server or user says otherwise
_TRIES = 3  # to move an entry to its place while others do the same
_NAME = re.compile(r"[0-9a-f]{64}")
_HIDDEN = re.compile(r"\.[0-9a-f]{12}-[0-9a-f]{16}\.tmp")  # not yet in place, or on its way out


def digest(value: Any) -> str:
    """sha256 of plain data (numbers, strings, lists, mappings): the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_stamp(path: Path) -> dict[str, Any]:
    """What tells on this machine that a file is the one whose digest is remembered; links are followed."""
    now = path.stat()
    return {
        "file": str(path.resolve()),
        "bytes": now.st_size,
        "modified": now.st_mtime_ns,
        "changed": now.st_ctime_ns,
        "inode": inode(now),
    }


def inode(stat: os.stat_result) -> int:
    """The inode of a file; 0 where a file system numbers its files anew whenever it meets them."""
    return 0 if file_system(stat.st_dev).partition(".")[0] in _RENUMBERING else stat.st_ino


@functools.cache
def file_system(device: int) -> str:
    """The kind of the file system with this number, as the kernel names it; "" where it does not tell."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = (line.split(" - ")[-1].split() for line in mounts.splitlines() if line.split()[2:3] == [number])
    return next((fields[0] for fields in found if fields), "")


def content_digest(path: Path) -> str:
    """sha256 of a file, or of the names and contents of the files in a folder."""
    if path.is_file():
        return file_digest(path)
    return digest([[file.name, file_digest(file)] for file in sorted(path.iterdir()) if file.is_file()])


@dataclass(frozen=True)
class Entry:
    """A verified entry: `facts` are its small outputs, `inputs` what the key was made of."""

    key: str
    path: Path
    inputs: dict[str, Any]
    facts: dict[str, Any]
    names: tuple[str, ...]

    def array(self, name: str) -> Array:
        """One of its arrays, mapped from disk, not read."""
        try:
            array: Array = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(f"the store entry {self.path} was removed while it was in use; run again") from error
        return array


def verified(path: Path, key: str) -> Entry:
    """The entry in a folder; raises one of DAMAGE unless every byte is what was written for this key."""
    head = head_of(path)
    stated = head.pop("digest")
    if stated != digest(head) or key != digest({"kind": head["kind"], **head["inputs"]}):
        raise ValueError("entry.json is not what was written")
    for name, expected in head["arrays"].items():
        file = _regular(path / f"{name}.npy")
        if file.stat().st_size != expected["bytes"] or file_digest(file) != expected["sha256"]:
            raise ValueError(f"{file.name} is not what was written")
    return entry(path, head)


def head_of(path: Path) -> dict[str, Any]:
    """What entry.json says; raises one of DAMAGE."""
    try:
        head: dict[str, Any] = json.loads(_regular(path / "entry.json").read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("entry.json is nested too deeply") from error
    return head


def _regular(file: Path) -> Path:
    """The path of a file that is one: opening a pipe would wait for ever."""
    if not stat.S_ISREG(file.stat().st_mode):
        raise ValueError(f"{file.name} is no regular file")
    return file


def entry(path: Path, head: Mapping[str, Any]) -> Entry:
    return Entry(path.name, path, head["inputs"], head["facts"], tuple(head["arrays"]))


def fill(folder: Path, head: dict[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Write arrays and entry.json, through to the disk; what entry.json says, as a reader would get it."""
    head["arrays"] = {}
    for name, array in arrays.items():
        file = folder / f"{name}.npy"
        with file.open("wb") as out:
            np.save(out, np.ascontiguousarray(array), allow_pickle=False)
            out.flush()
            os.fsync(out.fileno())
        head["arrays"][name] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    text = json.dumps({"digest": digest(head), **head})
    with (folder / "entry.json").open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    read: dict[str, Any] = json.loads(text)
    return read


def place(temporary: Path, path: Path) -> Entry | None:
    """Move a finished entry to its place, unless a sound one is there, which is returned.

    What is in the way is removed: a damaged entry, and what is no folder or no file, links themselves and not what they
    lead to.
    """
    for number in range(_TRIES):
        try:
            temporary.rename(path)
            return None
        except OSError:
            if not os.path.lexists(path):
                raise
        with contextlib.suppress(*DAMAGE):
            return verified(path, path.name)
        if not path.is_symlink() and path.is_dir():
            break
        if number == _TRIES - 1 or not remove(path):
            raise PermissionError(errno.EACCES, "it is no folder, and cannot be removed", str(path))
    # File by file, entry.json last: a process that mends the same entry never finds a file of it gone.
    for file in sorted(temporary.iterdir(), key=lambda file: file.name == "entry.json"):
        goal = path / file.name
        if goal.is_dir() and not goal.is_symlink():
            remove(goal)
        file.replace(goal)
    return None


def last_use(path: Path) -> float | None:
    try:
        return (path / "entry.json").stat().st_mtime
    except OSError:
        return None


def beside(path: Path) -> Path:
    """A new hidden name in the same folder, which no reader takes for an entry."""
    return path.parent / f".{path.name.lstrip('.')[:12]}-{secrets.token_hex(8)}.tmp"


def remove(path: Path) -> bool:
    """Remove a folder at one stroke, renamed first, so that nobody takes a half-removed entry; whether that worked.

    Of a link, only the link.
    """
    hidden = beside(path)
    try:
        path.rename(hidden)
        if hidden.is_symlink() or not hidden.is_dir():
            hidden.unlink()
    except OSError:
        return False
    shutil.rmtree(hidden, ignore_errors=True)
    return True


def is_entry(path: Path) -> bool:
    """Whether a folder is named as entries are."""
    return _NAME.fullmatch(path.name) is not None


def is_leftover(path: Path) -> bool:
    """Whether a folder is named as entries are on their way in or out."""
    return _HIDDEN.fullmatch(path.name) is not None


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
