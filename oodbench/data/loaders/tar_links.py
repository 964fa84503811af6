"""Links in a tar archive, followed as a file system follows them: to files and folders of the same archive."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from oodbench.data.loaders.layout import is_beside, is_hidden
from oodbench.errors import UserError

_HOPS = 1000  # links on the way to one file
_MOST = 1_000_000  # files and folders that links to folders may stand for
_DEEP = 100  # folders within folders that links to folders may stand for


@dataclass
class _Folder:
    entries: dict[str, _Folder | tarfile.TarInfo] = field(default_factory=dict)


def files(archive: Iterable[tarfile.TarInfo]) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """(name, member that holds its bytes) of every file in archive order; links stand for what they lead to.

    A link to a folder stands for all files in it, unless it leads to a folder that it lies in. UserError naming the
    first link that leads out of the archive or to nothing, unless its name is hidden or that of a text.
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
        self.given = 0
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
        """What a link in the folder `home` stands for, under `name`."""
        try:
            place = self._resolve([*home, _parts(link.name)[-1]])
            target = self._at(place)
        except UserError:
            if is_beside(name):
                return
            raise
        if isinstance(target, _Folder):
            above = [self._resolve(home[:depth]) for depth in range(len(home) + 1)]
            yield from self._below(name, place, above)
        else:
            yield name, target

    def _below(self, name: str, place: list[str], above: list[list[str]]) -> Iterator[tuple[str, tarfile.TarInfo]]:
        """The files of a folder under another name; `above`: the folders on the way, links to which are left out."""
        if place in above:
            return
        self._count()
        if len(above) > _DEEP:
            raise UserError(f"links to folders stand for more than {_DEEP} folders within each other at {name}")
        folder = self._at(place)
        assert isinstance(folder, _Folder)
        for part, entry in folder.entries.items():
            inner = f"{name}/{part}"
            if is_hidden(part):
                continue
            if isinstance(entry, _Folder):
                yield from self._below(inner, [*place, part], [*above, place])
            elif entry.issym() or entry.islnk():
                end = self._resolve([*place, part])
                target = self._at(end)
                if isinstance(target, _Folder):
                    yield from self._below(inner, end, [*above, place])
                else:
                    self._count()
                    yield inner, target
            else:
                self._count()
                yield inner, entry

    def _count(self) -> None:
        self.given += 1
        if self.given > _MOST:
            raise UserError(f"its links stand for more than {_MOST:,} files and folders")

    def _at(self, place: list[str]) -> _Folder | tarfile.TarInfo:
        entry: _Folder | tarfile.TarInfo = self.root
        for part in place:
            assert isinstance(entry, _Folder)
            entry = entry.entries[part]
        return entry

    def _resolve(self, path: list[str]) -> list[str]:
        """Where a path ends when every link on it is followed."""
        ahead, done = list(reversed(path)), list[str]()
        hops = 0
        link: tarfile.TarInfo | None = None
        while ahead:
            part = ahead.pop()
            if part in ("", "."):
                continue
            if part == "..":
                if not done:
                    raise _astray(link, "leads out of the archive")
                done.pop()
                continue
            folder = self._at(done)
            entry = folder.entries.get(part) if isinstance(folder, _Folder) else None
            if entry is None:
                raise _astray(link, "leads to nothing in the archive")
            if isinstance(entry, tarfile.TarInfo) and (entry.issym() or entry.islnk()):
                hops += 1
                link = link or entry
                if hops > _HOPS:
                    raise _astray(link, "leads in a circle")
                if entry.issym() and entry.linkname.startswith("/"):
                    raise _astray(link, "leads out of the archive")
                if entry.islnk():  # named from the root of the archive
                    done = []
                ahead += reversed(entry.linkname.split("/"))
                continue
            done.append(part)
        return done


def _parts(name: str) -> list[str]:
    return [part for part in posixpath.normpath(name).split("/") if part not in ("", ".")]


def _astray(link: tarfile.TarInfo | None, how: str) -> UserError:
    if link is None:
        return UserError(f"a link {how}")
    return UserError(f"member {link.name} is a link to {link.linkname}, which {how}; pack the file itself")
