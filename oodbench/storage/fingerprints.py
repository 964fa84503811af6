"""Fingerprints: texts that change when a file or an image changes, without reading its content.

The fingerprint of an image is the size and modification time of its file, or the sha256 of the file's content, followed
by the position of the image if the file holds several. After a line feed it has what is valid on one machine only:
change time and inode of the file that links lead to. Stored embeddings are used if all of the fingerprint is the same;
result rows keep the portable part.
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.storage.files import check_regular

if TYPE_CHECKING:
    from PIL.Image import Image

_LOCAL = "\n"  # separates the local part: an ETag of a server, which a fingerprint may contain, has no line feed
_RENUMBERING = frozenset(("fuse", "fuseblk", "cifs", "smb3", "vboxsf"))  # unless their server or user configures it


@dataclass(frozen=True)
class ReadImage:
    """One image that was read: the fingerprint of its file at that time, and functions for its pixels and its sha256.

    Both functions use the same bytes, and compute only when they are called.
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
    return join_parts(f"{stat.st_size}:{stat.st_mtime_ns}", f"{stat.st_ctime_ns}:{inode(stat)}")


def member_fingerprint(file: str, *position: object) -> str:
    """Return the fingerprint of an image at a position in a file from the fingerprint of the file."""
    portable, separator, local = file.partition(_LOCAL)
    return ":".join(map(str, (portable, *position))) + separator + local


def join_parts(portable: str, local: str) -> str:
    """Return a fingerprint of its portable part and the part that is valid on this machine only."""
    return f"{portable}{_LOCAL}{local}"


def portable_part(fingerprint: str) -> str:
    """Return the part of a fingerprint that is the same on other machines and in copies that keep their times."""
    return fingerprint.partition(_LOCAL)[0]


def file_identity(path: Path) -> dict[str, Any]:
    """Return what identifies a version of a file on this machine: facts about its content are stored with it."""
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
