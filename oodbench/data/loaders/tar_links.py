"""Resolve links in a tar archive that is read in place, as a file system would.

tarfile.data_filter cannot be used: it resolves links in a folder on disk, but the archive is not unpacked.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from oodbench.data.loaders.layout import is_annotation, is_hidden
from oodbench.errors import UserError

_MAX_HOPS = 1000  # links followed for one path
_MAX_LINKED = 1_000_000  # files and folders that links to folders may add
_MAX_DEPTH = 100  # nested folders that links to folders may add


@dataclass
class _Folder:
    entries: dict[str, _Folder | tarfile.TarInfo] = field(default_factory=dict)


def resolve_links(archive: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield (name, member with the content) for every file in archive order, with links resolved.

    A link to a folder adds all files of the folder under the link's name, unless the link is inside that folder. Raise
    UserError for the first link that points outside the archive or to nothing, unless it is hidden or an annotation.
    """
    members = list(archive)
    if not any(one.issym() or one.islnk() for one in members):
        yield from ((one.name, one) for one in members)
        return
    yield from _Links(members).files()


class _Links:
    def __init__(self, members: list[tarfile.TarInfo]) -> None:
        self.members = members
        self.root = _Folder()
        self.linked = 0  # files and folders added by links to folders
        for one in members:
            parts = _parts(one.name)
            folder = self.root
            for part in parts if one.isdir() else parts[:-1]:
                below = folder.entries.get(part)
                if not isinstance(below, _Folder):
                    below = folder.entries[part] = _Folder()
                folder = below
            if parts and not one.isdir():
                folder.entries[parts[-1]] = one

    def files(self) -> Iterator[tuple[str, tarfile.TarInfo]]:
        for one in self.members:
            if not (one.issym() or one.islnk()):
                yield one.name, one
                continue
            name = posixpath.normpath(one.name)
            if is_hidden(name):
                continue
            yield from self._link(one, name, _parts(one.name)[:-1])

    def _link(self, link: tarfile.TarInfo, name: str, home: list[str]) -> Iterator[tuple[str, tarfile.TarInfo]]:
        """Yield the files that a link in the folder `home` adds under `name`."""
        try:
            path = self._resolve([*home, _parts(link.name)[-1]])
            target = self._at(path)
        except UserError:
            if is_annotation(name):
                return
            raise
        if isinstance(target, _Folder):
            above = [self._resolve(home[:depth]) for depth in range(len(home) + 1)]
            yield from self._below(name, path, above)
        else:
            yield name, target

    def _below(self, name: str, path: list[str], above: list[list[str]]) -> Iterator[tuple[str, tarfile.TarInfo]]:
        """Yield the files of a folder under another name. `above` are its parents; links to them are skipped."""
        if path in above:
            return
        self._count()
        if len(above) > _MAX_DEPTH:
            raise UserError(f"links to folders add more than {_MAX_DEPTH} nested folders at {name}")
        folder = self._at(path)
        assert isinstance(folder, _Folder)
        for part, entry in folder.entries.items():
            inner = f"{name}/{part}"
            if is_hidden(part):
                continue
            if isinstance(entry, _Folder):
                yield from self._below(inner, [*path, part], [*above, path])
            elif entry.issym() or entry.islnk():
                end = self._resolve([*path, part])
                target = self._at(end)
                if isinstance(target, _Folder):
                    yield from self._below(inner, end, [*above, path])
                else:
                    self._count()
                    yield inner, target
            else:
                self._count()
                yield inner, entry

    def _count(self) -> None:
        self.linked += 1
        if self.linked > _MAX_LINKED:
            raise UserError(f"its links to folders add more than {_MAX_LINKED:,} files and folders")

    def _at(self, path: list[str]) -> _Folder | tarfile.TarInfo:
        entry: _Folder | tarfile.TarInfo = self.root
        for part in path:
            assert isinstance(entry, _Folder)
            entry = entry.entries[part]
        return entry

    def _resolve(self, path: list[str]) -> list[str]:
        """Return a path with all links resolved."""
        remaining, resolved = list(reversed(path)), list[str]()
        hops = 0
        link: tarfile.TarInfo | None = None
        while remaining:
            part = remaining.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not resolved:
                    raise _link_error(link, "points outside the archive")
                resolved.pop()
                continue
            folder = self._at(resolved)
            entry = folder.entries.get(part) if isinstance(folder, _Folder) else None
            if entry is None:
                raise _link_error(link, "points to nothing in the archive")
            if isinstance(entry, tarfile.TarInfo) and (entry.issym() or entry.islnk()):
                hops += 1
                link = link or entry
                if hops > _MAX_HOPS:
                    raise _link_error(link, "is circular")
                if entry.issym() and entry.linkname.startswith("/"):
                    raise _link_error(link, "points outside the archive")
                if entry.islnk():  # named from the root of the archive
                    resolved = []
                remaining += reversed(entry.linkname.split("/"))
                continue
            resolved.append(part)
        return resolved


def _parts(name: str) -> list[str]:
    return [part for part in posixpath.normpath(name).split("/") if part not in ("", ".")]


def _link_error(link: tarfile.TarInfo | None, how: str) -> UserError:
    if link is None:
        return UserError(f"a link {how}")
    return UserError(f"member {link.name} is a link to {link.linkname}, which {how}; pack the file itself")
