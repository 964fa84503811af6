"""Images in tar archives: `class/name.jpg` members, or webdataset's `key.jpg` with `key.cls`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from oodbench.catalogue import Dataset
from oodbench.errors import UserError
from oodbench.loaders.folder import ordered
from oodbench.loaders.items import Items, decoded, empty, is_image, missing, numbered, print_of, unlabelled
from oodbench.loaders.remote import fetched, print_of_copy
from oodbench.loaders.tars import Member, expand, members, read_member
from oodbench.urls import is_url

if TYPE_CHECKING:
    from PIL.Image import Image

_LABELS = (".cls", ".txt")


@dataclass(frozen=True)
class Archives:
    """Images in archives: where each one lies, none of their bytes."""

    where: Mapping[str, tuple[Path, Member]]

    def read(self, name: str) -> Image:
        """Decode a member."""
        return decoded(read_member(*self.where[name]))

    def content(self, name: str) -> str:
        """sha256 of a member."""
        return hashlib.sha256(read_member(*self.where[name])).hexdigest()

    def place(self, name: str) -> str:
        """The archive, and the member in it."""
        path, member = self.where[name]
        return f"{path.resolve()}/{member.name}"


def items(dataset: Dataset, data: Path, labelled: bool) -> Items:
    """The images of one archive or of a series, in archive order.

    Labels are those of `key.cls` (or numbers in `key.txt`), else the members' top folders. UserError when an archive is
    missing, damaged or without images, when two members have one name, or (labelled) when there are no classes.
    """
    paths = [_local(dataset, one) for one in expand(_pattern(dataset, data))]
    home = paths[0] if len(paths) == 1 else paths[0].parent
    where: dict[str, tuple[Path, Member]] = {}
    beside: dict[str, tuple[Path, Member]] = {}
    prints: list[str] = []
    for path in paths:
        if not path.is_file():
            raise missing(dataset, path)
        stamp = print_of_copy(path) if is_url(_pattern(dataset, data)) else print_of(path)
        prefix = "" if len(paths) == 1 else f"{_beneath(path, home)}/"
        for member in members(path):
            name = prefix + member.name.removeprefix("./")
            if is_image(name) and not PurePosixPath(name).name.startswith("."):
                if name in where:
                    raise UserError(f"dataset '{dataset.name}': {path} holds two members named {member.name}")
                where[name] = (path, member)
                prints.append(f"{stamp}:{member.offset}:{member.size}")
            elif labelled and PurePosixPath(name).suffix in _LABELS:
                beside[name] = (path, member)
    if not where:
        raise empty(dataset, home)
    names = tuple(where)
    labels = np.full(len(names), -1)
    folders: tuple[str, ...] = ()
    if labelled:
        labels, folders = _labels(dataset, home, names, beside) if beside else _classes(dataset, home, names)
    return Items(home, names, tuple(prints), labels, Archives(where), folders)


def _pattern(dataset: Dataset, data: Path) -> str:
    if is_url(dataset.path):
        return dataset.path
    return str(data / dataset.path)


def _local(dataset: Dataset, path: str) -> Path:
    """The file itself; that of a URL is fetched once."""
    return fetched(path, dataset.name) if is_url(path) else Path(path)


def _beneath(path: Path, home: Path) -> str:
    return path.relative_to(home).as_posix() if path.is_relative_to(home) else path.as_posix().lstrip("/")


def _labels(
    dataset: Dataset, home: Path, names: Sequence[str], beside: Mapping[str, tuple[Path, Member]]
) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Numbers from the members beside the images."""
    labels = []
    for name in names:
        key = name[: len(name) - len(PurePosixPath(name).name)] + PurePosixPath(name).name.partition(".")[0]
        found = next((beside[key + suffix] for suffix in _LABELS if key + suffix in beside), None)
        if not found:
            raise unlabelled(dataset, home, name)
        text = read_member(*found).decode("utf-8", "replace").strip()
        if not text.isdecimal():
            raise UserError(
                f"dataset '{dataset.name}': member {found[1].name} of {found[0]} is no label: {text[:40]!r}"
            )
        labels.append(int(text))
    array = np.array(labels, np.int64)
    return array, numbered(array)


def _classes(dataset: Dataset, home: Path, names: Sequence[str]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Class folders: the folder that a member lies in."""
    tops = [PurePosixPath(name).parent.name for name in names]
    loose = next((name for name, top in zip(names, tops, strict=True) if not top or top.endswith(".tar")), None)
    if loose:
        raise unlabelled(dataset, home, loose)
    folders = ordered(set(tops))
    index = {folder: i for i, folder in enumerate(folders)}
    return np.array([index[top] for top in tops]), folders
