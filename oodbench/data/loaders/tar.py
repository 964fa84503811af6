"""Images in uncompressed tar archives: `class/name.jpg`, or webdataset's `key.jpg` with `key.cls`."""

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
from oodbench.storage.files import expand, open_regular
from oodbench.storage.fingerprints import ReadImage, file_fingerprint, member_fingerprint, stat_fingerprint
from oodbench.storage.remote import copy_digest, fetch_cached

_BRACES = re.compile(r"\{([^{}]*)\}")
_BLOCK = 512  # bytes
_SIDECARS = ("cls", "txt", "json")  # extensions of files that webdataset stores with an image
_NUMBER = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name and the position of its bytes."""

    name: str
    offset: int  # bytes from the start of the archive
    size: int  # bytes


def expand_pattern(pattern: str) -> list[str]:
    """Return the files of a pattern such as `a-{000..012}.tar`, `{a,b}.tar` or a glob; `::` joins several patterns.

    Matches of a glob are sorted, and URLs are returned unchanged. Raise UserError if a pattern is malformed or a glob
    matches nothing; other files need not exist.
    """
    files: list[str] = []
    for text in itertools.chain.from_iterable(_expand_braces(part) for part in pattern.split("::")):
        if is_url(text):
            files.append(text)
            continue
        path = str(expand(text))
        if not any(c in path for c in "*?[") or os.path.exists(path):
            files.append(path)
            continue
        matches = sorted(glob(path, recursive=True))
        if not matches:
            raise Missing(f"no file matches '{text}'")
        files += matches
    return list(dict.fromkeys(files))


@dataclass(frozen=True)
class ArchiveContents:
    """The contents of an archive in archive order: files, names of FIFOs and devices, names of folders."""

    files: tuple[Member, ...]
    irregular: tuple[str, ...]
    folders: tuple[str, ...]


def list_members(path: Path) -> list[Member]:
    """Return the files of an archive in archive order; see `read_contents`."""
    return list(read_contents(path).files)


def read_contents(path: Path) -> ArchiveContents:
    """Return the files and folders of an archive in archive order, with links resolved, without reading the files.

    Raise UserError if it is missing, compressed, truncated or corrupt (with the last good member), or if a link points
    outside the archive.
    """
    listed: list[Member] = []
    headers: list[tarfile.TarInfo] = []
    try:
        with open_regular(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            size = os.fstat(file.fileno()).st_size
            for header in archive:
                if header.issparse():
                    raise UserError(f"{path}: member {header.name} is sparse; create the archive without --sparse")
                headers.append(header)
                listed += [Member(header.name, header.offset_data, header.size)] if header.isreg() else []
            end = archive.offset
        _check_end(path, end, size, listed)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(_damage(path, listed, str(error) or type(error).__name__)) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        resolved = list(resolve_links(headers))
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return ArchiveContents(
        tuple(Member(name, header.offset_data, header.size) for name, header in resolved if header.isreg()),
        tuple(name for name, header in resolved if not (header.isreg() or header.isdir())),
        tuple(header.name for header in headers if header.isdir()),
    )


def read_member(path: Path, member: Member) -> tuple[bytes, str]:
    """Return the bytes of a member, and the current fingerprint of the archive.

    Threads may read the same archive. Raise UserError if it ends before the member.
    """
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(member.offset)
            content = file.read(member.size)
            while 0 < len(content) < member.size and (more := file.read(member.size - len(content))):
                content += more
            fingerprint = stat_fingerprint(os.fstat(file.fileno()))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if len(content) != member.size:
        raise UserError(f"{path} ends within member {member.name}; it is truncated, fetch it again")
    return content, fingerprint


def _check_end(path: Path, end: int, size: int, listed: list[Member]) -> None:
    """Raise UserError for a damaged header or a missing end marker: tarfile takes both for the end of the archive."""
    with path.open("rb") as file:
        file.seek(end)
        block = file.read(_BLOCK)
    # tarfile stops before or after the first of the two zero blocks
    if block and block.strip(b"\0"):
        raise UserError(_damage(path, listed, f"no header at byte {end:,} of {size:,}"))
    if not block and (size == 0 or not _ends_with_zeros(path, size)):
        raise UserError(_damage(path, listed, "it has no end marker"))


def _ends_with_zeros(path: Path, size: int) -> bool:
    """Return whether the last block of a file has only zero bytes."""
    with path.open("rb") as file:
        file.seek(max(0, size - _BLOCK))
        return not file.read(_BLOCK).strip(b"\0")


def _damage(path: Path, listed: list[Member], reason: str) -> str:
    """Return the message for an archive that is compressed, truncated or corrupt."""
    where = f"after member {listed[-1].name}" if listed else "before its first member"
    with path.open("rb") as file:
        compressed = file.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    if compressed:
        return f"{path} is compressed, so it does not allow random access; unpack it to a plain .tar"
    return f"{path} is truncated or corrupt {where} ({reason}); fetch or create it again"


def _expand_braces(pattern: str) -> list[str]:
    """Return all expansions of a pattern with {a..b} ranges and {x,y} choices, in order."""
    match = _BRACES.search(pattern)
    if not match:
        if "{" in pattern or "}" in pattern:
            raise UserError(f"braces do not match in '{pattern}'; write name-{{000..012}}.tar")
        return [pattern]
    first, dots, last = match[1].partition("..")
    if not dots:
        options = match[1].split(",")
        if len(options) == 1:
            raise UserError(f"'{match[0]}' in '{pattern}' is neither a range {{000..012}} nor a choice {{a,b}}")
    elif not (first.isdecimal() and last.isdecimal()) or int(first) > int(last):
        raise UserError(f"'{match[0]}' in '{pattern}' is not a range of numbers; write {{000..012}}")
    else:
        width = len(first) if len(first) == len(last) or first.startswith("0") else 0
        options = [str(n).zfill(width) for n in range(int(first), int(last) + 1)]
    head, tail = pattern[: match.start()], pattern[match.end() :]
    return [head + option + rest for option in options for rest in _expand_braces(tail)]


@dataclass(frozen=True)
class TarSource:
    """Reads images of archives by name.

    where    per image: its archive and the member
    copies   per downloaded archive: the fingerprint of the local copy, and the fingerprint when its images were listed
    """

    where: Mapping[str, tuple[Path, Member]]
    copies: Mapping[Path, tuple[str, str]] = field(default_factory=dict)

    def read(self, name: str) -> ReadImage:
        """Read a member."""
        path, member = self.where[name]
        raw, fingerprint = read_member(path, member)
        local, listed = self.copies.get(path, ("", ""))
        if fingerprint == local:
            fingerprint = listed
        return ReadImage.from_bytes(member_fingerprint(fingerprint, member.offset, size=member.size), raw)

    def content(self, name: str) -> str:
        """Return the sha256 of a member."""
        return self.read(name).content()

    def location(self, name: str) -> str:
        """Return the archive and the position of the member in it."""
        path, member = self.where[name]
        return f"{path.resolve()}/{member.offset}"  # links have other names, but the same position


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """List the images of one or several archives, in archive order.

    Labels are read from `key.cls` (or numbers in `key.txt`), else from class folders. Raise UserError if an archive is
    missing, damaged or without images, if two members have the same name, if several images have the same webdataset
    key, or (labelled) if there are no classes.
    """
    pattern = _pattern(dataset, data)
    paths = [_local_path(dataset, text) for text in expand_pattern(pattern)]
    root = paths[0] if len(paths) == 1 else paths[0].parent
    index = _Index()
    copies: dict[Path, tuple[str, str]] = {}
    for path in paths:
        if not path.is_file():
            raise missing_error(dataset, path)
        fingerprint = file_fingerprint(path)
        if is_url(pattern):
            copies[path] = (fingerprint, copy_digest(path))
            fingerprint = copies[path][1]
        _add_archive(dataset, index, path, fingerprint, "" if len(paths) == 1 else f"{_relative(path, root)}/")
    if not index.images:
        raise empty_error(dataset, root, index.others)
    chosen = _choose_images(dataset, root, index)
    names = tuple(chosen)
    inner = [chosen[name].inner for name in names]
    classes = Classes(np.full(len(names), -1), ())
    if labelled:
        labels = _labels(dataset, root, chosen, index)
        if labels is None:
            classes = folder_classes(dataset, root, inner, index.others, index.folders)
        else:
            classes = Classes(labels, class_keys(dataset, labels, root))
    remarks = (*ignored_remarks(index.others, index.irregular), *repeated_remarks(_links(chosen)), *classes.remarks)
    where = {name: (image.path, image.member) for name, image in chosen.items()}
    fingerprints = tuple(image.fingerprint for image in chosen.values())
    source = TarSource(where, copies)
    return ImageSet(dataset, root, names, fingerprints, classes.labels, classes.folders, source=source, remarks=remarks)


@dataclass(frozen=True)
class _Image:
    """A member that is an image; `inner` is its path in its archive, and `key` and `ending` are webdataset's."""

    path: Path
    member: Member
    fingerprint: str
    inner: str
    key: str
    ending: str


