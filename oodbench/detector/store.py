"""The store as a detector uses it: what was saved with it comes first, embeddings stay out of it when asked to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oodbench.storage.store import Array, Entry, Store

_NEEDED = ("text", "words", "kept", "weights")  # what fit() and score() read besides images


@dataclass(frozen=True)
class InMemoryEntry(Entry):
    """An entry that is in memory only."""

    arrays: Mapping[str, Array] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        return self.arrays[name]


class DetectorStore(Store):
    """A store before another one, which remembers which class vectors, word vectors and kept parts were used.

    behind  the store that entries are read from and written to
    saved   a store whose entries come first, such as that of a saved detector
    keep    whether embeddings are stored; if not they are handed on in memory
    """

    _held: dict[str, InMemoryEntry] | None = None  # embeddings by key while they are remembered

    def __init__(self, behind: Store, saved: Store | None = None, keep: bool = True) -> None:
        super().__init__(behind.root)
        self.url = behind.url
        self.behind = behind
        self.saved = saved
        self.keep = keep
        self.used: dict[str, Entry] = {}  # folder below the root -> entry

    def find(self, kind: str, inputs: Mapping[str, Any]) -> Entry | None:
        if kind == "embeddings" and not self.keep:
            return (self._held or {}).get(self.key(kind, inputs))
        found = self.saved.find(kind, inputs) if self.saved and kind in _NEEDED else None
        return self._noted(kind, found or self.behind.find(kind, inputs))

    def has(self, kind: str, inputs: Mapping[str, Any]) -> bool:
        return (self.keep or kind != "embeddings") and self.behind.has(kind, inputs)

    def write(
        self, kind: str, inputs: Mapping[str, Any], arrays: Mapping[str, Array], facts: Mapping[str, Any]
    ) -> Entry:
        if kind == "embeddings" and not self.keep:
            plain = json.loads(json.dumps(facts))
            made = InMemoryEntry(self.key(kind, inputs), Path(), dict(inputs), plain, tuple(arrays), dict(arrays))
            if self._held is not None:
                self._held[made.key] = made
            return made
        written = self.behind.write(kind, inputs, arrays, facts)
        self._noted(kind, written)
        return written

    def remove(self, kind: str, inputs: Mapping[str, Any]) -> None:
        self.behind.remove(kind, inputs)

    @contextmanager
    def keeping(self, keep: bool) -> Iterator[None]:
        """Within it, embeddings are stored or not."""
        before, self.keep = self.keep, keep
        try:
            yield
        finally:
            self.keep = before

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Within it, embeddings that are not stored are found again in memory."""
        self._held = {}
        try:
            yield
        finally:
            self._held = None

    def copy(self, root: Path, kinds: tuple[str, ...] = _NEEDED) -> None:
        """Copy what was used or saved, of these kinds, into another store."""
        saved = self.saved.entries() if self.saved else ()
        paths = {f"{one.kind}/{one.key[:2]}/{one.key}": one.path for one in saved}
        paths |= {place: entry.path for place, entry in self.used.items()}
        for place, path in paths.items():
            if place.partition("/")[0] in kinds:
                shutil.copytree(path, root / place)

    def _noted(self, kind: str, entry: Entry | None) -> Entry | None:
        if entry and kind in _NEEDED:
            self.used[f"{kind}/{entry.key[:2]}/{entry.key}"] = entry
        return entry
