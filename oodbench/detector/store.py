"""The store of a detector: saved entries are read first, and embeddings are stored only if `keep` is set."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oodbench.storage.store import Array, Entry, Store

_KINDS = ("text", "words", "kept", "weights")  # kinds of entries that fit() and score() read, apart from images


@dataclass(frozen=True)
class InMemoryEntry(Entry):
    """An entry that is only in memory."""

    arrays: Mapping[str, Array] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        return self.arrays[name]


class DetectorStore(Store):
    """A store in front of another one, which records the class vectors, word vectors and cached tensors that are read.

    behind  the store that entries are read from and written to
    saved   a store that is read first, such as that of a saved detector
    keep    whether embeddings are stored; if not they are only in memory
    """

    _in_memory: dict[str, InMemoryEntry] | None = None  # embeddings by key, within remembering()

    def __init__(self, behind: Store, saved: Store | None = None, keep: bool = True) -> None:
        super().__init__(behind.root)
        self.url = behind.url
        self.behind = behind
        self.saved = saved
        self.keep = keep
        self.used: dict[str, Entry] = {}  # relative folder -> entry

    def local(self) -> DetectorStore:
        if not self.url:
            return self
        own = DetectorStore(self.behind.local(), self.saved, self.keep)
        own.used, own._in_memory = self.used, self._in_memory
        return own

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Entry | None:
        if kind == "embeddings" and not self.keep:
            return (self._in_memory or {}).get(self.key(kind, inputs))
        saved = self.saved.find(kind, inputs) if self.saved and kind in _KINDS else None
        return self._recorded(kind, saved or self.behind.find(kind, inputs))

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        return (self.keep or kind != "embeddings") and self.behind.has(kind, inputs)

    def write(
        self, kind: str, inputs: Mapping[str, Any], arrays: Mapping[str, Array], facts: Mapping[str, Any]
    ) -> Entry:
        if kind == "embeddings" and not self.keep:
            plain = json.loads(json.dumps(facts))
            entry = InMemoryEntry(self.key(kind, inputs), Path(), dict(inputs), plain, tuple(arrays), dict(arrays))
            if self._in_memory is not None:
                self._in_memory[entry.key] = entry
            return entry
        written = self.behind.write(kind, inputs, arrays, facts)
        self._recorded(kind, written)
        return written

    def remove(self, kind: str, inputs: Mapping[str, Any]) -> None:
        self.behind.remove(kind, inputs)

    @contextmanager
    def keeping(self, keep: bool) -> Iterator[None]:
        """Set `keep` within the context."""
        before, self.keep = self.keep, keep
        try:
            yield
        finally:
            self.keep = before

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within the context, keep embeddings that are not stored in memory, where find() returns them."""
        self._in_memory = {}
        try:
            yield
        finally:
            self._in_memory = None

    def copy(self, root: Path, kinds: tuple[str, ...] = _KINDS) -> None:
        """Copy the entries of these kinds that were read or saved into another store."""
        saved = self.saved.entries() if self.saved else ()
        paths = {f"{entry.kind}/{entry.key[:2]}/{entry.key}": entry.path for entry in saved}
        paths |= {folder: entry.path for folder, entry in self.used.items()}
        for folder, path in paths.items():
            if folder.partition("/")[0] in kinds:
                shutil.copytree(path, root / folder)

    def _recorded(self, kind: str, entry: Entry | None) -> Entry | None:
        if entry and kind in _KINDS:
            self.used[f"{kind}/{entry.key[:2]}/{entry.key}"] = entry
        return entry
