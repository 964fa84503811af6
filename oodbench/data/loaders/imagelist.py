"""Image lists: one `path label` per line, as OpenOOD writes them; paths are relative to a root."""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from oodbench.data.catalog import UNKNOWN, Dataset
from oodbench.data.imageset import ImageSet, class_keys, missing_error, unlabelled_error
from oodbench.data.loaders.layout import Remark, is_image, twice
from oodbench.data.prompts import lines
from oodbench.errors import Missing, UserError
from oodbench.storage.fingerprints import file_fingerprint


@dataclass(frozen=True)
class ImageList:
    """A list file: paths, class index per path [n] (-1: none), sha256 of its lines (line ends do not count)."""

    path: Path
    names: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    digest: str


def read_list(path: Path) -> ImageList:
    """Parse a list file, gzipped when its name ends in .gz. UserError naming the line that is no `path label`."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        text = [line.strip() for line in lines(raw.decode("utf-8-sig"))]
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"image list {path} cannot be read: {error}") from error
    names, labels = [], []
    for number, line in enumerate(text, 1):
        if not line:
            continue
        name, _, label = line.rpartition(" ")  # a path may hold spaces
        if not name or not re.fullmatch(r"-?\d{1,18}", label):
            if _is_number(label):
                raise UserError(f"image list {path}, line {number}: the label of {line!r} is no whole number")
            name, label = line, "-1"
        name = name.strip()
        if name.startswith("/"):
            raise UserError(
                f"image list {path}, line {number}: {name!r} is an absolute path; paths start from the list's root: "
                "take the root away from them, and name it as list:FILE@ROOT"
            )
        if ".." in name.split("/"):
            raise UserError(f"image list {path}, line {number}: {name!r} leads out of the list's root by '..'")
        if "\0" in name:
            raise UserError(f"image list {path}, line {number}: {name!r} is no path")
        names.append(name)
        labels.append(max(int(label), -1))
    if not names:
        raise UserError(f"image list {path} is empty")
    digest = hashlib.sha256("".join(f"{line}\n" for line in text if line).encode()).hexdigest()
    return ImageList(path, tuple(names), np.array(labels, np.int64), digest)


def declared_list(dataset: Dataset, data: Path) -> ImageList:
    """The list of a dataset, from the data root. UserError when it is missing or not the one that is known."""
    path = data / dataset.list
    if not path.is_file():
        path = path.with_name(path.name + ".gz")
    if not path.is_file():
        hint = f"\n  {dataset.obtain}" if dataset.obtain else ""
        raise Missing(f"dataset '{dataset.name}': its image list {data / dataset.list} is not there{hint}")
    found = read_list(path)
    if dataset.digest not in (UNKNOWN, found.digest):
        raise UserError(
            f"dataset '{dataset.name}': {path} ({len(found.names)} lines, sha256 {found.digest[:12]}) is not the list "
            f"of the protocol (sha256 {dataset.digest[:12]}); fetch it again"
            + ("" if dataset.within else f", or run on it as list:{path}@{dataset.folder(data)}")
        )
    return found


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """The images of a list in its order.

    What the list names and the folder does not hold is `absent`. UserError when that is all of it, or when it is some
    and the catalogue does not count the set; or (labelled) when a line has no label.
    """
    folder = dataset.folder(data)
    wanted = declared_list(dataset, data)
    if not folder.is_dir():
        raise missing_error(dataset, folder)
    prints: list[str | None] = []
    for name in wanted.names:
        try:
            prints.append(file_fingerprint(folder / name))
        except (FileNotFoundError, NotADirectoryError):
            prints.append(None)
        except OSError as error:
            raise UserError(f"dataset '{dataset.name}': {folder / name} cannot be read: {error.strerror}") from error
        except UserError as error:
            raise UserError(f"dataset '{dataset.name}': {error}") from error
    there = [i for i, one in enumerate(prints) if one is not None]
    absent = tuple(name for name, one in zip(wanted.names, prints, strict=True) if one is None)
    if not there:
        raise UserError(
            f"dataset '{dataset.name}': not one of the {len(prints):,} images that {wanted.path} names is there: "
            f"no {folder / absent[0]}{_written_as(absent[0])}"
        )
    if absent and dataset.count is None:
        raise UserError(
            f"dataset '{dataset.name}': {folder / absent[0]} is not there ({len(absent)} of {len(prints)} images "
            f"that {wanted.path} names); complete it, or name the folder that its paths start from: list:FILE@ROOT"
            f"{_written_as(absent[0])}"
        )
    labels = wanted.labels[there]
    if labelled and (labels < 0).any():
        raise unlabelled_error(dataset, wanted.path, wanted.names[there[int((labels < 0).argmax())]])
    keys = class_keys(dataset, wanted.labels, wanted.path) if labelled else ()
    return ImageSet(
        dataset,
        folder,
        tuple(wanted.names[i] for i in there),
        tuple(prints[i] or "" for i in there),
        labels if labelled else np.full(len(there), -1),
        keys,
        absent=absent,
        remarks=_repeated(dataset, wanted, labelled),
    )


def _repeated(dataset: Dataset, wanted: ImageList, labelled: bool) -> tuple[Remark, ...]:
    """The remark on images that a list names again; UserError (labelled) when one has two labels."""
    first: dict[str, int] = {}
    again = []
    for i, name in enumerate(wanted.names):
        before = first.setdefault(posixpath.normpath(name), i)
        if before == i:
            continue
        again.append((name, wanted.names[before]))
        if labelled and wanted.labels[before] != wanted.labels[i]:
            raise UserError(
                f"dataset '{dataset.name}': {wanted.path} gives {name} two labels, {wanted.labels[before]} and "
                f"{wanted.labels[i]}"
            )
    return twice(again)


def _written_as(line: str) -> str:
    """How a line is written that names no image, where it looks like another format than `path label`."""
    seen = ""
    if "\t" in line:
        seen = "has a tab"
    elif line[:1] in "\"'" or line[-1:] in "\"'":
        seen = "has quotes"
    elif re.search(r"[,;]\s*[^,;/]*$", line):
        seen = "has commas or semicolons"
    elif "\\" in line:
        seen = "has backslashes, where paths have /"
    elif (found := re.search(r"\.\w+\s+(\S+)$", line)) and not is_image(line):
        seen = (
            "has more than two columns" if _is_number(found[1]) else f"ends in {found[1]!r}, which is no whole number"
        )
    return f"; the line {line!r} {seen}: a list has one `path label` per line, with a space between" if seen else ""


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