@dataclass
class _Index:
    """The contents of archives: images by name, webdataset's sidecars by key and extension, paths of other files."""

    images: dict[str, _Image] = field(default_factory=dict)
    sidecars: dict[str, dict[str, tuple[Path, Member]]] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    irregular: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)


def _add_archive(dataset: Dataset, index: _Index, path: Path, fingerprint: str, prefix: str) -> None:
    """Add the contents of an archive to an index; the prefix distinguishes its names from those of other archives."""
    contents = read_contents(path)
    for member in contents.files:
        inner = posixpath.normpath(member.name).lstrip("/")
        if ".." in inner.split("/"):
            raise UserError(f"dataset '{dataset.name}': member {member.name} of {path} points outside the archive")
        if is_hidden(inner):
            continue
        stem, ending = _key(inner)
        if is_image(inner):
            name = prefix + inner
            if name in index.images:
                raise UserError(f"dataset '{dataset.name}': {path} holds two members named {member.name}")
            image_fingerprint = member_fingerprint(fingerprint, member.offset, size=member.size)
            index.images[name] = _Image(path, member, image_fingerprint, inner, prefix + stem, ending)
        else:
            index.others.append(inner)
            if ending in _SIDECARS:
                index.sidecars.setdefault(prefix + stem, {}).setdefault(ending, (path, member))
    index.irregular += [name for name in contents.irregular if is_image(name) and not is_hidden(name)]
    index.folders += [
        inner
        for folder in contents.folders
        if (inner := posixpath.normpath(folder).lstrip("/")) != "." and not is_hidden(inner)
    ]


