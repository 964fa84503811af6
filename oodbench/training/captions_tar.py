"""Captions from webdataset tar shards, `key.jpg` with `key.txt`: on a disk, or behind URLs and fetched one at a time.

What a shard holds is kept in the store, so that a resumed training neither indexes nor fetches it again.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np

from oodbench.data.loaders.layout import is_image
from oodbench.data.loaders.tar import Member, TarSource, expand_pattern, list_members, read_member
from oodbench.errors import UserError, has_credentials, is_url, redact_url
from oodbench.storage.fingerprints import ReadImage, file_fingerprint, member_fingerprint
from oodbench.storage.remote import fetch, remote_fingerprint
from oodbench.storage.store import Store
from oodbench.training.corpus import Part, listed

ENGINE = 2  # raise when the same shard gives other pairs than before


def read_all(pattern: str, store: Store) -> Iterator[Part]:
    """One part per shard. Its temporary copy, if it has one, is removed when the next part is asked for."""
    for place in expand_pattern(pattern):
        with contextlib.ExitStack() as stack:
            remote = is_url(place)
            copy = stack.enter_context(_copy(place)) if remote else Copy(place, Path(place))
            yield _part(copy, store)


def check(pattern: str) -> None:
    """UserError for a pattern that is none, and for shards that are not there; URLs are not asked."""
    found = expand_pattern(pattern)
    secret = next((place for place in found if is_url(place) and has_credentials(place)), "")
    if secret:  # it would stand in the header of the weights
        raise UserError(
            f"captions {redact_url(secret)}: captions are named by their URL: leave out password and signature"
        )
    places = [Path(place) for place in found if not is_url(place)]
    absent = [str(place) for place in places if not place.is_file()]
    if absent:
        raise UserError(f"captions {pattern}: {len(absent)} of {len(places)} shards are not there, {absent[0]} first")


@dataclass
class Copy:
    """A shard as a local file, fetched when it is first read. `state` is its stamp when it was found."""

    place: str
    path: Path
    missing: bool = False
    state: str = ""
    lock: Lock = field(default_factory=Lock)

    def fetched(self) -> Path:
        """The local file. UserError when the shard has changed since it was found."""
        with self.lock:
            if self.missing:
                fetch(self.place, self.path)
                if self.stamp() != self.state:
                    raise UserError(f"captions {self.place} changed after they were listed; run again")
                self.missing = False
        return self.path

    def stamp(self) -> str:
        """What changes when the shard does."""
        return remote_fingerprint(self.place) if is_url(self.place) else file_fingerprint(self.path)


@dataclass(frozen=True)
class Remote:
    """Images of a shard that may still have to be fetched."""

    copy: Copy
    inside: TarSource

    def read(self, name: str) -> ReadImage:
        """Read a member; the print of a copy of our own is that of the shard."""
        self.copy.fetched()
        taken = self.inside.read(name)
        member = self.inside.where[name][1]
        own = is_url(self.copy.place)
        return (
            replace(taken, fingerprint=member_fingerprint(self.copy.state, member.offset, member.size))
            if own
            else taken
        )

    def content(self, name: str) -> str:
        """sha256 of a member."""
        return self.read(name).content()


@contextlib.contextmanager
def _copy(url: str) -> Iterator[Copy]:
    with tempfile.TemporaryDirectory(prefix="oodbench-") as folder:
        yield Copy(url, Path(folder) / "shard.tar", missing=True)


def _part(copy: Copy, store: Store) -> Part:
    name = PurePosixPath(copy.place).name
    try:
        copy.state = copy.stamp()
    except OSError as error:
        raise UserError(f"captions {copy.place} cannot be read: {error.strerror or error}") from error
    known = {"engine": ENGINE, "shard": copy.place, "stamp": copy.state}
    entry = store.find("shard", known)
    facts = entry.facts if entry else _index(copy)
    if entry is None:
        store.write("shard", known, {}, facts)
    where = {one[0]: (copy.path, Member(*one)) for one in facts["images"]}
    prints = [member_fingerprint(copy.state, one[1], one[2]) for one in facts["images"]]
    found = listed(name, Path(copy.place), tuple(where), prints, Remote(copy, TarSource(where)))
    return Part(found, np.arange(len(found)), tuple(facts["captions"]), tuple(facts["skipped"]))


def _index(copy: Copy) -> dict[str, Any]:
    """The images that have captions, those captions, and what cannot be used: all of a shard that is truncated."""
    path = copy.fetched()
    try:
        found = list_members(path)
    except UserError as error:
        return {"images": [], "captions": [], "skipped": [str(error).replace(str(path), copy.place)]}
    images: dict[str, Member] = {}
    texts: dict[str, Member] = {}
    skipped = []
    for member in found:
        pure = PurePosixPath(member.name)
        key = str(pure.with_name(pure.name.partition(".")[0])) if pure.name.partition(".")[0] else ""
        group = images if is_image(member.name) else texts if pure.suffix == ".txt" else None
        if group is None or not key:
            continue
        if key in group:
            skipped.append(f"{member.name} of {copy.place}: a second one of that key")
        group.setdefault(key, member)
    kept, captions = [], []
    for key, image in images.items():
        problem = "" if key in texts else "no caption beside it"
        caption = ""
        if not problem:
            try:
                caption = read_member(path, texts[key])[0].decode().strip()
            except UnicodeDecodeError:
                problem = "its caption is no UTF-8"
            problem = problem or ("" if caption else "its caption is empty")
        if problem:
            skipped.append(f"{image.name} of {copy.place}: {problem}")
        else:
            kept.append((image.name, image.offset, image.size))
            captions.append(caption)
    skipped += [f"{texts[key].name} of {copy.place}: no image beside it" for key in texts if key not in images]
    return {"images": kept, "captions": captions, "skipped": skipped}
