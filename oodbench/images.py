"""Image lists: which images a dataset holds, in which order, with which digest; and reading one of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.catalogue import Dataset
from oodbench.errors import UserError
from oodbench.store import Store, digest

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
    """

    dataset: Dataset
    folder: Path
    names: tuple[str, ...]
    prints: tuple[str, ...]
    labels: npt.NDArray[np.int64]
    folders: tuple[str, ...] = ()
    total: int = 0

    @property
    def digest(self) -> str:
        """sha256 of names and prints: the identity of the list."""
        return self.items_digest(0, len(self))

    def items_digest(self, start: int, stop: int) -> str:
        """The same for a part of the list."""
        return digest([self.names[start:stop], self.prints[start:stop]])

    def __len__(self) -> int:
        return len(self.names)

    def read(self, index: int) -> Image:
        """Decode one image, in its own mode. Raises OSError (or what Pillow raises) when it cannot be read."""
        from PIL import Image

        if self.dataset.loader == "glyphs":
            from oodbench.glyphs import render

            split, _, number = self.names[index].partition("/")
            return Image.fromarray(render.image(split, int(number.partition("-")[0])))
        image = Image.open(self.folder / self.names[index])
        image.load()
        return image

    def select(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Listing:
        """The listing of some of its images."""
        chosen = [int(i) for i in indices]
        return Listing(
            self.dataset,
            self.folder,
            tuple(self.names[i] for i in chosen),
            tuple(self.prints[i] for i in chosen),
            self.labels[chosen],
            self.folders,
            self.total,
        )

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


def listing(dataset: Dataset, data: Path, *, labelled: bool, strict: bool, store: Store) -> Listing:
    """List a dataset. UserError when its folder is missing or empty, or (labelled) has no class folders.

    labelled  an ID set: sorted folders are the labels. Otherwise every image below the folder is taken.
    strict    prints are sha256 of the content instead of size and modification time
    """
    if dataset.loader == "glyphs":
        return _glyphs(dataset, store)
    folder = dataset.folder(data)
    if not folder.is_dir():
        where = f"$OODBENCH_DATA/{dataset.path} ({folder})" if dataset.declared else str(folder)
        hint = f"\n  {dataset.obtain}; give its parent with --data" if dataset.obtain else ""
        raise UserError(f"dataset '{dataset.name}' was not found at {where}{hint}")
    files = sorted(_walk(folder, ""))
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
    prints = tuple(_content(folder / name) if strict else f"{stat.st_size}:{stat.st_mtime_ns}" for name, stat in files)
    return Listing(dataset, folder, tuple(n for n, _ in files), prints, labels, folders, len(files))


def _walk(folder: Path, prefix: str) -> list[tuple[str, os.stat_result]]:
    found: list[tuple[str, os.stat_result]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                found += _walk(Path(entry.path), f"{prefix}{entry.name}/")
            elif os.path.splitext(entry.name)[1].lower() in EXTENSIONS:
                found.append((prefix + entry.name, entry.stat()))
    return found


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    return Listing(dataset, Path(), tuple(entry.facts["names"]), tuple(entry.facts["prints"]), labels, folders, n)
