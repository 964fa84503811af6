"""The content-addressed store of computed arrays and facts. Every entry is verified before it is used.

Layout: <root>/<kind>/<first two of key>/<key>/{entry.json, *.npy}. The key is the sha256 of `inputs`, which contain
everything that the content depends on. entry.json holds the size and sha256 of every array and its own digest, so that
a truncated or changed file is detected and the entry is computed again. A folder is filled under a hidden name,
fsynced, and renamed to its key.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.errors import UserError
from oodbench.storage.files import expand, irregular

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]

DAMAGE = (OSError, ValueError, KeyError, TypeError, AttributeError)  # errors that reading a broken entry may raise
_TRIES = 3  # attempts to rename an entry while other processes do the same
_NAME = re.compile(r"[0-9a-f]{64}")
_TEMPORARY = re.compile(r"\.[0-9a-f]{12}-[0-9a-f]{16}\.tmp")  # an entry that is being written or removed
_DAY = 86_400.0  # seconds


def digest(value: Any) -> str:
    """Return the sha256 of plain data (numbers, strings, lists, mappings): the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 of the content of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_digest(path: Path) -> str:
    """Return the sha256 of a file, or of the names and contents of the files in a folder."""
    if path.is_file():
        return file_digest(path)
    return digest([[file.name, file_digest(file)] for file in sorted(path.iterdir()) if file.is_file()])


def default_root() -> Path:
    """Return $OODBENCH_STORE, or `oodbench` in the user's cache folder. Raise UserError if there is no home folder."""
    try:
        if chosen := os.environ.get("OODBENCH_STORE"):
            return Path(chosen).expanduser()
        cache = os.environ.get("XDG_CACHE_HOME")
        return (Path(cache) if cache else Path.home() / ".cache") / "oodbench"
    except RuntimeError as error:
        why = f"$OODBENCH_STORE {chosen}: {error}" if chosen else "this user has no home folder for the store"
        raise UserError(f"{why}; set $OODBENCH_STORE, or give --store, a folder that can be written") from error


@dataclass(frozen=True)
class Entry:
    """A verified entry: `facts` are its small outputs; its key is computed from `inputs`."""

    key: str
    path: Path
    inputs: dict[str, Any]
    facts: dict[str, Any]
    names: tuple[str, ...]

    def array(self, name: str) -> Array:
        """Return an array, memory-mapped. Raise UserError if the entry was removed in the meantime."""
        try:
            array: Array = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except FileNotFoundError as error:
            raise UserError(f"the store entry {self.path} was removed while it was in use; run again") from error
        return array


@dataclass(frozen=True)
class EntryInfo:
    """Metadata of an entry that was not verified: kind, key, folder, size, time of the last use, inputs."""

    kind: str
    key: str
    path: Path
    bytes: int
    used: float  # seconds since 1970
    inputs: dict[str, Any]


