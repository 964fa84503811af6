"""Images in tar archives: `class/name.jpg` members, or webdataset's `key.jpg` with `key.cls`."""

from __future__ import annotations

import itertools
import os
import posixpath
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, class_keys, empty_error, folder_classes, missing_error, unlabelled_error
from oodbench.data.loaders.layout import Classes, first_few, ignored_remarks, is_hidden, is_image, repeated_remarks
from oodbench.data.loaders.tar_links import resolve_links
from oodbench.errors import Missing, UserError, is_url
from oodbench.storage.files import expand as expand_home
from oodbench.storage.files import open_regular
from oodbench.storage.fingerprints import ReadImage, file_fingerprint, member_fingerprint, stat_fingerprint
from oodbench.storage.remote import copy_digest, fetch_cached

_BRACES = re.compile(r"\{([^{}]*)\}")
_BLOCK = 512  # bytes


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name, and where its bytes lie."""

    name: str
    offset: int  # bytes from the start of the archive
    size: int  # bytes


def expand_pattern(pattern: str) -> list[str]:
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
class ArchiveContents:
    """What an archive holds, in its order: files, and the names of FIFOs and devices and of folders."""

    files: tuple[Member, ...]
    irregular: tuple[str, ...]
    folders: tuple[str, ...]


def list_members(path: Path) -> list[Member]:
    """The files of an archive in archive order, without reading them; see `contents`."""
    return list(read_contents(path).files)


def read_contents(path: Path) -> ArchiveContents:
    """The files and folders of an archive in archive order, without reading them; links are followed inside it.

    UserError naming the archive, and the last good member, when it is missing, compressed, truncated or corrupt; or the
    member that is a link out of the archive.
    """
    found: list[Member] = []
    headers: list[tarfile.TarInfo] = []
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            for one in archive:
                if one.issparse():
                    raise UserError(f"{path}: member {one.name} is sparse; make the archive anew without --sparse")
                headers.append(one)
                found += [Member(one.name, one.offset_data, one.size)] if one.isreg() else []
            end = archive.offset
        _check_end(path, end, size, found)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(_broken(path, found, str(error) or type(error).__name__)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        followed = list(resolve_links(headers))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return ArchiveContents(
        tuple(Member(name, one.offset_data, one.size) for name, one in followed if one.isreg()),
        tuple(name for name, one in followed if not (one.isreg() or one.isdir())),
        tuple(one.name for one in headers if one.isdir()),
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
            now = stat_fingerprint(os.fstat(file.fileno()))
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


_BESIDE = ("cls", "txt", "json")  # endings that webdataset puts beside an image
_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class TarSource:
    """Images in archives: where each one lies, none of their bytes.

    copies   per archive that was fetched: its print on this disk, and the print that its images were listed with
    """

    where: Mapping[str, tuple[Path, Member]]
    copies: Mapping[Path, tuple[str, str]] = field(default_factory=dict)

    def read(self, name: str) -> ReadImage:
        """Read a member."""
        path, member = self.where[name]
        raw, now = read_member(path, member)
        here, known = self.copies.get(path, ("", ""))
        return ReadImage.from_bytes(member_fingerprint(known if now == here else now, member.offset, member.size), raw)

    def content(self, name: str) -> str:
        """sha256 of a member."""
        return self.read(name).content()

    def location(self, name: str) -> str:
        """The archive, and the member in it."""
        path, member = self.where[name]
        return f"{path.resolve()}/{member.offset}"  # links have other names


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """The images of one archive or of a series, in archive order.

    Labels are those of `key.cls` (or numbers in `key.txt`), else class folders. UserError when an archive is missing,
    damaged or without images, when two members have one name, when several images have one key of webdataset's, or
    (labelled) when there are no classes.
    """
    pattern = _pattern(dataset, data)
    paths = [_local(dataset, one) for one in expand_pattern(pattern)]
    home = paths[0] if len(paths) == 1 else paths[0].parent
    index = _Index()
    copies: dict[Path, tuple[str, str]] = {}
    for path in paths:
        if not path.is_file():
            raise missing_error(dataset, path)
        whole = file_fingerprint(path)
        if is_url(pattern):
            copies[path] = (whole, copy_digest(path))
            whole = copies[path][1]
        _read(dataset, index, path, whole, "" if len(paths) == 1 else f"{_beneath(path, home)}/")
    if not index.images:
        raise empty_error(dataset, home, index.others)
    chosen = _one_per_key(dataset, home, index)
    names = tuple(chosen)
    inner = [chosen[name].inner for name in names]
    classes = Classes(np.full(len(names), -1), ())
    if labelled:
        labels = _labels(dataset, home, chosen, index)
        if labels is None:
            classes = folder_classes(dataset, home, inner, index.others, index.folders)
        else:
            classes = Classes(labels, class_keys(dataset, labels, home))
    remarks = (*ignored_remarks(index.others, index.irregular), *repeated_remarks(_again(chosen)), *classes.remarks)
    where = {name: (one.path, one.member) for name, one in chosen.items()}
    prints = tuple(one.print for one in chosen.values())
    source = TarSource(where, copies)
    return ImageSet(dataset, home, names, prints, classes.labels, classes.folders, source=source, remarks=remarks)


@dataclass(frozen=True)
class _Image:
    """A member that is an image; `inner` is its path in its archive, and `key` and `ending` are webdataset's."""

    path: Path
    member: Member
    print: str
    inner: str
    key: str
    ending: str


