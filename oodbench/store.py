"""The store: content-addressed entries on disk. An entry is used whole and verified, or not at all.

Layout: <root>/<kind>/<first two of key>/<key>/{entry.json, *.npy}. The key is the sha256 of `inputs`: everything
the content depends on. An entry is written under a temporary name, fsynced, and renamed; entry.json holds length and
sha256 of every array, so a truncated or changed file is found and the entry is made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from oodbench.errors import UserError

log = logging.getLogger(__name__)
Array = npt.NDArray[Any]


def default_root() -> Path:
    """$OODBENCH_STORE, or `oodbench` in the user's cache folder."""
    if chosen := os.environ.get("OODBENCH_STORE"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "oodbench"


def digest(value: Any) -> str:
    """sha256 of plain data (numbers, strings, lists, mappings): the same on every machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        array: Array = np.load(self.path / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        return array


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

    def __init__(self, root: Path) -> None:
        self.root = root

    def key(self, kind: str, inputs: Mapping[str, Any]) -> str:
        return digest({"kind": kind, **inputs})

    def path(self, kind: str, key: str) -> Path:
        return self.root / kind / key[:2] / key

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Entry | None:
        """The entry for these inputs, verified; None when there is none or it was damaged (which is logged)."""
        key = self.key(kind, inputs)
        path = self.path(kind, key)
        try:
            head = json.loads((path / "entry.json").read_text(encoding="utf-8"))
            for name, expected in head["arrays"].items():
                file = path / f"{name}.npy"
                if file.stat().st_size != expected["bytes"] or file_digest(file) != expected["sha256"]:
                    raise ValueError(f"{file.name} is not what was written")
            os.utime(path / "entry.json")  # the last use, for gc
            return Entry(key, path, head["inputs"], head["facts"], tuple(head["arrays"]))
        except (FileNotFoundError, NotADirectoryError):
            if path.exists():
                log.warning("store entry %s/%s is incomplete and will be made again", kind, key[:12])
            return None
        except PermissionError:  # another user's store, readable but not touchable: utime failed
            return Entry(key, path, head["inputs"], head["facts"], tuple(head["arrays"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("store entry %s/%s is damaged (%s) and will be made again", kind, key[:12], error)
            return None

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        """Whether an entry is there, not verified: for plans."""
        return (self.path(kind, self.key(kind, inputs)) / "entry.json").is_file()

    def write(
        self, kind: str, inputs: Mapping[str, Any], arrays: Mapping[str, Array], facts: Mapping[str, Any]
    ) -> Entry:
        """Write an entry. Another process that wrote the same first wins; a damaged one is replaced."""
        key = self.key(kind, inputs)
        path = self.path(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{key[:12]}-", suffix=".tmp", dir=path.parent))
        try:
            head: dict[str, Any] = {"kind": kind, "inputs": dict(inputs), "facts": dict(facts), "arrays": {}}
            for name, array in arrays.items():
                file = temporary / f"{name}.npy"
                with file.open("wb") as out:
                    np.save(out, np.ascontiguousarray(array), allow_pickle=False)
                    out.flush()
                    os.fsync(out.fileno())
                head["arrays"][name] = {"bytes": file.stat().st_size, "sha256": file_digest(file)}
            with (temporary / "entry.json").open("w", encoding="utf-8") as out:
                json.dump(head, out, sort_keys=True)
                out.flush()
                os.fsync(out.fileno())
            temporary.chmod(0o755)
            self._move_into_place(temporary, path, kind, inputs)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return Entry(key, path, dict(inputs), dict(facts), tuple(arrays))

    def _move_into_place(self, temporary: Path, path: Path, kind: str, inputs: Mapping[str, Any]) -> None:
        for _ in range(10):
            try:
                temporary.rename(path)
                return
            except OSError:  # there is one already
                if self.find(kind, inputs) is not None:
                    return
                grave = Path(tempfile.mkdtemp(prefix=".damaged-", suffix=".tmp", dir=path.parent))
                try:
                    path.rename(grave / "entry")
                except FileNotFoundError:
                    pass  # the other process removed it first
                shutil.rmtree(grave, ignore_errors=True)
        raise UserError(f"cannot write the store entry {path}")

    def forget(self, kind: str, inputs: Mapping[str, Any]) -> None:
        """Remove an entry whose content no longer holds."""
        shutil.rmtree(self.path(kind, self.key(kind, inputs)), ignore_errors=True)

    def entries(self) -> Iterator[Listed]:
        """Every complete entry, in path order; not verified."""
        for head_path in sorted(self.root.glob("*/??/*/entry.json")):
            folder = head_path.parent
            if folder.name.startswith("."):
                continue
            try:
                head = json.loads(head_path.read_text(encoding="utf-8"))
                size = sum(file.stat().st_size for file in folder.iterdir())
                used = head_path.stat().st_mtime
            except (OSError, ValueError):
                continue  # removed or damaged meanwhile; gc sweeps damaged ones by age
            yield Listed(head["kind"], folder.name, folder, size, used, head["inputs"])

    def collect(
        self, max_bytes: int | None = None, unused_days: float | None = None, *, dry: bool = False
    ) -> list[Listed]:
        """Remove what has not been used for `unused_days`, then the least recently used until `max_bytes` remain.

        Also sweeps temporary folders older than a day, which killed processes left behind. Returns what was removed.
        """
        now = time.time()
        kept = sorted(self.entries(), key=lambda entry: entry.used)
        gone = [e for e in kept if unused_days is not None and now - e.used > unused_days * 86_400]
        kept = kept[len(gone) :]  # sorted by use: the unused ones lead
        total = sum(e.bytes for e in kept)
        while max_bytes is not None and kept and total > max_bytes:
            total -= kept[0].bytes
            gone.append(kept.pop(0))
        if not dry:
            for entry in gone:
                (entry.path / "entry.json").unlink(missing_ok=True)  # first, so that nobody takes a half-removed entry
                shutil.rmtree(entry.path, ignore_errors=True)
            for stale in self.root.glob("*/??/.*.tmp"):
                if now - stale.stat().st_mtime > 86_400:
                    shutil.rmtree(stale, ignore_errors=True)
        return gone
