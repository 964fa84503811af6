"""Image lists: which images a dataset holds, in which order, with which digest; and reading one of them."""

from __future__ import annotations

import importlib
import os
import socket
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from oodbench.data import prompts
from oodbench.data.catalog import Dataset
from oodbench.data.catalog import dataset as declared
from oodbench.data.loaders.layout import (
    EXTENSIONS,
    Classes,
    Remark,
    by_folder,
    by_suffix,
    is_hidden,
    label_keys,
    ordered,
    without_images,
)
from oodbench.errors import Missing, Unlabelled, UserError
from oodbench.storage.files import irregular, open_regular
from oodbench.storage.fingerprints import ReadImage, encoded, lasting, stat_fingerprint
from oodbench.storage.store import Store, digest, file_digest

if TYPE_CHECKING:
    from PIL.Image import Image


class ImageSource(Protocol):
    """Reads images by name. Threads share it; it holds no image."""

    def take(self, name: str) -> ReadImage:
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
    source: ImageSource
    folders: tuple[str, ...] = ()
    named: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    content: bool = False
    remarks: tuple[Remark, ...] = ()


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder, named by their paths."""

    folder: Path

    def take(self, name: str) -> ReadImage:
        """Read a file."""
        with open_regular(self.folder / name) as file:
            raw = file.read()
            return encoded(stat_fingerprint(os.fstat(file.fileno())), raw)

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


__all__ = ["CALIBRATION_LIMIT", "EXTENSIONS", "ImageSet", "SubsetOf", "listing", "source"]

CALIBRATION_LIMIT = 50_000  # training images that a method may calibrate on


@dataclass(frozen=True)
class SubsetOf:
    """Where images of a derived list come from: its rows `here` [k] are the rows `there` [k] of another list."""

    listing: ImageSet
    here: npt.NDArray[np.int64]
    there: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """A dataset's images in list order.

    names      posix paths below `folder`, or names of rendered images
    prints     one text per image: size and times of its file, or its content (see loaders/prints.py)
    labels     class index per image, -1 where there is none
    folders    class folders in label order; () without labels
    total      images before a limit was applied
    content    whether prints are contents
    source     what reads an image by its name; None: files below `folder`
    named      class names in label order where the source knows them
    absent     what an image list names and the folder does not hold
    remarks    what was seen while listing and may mislead
    origins    of a derived list: the lists whose embeddings are its own; () once images are selected
    host       the machine that listed it: on others, change times and inodes are not compared
    """

    dataset: Dataset
    folder: Path
    names: tuple[str, ...]
    prints: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    folders: tuple[str, ...] = ()
    total: int = 0
    content: bool = False
    source: ImageSource | None = None
    named: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()
    origins: tuple[SubsetOf, ...] = ()
    host: str = field(default_factory=socket.gethostname)

    @property
    def reader(self) -> ImageSource:
        """What reads an image by its name."""
        return self.source or ImageFiles(self.folder)

    @cached_property
    def digest(self) -> str:
        """sha256 of names and the lasting parts of prints, for rows. Keys of the store are made of `stamp`."""
        return self._digest(tuple(map(lasting, self.prints)), slice(None))

    @cached_property
    def stamp(self) -> str:
        """sha256 of names and whole prints: decides whether what is stored for the list may be used."""
        return self._digest(self.prints, slice(None))

    def part_stamp(self, start: int, stop: int) -> str:
        """The stamp of a part of the list."""
        whole = (start, stop) == (0, len(self))
        return self.stamp if whole else self._digest(self.prints, slice(start, stop))

    def _digest(self, prints: tuple[str, ...], part: slice) -> str:
        # Without contents the dataset's path counts, too: names, sizes and times alone can be equal in two folders.
        place = "" if self.content else self.dataset.path
        return digest([place, self.names[part], prints[part]])

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image:
        """Decode one image, in its own mode. Raises OSError (or what Pillow raises) when it cannot be read.

        UserError when it is not the image that was listed.
        """
        taken = self.reader.take(self.names[index])
        if not self._same(taken.content() if self.content else taken.print, self.prints[index]):
            raise self._changed(self.folder / self.names[index])
        return taken.image()

    def check_tree(self) -> None:
        """UserError when files changed that are not looked at image by image: to be asked before and after reading."""
        for listing in [one.listing for one in self.origins] or [self]:
            source = listing.reader
            if (
                isinstance(source, Tree)
                and not listing.content
                and not self._same(source.tree_print(), source.listed_print)
            ):
                raise listing._changed(listing.folder)

    def _same(self, now: str, listed: str) -> bool:
        return now == listed or (self.host != socket.gethostname() and lasting(now) == lasting(listed))

    def _changed(self, place: Path) -> UserError:
        return UserError(f"dataset '{self.dataset.name}': {place} changed after it was listed; run again")

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> ImageSet:
        """The listing of some of its images."""
        chosen = [int(i) for i in indices]
        names, prints = (tuple(column[i] for i in chosen) for column in (self.names, self.prints))
        return replace(self, names=names, prints=prints, labels=self.labels[chosen], origins=())

    def by_content(self) -> ImageSet:
        """The same list with contents for prints, which takes reading every image."""
        if self.content:
            return self
        origins = tuple(replace(one, listing=one.listing.by_content()) for one in self.origins)
        return replace(self, prints=_contents(self), content=True, origins=origins)

    def limit(self, n: int | None) -> ImageSet:
        """At most n images, evenly spread over the list, so that every class keeps its share."""
        if n is None or n >= len(self):
            return self
        return self.select([i * len(self) // n for i in range(n)])

    def sample(self, n: int, seed: int) -> ImageSet:
        """At most n images drawn without replacement, in list order."""
        if n >= len(self):
            return self
        return self.select(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)))


def listing(
    dataset: Dataset, data: Path, *, labelled: bool, strict: bool, store: Store, limit: int | None = None
) -> ImageSet:
    """List a dataset. UserError when its folder is missing or empty, or (labelled) has no class folders.

    labelled  an ID set: sorted folders are the labels. Otherwise every image below the folder is taken.
    strict    prints are sha256 of the content instead of sizes and times of files
    limit     see ImageSet.limit
    """
    whole = _whole(dataset, data, labelled, strict, store)
    if labelled:
        empty = without_images(whole.labels, whole.named or whole.folders)
        whole = replace(whole, remarks=(*whole.remarks, *empty))
    whole = whole.limit(limit)
    return whole.by_content() if strict else whole


def _whole(dataset: Dataset, data: Path, labelled: bool, strict: bool, store: Store) -> ImageSet:
    """All images of a set; with `strict` the sets that a derived one is made of are listed by content."""
    if dataset.within:
        from oodbench.data import subsets as derived

        inside = dataset.list == "" or labelled  # classes are asked for
        whole = listing(declared(dataset.within), data, labelled=inside, strict=strict, store=store)
        return derived.part(dataset, whole, data, labelled)
    if dataset.parts:
        from oodbench.data import subsets as derived

        sets = [declared(name) for name in dataset.parts]
        parts = [listing(one, data, labelled=labelled, strict=strict, store=store) for one in sets]
        return derived.union(dataset, parts)
    found = _loaded(dataset, data, labelled, store)
    return ImageSet(
        dataset,
        found.folder,
        found.names,
        found.prints,
        found.labels,
        found.folders,
        len(found.names),
        found.content,
        found.source,
        _named_like(dataset, data, found.folders) if labelled and dataset.like else found.named,
        found.absent,
        found.remarks,
    )


def source(dataset: Dataset, data: Path, store: Store) -> ImageSource:
    """What reads the images of a set that is not derived, found anew: for another process."""
    return _loaded(dataset, data, False, store).source


def _loaded(dataset: Dataset, data: Path, labelled: bool, store: Store) -> Items:
    """What the dataset's loader finds; its libraries are imported only now."""
    if dataset.loader == "glyphs":
        from oodbench.data.glyphs import loader as glyphs

        return glyphs.items(dataset, store)
    if dataset.loader == "torchvision":  # the split may also lie there as an archive of class folders
        packed = Path(dataset.path, f"{dataset.split}.tar")
        if (data / packed).is_file():
            dataset = replace(dataset, loader="tar", path=str(packed), split="")
    module = {"list": "imagelist", "tar": "tar", "parquet": "parquet", "hf": "parquet"}
    known = {"classes": "folder", "images": "folder", "torchvision": "torchvision", "arrays": "arrays", **module}
    loader = importlib.import_module(f"oodbench.data.loaders.{known[dataset.loader]}")
    found: Items = loader.items(dataset, data, labelled)
    return found


