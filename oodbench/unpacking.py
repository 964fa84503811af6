"""Archives into folders: nothing is written outside the folder, and no more than the bounds allow."""

from __future__ import annotations

import lzma
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from oodbench.errors import UserError

_BLOCK = 1 << 20  # bytes
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    EOFError,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Bounds:
    """What an archive may unpack to: bytes in all, and members."""

    size: int = 400 * 10**9
    members: int = 5_000_000


@dataclass(frozen=True)
class _Member:
    """kind: file, folder, link (symbolic) or same (hard link); `target` is what a link names."""

    name: str
    kind: str
    target: str = ""
    content: IO[bytes] | None = None


class Damaged(UserError):
    """The archive is cut off or no archive at all."""


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive that can be unpacked."""
    endings = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
    return name.lower().endswith(endings)


def unpack(archive: Path, folder: Path, bounds: Bounds | None = None) -> None:
    """Unpack a tar or zip file into a new folder, which is removed again when that fails.

    UserError when a member's name or link leads out of the folder, when a member is a device or pipe, or when there is
    more than the bounds or the disk allow; Damaged when the archive is cut off or corrupt.
    """
    bounds = bounds or Bounds()
    folder.mkdir(parents=True)
    try:
        _write(archive, folder, Bounds(min(bounds.size, shutil.disk_usage(folder).free), bounds.members))
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, UserError) or not isinstance(error, (*_DAMAGE, OSError)):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            raise UserError(f"cannot unpack {archive} into {folder}: {error.strerror}") from error
        raise Damaged(f"{archive} is damaged: {error}") from error


def _write(archive: Path, folder: Path, bounds: Bounds) -> None:
    root = folder.resolve()
    left, count = bounds.size, 0
    links: list[_Member] = []
    members = _zip(archive) if zipfile.is_zipfile(archive) else _tar(archive)
    for member in members:
        count += 1
        if count > bounds.members:
            raise UserError(f"{archive} holds more than {bounds.members:,} members; it was not unpacked")
        place = _inside(archive, root, member.name)
        if member.kind in ("link", "same"):
            links.append(member)  # made last, so that nothing is written through them
        elif member.kind == "folder":
            place.mkdir(parents=True, exist_ok=True)
        elif member.content is None:
            raise UserError(f"{archive}: member '{member.name}' is neither file, folder nor link; it was not unpacked")
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            with member.content as content, place.open("wb") as out:
                while block := content.read(_BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise UserError(
                            f"{archive} unpacks to more than {bounds.size:,} bytes, which is the bound or what the "
                            "disk has left; it was not unpacked"
                        )
                    out.write(block)
    for member in links:
        _link(archive, root, member)


def _link(archive: Path, root: Path, member: _Member) -> None:
    """Make a link to something that was unpacked."""
    place = _inside(archive, root, member.name)
    place.parent.mkdir(parents=True, exist_ok=True)
    start = place.parent if member.kind == "link" else root
    target = Path(os.path.realpath(start / member.target))
    here = Path(os.path.realpath(place.parent))
    if member.target.startswith("/") or not target.is_relative_to(root) or not here.is_relative_to(root):
        raise UserError(f"{archive}: link '{member.name}' leads out of the folder, to '{member.target}'")
    if place.is_symlink() or place.exists():
        raise UserError(f"{archive}: link '{member.name}' has the name of another member")
    if not target.exists():
        raise UserError(f"{archive}: link '{member.name}' leads to '{member.target}', which the archive does not hold")
    if member.kind == "link":
        place.symlink_to(member.target)
    else:
        os.link(target, place)


def _inside(archive: Path, root: Path, name: str) -> Path:
    """Where a member goes; UserError when that is outside."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or name.startswith(("/", "\\")) or ".." in parts or ":" in parts[0] or "\0" in name:
        if parts == () and name in (".", "./"):
            return root
        raise UserError(f"{archive}: member '{name}' leads out of the folder; the archive was not unpacked")
    return root.joinpath(*PurePosixPath(name).parts)


def _tar(archive: Path) -> Iterator[_Member]:
    with tarfile.open(archive, "r:*") as file:
        for one in file:
            kind = "link" if one.issym() else "same" if one.islnk() else "folder" if one.isdir() else "file"
            content = file.extractfile(one) if one.isfile() else None
            yield _Member(one.name, kind, one.linkname, content)


def _zip(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for one in file.infolist():
            if stat.S_ISLNK(one.external_attr >> 16):
                yield _Member(one.filename, "link", file.read(one).decode("utf-8", "replace")[:4096])
            elif one.is_dir():
                yield _Member(one.filename, "folder")
            else:
                yield _Member(one.filename, "file", content=file.open(one))
