"""Image lists with one `path label` per line, as in OpenOOD; paths are relative to a root."""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oodbench.data.catalog import UNKNOWN, Dataset
from oodbench.data.imageset import (
    ImageFiles,
    ImageSet,
    RenamedSource,
    class_keys,
    missing_error,
    unlabelled_error,
)
from oodbench.data.loaders.layout import Remark, is_image, repeated_remarks
from oodbench.data.places import find_list
from oodbench.data.prompts import split_lines
from oodbench.errors import Missing, UserError
from oodbench.storage.fingerprints import file_fingerprint

_TRIED = 64  # paths of a list that are looked for to find their root folder


@dataclass(frozen=True)
class ImageList:
    """A list file: paths, class index per path [n] (-1: none), sha256 of its lines without line endings."""

    path: Path
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    digest: str


def read_list(path: Path) -> ImageList:
    """Parse a list file, gzipped if its name ends in .gz. Raise UserError with the number of a malformed line."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = [line.strip() for line in split_lines(raw.decode("utf-8-sig"))]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"image list {path} cannot be read: {error}") from error
    names, labels = [], []
    for number, line in enumerate(text, 1):
        if not line:
            continue
        name, _, label = line.rpartition(" ")  # a path may contain spaces
        if not name or not re.fullmatch(r"-?\d{1,18}", label):
            if _is_number(label):
                raise UserError(f"image list {path}, line {number}: the label of {line!r} is not an integer")
            name, label = line, "-1"
        name = name.strip()
        if name.startswith("/"):
            raise UserError(
                f"image list {path}, line {number}: {name!r} is an absolute path; paths must be relative to a root: "
                "remove the root from them, and give it as list:FILE@ROOT"
            )
        if ".." in name.split("/"):
            raise UserError(f"image list {path}, line {number}: {name!r} leaves the list's root by '..'")
        if "\0" in name:
            raise UserError(f"image list {path}, line {number}: {name!r} is not a path")
        names.append(name)
        labels.append(max(int(label), -1))
    if not names:
        raise UserError(f"image list {path} is empty")
    digest = hashlib.sha256("".join(f"{line}\n" for line in text if line).encode()).hexdigest()
    return ImageList(path, tuple(names), np.array(labels, np.int64), digest)


def declared_list(dataset: Dataset, data: Path) -> ImageList:
    """Read the list of a dataset, below the data root. Raise UserError if it is missing or has another digest."""
    path = find_list(dataset, data)
    if not path.is_file():
        hint = f"\n  {dataset.obtain}" if dataset.obtain else ""
        raise Missing(f"dataset '{dataset.name}': its image list {path} does not exist{hint}")
    image_list = read_list(path)
    if dataset.digest not in (UNKNOWN, image_list.digest):
        found = f"{len(image_list.names)} lines, sha256 {image_list.digest[:12]}"
        raise UserError(
            f"dataset '{dataset.name}': {path} ({found}) is not the list of the protocol "
            f"(sha256 {dataset.digest[:12]}); fetch it again"
            + ("" if dataset.within else f", or use it as list:{path}@{dataset.folder(data)}")
        )
    return image_list


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """List the images of a list file in order.

    `absent` are images in the list that do not exist. Raise UserError if none exists, if some do not exist and the
    catalogue does not state a count, or (labelled) if a line has no label.
    """
    folder = dataset.folder(data)
    image_list = declared_list(dataset, data)
    if not folder.is_dir():
        raise missing_error(dataset, folder)
    inner = _below(folder, image_list.names)
    fingerprints: list[str | None] = []
    for name in image_list.names:
        try:
            fingerprints.append(file_fingerprint(folder / inner(name)))
        except (FileNotFoundError, NotADirectoryError):
            fingerprints.append(None)
        except OSError as error:
            raise UserError(f"dataset '{dataset.name}': {folder / name} cannot be read: {error.strerror}") from error
        except UserError as error:
            raise UserError(f"dataset '{dataset.name}': {error}") from error
    present = [i for i, fingerprint in enumerate(fingerprints) if fingerprint is not None]
    absent = tuple(
        name for name, fingerprint in zip(image_list.names, fingerprints, strict=True) if fingerprint is None
    )
    if not present:
        raise UserError(
            f"dataset '{dataset.name}': none of the {len(fingerprints):,} images in {image_list.path} exists: "
            f"no {folder / absent[0]}{_format_hint(absent[0])}"
        )
    if absent and dataset.count is None:
        raise UserError(
            f"dataset '{dataset.name}': {folder / absent[0]} does not exist ({len(absent)} of {len(fingerprints)} "
            f"images in {image_list.path}); complete it, or name the root folder of its paths: "
            f"list:FILE@ROOT{_format_hint(absent[0])}"
        )
    labels = image_list.labels[present]
    if labelled and (labels < 0).any():
        raise unlabelled_error(dataset, image_list.path, image_list.names[present[int((labels < 0).argmax())]])
    keys = class_keys(dataset, image_list.labels, image_list.path) if labelled else ()
    names = tuple(image_list.names[i] for i in present)
    moved = {name: inner(name) for name in names}
    return ImageSet(
        dataset,
        folder,
        names,
        tuple(fingerprints[i] or "" for i in present),
        labels if labelled else np.full(len(present), -1),
        keys,
        source=RenamedSource(ImageFiles(folder), folder, moved) if any(a != b for a, b in moved.items()) else None,
        absent=absent,
        remarks=_repeated(dataset, image_list, labelled),
    )


def _below(folder: Path, names: tuple[str, ...]) -> Callable[[str], str]:
    """Return a function from a path in the list to a path below the folder, which may be inside the list's root."""
    least, greatest = (pick(name.split("/")[:-1] for name in names) for pick in (min, max))
    # Only folders that all paths share are removed: cat/1.jpg and dog/1.jpg are two images.
    pairs = enumerate(zip(least, greatest, strict=False))
    shared = next((k for k, (a, b) in pairs if a != b), min(len(least), len(greatest)))
    for k in range(shared + 1):
        if any((folder / name.split("/", k)[k]).exists() for name in names[:_TRIED]):
            return lambda name: name.split("/", k)[k]
    return lambda name: name


def _repeated(dataset: Dataset, image_list: ImageList, labelled: bool) -> tuple[Remark, ...]:
    """Return the remark on images that are listed twice. Raise UserError (labelled) if an image has two labels."""
    first: dict[str, int] = {}
    pairs = []
    for i, name in enumerate(image_list.names):
        before = first.setdefault(posixpath.normpath(name), i)
        if before == i:
            continue
        pairs.append((name, image_list.names[before]))
        if labelled and image_list.labels[before] != image_list.labels[i]:
            raise UserError(
                f"dataset '{dataset.name}': {image_list.path} gives {name} two labels, {image_list.labels[before]} and "
                f"{image_list.labels[i]}"
            )
    return repeated_remarks(pairs)


def _format_hint(line: str) -> str:
    """Return advice for a line that seems to have another format than `path label`; else ""."""
    seen = ""
    if "\t" in line:
        seen = "has a tab"
    elif line[:1] in "\"'" or line[-1:] in "\"'":
        seen = "has quotes"
    elif re.search(r"[,;]\s*[^,;/]*$", line):
        seen = "has commas or semicolons"
    elif "\\" in line:
        seen = "has backslashes, where paths have /"
    elif (match := re.search(r"\.\w+\s+(\S+)$", line)) and not is_image(line):
        seen = "has more than two columns" if _is_number(match[1]) else f"ends in {match[1]!r}, which is not an integer"
    return f"; the line {line!r} {seen}: a list has one `path label` per line, with a space between" if seen else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