def _named_like(dataset: Dataset, data: Path, folders: tuple[str, ...]) -> tuple[str, ...]:
    """Class names of some of another set's class folders, looked up by folder."""
    other = declared(dataset.like)
    home = other.folder(data)
    theirs = (
        ordered(one.name for one in home.iterdir() if one.is_dir() and not is_hidden(one.name)) if home.is_dir() else ()
    )
    names = prompts.class_names(other.classes).lines
    number = {folder: i for i, folder in enumerate(theirs)}
    if len(theirs) != len(names) or not set(folders) <= set(theirs):
        raise UserError(
            f"dataset '{dataset.name}': its class names are those of '{other.name}' by folder, which takes all "
            f"{len(names)} class folders at {home} ({len(theirs)} there); empty ones will do"
        )
    return tuple(names[number[folder]] for folder in folders)


def _contents(listing: ImageSet) -> tuple[str, ...]:
    from concurrent.futures import ThreadPoolExecutor

    try:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:  # hashing lets go of the interpreter lock
            return tuple(pool.map(listing.reader.content, listing.names))
    except OSError as error:
        name = error.filename or listing.folder
        raise UserError(
            f"dataset '{listing.dataset.name}': {name} cannot be read: {error.strerror or error}"
        ) from error
    except (TypeError, ValueError) as error:  # a cell of a table that holds no image
        raise UserError(f"dataset '{listing.dataset.name}': {listing.folder} cannot be read: {error}") from error
