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
import numpy.typing as npt

from oodbench.data.catalog import Dataset
from oodbench.data.items import Items, empty, keys_of, missing, unlabelled
from oodbench.data.loaders.arrow import Table, cached_print, on_disk, on_hub
from oodbench.data.loaders.layout import Remark, some
from oodbench.data.prints import Taken, encoded, inside, lasting, print_of
from oodbench.errors import Unlabelled, UserError

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

    def stored(self, name: str) -> bytes | npt.NDArray[np.uint8]:
        """What a row holds: the bytes of an image file, or pixels. ValueError when it is neither."""
        cell = self.cell(int(name))
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell.get("bytes")
            if cell is None and path:
                raise ValueError(
                    f"row {name} names the file {path} and does not hold it; write the table with its bytes"
                )
        if cell is None:
            raise ValueError(f"row {name} holds no image")
        return cell if isinstance(cell, bytes) else np.array(cell, np.uint8)

    def take(self, name: str) -> Taken:
        """The image of a row."""
        cell = self.stored(name)
        now = self._print(int(name))  # after the cell is read
        if isinstance(cell, bytes):
            return encoded(now, cell)

        def image() -> Image:
            from PIL import Image

            return Image.fromarray(cell)

        return Taken(now, image, lambda: hashlib.sha256(cell.tobytes()).hexdigest())

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
        labels, classes, remarks = _labels(dataset, table, label) if labelled and label else (None, (), ())
    except (OSError, OverflowError, pa.ArrowException) as error:
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
    keys = keys_of(dataset, known, table.place, classes) if labelled else ()
    return Items(
        table.place, names, prints, known, column, classes or keys, classes, remarks=(*table.remarks, *remarks)
    )


def _columns(dataset: Dataset, table: Table, labelled: bool) -> tuple[str, str]:
    """Names of the image and the label column, "" for labels that are not asked for."""
    import pyarrow as pa

    types = {one.name: one.type for one in table.schema}

    def holds_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        if pa.types.is_list(kind) and pa.types.is_list(kind.value_type):  # rows of pixels
            inner = kind.value_type.value_type
            inner = inner.value_type if pa.types.is_list(inner) else inner
            return bool(pa.types.is_integer(inner))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def chosen(known: Sequence[str], fits: Any) -> str:
        able = [name for name, kind in types.items() if fits(kind)]
        return next((name for name in known if name in able), able[0] if len(able) == 1 else "")

    image = chosen(_IMAGES, holds_image)
    label = chosen(_LABELS, pa.types.is_integer) if labelled else ""
    if not image or (labelled and not label):
        lacking = "labels (whole numbers)" if image else "images (one a row: encoded, or pixels 0 to 255)"
        columns = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        problem = Unlabelled if image else UserError
        raise problem(f"dataset '{dataset.name}': no column of {table.place} holds {lacking}; it has {columns}")
    for schema, home in zip(table.schemas, table.homes, strict=True):
        own = {one.name: one.type for one in schema}
        if not (
            image in own and holds_image(own[image]) and (not label or pa.types.is_integer(own.get(label, pa.null())))
        ):
            columns = ", ".join(f"{name} ({kind})" for name, kind in own.items())
            raise UserError(
                f"dataset '{dataset.name}': {Path(home).parent} has other columns than the first file: {columns}"
            )
    return image, label


def _labels(
    dataset: Dataset, table: Table, label: str
) -> tuple[npt.NDArray[np.int64], tuple[str, ...], tuple[Remark, ...]]:
    """Class indices [n], -1 for null; the class names that Hugging Face keeps beside them; what was seen.

    Names are in the order of the first file, to which labels of others are changed. UserError when files name others.
    """
    classes = _class_names(table.schema, label)
    parts, moved = [], []
    for (_, read), schema, home in zip(table.groups, table.schemas, table.homes, strict=True):
        values = np.array([-1 if one is None else one for one in read(label).to_pylist()], np.int64)
        own = _class_names(schema, label)
        if set(own) != set(classes) or len(own) != len(classes):
            raise UserError(
                f"dataset '{dataset.name}': {Path(home).parent} names other classes than the first file of "
                f"{table.place}: {some(sorted(set(own) ^ set(classes))) or 'some twice'}"
            )
        if own != classes:
            keys_of(dataset, values, Path(home).parent, own)
            order = np.array([classes.index(one) for one in own])
            values = np.where(values < 0, -1, order[values])
            moved.append(Path(home).parent.name)
        parts.append(values)
    files = list(dict.fromkeys(moved))
    message = f"class names stand in another order than in the first file in {some(files)}: labels are matched by name"
    remarks = (Remark("class-order", message, len(files), tuple(files[:10])),) if files else ()
    return np.concatenate(parts) if parts else np.zeros(0, np.int64), classes, remarks


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names", ())
    return tuple(str(name) for name in names or ())


def _reader(read: Any, column: str) -> Any:
    return lambda: read(column)
