"""Tar archives as random-access collections: braces and globs, an index of members, reads by seek."""

from __future__ import annotations

import itertools
import os
import re
import tarfile
from dataclasses import dataclass
from glob import glob
from pathlib import Path

from oodbench.data.loaders.links import files
from oodbench.data.paths import expand as expand_home
from oodbench.data.prints import stat_print
from oodbench.errors import Missing, UserError
from oodbench.storage.regular import regular
from oodbench.storage.urls import is_url

_BRACES = re.compile(r"\{([^{}]*)\}")
_BLOCK = 512  # bytes


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name, and where its bytes lie."""

    name: str
    offset: int  # bytes from the start of the archive
    size: int  # bytes


def expand(pattern: str) -> list[str]:
    """The files that `a-{000..012}.tar`, `{a,b}.tar` or a glob names, sorted per pattern; URLs are kept as they are.

    UserError when a pattern is malformed or a glob finds nothing. A file that a pattern names need not exist.
    """
    found: list[str] = []
    for text in itertools.chain.from_iterable(_unbraced(part) for part in pattern.split("::")):
        if is_url(text):
            found.append(text)
            continue
        path = str(expand_home(text))
        if not any(c in path for c in "*?[") or os.path.exists(path):
            found.append(path)
            continue
        matches = sorted(glob(path, recursive=True))
        if not matches:
            raise Missing(f"no file matches '{text}'")
        found += matches
    return list(dict.fromkeys(found))


@dataclass(frozen=True)
class Contents:
    """What an archive holds, in its order: files, and the names of FIFOs and devices and of folders."""

    files: tuple[Member, ...]
    irregular: tuple[str, ...]
    folders: tuple[str, ...]


def members(path: Path) -> list[Member]:
    """The files of an archive in archive order, without reading them; see `contents`."""
    return list(contents(path).files)


def contents(path: Path) -> Contents:
    """The files and folders of an archive in archive order, without reading them; links are followed inside it.

    UserError naming the archive, and the last good member, when it is missing, compressed, truncated or corrupt; or the
    member that is a link out of the archive.
    """
    found: list[Member] = []
    inside: list[tarfile.TarInfo] = []
    try:
        with regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            for one in archive:
                if one.issparse():
                    raise UserError(f"{path}: member {one.name} is sparse; make the archive anew without --sparse")
                inside.append(one)
                found += [Member(one.name, one.offset_data, one.size)] if one.isreg() else []
            end = archive.offset
        _check_end(path, end, size, found)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(_broken(path, found, str(error) or type(error).__name__)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        followed = list(files(inside))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return Contents(
        tuple(Member(name, one.offset_data, one.size) for name, one in followed if one.isreg()),
        tuple(name for name, one in followed if not (one.isreg() or one.isdir())),
        tuple(one.name for one in inside if one.isdir()),
    )


def read_member(path: Path, member: Member) -> tuple[bytes, str]:
    """The bytes of a member, and the print of the archive that they were read from.

    Any number of threads may read one archive. UserError when it ends before the member.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(member.offset)
            content = file.read(member.size)
            while 0 < len(content) < member.size and (more := file.read(member.size - len(content))):
                content += more
            now = stat_print(os.fstat(file.fileno()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) != member.size:
        raise UserError(f"{path} ends within member {member.name}; it is truncated, fetch it again")
    return content, now


def _check_end(path: Path, end: int, size: int, found: list[Member]) -> None:
    """tarfile takes a damaged header for the end of the archive, and a missing end for one: both are found here."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
    # tarfile may stop behind the first of the two zero blocks, or in front of it
    if block and block.strip(b"\0"):
        raise UserError(_broken(path, found, f"no header at byte {end:,} of {size:,}"))
    if not block and (size == 0 or not _zeros_before(path, size)):
        raise UserError(_broken(path, found, "it has no end mark"))


def _zeros_before(path: Path, size: int) -> bool:
    with path.open("rb") as file:
        file.seek(max(0, size - _BLOCK))
        return not file.read(_BLOCK).strip(b"\0")


def _broken(path: Path, found: list[Member], reason: str) -> str:
    where = f"after member {found[-1].name}" if found else "before its first member"
    with path.open("rb") as file:
        packed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    if packed:
        return f"{path} is compressed, which cannot be read out of order; unpack it to a plain .tar"
    return f"{path} is truncated or corrupt {where} ({reason}); fetch or make it again"


def _unbraced(pattern: str) -> list[str]:
    """Every text that a pattern with {a..b} ranges and {x,y} choices stands for, in order."""
    found = _BRACES.search(pattern)
    if not found:
        if "{" in pattern or "}" in pattern:
            raise UserError(f"braces do not match in '{pattern}'; write name-{{000..012}}.tar")
        return [pattern]
    first, dots, last = found[1].partition("..")
    if not dots:
        options = found[1].split(",")
        if len(options) == 1:
            raise UserError(f"'{found[0]}' in '{pattern}' is neither a range {{000..012}} nor a choice {{a,b}}")
    elif not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
        raise UserError(f"'{found[0]}' in '{pattern}' is no range of numbers; write {{000..012}}")
    else:
        width = len(first) if len(first) == len(last) or first.startswith("0") else 0
        options = [str(n).zfill(width) for n in range(int(first), int(last) + 1)]
    head, tail = pattern[: found.start()], pattern[found.end() :]
    return [head + option + rest for option in options for rest in _unbraced(tail)]
