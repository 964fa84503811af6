"""What every loader gives: `Items`, and a `Source` that reads one image by name. And the errors that all share."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from oodbench.data import prompts
from oodbench.data.loaders.layout import Classes, Remark, by_folder, by_suffix, label_keys
from oodbench.data.prints import Taken, encoded, stat_print
from oodbench.errors import Missing, Unlabelled, UserError
from oodbench.storage.regular import irregular, regular
from oodbench.storage.store import file_digest

if TYPE_CHECKING:
    from oodbench.data.catalog import Dataset


class Source(Protocol):
    """Reads images by name. Threads share it; it holds no image."""

    def take(self, name: str) -> Taken:
        """Read one image, which is decoded in its own mode. Raises OSError, or what Pillow raises, when that fails."""

    def content(self, name: str) -> str:
        """sha256 of what is stored for an image."""


@runtime_checkable
class Placed(Protocol):
    """A source whose images lie in files that hold many."""

    def place(self, name: str) -> str:
        """Where an image lies: the same text for the same image, whichever set it is in."""


@runtime_checkable
class Tree(Protocol):
    """A source whose prints are of many files at once, too many to look at again for every image."""

    def tree_print(self) -> str:
        """The print of all its files now."""

    @property
    def listed_print(self) -> str:
        """The print of all its files before they were opened."""


@dataclass(frozen=True)
class Items:
    """The images of a place, in order.

    folder   where they lie: a folder, or the file that holds them
    prints   one text per image that changes when the image does, as the loaders' prints.py makes them
    labels   class index per image [n], -1 where it is not known
    folders  one key per class in label order: class folders, or numbers; () without labels
    named    class names in label order where the source knows them
    absent   what a list names and the folder does not hold
    content  whether prints are contents
    remarks  what was seen on the way and may mislead
    """

    folder: Path
    names: tuple[str, ...]
    prints: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    source: Source
    folders: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    content: bool = False
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class Files:
    """Image files below a folder, named by their paths."""

    folder: Path

    def take(self, name: str) -> Taken:
        """Read a file."""
        with regular(self.folder / name) as file:
            raw = file.read()
            return encoded(stat_print(os.fstat(file.fileno())), raw)

    def content(self, name: str) -> str:
        """sha256 of the file."""
        return file_digest(self.folder / name)


def missing(dataset: Dataset, place: Path | str) -> UserError:
    """The error for a set that is not there, with how to get it."""
    where = f"$OODBENCH_DATA/{dataset.path} ({place})" if not Path(dataset.path).is_absolute() else str(place)
    try:
        mode = os.stat(place).st_mode
        if not (stat.S_ISREG if dataset.loader in ("tar", "arrays") else stat.S_ISDIR)(mode):
            where += f": that is {irregular(mode) or 'a file, no folder'}"
    except (OSError, ValueError):
        where += ", which does not exist"
    hint = f"\n  {dataset.obtain}; give its parent with --data" if dataset.obtain else ""
    return Missing(f"dataset '{dataset.name}' was not found at {where}{hint}")


def empty(dataset: Dataset, place: Path | str, others: Sequence[str] = ()) -> UserError:
    """The error for a place without images; `others` are the files that are there."""
    there = f"; it has {by_suffix(others)}" if others else ""
    return UserError(f"dataset '{dataset.name}': {place} holds no images{there}")


def classes_of(
    dataset: Dataset, place: Path, names: Sequence[str], others: Sequence[str], folders: Sequence[str]
) -> Classes:
    """The classes of a set of class folders; UserError that names the set."""
    try:
        return by_folder(names, others, folders)
    except UserError as error:
        raise type(error)(f"dataset '{dataset.name}' at {place}: {error}") from error


def keys_of(
    dataset: Dataset, labels: npt.NDArray[np.int64], place: Path | str, named: Sequence[str] = ()
) -> tuple[str, ...]:
    """One key per class for labels that are numbers: as many as there are names, else as the labels reach.

    Names are `named` of the source, else those of the dataset's class list. UserError when a label has no name.
    """
    n, what = len(named) or None, "class names"
    if dataset.classes and not named:
        n, what = len(prompts.class_names(dataset.classes).lines), f"names in class list '{dataset.classes}'"
    try:
        return label_keys(labels, n, str(place), what)
    except UserError as error:
        raise UserError(f"dataset '{dataset.name}': {error}") from error


def unlabelled(dataset: Dataset, place: Path | str, what: str) -> UserError:
    """The error for an ID set whose images have no classes."""
    return Unlabelled(
        f"dataset '{dataset.name}': an ID set needs a class for every image, but {what} of {place} has none"
    )
