"""What every loader gives: `Items`, and a `Source` that reads one image by name. And the errors that all share."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from oodbench.errors import Missing, UserError
from oodbench.loaders.prints import Taken, encoded, print_of, stat_print
from oodbench.store import file_digest

if TYPE_CHECKING:
    from oodbench.catalogue import Dataset

__all__ = ["EXTENSIONS", "Files", "Items", "Placed", "Source", "Tree", "print_of"]

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))


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


@dataclass(frozen=True)
class Files:
    """Image files below a folder, named by their paths."""

    folder: Path

    def take(self, name: str) -> Taken:
        """Read a file."""
        with (self.folder / name).open("rb") as file:
            raw = file.read()
            return encoded(stat_print(os.fstat(file.fileno())), raw)

    def content(self, name: str) -> str:
        """sha256 of the file."""
        return file_digest(self.folder / name)


def is_image(name: str) -> bool:
    """Whether a name ends like that of an image."""
    return Path(name).suffix.lower() in EXTENSIONS


def missing(dataset: Dataset, place: Path | str) -> UserError:
    """The error for a set that is not there, with how to get it."""
    where = f"$OODBENCH_DATA/{dataset.path} ({place})" if not Path(dataset.path).is_absolute() else str(place)
    hint = f"\n  {dataset.obtain}; give its parent with --data" if dataset.obtain else ""
    return Missing(f"dataset '{dataset.name}' was not found at {where}{hint}")


def empty(dataset: Dataset, place: Path | str) -> UserError:
    """The error for a place without images."""
    return UserError(f"dataset '{dataset.name}': {place} holds no images ({', '.join(sorted(EXTENSIONS))})")


def unlabelled(dataset: Dataset, place: Path | str, what: str) -> UserError:
    """The error for an ID set whose images have no classes."""
    return UserError(
        f"dataset '{dataset.name}': an ID set needs a class for every image, but {what} of {place} has none"
    )


def numbered(labels: npt.NDArray[np.int64]) -> tuple[str, ...]:
    """Class keys for labels that are bare numbers: "0" up to the largest."""
    return tuple(str(i) for i in range(int(labels.max()) + 1)) if len(labels) else ()
