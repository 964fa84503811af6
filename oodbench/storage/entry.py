"""An entry of the store: a folder with entry.json and arrays, used whole and verified, or not at all.

entry.json holds length and sha256 of every array and its own digest. A folder is filled under a hidden name, fsynced,
and renamed to its key.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.errors import UserError

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
