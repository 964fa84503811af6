"""Images in columns of tables: which column holds the images and which the labels, and a cell as an image."""

from __future__ import annotations

import bisect
import hashlib
import json
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from oodbench.catalogue import Dataset
from oodbench.errors import UserError
from oodbench.loaders.arrow import Table, cached_print, on_disk, on_hub
from oodbench.loaders.items import Items, empty, missing, numbered, unlabelled
from oodbench.loaders.prints import Taken, encoded, inside, lasting, print_of

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGES = ("image", "img", "jpg", "png", "images", "pixels", "bytes")
_LABELS = ("label", "fine_label", "labels", "cls", "target", "class")


@dataclass
class Column:
    """Image cells of several tables; of a parquet file, the row group read last is held.

    groups  per group: rows, and a function that reads its cells
    homes   per group: the file, and the number of the group in it
    files   per group: the file
    """

    groups: Sequence[tuple[int, Any]]
    homes: Sequence[str] = ()
    files: Sequence[Path] = ()
    _held: tuple[int, Any] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cell(self, index: int) -> Any:
        """The value of a row: encoded bytes, {"bytes": ...}, or nested lists of pixels."""
        group = 0
        while index >= self.groups[group][0]:
            index -= self.groups[group][0]
            group += 1
        with self._lock:
            if self._held is None or self._held[0] != group:
                self._held = (group, self.groups[group][1]())
            return self._held[1][index].as_py()

    def take(self, name: str) -> Taken:
        """The image of a row."""
        cell = self.cell(int(name))
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if cell is None:
            raise ValueError(f"row {name} holds no image")
        now = self._print(int(name))  # after the cell is read
        if isinstance(cell, bytes):
            return encoded(now, cell)
        array = np.array(cell, np.uint8)

        def image() -> Image:
            from PIL import Image

            return Image.fromarray(array)

        return Taken(now, image, lambda: hashlib.sha256(array.tobytes()).hexdigest())

    def _print(self, index: int) -> str:
        return inside(print_of(self.files[self._group(index)]), index)

    def _group(self, index: int) -> int:
        ends = list(accumulate(rows for rows, _ in self.groups))
        return bisect.bisect_right(ends, index)

    def content(self, name: str) -> str:
        """sha256 of the encoded image, or of its pixels."""
        return self.take(name).content()

    def place(self, name: str) -> str:
        """The file, the group of rows in it, and the row."""
        group = self._group(int(name))
        before = sum(rows for rows, _ in self.groups[:group])
        return f"{self.homes[group]}/{int(name) - before}"


@dataclass
class Cached(Column):
    """Image cells of a dataset of the hub, whose library says which files hold them, not which of them holds which."""

    listed_print: str = ""

    def tree_print(self) -> str:
        """The print of all its files."""
        return cached_print(lasting(self.listed_print), self.files)

    def _print(self, index: int) -> str:
        return inside(self.listed_print, index)


def items(dataset: Dataset, data: Path, labelled: bool) -> Items:
    """The rows of a parquet file, of a folder of parquet or arrow files, or of a dataset on the hub.

    Columns are found by name and type. UserError when nothing is there, when a file is damaged, or when no column holds
    images or (labelled) labels.
    """
    import pyarrow as pa

    place = data / dataset.path
    if dataset.loader == "parquet" and not place.exists():
        raise missing(dataset, place)
    try:
        table = on_disk(dataset, place) if place.exists() else on_hub(dataset)
        image, label = _columns(dataset, table, labelled)
        groups = [(rows, _reader(read, image)) for rows, read in table.groups]
        column = (
            Column(groups, table.homes, table.files)
            if place.exists()
            else Cached(groups, table.homes, table.files, listed_print=table.prints[0])
        )
        labels, classes = _labels(table, label) if labelled and label else (None, ())
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"dataset '{dataset.name}': {place} cannot be read: {error}") from error
    n = sum(rows for rows, _ in table.groups)
    if not n:
        raise empty(dataset, table.place)
    width = len(str(n - 1))
    names = tuple(str(i).zfill(width) for i in range(n))
    files = np.repeat(np.arange(len(table.groups)), [rows for rows, _ in table.groups]).tolist()
    prints = tuple(inside(table.prints[file], i) for i, file in enumerate(files))
    known = labels if labels is not None else np.full(n, -1)
    if labelled and (known < 0).any():
        raise unlabelled(dataset, table.place, f"row {int((known < 0).argmax())}")
    keys = (classes or numbered(known)) if labelled else ()
    return Items(table.place, names, prints, known, column, keys, classes)


def _columns(dataset: Dataset, table: Table, labelled: bool) -> tuple[str, str]:
    """Names of the image and the label column, "" for labels that are not asked for."""
    import pyarrow as pa

    types = {one.name: one.type for one in table.schema}

    def holds_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_list(kind))

    def chosen(known: Sequence[str], fits: Any) -> str:
        able = [name for name, kind in types.items() if fits(kind)]
        return next((name for name in known if name in able), able[0] if len(able) == 1 else "")

    image = chosen(_IMAGES, holds_image)
    label = chosen(_LABELS, pa.types.is_integer) if labelled else ""
    if not image or (labelled and not label):
        lacking = "images" if not image else "labels (whole numbers)"
        columns = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        raise UserError(f"dataset '{dataset.name}': no column of {table.place} holds {lacking}; it has {columns}")
    return image, label


def _labels(table: Table, label: str) -> tuple[Any, tuple[str, ...]]:
    """Class indices [n], -1 for null; and the class names that Hugging Face keeps beside them."""
    cells = [-1 if one is None else one for _, read in table.groups for one in read(label).to_pylist()]
    values = np.array(cells, np.int64)
    about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names", ())
    return values, tuple(str(name) for name in names)


def _reader(read: Any, column: str) -> Any:
    return lambda: read(column)
