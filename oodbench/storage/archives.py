"""Unpack tar and zip files safely: nothing is written outside the folder, and no more than the bounds allow.

tarfile.data_filter (Python 3.11.4) checks names, links and types of members, for zip files as well. The size of headers
is limited before they are read: a compressed archive of a few kilobytes can hold a member name of gigabytes.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import re
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from oodbench.errors import Damaged, UserError

_BLOCK = 1 << 20  # bytes
_MAX_HEADERS = 1 << 20  # bytes of all headers of one member of a tar file: long names, PAX records, sparse maps
_MAX_PATH = 4096  # bytes of a name or of a link target: PATH_MAX of Linux
_MAX_LINKS = 1 << 28  # bytes of the names and targets of all links, which stay in memory until the end
_MAX_MEMBER = 1 << 26  # bytes of a file that is read from an archive into memory
_MAX_XZ = 1 << 28  # bytes of memory for decompression: xz -9 needs 65 MB
_SIMPLE = re.compile(r"[\w-]+/[\w-]+\.\w+")  # stays in the folder; tarfile's check takes longer than writing
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
    """Limits on the total size in bytes and on the number of members of an unpacked archive."""

    size: int = 400 * 10**9
    members: int = 5_000_000


@dataclass(frozen=True)
class _Member:
    """The header of a member, and its content if it is a file."""

    info: tarfile.TarInfo
    content: IO[bytes] | None = None


def is_archive(name: str) -> bool:
    """Return whether a file name has the suffix of an archive that can be unpacked."""
    endings = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".zip")
    return name.lower().endswith(endings)


def unpack(
    archive: Path,
    folder: Path,
    bounds: Bounds | None = None,
    place: Callable[[str], str | None] | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> None:
    """Unpack a tar or zip file into a new folder, and remove the folder on failure.

    place    maps the name of a member to a path below the folder, or to None to skip it. With it, the folder is kept
             after a failure or an interruption, and the next call resumes: complete files are not written again
    advance  is called with the size of each block in bytes
    Raise UserError if the name or link of a member points outside the folder, if a member is a device or a FIFO, or
    if the content exceeds the bounds or the free disk space. Raise Damaged if the archive is truncated or corrupt.
    """
    bounds = bounds or Bounds()
    folder.mkdir(parents=True, exist_ok=place is not None)
    bounds = Bounds(min(bounds.size, shutil.disk_usage(folder).free), bounds.members)
    try:
        _write(archive, folder.resolve(), bounds, place, advance)
    except BaseException as error:
        if not place:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, UserError) or not isinstance(error, (*_DAMAGE, OSError)):
            raise
        if isinstance(error, OSError) and error.errno is not None:
            kept = "; unpacked files are kept: rerun the same command to resume" if place else ""
            raise UserError(f"cannot unpack {archive} into {folder}: {error.strerror}{kept}") from error
        raise Damaged(f"{archive} is damaged: {error}") from error


def read_member(archive: Path, name: str) -> bytes:
    """Return the content of one file of an archive (at most 64 MB). Raise UserError if there is none."""
    try:
        for member in _members(archive, Bounds()):
            if member.content and member.info.name.removeprefix("./") == name:
                with member.content as content:
                    return content.read(_MAX_MEMBER)
    except (*_DAMAGE, OSError) as error:
        raise Damaged(f"{archive} is damaged: {error}") from error
    raise UserError(f"{archive} does not contain {name}; it is a different archive")


def _write(
    archive: Path,
    root: Path,
    bounds: Bounds,
    place: Callable[[str], str | None] | None,
    advance: Callable[[int], None],
) -> None:
    left, held = bounds.size, 0
    links: list[tarfile.TarInfo] = []
    placed: set[str] = set()
    folders: set[Path] = set()
    for member in _members(archive, bounds):
        info = member.info
        if place is None and (info.issym() or info.islnk()):
            links.append(info)  # created last, so that nothing is written through a link
            held += len(info.name) + len(info.linkname)
            if held > _MAX_LINKS:
                raise UserError(
                    f"{archive}: the names of its links take more than {_MAX_LINKS:,} bytes; it was not unpacked"
                )
            continue
        if member.content is None:
            if place is None:
                _checked_path(archive, root, info).mkdir(parents=True, exist_ok=True)
            continue
        with member.content as content:
            if place is not None:
                name = place(info.name)
                if name is None:
                    continue
                if name in placed:
                    raise UserError(f"{archive} holds {name.rpartition('/')[2]} more than once; it was not unpacked")
                placed.add(name)
                info.name = name
            path = root / info.name if _SIMPLE.fullmatch(info.name) else _checked_path(archive, root, info)
            if path.parent not in folders:
                path.parent.mkdir(parents=True, exist_ok=True)
                folders.add(path.parent)
            if place is not None and path.is_file() and path.stat().st_size == info.size:
                advance(info.size)
                continue
            with path.open("wb") as out:
                while block := content.read(_BLOCK):
                    left -= len(block)
                    if left < 0:
                        raise UserError(
                            f"{archive} unpacks to more than {bounds.size:,} bytes, which is the limit or the free "
                            f"disk space; it was not unpacked{' completely' if place else ''}"
                        )
                    out.write(block)
                    advance(len(block))
    for info in links:
        _create_link(archive, root, info)


def _members(archive: Path, bounds: Bounds) -> Iterator[_Member]:
    """Yield the members of an archive. Raise UserError if there are too many, or if a name is too long."""
    members = _zip_members(archive) if zipfile.is_zipfile(archive) else _tar_members(archive)
    for count, member in enumerate(members, 1):
        if count > bounds.members:
            raise UserError(f"{archive} holds more than {bounds.members:,} members; it was not unpacked")
        info = member.info
        longest = max(len(text.encode("utf-8", "surrogateescape")) for text in (info.name, info.linkname))
        if longest > _MAX_PATH:
            raise UserError(
                f"{archive}: the name or link of member '{info.name[:40]}...' has "
                f"{longest:,} bytes, more than {_MAX_PATH:,}; it was not unpacked"
            )
        yield member


def _checked_path(archive: Path, root: Path, info: tarfile.TarInfo) -> Path:
    """Return the path of a member below root. Raise UserError if tarfile.data_filter rejects the member."""
    name = info.name.replace("\\", "/")  # a separator on Windows
    try:
        if name.startswith("/") or "\0" in name:  # data_filter would remove the slash
            raise tarfile.OutsideDestinationError(info, name)
        tarfile.data_filter(info.replace(name=name, deep=False), str(root))
    except tarfile.SpecialFileError as error:
        raise UserError(
            f"{archive}: member '{info.name}' is not a file, a folder or a link; it was not unpacked"
        ) from error
    except tarfile.FilterError as error:
        raise _leads_out(archive, info) from error
    return root / info.name


def _create_link(archive: Path, root: Path, info: tarfile.TarInfo) -> None:
    """Create a symbolic or hard link to a file that was unpacked."""
    path = _checked_path(archive, root, info)
    path.parent.mkdir(parents=True, exist_ok=True)
    target = Path(os.path.realpath((path.parent if info.issym() else root) / info.linkname))
    if path.is_symlink() or path.exists():
        raise UserError(f"{archive}: link '{info.name}' has the name of another member")
    if not target.exists():
        raise UserError(f"{archive}: link '{info.name}' points to '{info.linkname}', which is not in the archive")
    if info.issym():
        path.symlink_to(info.linkname)
        if not path.samefile(target):  # data_filter does not resolve links in paths longer than PATH_MAX
            raise _leads_out(archive, info)
    else:
        os.link(target, path)


def _leads_out(archive: Path, info: tarfile.TarInfo) -> UserError:
    kind, target = ("link", f", to '{info.linkname}'") if info.linkname else ("member", "")
    return UserError(f"{archive}: {kind} '{info.name}' points outside the folder{target}; it was not unpacked")


class _BoundedReader:
    """A file for tarfile that raises UserError if the headers of a member are too long.

    left    header bytes of a member that may still be read; None while its content is read
    last    the last block read
    """

    def __init__(self, archive: Path, inner: IO[bytes]) -> None:
        self._archive, self._inner = archive, inner
        self.left: int | None = None
        self.last = b""

    def read(self, size: int) -> bytes:
        """Read bytes. Raise UserError if the headers of a member are longer than the bound."""
        if self.left is not None:
            self.left -= size
            if self.left < 0:
                raise UserError(
                    f"{self._archive}: the headers of a member are longer than {_MAX_HEADERS:,} bytes; it was not "
                    "unpacked"
                )
        content = self._inner.read(size)
        self.last = content[-tarfile.BLOCKSIZE :]
        return content

    def seek(self, position: int) -> int:
        """Move to a position without keeping the skipped bytes in memory."""
        return self._inner.seek(position)

    def tell(self) -> int:
        """Return the position."""
        return self._inner.tell()


def _tar_members(archive: Path) -> Iterator[_Member]:
    with _open_decompressed(archive) as inner:
        reader = _BoundedReader(archive, inner)
        reader.left = _MAX_HEADERS
        with tarfile.open(fileobj=reader, mode="r:") as file:  # type: ignore[call-overload]
            while (info := file.next()) is not None:
                reader.left = None
                yield _Member(info, file.extractfile(info) if info.isfile() else None)
                file.members.clear()  # tarfile would keep them all
                reader.left = _MAX_HEADERS - sum(len(key) + len(value) for key, value in file.pax_headers.items())
        if len(reader.last) != tarfile.BLOCKSIZE or reader.last.strip(b"\0"):
            # tarfile treats a damaged or missing header as the end of the archive
            raise Damaged(f"{archive} is damaged: it has no end marker; it is truncated, or a header is corrupt")


def _open_decompressed(archive: Path) -> IO[bytes]:
    """Open a file for reading, and decompress gzip, bzip2 and xz."""
    with archive.open("rb") as file:
        start = file.read(1 << 16)
    if start.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.open(archive))
    if start.startswith(b"BZh"):
        return bz2.open(archive)
    if start.startswith((b"\xfd7zXZ", b"]\x00\x00")):
        try:
            lzma.LZMADecompressor(memlimit=_MAX_XZ).decompress(start, max_length=1)
        except lzma.LZMAError as error:
            if "limit" not in str(error):
                raise
            raise UserError(
                f"{archive} takes more than {_MAX_XZ:,} bytes of memory to unpack; it was not unpacked"
            ) from error
        return lzma.open(archive)
    return archive.open("rb")


def _zip_members(archive: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(archive) as file:
        for entry in file.infolist():
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2):
                raise UserError(f"{archive}: member '{entry.filename}' uses a compression method that is not supported")
            info = tarfile.TarInfo(entry.filename)
            if stat.S_ISLNK(entry.external_attr >> 16):
                with file.open(entry) as content:
                    info.linkname = content.read(_MAX_PATH + 1).decode("utf-8", "surrogateescape")
                info.type = tarfile.SYMTYPE
                yield _Member(info)
            elif entry.is_dir():
                info.type = tarfile.DIRTYPE
                yield _Member(info)
            else:
                info.size = entry.file_size
                yield _Member(info, file.open(entry))