def _links(images: Mapping[str, _Image]) -> list[tuple[str, str]]:
    """Return (link, image) for links to images that have a name of their own."""
    first: dict[tuple[Path, int], str] = {}
    pairs = [(name, first.setdefault((image.path, image.member.offset), name)) for name, image in images.items()]
    return [(name, other) for name, other in pairs if name != other]


def _key(name: str) -> tuple[str, str]:
    """Return webdataset's key and extension: the path up to the first dot of the file name, and the rest."""
    folder, slash, file = name.rpartition("/")
    stem, _, ending = file.partition(".")
    return f"{folder}{slash}{stem}", ending.lower()


def _choose_images(dataset: Dataset, root: Path, index: _Index) -> dict[str, _Image]:
    """Return the images with the extension `split`, or all. Raise UserError if several images share a sidecar file."""
    chosen = index.images
    if dataset.split:
        chosen = {name: image for name, image in chosen.items() if image.ending == dataset.split.lower()}
        if not chosen:
            endings = first_few(sorted({image.ending for image in index.images.values()}))
            raise UserError(
                f"dataset '{dataset.name}': no image of {root} ends in .{dataset.split}; they end in {endings}"
            )
    keys: dict[str, _Image] = {}
    for image in chosen.values():
        other = keys.setdefault(image.key, image)
        if other is not image and image.key in index.sidecars:
            sidecar = f"{image.key}.{next(iter(index.sidecars[image.key]))}"
            raise UserError(
                f"dataset '{dataset.name}': {root} has several images for {sidecar}: {other.inner} and {image.inner} "
                f"(a key ends at the first dot); choose one by its ending: oodbench datasets add NAME --loader tar "
                f"--path {dataset.path} --split {other.ending}"
            )
    return chosen


def _pattern(dataset: Dataset, data: Path) -> str:
    if is_url(dataset.path):
        return dataset.path
    return str(data / dataset.path)


def _local_path(dataset: Dataset, path: str) -> Path:
    """Return the path of a file; a URL is downloaded once."""
    return fetch_cached(path, dataset.name) if is_url(path) else Path(path)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix().lstrip("/")


def _labels(dataset: Dataset, root: Path, images: Mapping[str, _Image], index: _Index) -> npt.NDArray[np.int64] | None:
    """Return the numbers in `key.cls`, or in `key.txt` if every image has one; None if class folders are the labels."""
    for ending in ("cls", "txt"):
        files = {name: index.sidecars.get(image.key, {}).get(ending) for name, image in images.items()}
        lacking = next((name for name, file in files.items() if file is None), None)
        if lacking is not None and ending == "cls" and any(files.values()):
            raise unlabelled_error(
                dataset, root, f"{lacking} (webdataset's key ends at the first dot: {images[lacking].key})"
            )
        if lacking is not None:
            continue
        texts = {name: read_member(*file)[0].decode("utf-8", "replace").strip() for name, file in files.items() if file}
        wrong = next((name for name, text in texts.items() if not _NUMBER.fullmatch(text)), None)
        if wrong is None:
            return np.array([int(text) for text in texts.values()], np.int64)
        if ending == "cls" or any("/" not in image.inner for image in images.values()):
            path, member = files[wrong] or (root, Member("", 0, 0))
            raise UserError(
                f"dataset '{dataset.name}': member {member.name} of {path} is not a label: {texts[wrong][:40]!r}"
            )
    dotted = next((name for name in index.others if name.lower().endswith(".cls")), None)
    if dotted and any("/" not in image.inner for image in images.values()):
        raise unlabelled_error(
            dataset, root, f"{next(iter(images))} (a key ends at the first dot: {dotted} belongs to {_key(dotted)[0]})"
        )
    return None
