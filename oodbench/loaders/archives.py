"""Images in tar archives: `class/name.jpg` members, or webdataset's `key.jpg` with `key.cls`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from oodbench.catalogue import Dataset
from oodbench.errors import UserError
from oodbench.loaders.folder import ordered
from oodbench.loaders.items import Items, empty, is_image, missing, numbered, unlabelled
from oodbench.loaders.prints import Taken, encoded, inside, print_of
from oodbench.loaders.remote import fetched, print_of_copy
from oodbench.loaders.tars import Member, expand, members, read_member
from oodbench.urls import is_url

_LABELS = (".cls", ".txt")


@dataclass(frozen=True)
class Archives:
    """Images in archives: where each one lies, none of their bytes.

    copies   per archive that was fetched: its print on this disk, and the print that its images were listed with
    """

    where: Mapping[str, tuple[Path, Member]]
    copies: Mapping[Path, tuple[str, str]] = field(default_factory=dict)

    def take(self, name: str) -> Taken:
        """Read a member."""
        path, member = self.where[name]
        raw, now = read_member(path, member)
        here, known = self.copies.get(path, ("", ""))
        return encoded(inside(known if now == here else now, member.offset, member.size), raw)

    def content(self, name: str) -> str:
        """sha256 of a member."""
        return self.take(name).content()

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
    copies: dict[Path, tuple[str, str]] = {}
    for path in paths:
        if not path.is_file():
            raise missing(dataset, path)
        whole = print_of(path)
        if is_url(_pattern(dataset, data)):
            copies[path] = (whole, print_of_copy(path))
            whole = copies[path][1]
        prefix = "" if len(paths) == 1 else f"{_beneath(path, home)}/"
        for member in members(path):
            name = prefix + member.name.removeprefix("./")
            if is_image(name) and not PurePosixPath(name).name.startswith("."):
                if name in where:
                    raise UserError(f"dataset '{dataset.name}': {path} holds two members named {member.name}")
                where[name] = (path, member)
                prints.append(inside(whole, member.offset, member.size))
            elif labelled and PurePosixPath(name).suffix in _LABELS:
                beside[name] = (path, member)
    if not where:
        raise empty(dataset, home)
    names = tuple(where)
    labels = np.full(len(names), -1)
    folders: tuple[str, ...] = ()
    if labelled:
        labels, folders = _labels(dataset, home, names, beside) if beside else _classes(dataset, home, names)
    return Items(home, names, tuple(prints), labels, Archives(where, copies), folders)


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
        text = read_member(*found)[0].decode("utf-8", "replace").strip()
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
