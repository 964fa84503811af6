"""Archives into folders: nothing is written outside the folder, and no more than the bounds allow.

Headers are bounded, too, before they are read: the name of one member can be gigabytes that were packed to nothing.
"""

from __future__ import annotations

import bz2
import gzip
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
from typing import IO, cast

from oodbench.errors import Damaged, UserError

_BLOCK = 1 << 20  # bytes
_HEADER = 1 << 20  # bytes of all headers of one member of a tar file: long names, PAX records, maps of sparse files
_PATH = 4096  # bytes of a name or of a link's target, as Linux bounds them
_LINKS = 1 << 28  # bytes of the names and targets of all links, which are held until the end
_XZ = 1 << 28  # bytes that decompressing may take: xz -9 takes 65 MB
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
    left, count, held = bounds.size, 0, 0
    links: list[_Member] = []
    members = _zip(archive) if zipfile.is_zipfile(archive) else _tar(archive)
    for member in members:
        count += 1
        if count > bounds.members:
            raise UserError(f"{archive} holds more than {bounds.members:,} members; it was not unpacked")
        long = max(len(text.encode("utf-8", "surrogateescape")) for text in (member.name, member.target))
        if long > _PATH:
            raise UserError(
                f"{archive}: the name or link of member '{member.name[:40]}...' has "
                f"{long:,} bytes, more than {_PATH:,}; it was not unpacked"
            )
        place = _inside(archive, root, member.name)
        if member.kind in ("link", "same"):
            links.append(member)  # made last, so that nothing is written through them
            held += len(member.name) + len(member.target)
            if held > _LINKS:
                raise UserError(
                    f"{archive}: the names of its links take more than {_LINKS:,} bytes; it was not unpacked"
                )
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


class _Stream:
    """What tarfile reads from: a file whose headers are bounded.

    left    bytes that may still be read of the headers of a member; None while its content is read
    last    the block that was read last
    """

    def __init__(self, archive: Path, inner: IO[bytes]) -> None:
        self._archive, self._inner = archive, inner
        self.left: int | None = None
        self.last = b""

    def read(self, size: int) -> bytes:
        """Read bytes. UserError when the headers of a member are longer than the bound."""
        if self.left is not None:
            self.left -= size
            if self.left < 0:
                raise UserError(
                    f"{self._archive}: the headers of a member are longer than {_HEADER:,} bytes; it was not unpacked"
                )
        content = self._inner.read(size)
        self.last = content[-tarfile.BLOCKSIZE :]
        return content

    def seek(self, position: int) -> int:
        """Go on to a position; nothing that is skipped is held."""
        return self._inner.seek(position)

    def tell(self) -> int:
        """The position."""
        return self._inner.tell()


def _tar(archive: Path) -> Iterator[_Member]:
    with _unpacked(archive) as inner:
        stream = _Stream(archive, inner)
        stream.left = _HEADER
        with tarfile.open(fileobj=stream, mode="r:") as file:  # type: ignore[call-overload]
            while (one := file.next()) is not None:
                stream.left = None
                kind = "link" if one.issym() else "same" if one.islnk() else "folder" if one.isdir() else "file"
                content = file.extractfile(one) if one.isfile() else None
                yield _Member(one.name, kind, one.linkname, content)
                file.members.clear()  # which tarfile would hold to the end
                stream.left = _HEADER - sum(len(key) + len(value) for key, value in file.pax_headers.items())
        if len(stream.last) != tarfile.BLOCKSIZE or stream.last.strip(b"\0"):
            # tarfile takes a damaged header, and a missing one, for the end
            raise Damaged(f"{archive} is damaged: it has no end mark; it is cut off, or a header in it is corrupt")


def _unpacked(archive: Path) -> IO[bytes]:
    """The content of a file that may be compressed."""
    with archive.open("rb") as file:
        start = file.read(1 << 16)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(archive))
    if start.startswith(b"BZh"):
        return bz2.open(archive)
    if start.startswith((b"\xfd7zXZ", b"]\x00\x00")):
        try:
            lzma.LZMADecompressor(memlimit=_XZ).decompress(start, max_length=1)
        except lzma.LZMAError as error:
            if "limit" not in str(error):
                raise
            raise UserError(
                f"{archive} takes more than {_XZ:,} bytes of memory to unpack; it was not unpacked"
            ) from error
        return lzma.open(archive)
    return archive.open("rb")


def _zip(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for one in file.infolist():
            if one.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
                raise UserError(f"{archive}: member '{one.filename}' is compressed in a way that is not read")
            if stat.S_ISLNK(one.external_attr >> 16):
                with file.open(one) as content:
                    target = content.read(_PATH + 1)
                yield _Member(one.filename, "link", target.decode("utf-8", "surrogateescape"))
            elif one.is_dir():
                yield _Member(one.filename, "folder")
            else:
                yield _Member(one.filename, "file", content=file.open(one))