class Store:
    """Entries below one folder, used by any number of processes."""

    url = ""  # of the shared store, in the subclass SharedStore

    def __init__(self, root: Path) -> None:
        self.root = expand(root)

    def local(self) -> Store:
        """Return the store of this machine alone, for entries whose keys are valid on this machine only."""
        return self

    def with_root(self, root: Path) -> Store:
        """Return the same store at another path."""
        return Store(root)

    def key(self, kind: str, inputs: Mapping[str, Any]) -> str:
        """Return the key of the entry for these inputs."""
        return digest({"kind": kind, **inputs})

    def path(self, kind: str, key: str) -> Path:
        """Return the folder of an entry."""
        return self.root / kind / key[:2] / key

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Entry | None:
        """Return the verified entry for these inputs; None if there is none or if it is damaged, which is logged."""
        key = self.key(kind, inputs)
        path = self.path(kind, key)
        try:
            entry = read_entry(path, key)
        except DAMAGE as error:
            if os.path.lexists(path):
                log.warning("store entry %s/%s is damaged (%s) and will be computed again", kind, key[:12], error)
            return None
        with contextlib.suppress(OSError):  # a store that this user may only read
            os.utime(path / "entry.json")  # the last use, for `collect`
        return entry

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Return whether an entry exists, without verifying it."""
        return os.path.isfile(self.path(kind, self.key(kind, inputs)) / "entry.json")

    def write(
        self, kind: str, inputs: Mapping[str, Any], arrays: Mapping[str, Array], facts: Mapping[str, Any]
    ) -> Entry:
        """Write an entry and return it.

        If another process has written the same entry, that one is returned; a damaged one is replaced. Raise UserError
        if the disk is full or the folder cannot be written.
        """
        path = self.path(kind, self.key(kind, inputs))
        temporary = temporary_name(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
            header = write_files(temporary, {"kind": kind, "inputs": dict(inputs), "facts": dict(facts)}, arrays)
            return commit(temporary, path) or _entry(path, header)
        except OSError as error:
            raise self.write_error(error) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    def write_error(self, error: OSError) -> UserError:
        """Return the UserError for a failed write, with advice for a full disk and for missing permissions."""
        # For a full disk numpy raises an OSError without errno: "n requested and m written".
        short_write = error.strerror is None and "requested" in str(error)
        why = "No space left on device" if short_write else error.strerror or error
        advice = f"check the permissions of {error.filename or self.root}"
        if short_write or error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = "make room with oodbench store gc"
        return UserError(
            f"the store {self.root} cannot be written ({why}); {advice}, or name another folder with --store"
        )

    def try_write(self, kind: str, inputs: Mapping[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """Write an entry without arrays that only saves time, and return its facts even if the write fails."""
        try:
            self.write(kind, inputs, {}, facts)
        except UserError as error:
            log.debug("not stored: %s", error)
        return facts

    def remove(self, kind: str, inputs: Mapping[str, Any]) -> None:
        """Remove an entry whose content is no longer valid."""
        remove_atomically(self.path(kind, self.key(kind, inputs)))

    def entries(self) -> Iterator[EntryInfo]:
        """Iterate over all complete entries in path order, without verifying them."""
        for folder in sorted(self.root.glob("*/??/*")):
            if not is_entry(folder):
                continue
            try:
                header = read_header(folder)
                size = sum(file.stat().st_size for file in folder.iterdir())
                used = (folder / "entry.json").stat().st_mtime
                info = EntryInfo(header["kind"], folder.name, folder, size, used, header["inputs"])
            except DAMAGE:
                continue  # removed meanwhile, or damaged: `collect` removes those by age
            yield info

    def collect(
        self, max_bytes: int | None = None, unused_days: float | None = None, *, dry: bool = False
    ) -> list[EntryInfo]:
        """Remove old entries and return them (`dry`: remove nothing).

        Entries that have not been used for `unused_days` go first, then the least recently used ones until at most
        `max_bytes` remain. Files that killed processes left behind more than a day ago are removed, too.
        """
        now = time.time()
        by_use = sorted(self.entries(), key=lambda e: e.used)
        removed = [e for e in by_use if unused_days is not None and now - e.used > unused_days * _DAY]
        kept = by_use[len(removed) :]
        total = sum(e.bytes for e in kept)
        while max_bytes is not None and kept and total > max_bytes:
            total -= kept[0].bytes
            removed.append(kept.pop(0))
        if not dry:
            # An entry that another process used in the meantime stays.
            removed = [e for e in removed if last_use(e.path) == e.used and remove_atomically(e.path)]
            self._sweep({e.path for e in by_use}, now - _DAY)
        return removed

    def _sweep(self, complete: Collection[Path], before: float) -> None:
        """Remove temporary folders and damaged entries that have not been touched since `before`."""
        for folder in self.root.glob("*/??/*"):
            with contextlib.suppress(OSError):
                if (
                    (is_temporary(folder) or is_entry(folder))
                    and folder not in complete
                    and folder.stat().st_mtime < before
                ):
                    remove_atomically(folder)


def read_entry(path: Path, key: str) -> Entry:
    """Read and verify the entry in a folder. Raise one of DAMAGE if it differs from what was written for this key."""
    header = read_header(path)
    stated = header.pop("digest")
    if stated != digest(header) or key != digest({"kind": header["kind"], **header["inputs"]}):
        raise ValueError("entry.json is not what was written")
    for name, expected in header["arrays"].items():
        file = _regular(path / f"{name}.npy")
        if file.stat().st_size != expected["bytes"] or file_digest(file) != expected["sha256"]:
            raise ValueError(f"{file.name} is not what was written")
    return _entry(path, header)


def read_header(path: Path) -> dict[str, Any]:
    """Read entry.json. Raise one of DAMAGE if that fails."""
    try:
        header: dict[str, Any] = json.loads(_regular(path / "entry.json").read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("entry.json is nested too deeply") from error
    return header


def _regular(file: Path) -> Path:
    """Return the path of a regular file. Raise ValueError for any other kind: opening a FIFO would block."""
    if kind := irregular(file.stat().st_mode):
        raise ValueError(f"{file.name} is {kind}")
    return file


def _entry(path: Path, header: Mapping[str, Any]) -> Entry:
    return Entry(path.name, path, header["inputs"], header["facts"], tuple(header["arrays"]))


def write_files(folder: Path, header: dict[str, Any], arrays: Mapping[str, Array]) -> dict[str, Any]:
    """Write arrays and entry.json, fsync them, and return the header as it will be read."""
    header["arrays"] = {}
    for name, array in arrays.items():
        file = folder / f"{name}.npy"
        with file.open("wb") as out:
            np.save(out, np.ascontiguousarray(array), allow_pickle=False)
            out.flush()
            os.fsync(out.fileno())
        header["arrays"][name] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
    text = json.dumps({"digest": digest(header), **header})
    with (folder / "entry.json").open("w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    as_read: dict[str, Any] = json.loads(text)
    return as_read


def commit(temporary: Path, path: Path) -> Entry | None:
    """Rename a finished entry to `path`, and return None; if a valid entry exists there, return that one.

    Anything else at `path` is removed: a damaged entry, a file, a link (not its target).
    """
    for number in range(_TRIES):
        try:
            temporary.rename(path)
            return None
        except OSError:
            if not os.path.lexists(path):
                raise
        with contextlib.suppress(*DAMAGE):
            return read_entry(path, path.name)
        if not path.is_symlink() and path.is_dir():
            break
        if number == _TRIES - 1 or not remove_atomically(path):
            raise PermissionError(errno.EACCES, "it is not a folder, and cannot be removed", str(path))
    # Replace file by file, entry.json last, so that a process that repairs the same entry always finds all files.
    for file in sorted(temporary.iterdir(), key=lambda file: file.name == "entry.json"):
        destination = path / file.name
        if destination.is_dir() and not destination.is_symlink():
            remove_atomically(destination)
        file.replace(destination)
    return None


def last_use(path: Path) -> float | None:
    """Return the time of an entry's last use, in seconds since 1970; None if it was removed."""
    try:
        return (path / "entry.json").stat().st_mtime
    except OSError:
        return None


def temporary_name(path: Path) -> Path:
    """Return a new hidden path in the same folder, which is not the name of an entry."""
    return path.parent / f".{path.name.lstrip('.')[:12]}-{secrets.token_hex(8)}.tmp"


def remove_atomically(path: Path) -> bool:
    """Remove a folder, a file or a link (not its target), renamed first so that no reader finds half of it.

    Return whether the rename succeeded.
    """
    hidden = temporary_name(path)
    try:
        path.rename(hidden)
        if hidden.is_symlink() or not hidden.is_dir():
            hidden.unlink()
    except OSError:
        return False
    shutil.rmtree(hidden, ignore_errors=True)
    return True


def is_entry(path: Path) -> bool:
    """Return whether a folder has the name of an entry."""
    return _NAME.fullmatch(path.name) is not None


def is_temporary(path: Path) -> bool:
    """Return whether a folder has the name of an entry that is being written or removed."""
    return _TEMPORARY.fullmatch(path.name) is not None
