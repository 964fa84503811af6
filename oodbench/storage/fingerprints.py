"""Prints: texts that change when an image changes, taken when images are listed and again when they are read.

A print is the size and modification time of a file, or the sha256 of its content, followed by the place of the image
when the file holds several. Behind a line feed stands what is true on one machine only: change time and inode of the
file that links lead to. All of a print decides whether stored embeddings may be used; rows keep the lasting part.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.storage.files import check_regular
from oodbench.storage.store import inode

if TYPE_CHECKING:
    from PIL.Image import Image

_LOCAL = "\n"  # no ETag of a server, which a print may hold, has a line feed


@dataclass(frozen=True)
class ReadImage:
    """What was read for one image: the print of its file at that time, the decoded image, and the sha256 of the bytes.

    Image and sha256 are made when they are asked for, both of the same bytes.
    """

    print: str
    image: Callable[[], Image]
    content: Callable[[], str]


def encoded(print: str, raw: bytes) -> ReadImage:
    """What was read of an image that is stored in a format of Pillow's."""
    return ReadImage(print, lambda: decoded(raw), lambda: hashlib.sha256(raw).hexdigest())


def decoded(raw: bytes) -> Image:
    """An image from the bytes of a file."""
    import io

    from PIL import Image

    image = Image.open(io.BytesIO(raw))
    image.load()
    return image


def pixels(print: str, image: Image) -> ReadImage:
    """What was read of an image that is decoded already; its sha256 is that of mode, size and pixels."""

    def content() -> str:
        return hashlib.sha256(f"{image.mode} {image.size} ".encode() + image.tobytes()).hexdigest()

    return ReadImage(print, lambda: image, content)


def fingerprint(path: Path) -> str:
    """The print of a file, links followed. UserError when it is a folder, a FIFO or a device."""
    state = path.stat()
    check_regular(path, state.st_mode)
    return stat_fingerprint(state)


def stat_fingerprint(stat: os.stat_result) -> str:
    """The print of a file from what the system says of it."""
    return joined(f"{stat.st_size}:{stat.st_mtime_ns}", f"{stat.st_ctime_ns}:{inode(stat)}")


def inside(whole: str, *place: object) -> str:
    """The print of an image at some place in a file, from the print of the file."""
    known, feed, local = whole.partition(_LOCAL)
    return ":".join(map(str, (known, *place))) + feed + local


def joined(known: str, local: str) -> str:
    """A print of its lasting part and what is true on this machine only."""
    return f"{known}{_LOCAL}{local}"


def lasting(print: str) -> str:
    """What of a print is the same on other machines and in copies that keep their times."""
    return print.partition(_LOCAL)[0]
