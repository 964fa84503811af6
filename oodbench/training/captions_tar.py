"""Captions from webdataset tar shards (`key.jpg` with `key.txt`), local or downloaded one at a time.

The index of a shard is kept in the store, so that a resumed training neither downloads nor indexes it again.
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
from oodbench.training.corpus import CorpusPart, unlabelled_images

ENGINE = 2  # raise when the same shard gives other pairs than before


def read_shards(pattern: str, store: Store) -> Iterator[CorpusPart]:
    """Yield one part per shard. A downloaded shard is deleted when the next part is requested."""
    for location in expand_pattern(pattern):
        with contextlib.ExitStack() as stack:
            remote = is_url(location)
            shard = stack.enter_context(_temporary_shard(location)) if remote else ShardFile(location, Path(location))
            yield _read_shard(shard, store)


def check_shards(pattern: str) -> None:
    """Raise UserError for a malformed pattern and for missing local shards; URLs are not contacted."""
    locations = expand_pattern(pattern)
    secret = next((location for location in locations if is_url(location) and has_credentials(location)), "")
    if secret:  # it would be written into the header of the weights
        raise UserError(f"captions {redact_url(secret)}: the weights record this URL; leave out password and signature")
    paths = [Path(location) for location in locations if not is_url(location)]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise UserError(f"captions {pattern}: {len(missing)} of {len(paths)} shards do not exist, {missing[0]} first")


@dataclass
class ShardFile:
    """A shard as a local file, downloaded when it is first read.

    location      path or URL
    path          the local file
    missing       whether it must still be downloaded
    fingerprint   fingerprint of the shard when it was listed
    """

    location: str
    path: Path
    missing: bool = False
    fingerprint: str = ""
    lock: Lock = field(default_factory=Lock)

    def local_path(self) -> Path:
        """Return the local file, downloaded if necessary. Raise UserError if the shard changed since it was listed."""
        with self.lock:
            if self.missing:
                fetch(self.location, self.path)
                if self.current_fingerprint() != self.fingerprint:
                    raise UserError(f"captions {self.location} changed after they were listed; run again")
                self.missing = False
        return self.path

    def current_fingerprint(self) -> str:
        """Return the fingerprint of the shard as it is now."""
        return remote_fingerprint(self.location) if is_url(self.location) else file_fingerprint(self.path)


@dataclass(frozen=True)
class ShardImages:
    """The images of a shard that may still have to be downloaded."""

    shard: ShardFile
    archive: TarSource

    def read(self, name: str) -> ReadImage:
        """Read a member. The fingerprint of a downloaded member is derived from that of the remote shard."""
        self.shard.local_path()
        image = self.archive.read(name)
        member = self.archive.where[name][1]
        if not is_url(self.shard.location):
            return image
        return replace(image, fingerprint=member_fingerprint(self.shard.fingerprint, member.offset, size=member.size))

    def content(self, name: str) -> str:
        """Return the sha256 of a member."""
        return self.read(name).content()


@contextlib.contextmanager
def _temporary_shard(url: str) -> Iterator[ShardFile]:
    with tempfile.TemporaryDirectory(prefix="oodbench-") as folder:
        yield ShardFile(url, Path(folder) / "shard.tar", missing=True)


def _read_shard(shard: ShardFile, store: Store) -> CorpusPart:
    name = PurePosixPath(shard.location).name
    try:
        shard.fingerprint = shard.current_fingerprint()
    except OSError as error:
        raise UserError(f"captions {shard.location} cannot be read: {error.strerror or error}") from error
    key = {"engine": ENGINE, "shard": shard.location, "stamp": shard.fingerprint}
    store = store if is_url(shard.location) else store.local()
    entry = store.find("shard", key)
    index = entry.facts if entry else _index_shard(shard)
    if entry is None:
        store.write("shard", key, {}, index)
    members_of = {image[0]: (shard.path, Member(*image)) for image in index["images"]}
    fingerprints = [member_fingerprint(shard.fingerprint, offset, size=size) for _, offset, size in index["images"]]
    source = ShardImages(shard, TarSource(members_of))
    listing = unlabelled_images(name, Path(shard.location), tuple(members_of), fingerprints, source)
    return CorpusPart(listing, np.arange(len(listing)), tuple(index["captions"]), tuple(index["skipped"]))


def _index_shard(shard: ShardFile) -> dict[str, Any]:
    """Return images with captions, the captions, and a line per problem; a truncated shard counts as one problem."""
    path = shard.local_path()
    try:
        found = list_members(path)
    except UserError as error:
        return {"images": [], "captions": [], "skipped": [str(error).replace(str(path), shard.location)]}
    images: dict[str, Member] = {}
    texts: dict[str, Member] = {}
    skipped = []
    for member in found:
        name = PurePosixPath(member.name)
        key = str(name.with_name(name.name.partition(".")[0])) if name.name.partition(".")[0] else ""
        group = images if is_image(member.name) else texts if name.suffix == ".txt" else None
        if group is None or not key:
            continue
        if key in group:
            skipped.append(f"{member.name} of {shard.location}: a second one of that key")
        group.setdefault(key, member)
    kept, captions = [], []
    for key, image in images.items():
        problem = "" if key in texts else "no caption next to it"
        caption = ""
        if not problem:
            try:
                caption = read_member(path, texts[key])[0].decode().strip()
            except UnicodeDecodeError:
                problem = "its caption is no UTF-8"
            problem = problem or ("" if caption else "its caption is empty")
        if problem:
            skipped.append(f"{image.name} of {shard.location}: {problem}")
        else:
            kept.append((image.name, image.offset, image.size))
            captions.append(caption)
    skipped += [f"{texts[key].name} of {shard.location}: no image next to it" for key in texts if key not in images]
    return {"images": kept, "captions": captions, "skipped": skipped}