@dataclass
class _Index:
    """What archives hold: images by name; by key the files that webdataset puts beside them; the rest by path."""

    images: dict[str, _Image] = field(default_factory=dict)
    beside: dict[str, dict[str, tuple[Path, Member]]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    irregular: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _read(dataset: Dataset, index: _Index, path: Path, whole: str, prefix: str) -> None:
    """Add an archive, whose print is `whole`, to an index, with a prefix to its names that tells it from others."""
    held = read_contents(path)
    for member in held.files:
        inner = posixpath.normpath(member.name).lstrip("/")
        if ".." in inner.split("/"):
            raise UserError(f"dataset '{dataset.name}': member {member.name} of {path} leads out of the archive")
        if is_hidden(inner):
            continue
        stem, ending = _key(inner)
        if is_image(inner):
            name = prefix + inner
            if name in index.images:
                raise UserError(f"dataset '{dataset.name}': {path} holds two members named {member.name}")
            now = member_fingerprint(whole, member.offset, member.size)
            index.images[name] = _Image(path, member, now, inner, prefix + stem, ending)
        else:
            index.others.append(inner)
            if ending in _BESIDE:
                index.beside.setdefault(prefix + stem, {}).setdefault(ending, (path, member))
    index.irregular += [name for name in held.irregular if is_image(name) and not is_hidden(name)]
    index.folders += [
        inner for one in held.folders if (inner := posixpath.normpath(one).lstrip("/")) != "." and not is_hidden(inner)
    ]


def _again(images: Mapping[str, _Image]) -> list[tuple[str, str]]:
    """Links to images that are there under a name of their own."""
    first: dict[tuple[Path, int], str] = {}
    named = [(name, first.setdefault((one.path, one.member.offset), name)) for name, one in images.items()]
    return [(name, other) for name, other in named if name != other]


def _key(name: str) -> tuple[str, str]:
    """webdataset's rule: the key is a path up to the first dot of the file's name, the rest is its ending."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _one_per_key(dataset: Dataset, home: Path, index: _Index) -> dict[str, _Image]:
    """The images, or those with the ending `split`; UserError when webdataset would take several for one."""
    chosen = index.images
    if dataset.split:
        chosen = {name: one for name, one in chosen.items() if one.ending == dataset.split.lower()}
        if not chosen:
            endings = first_few(sorted({one.ending for one in index.images.values()}))
            raise UserError(
                f"dataset '{dataset.name}': no image of {home} ends in .{dataset.split}; they end in {endings}"
            )
    keys: dict[str, _Image] = {}
    for one in chosen.values():
        other = keys.setdefault(one.key, one)
        if other is not one and one.key in index.beside:
            sidecar = f"{one.key}.{next(iter(index.beside[one.key]))}"
            raise UserError(
                f"dataset '{dataset.name}': {home} has several images beside {sidecar}: {other.inner} and {one.inner} "
                f"(a key ends at the first dot); choose one by its ending: oodbench datasets add NAME --loader tar "
                f"--path {dataset.path} --split {other.ending}"
            )
    return chosen


def _pattern(dataset: Dataset, data: Path) -> str:
    if is_url(dataset.path):
        return dataset.path
    return str(data / dataset.path)


def _local(dataset: Dataset, path: str) -> Path:
    """The file itself; that of a URL is fetched once."""
    return fetch_cached(path, dataset.name) if is_url(path) else Path(path)


def _beneath(path: Path, home: Path) -> str:
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix().lstrip("/")


def _labels(dataset: Dataset, home: Path, images: Mapping[str, _Image], index: _Index) -> npt.NDArray[np.int64] | None:
    """Numbers from `key.cls`, or from `key.txt` where every image has one with a number; None: class folders count."""
    for ending in ("cls", "txt"):
        found = {name: index.beside.get(one.key, {}).get(ending) for name, one in images.items()}
        lacking = next((name for name, one in found.items() if one is None), None)
        if lacking is not None and ending == "cls" and any(found.values()):
            raise unlabelled_error(
                dataset, home, f"{lacking} (webdataset's key ends at the first dot: {images[lacking].key})"
            )
        if lacking is not None:
            continue
        texts = {name: read_member(*one)[0].decode("utf-8", "replace").strip() for name, one in found.items() if one}
        wrong = next((name for name, text in texts.items() if not _NUMBER.fullmatch(text)), None)
        if wrong is None:
            return np.array([int(text) for text in texts.values()], np.int64)
        if ending == "cls" or any("/" not in one.inner for one in images.values()):
            path, member = found[wrong] or (home, Member("", 0, 0))
            raise UserError(
                f"dataset '{dataset.name}': member {member.name} of {path} is no label: {texts[wrong][:40]!r}"
            )
    dotted = next((name for name in index.others if name.lower().endswith(".cls")), None)
    if dotted and any("/" not in one.inner for one in images.values()):
        raise unlabelled_error(
            dataset, home, f"{next(iter(images))} (a key ends at the first dot: {dotted} is beside {_key(dotted)[0]})"
        )
    return None
