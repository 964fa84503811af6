"""The images of a dataset: their names, labels and fingerprints in a fixed order, and the source that reads them."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from oodbench.data import prompts
from oodbench.data.catalog import Dataset
from oodbench.data.loaders.layout import Classes, ClassPlace, Remark, classes_by_folder, count_by_suffix, label_keys
from oodbench.errors import Missing, Unlabelled, UserError
from oodbench.storage.files import irregular, open_regular
from oodbench.storage.fingerprints import (
    ReadImage,
    changed_at,
    copied_part,
    is_local,
    portable_part,
    stat_fingerprint,
)
from oodbench.storage.store import Store, digest, file_digest

if TYPE_CHECKING:
    from PIL.Image import Image


_HASHED_TOGETHER = 4096  # digests that are stored together, so that an interrupted reading can resume
_SETTLED = 2_000_000_000  # nanoseconds: the coarsest time resolution of a common file system (FAT)


class ImageSource(Protocol):
    """Reads images by name. It caches no image, and threads may share it."""

    def read(self, name: str) -> ReadImage:
        """Read one image, to be decoded in its own mode. Raises OSError or an error of Pillow on failure."""

    def content(self, name: str) -> str:
        """Return the sha256 of the stored bytes of an image."""


@runtime_checkable
class ContainerSource(Protocol):
    """A source with many images per file."""

    def location(self, name: str) -> str:
        """Return the location of an image, as a text that is the same in all sets that contain the image."""


@runtime_checkable
class TreeSource(Protocol):
    """A source with one fingerprint for all its files, which are too many to check for every image."""

    def tree_fingerprint(self) -> str:
        """Return the current fingerprint of all its files."""

    @property
    def listed_fingerprint(self) -> str:
        """The fingerprint of all its files before they were opened."""


@dataclass(frozen=True)
class ImageFiles:
    """Image files below a folder, named by their relative paths."""

    folder: Path

    def read(self, name: str) -> ReadImage:
        """Read a file."""
        with open_regular(self.folder / name) as file:
            raw = file.read()
            return ReadImage.from_bytes(stat_fingerprint(os.fstat(file.fileno())), raw)

    def content(self, name: str) -> str:
        """Return the sha256 of the file."""
        return file_digest(self.folder / name)


@dataclass(frozen=True)
class RenamedSource:
    """Reads images of another source under new names; `inner` maps them to the source's names."""

    source: ImageSource
    folder: Path
    inner: Mapping[str, str]

    def read(self, name: str) -> ReadImage:
        """Read one image."""
        return self.source.read(self.inner[name])

    def content(self, name: str) -> str:
        """Return the sha256 of the stored bytes of an image."""
        return self.source.content(self.inner[name])

    def location(self, name: str) -> str:
        """Return where an image is stored."""
        inner = self.inner[name]
        stored = isinstance(self.source, ContainerSource)
        return self.source.location(inner) if stored else str(self.folder.resolve() / inner)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class SubsetOf:
    """The origin of rows of a derived image set: its `rows` [k] are `source_rows` [k] of `source`."""

    source: ImageSet
    rows: npt.NDArray[np.int64]
    source_rows: npt.NDArray[np.int64]


