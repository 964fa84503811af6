"""Fingerprints: strings that change when a file or an image changes, mostly computed without reading its content.

A fingerprint has up to three lines. Result rows depend on the first; stored embeddings are used only if all are equal:

1. equal for all copies: the size of the file and the position of the image in it, or the sha256 of the content
2. equal for copies that keep their times (`rsync -t`): the modification time
3. valid on one machine only: change time and inode of the file, after links are resolved

A fingerprint without the third line (a sha256 of the content, or what a server reports about a URL) is valid on all
machines.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.storage.files import check_regular
from oodbench.storage.store import digest

if TYPE_CHECKING:
    from PIL.Image import Image

_LINE = "\n"  # does not occur in an ETag, which a fingerprint may contain
_RENUMBERING = frozenset(("fuse", "fuseblk", "cifs", "smb3", "vboxsf"))  # may change inodes, depending on their options


@dataclass(frozen=True)
class ReadImage:
    """An image that was read: the fingerprint of its file at that time, and functions for its pixels and its sha256.

    Both functions use the same bytes and compute lazily.
    """

    fingerprint: str
    image: Callable[[], Image]
    content: Callable[[], str]

    @classmethod
    def from_bytes(cls, fingerprint: str, raw: bytes) -> ReadImage:
        """Return a read image from the bytes of an image file."""
        return cls(fingerprint, lambda: decode(raw), lambda: hashlib.sha256(raw).hexdigest())

    @classmethod
    def from_image(cls, fingerprint: str, image: Image) -> ReadImage:
        """Return a read image from a decoded image; its sha256 is that of mode, size and pixels."""

        def content() -> str:
            return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()

        return cls(fingerprint, lambda: image, content)


def decode(raw: bytes) -> Image:
    """Decode the bytes of an image file with Pillow."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(raw))
    image.load()
    return image


def file_fingerprint(path: Path) -> str:
    """Return the fingerprint of a file, following links. Raise UserError if it is a folder, a FIFO or a device."""
    state = path.stat()
    check_regular(path, state.st_mode)
    return stat_fingerprint(state)


def stat_fingerprint(stat: os.stat_result) -> str:
    """Return the fingerprint of a file from the result of os.stat."""
    return _LINE.join((str(stat.st_size), str(stat.st_mtime_ns), f"{stat.st_ctime_ns}:{inode(stat)}"))


def member_fingerprint(file: str, *position: object, size: int | None = None) -> str:
    """Return the fingerprint of an image at a position in a file, given the fingerprint of the file.

    size  size of the image in bytes, if known: then only the size is equal for all copies, in whichever archive
    """
    shared, *rest = file.split(_LINE)
    place = ":".join(map(str, (shared, *position)))
    if size is None:
        return _LINE.join((place, *rest))
    return _LINE.join((str(size), ":".join((place, *rest[:1])), *rest[1:]))


def combine_fingerprints(files: Mapping[str, str], shared: str, *, times: bool = True) -> str:
    """Return one fingerprint for files by name; `shared` is its first line. Without `times`, the second is empty."""
    kept = digest(sorted((name, copied_part(text)) for name, text in files.items())) if times else ""
    newest = max(map(changed_at, files.values()), default=0)
    return _LINE.join((shared, kept, f"{newest}:{digest(sorted(files.items()))}"))


def portable_part(fingerprint: str) -> str:
    """Return the part of a fingerprint that is equal for all copies."""
    return fingerprint.partition(_LINE)[0]


def copied_part(fingerprint: str) -> str:
    """Return the part of a fingerprint that is equal for copies with the same times."""
    return _LINE.join(fingerprint.split(_LINE)[:2])


def is_local(fingerprint: str) -> bool:
    """Return whether a fingerprint has a part that is valid on one machine only."""
    return fingerprint.count(_LINE) > 1


def changed_at(fingerprint: str) -> int:
    """Return the change time in a fingerprint, in nanoseconds since 1970; 0 if it has none."""
    lines = fingerprint.split(_LINE)
    return int(lines[2].partition(":")[0]) if len(lines) > 2 else 0


def file_identity(path: Path) -> dict[str, Any]:
    """Return the attributes that identify a version of a file on this machine, a key for facts about its content."""
    now = path.stat()
    return {
        "file": str(path.resolve()),
        "bytes": now.st_size,
        "modified": now.st_mtime_ns,
        "changed": now.st_ctime_ns,
        "inode": inode(now),
    }


def inode(stat: os.stat_result) -> int:
    """Return the inode of a file; 0 on file systems whose inodes are not stable."""
    return 0 if file_system_type(stat.st_dev).partition(".")[0] in _RENUMBERING else stat.st_ino


@functools.cache
def file_system_type(device: int) -> str:
    """Return the type of the file system with this device number, as the kernel names it; "" if it is unknown."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    matching = (line.split(" - ")[-1].split() for line in mounts.splitlines() if line.split()[2:3] == [number])
    return next((fields[0] for fields in matching if fields), "")
