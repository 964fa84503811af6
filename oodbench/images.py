"""Image lists: which images a dataset holds, in which order, with which digest; and reading one of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.catalogue import Dataset
from oodbench.errors import UserError
from oodbench.store import Store, digest, file_digest

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm"))
CALIBRATION_LIMIT = 50_000  # training images that a method may calibrate on


@dataclass(frozen=True)
class Listing:
    """A dataset's images in list order.

    names      posix paths below `folder`, or names of rendered images
    prints     one digest per image: size and modification time, or content
    labels     class index per image, -1 where there is none
    folders    class folders in label order; () without labels
    total      images before a limit was applied
    content    whether prints are contents
    """

    dataset: Dataset
    folder: Path
    names: tuple[str, ...]
    prints: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    folders: tuple[str, ...] = ()
    total: int = 0
    content: bool = False

    @cached_property
    def digest(self) -> str:
        """sha256 of names and prints: the identity of the list. Every score's key and row asks for it."""
        return self._digest(0, len(self))

    def items_digest(self, start: int, stop: int) -> str:
        """The same for a part of the list."""
        return self.digest if (start, stop) == (0, len(self)) else self._digest(start, stop)

    def _digest(self, start: int, stop: int) -> str:
        # Without contents the dataset's path counts, too: names, sizes and times alone can be equal in two folders.
        place = "" if self.content else self.dataset.path
        return digest([place, self.names[start:stop], self.prints[start:stop]])

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image:
        """Decode one image, in its own mode. Raises OSError (or what Pillow raises) when it cannot be read."""
        from PIL import Image

        if self.dataset.loader == "glyphs":
            from oodbench.glyphs import render

            split, _, number = self.names[index].partition("/")
            return Image.fromarray(render.image(split, int(number.partition("-")[0])))
        with (self.folder / self.names[index]).open("rb") as file:
            image = Image.open(file)
            image.load()
        return image

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Listing:
        """The listing of some of its images."""
        chosen = [int(i) for i in indices]
        names, prints = (tuple(column[i] for i in chosen) for column in (self.names, self.prints))
        return replace(self, names=names, prints=prints, labels=self.labels[chosen])

    def by_content(self) -> Listing:
        """The same list with contents for prints, which takes reading every image."""
        if self.content:
            return self
        return replace(self, prints=_contents(self.dataset, self.folder, self.names), content=True)

    def limit(self, n: int | None) -> Listing:
        """At most n images, evenly spread over the list, so that every class keeps its share."""
        if n is None or n >= len(self):
            return self
        return self.select([i * len(self) // n for i in range(n)])

    def sample(self, n: int, seed: int) -> Listing:
        """At most n images drawn without replacement, in list order."""
        if n >= len(self):
            return self
        return self.select(np.sort(np.random.default_rng(seed).choice(len(self), n, replace=False)))


def listing(
    dataset: Dataset, data: Path, *, labelled: bool, strict: bool, store: Store, limit: int | None = None
) -> Listing:
    """List a dataset. UserError when its folder is missing or empty, or (labelled) has no class folders.

    labelled  an ID set: sorted folders are the labels. Otherwise every image below the folder is taken.
    strict    prints are sha256 of the content instead of size and modification time
    limit     see Listing.limit
    """
    if dataset.loader == "glyphs":
        return _glyphs(dataset, store).limit(limit)
    folder = dataset.folder(data)
    if not folder.is_dir():
        where = f"$OODBENCH_DATA/{dataset.path} ({folder})" if dataset.declared else str(folder)
        hint = f"\n  {dataset.obtain}; give its parent with --data" if dataset.obtain else ""
        raise UserError(f"dataset '{dataset.name}' was not found at {where}{hint}")
    try:
        files = sorted(_walk(folder, "", ()))
    except OSError as error:
        raise UserError(
            f"dataset '{dataset.name}': {error.filename or folder} cannot be read: {error.strerror}"
        ) from error
    if not files:
        raise UserError(f"dataset '{dataset.name}': {folder} holds no images ({', '.join(sorted(EXTENSIONS))})")
    labels = np.full(len(files), -1)
    folders: tuple[str, ...] = ()
    if labelled:
        tops = [name.partition("/")[0] if "/" in name else "" for name, _ in files]
        if "" in tops:
            raise UserError(
                f"dataset '{dataset.name}': an ID set needs one folder per class, "
                f"but {folder / files[tops.index('')][0]} lies in none"
            )
        folders = tuple(sorted(set(tops)))
        index = {name: i for i, name in enumerate(folders)}
        labels = np.array([index[top] for top in tops])
    names, prints = (tuple(column) for column in zip(*files, strict=True))
    found = Listing(dataset, folder, names, prints, labels, folders, len(files)).limit(limit)
    return found.by_content() if strict else found


def _walk(folder: Path, prefix: str, above: tuple[tuple[int, int], ...]) -> list[tuple[str, str]]:
    """(name, size and time) of every image. `above`: the folders on the way here, so that a link to one is left out."""
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return []
    found: list[tuple[str, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _walk(Path(entry.path), f"{prefix}{entry.name}/", (*above, here))
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS and (entry.is_file() or entry.is_symlink()):
                stat = entry.stat()  # raises for a link to nothing
                found.append((prefix + entry.name, f"{stat.st_size}:{stat.st_mtime_ns}"))
    return found


def _contents(dataset: Dataset, folder: Path, names: Sequence[str]) -> tuple[str, ...]:
    from concurrent.futures import ThreadPoolExecutor

    try:
        with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:  # hashing lets go of the interpreter lock
            return tuple(pool.map(lambda name: file_digest(folder / name), names))
    except OSError as error:
        raise UserError(f"dataset '{dataset.name}': {error.filename} cannot be read: {error.strerror}") from error


def _glyphs(dataset: Dataset, store: Store) -> Listing:
    """Prints are digests of the pixels, remembered in the store for as long as nothing that makes them changes."""
    from oodbench.glyphs import render, world

    split = dataset.path
    n = world.length(split)
    inputs: dict[str, Any] = {"split": split, "n": n, **render.recipe()}
    entry = store.find("glyphs", inputs)
    if entry is None:
        facts = {
            "names": [world.name(split, i) for i in range(n)],
            "prints": [hashlib.sha256(render.image(split, i).tobytes()).hexdigest() for i in range(n)],
            "labels": [world.label(split, i) for i in range(n)],
        }
        entry = store.write("glyphs", inputs, {}, facts)
    labels = np.array(entry.facts["labels"])
    folders = tuple(world.CLASSES) if labels.max() >= 0 else ()
    names, prints = tuple(entry.facts["names"]), tuple(entry.facts["prints"])
    return Listing(dataset, Path(), names, prints, labels, folders, n, content=True)