@dataclass(frozen=True)
class ImageSet:
    """The images of a dataset, in a fixed order.

    folder        the folder that holds the images, or the file that contains them
    names         posix paths below `folder`, row numbers in a table, or names of rendered images
    fingerprints  one string per image that changes when the image changes (see storage/fingerprints.py); determines
                  whether stored embeddings are used
    labels        class index per image [n], -1 without a label
    folders       one key per class in label order: class folders or numbers; () without labels
    total         number of images before a limit was applied
    content       whether the fingerprints are digests of the images' contents
    sizes         part of each fingerprint that result rows depend on; () means its first line
    source        reads an image by name; None: image files below `folder`
    named         class names in label order, if the source has them
    absent        images in an image list that do not exist
    remarks       observations that may mislead
    origins       for a derived set: the sets that provide stored embeddings; () once images are selected
    host          the machine that listed the images: change times and inodes are compared on this machine only
    """

    dataset: Dataset
    folder: Path
    names: tuple[str, ...]
    fingerprints: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    folders: tuple[str, ...] = ()
    total: int = -1
    content: bool = False
    sizes: tuple[str, ...] = ()
    source: ImageSource | None = None
    named: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    remarks: tuple[Remark, ...] = ()
    origins: tuple[SubsetOf, ...] = ()
    host: str = field(default_factory=socket.gethostname)

    def __post_init__(self) -> None:
        """Set `total` if the set was not selected from another."""
        if self.total < 0:
            object.__setattr__(self, "total", len(self.names))

    @property
    def reader(self) -> ImageSource:
        """The source, by default one that reads files below `folder`."""
        return self.source or ImageFiles(self.folder)

    @cached_property
    def digest(self) -> str:
        """sha256 of names and sizes (of contents with --strict) in the order of the names, for result rows.

        It does not depend on the location, the times or the order of the files.
        """
        names, sizes = (
            zip(*sorted(zip(self.names, self.portable, strict=True)), strict=True) if self.names else ((), ())
        )
        return digest(["", names, sizes])

    @property
    def list_text(self) -> str:
        """Return names and labels as an image list, `name label` a line; bytes that are not UTF-8 are escaped."""
        pairs = zip(self.names, self.labels.tolist(), strict=True)
        text = "".join(f"{name} {label}\n" for name, label in pairs)
        return text.encode("utf-8", "backslashreplace").decode()

    @cached_property
    def list_digest(self) -> str:
        """sha256 of list_text, which identifies labelled calibration images in keys of the store and result rows."""
        return hashlib.sha256(self.list_text.encode()).hexdigest()

    @property
    def portable(self) -> tuple[str, ...]:
        """Return the part of each fingerprint that is equal for all copies of the image."""
        return self.sizes or tuple(map(portable_part, self.fingerprints))

    @property
    def local(self) -> bool:
        """Return whether the fingerprints are valid on this machine only, so that their entries cannot be shared."""
        return any(map(is_local, self.fingerprints))

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of names and complete fingerprints, for keys of the store: changed images are embedded again."""
        return self._key(slice(None))

    def part_fingerprint(self, start: int, stop: int) -> str:
        """Return the fingerprint of the images from `start` to before `stop`."""
        return self.fingerprint if (start, stop) == (0, len(self)) else self._key(slice(start, stop))

    def _key(self, part: slice) -> str:
        # Without content digests, the path is part of the key: two folders may have equal names, sizes and times.
        path = "" if self.content else self.dataset.path
        return digest([path, self.names[part], self.fingerprints[part]])

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image:
        """Decode one image, in its own mode.

        Raises UserError if the image changed after it was listed, OSError (or an error of Pillow) if it cannot be read.
        """
        return self._read(index).image()

    def _read(self, index: int) -> ReadImage:
        image = self.reader.read(self.names[index])
        if not self._unchanged(image.content() if self.content else image.fingerprint, self.fingerprints[index]):
            raise self._changed(self.folder / self.names[index])
        return image

    def check_tree(self) -> None:
        """Raise UserError if files of a TreeSource changed. Call this before and after reading images."""
        for images in [origin.source for origin in self.origins] or [self]:
            source = images.reader
            if (
                isinstance(source, TreeSource)
                and not images.content
                and not self._unchanged(source.tree_fingerprint(), source.listed_fingerprint)
            ):
                raise images._changed(images.folder)

    def _unchanged(self, now: str, listed: str) -> bool:
        return now == listed or (self.host != socket.gethostname() and copied_part(now) == copied_part(listed))

    def _changed(self, path: Path) -> UserError:
        return UserError(f"dataset '{self.dataset.name}': {path} changed after it was listed; run again")

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> ImageSet:
        """Return some of the images, in the given order."""
        chosen = [int(i) for i in indices]
        names, fingerprints = (tuple(column[i] for i in chosen) for column in (self.names, self.fingerprints))
        return replace(
            self,
            names=names,
            fingerprints=fingerprints,
            sizes=tuple(self.sizes[i] for i in chosen) if self.sizes else (),
            labels=self.labels[chosen],
            origins=(),
        )

    def by_content(self, store: Store | None = None, *, in_rows: bool = True) -> ImageSet:
        """Return the same images with digests of their contents as fingerprints. This reads every image.

        store    caches digests while files have the same sizes, times and inodes
        in_rows  whether result rows depend on the contents, too, and not only on the sizes
        """
        if self.content:
            return self
        origins = tuple(replace(one, source=one.source.by_content(store, in_rows=in_rows)) for one in self.origins)
        contents = self._contents(store)
        return replace(
            self,
            fingerprints=contents,
            content=True,
            sizes=() if in_rows else self.portable,
            origins=origins,
        )

    def _contents(self, store: Store | None) -> tuple[str, ...]:
        """Return the sha256 of every image. Raises UserError when one changed or cannot be read."""
        found: list[str] = []
        self.check_tree()
        for start in range(0, len(self), _HASHED_TOGETHER):
            stop = min(start + _HASHED_TOGETHER, len(self))
            inputs = {"engine": 1, "items": self.part_fingerprint(start, stop)}
            entry = store.find("contents", inputs) if store else None
            began = time.time_ns()
            facts = entry.facts if entry else {"sha256": self._hashed(start, stop)}
            # A file written twice within one clock tick of its file system keeps its fingerprint.
            settled = began - max(map(changed_at, self.fingerprints[start:stop])) > _SETTLED
            if store and not entry and settled and self.host == socket.gethostname():
                self.check_tree()
                store.try_write("contents", inputs, facts)
            found += facts["sha256"]
        self.check_tree()
        return tuple(found)

    def _hashed(self, start: int, stop: int) -> list[str]:
        from concurrent.futures import ThreadPoolExecutor

        def hashed(index: int) -> str:
            return self._read(index).content()

        try:
            with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:  # hashing releases the GIL
                return list(pool.map(hashed, range(start, stop)))
        except OSError as error:
            name = error.filename or self.folder
            raise UserError(
                f"dataset '{self.dataset.name}': {name} cannot be read: {error.strerror or error}"
            ) from error
        except (TypeError, ValueError) as error:  # a table cell without an image
            raise UserError(f"dataset '{self.dataset.name}': {self.folder} cannot be read: {error}") from error

    def limit(self, n: int | None) -> ImageSet:
        """Return at most n images, evenly spaced over the set, so that class proportions are preserved."""
        if n is None or n >= len(self):
            return self
        return self.select([i * len(self) // n for i in range(n)])

    def sample(self, n: int, seed: int) -> ImageSet:
        """Return at most n images, drawn without replacement, in their original order."""
        if n >= len(self):
            return self
        return self.select(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)))


def renamed(images: ImageSet, names: Sequence[str]) -> ImageSet:
    """Return images under new names, sorted by name. Raises UserError if two get the same name."""
    order = sorted(range(len(names)), key=names.__getitem__)
    ordered = tuple(names[i] for i in order)
    twice = next((a for a, b in pairwise(ordered) if a == b), None)
    if twice is not None:
        first, second = [images.names[i] for i in order if names[i] == twice][:2]
        raise UserError(
            f"dataset '{images.dataset.name}': {first} and {second} in {images.folder} are the same image, {twice}"
        )
    source = RenamedSource(images.reader, images.folder, {names[i]: images.names[i] for i in order})
    return replace(images.select(order), names=ordered, source=source)


def missing_error(dataset: Dataset, path: Path | str, looked: Sequence[str] = ()) -> UserError:
    """Return the error for a missing set, with how to get it; `looked` are other places that were tried."""
    below = not Path(dataset.path).is_absolute() and str(path).endswith(dataset.path)
    where = f"$OODBENCH_DATA/{dataset.path} ({path})" if below else str(path)
    try:
        mode = os.stat(path).st_mode
        if not (stat.S_ISREG if dataset.loader in ("tar", "arrays") else stat.S_ISDIR)(mode):
            where += f": that is {irregular(mode) or 'a file, not a folder'}"
    except (OSError, ValueError):
        where += ", which does not exist"
    hints = ["also searched:", *(f"  {place}" for place in looked)] if looked else []
    hints += [f"{dataset.obtain}; --data names the data folder"] if dataset.obtain else []
    hints += [f"its address: {dataset.url}"] if dataset.url and dataset.url not in dataset.obtain else []
    if dataset.declared and not Path(dataset.path).is_absolute() and dataset.loader not in ("part", "union"):
        get = f"oodbench datasets get {dataset.name}"
        hints += [] if get in dataset.obtain else [f"get it: {get}"]
        hints.append(f"or give its location: oodbench datasets locate {dataset.name} PATH")
    return Missing("\n  ".join((f"dataset '{dataset.name}' was not found at {where}", *hints)))


def empty_error(dataset: Dataset, path: Path | str, others: Sequence[str] = ()) -> UserError:
    """Return the error for a folder or file without images; `others` are the files that it contains."""
    contents = f"; it has {count_by_suffix(others)}" if others else ""
    return UserError(f"dataset '{dataset.name}': {path} holds no images{contents}")


def unlabelled_error(dataset: Dataset, path: Path | str, what: str) -> UserError:
    """Return the error for an ID set that has an image without a class."""
    return Unlabelled(
        f"dataset '{dataset.name}': an ID set needs a class for every image, but {what} of {path} has none"
    )


def folder_classes(
    dataset: Dataset, path: Path, names: Sequence[str], others: Sequence[str], folders: Sequence[str]
) -> Classes:
    """Return the classes of images in class folders (see `layout.classes_by_folder`). Errors name the dataset."""
    try:
        return classes_by_folder(names, others, folders, _class_place(dataset, path))
    except UserError as error:
        raise type(error)(f"dataset '{dataset.name}' at {path}: {error}") from error


def _class_place(dataset: Dataset, path: Path | str) -> ClassPlace:
    """Return the location of the class folders of a dataset."""
    return ClassPlace(f"folder:{path}", dataset.depth) if dataset.loader == "classes" else ClassPlace()


def class_keys(
    dataset: Dataset, labels: npt.NDArray[np.int64], path: Path | str, named: Sequence[str] = ()
) -> tuple[str, ...]:
    """Return one key per class ("0", "1", ...) for numeric labels.

    Their number is that of the class names (`named`, else the dataset's class list), or without names the greatest
    label plus 1. Raises UserError if a label has no name.
    """
    n, what = len(named) or None, "class names"
    if dataset.classes and not named:
        n, what = len(prompts.class_names(dataset.classes).lines), f"names in class list '{dataset.classes}'"
    try:
        return label_keys(labels, n, str(path), what)
    except UserError as error:
        raise UserError(f"dataset '{dataset.name}': {error}") from error
