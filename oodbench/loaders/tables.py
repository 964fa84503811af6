"""Images in columns: parquet files, folders saved by Hugging Face datasets, and datasets of its hub (extra `hf`)."""

from __future__ import annotations

import bisect
import hashlib
import importlib
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
from oodbench.loaders.items import Items, decoded, empty, missing, numbered, print_of, unlabelled

if TYPE_CHECKING:
    from PIL.Image import Image

_IMAGES = ("image", "img", "jpg", "png", "images", "pixels", "bytes")
_LABELS = ("label", "fine_label", "labels", "cls", "target", "class")
_SPLITS = ("test", "validation", "val", "train")


@dataclass
class Column:
    """Image cells of several tables; of a parquet file, the row group read last is held.

    groups  per group: rows, and a function that reads its cells
    homes   per group: the file, and the number of the group in it
    """

    groups: Sequence[tuple[int, Any]]
    homes: Sequence[str] = ()
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

    def read(self, name: str) -> Image:
        """The image of a row."""
        cell = self.cell(int(name))
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if isinstance(cell, bytes):
            return decoded(cell)
        if cell is None:
            raise ValueError("the row holds no image")
        from PIL import Image

        return Image.fromarray(np.array(cell, np.uint8))

    def content(self, name: str) -> str:
        """sha256 of the encoded image, or of its pixels."""
        cell = self.cell(int(name))
        if isinstance(cell, dict):
            cell = cell.get("bytes")
        if cell is None:
            raise ValueError(f"row {name} holds no image")
        raw = cell if isinstance(cell, bytes) else np.array(cell, np.uint8).tobytes()
        return hashlib.sha256(raw).hexdigest()

    def place(self, name: str) -> str:
        """The file, the group of rows in it, and the row."""
        ends = list(accumulate(rows for rows, _ in self.groups))
        group = bisect.bisect_right(ends, int(name))
        return f"{self.homes[group]}/{int(name) - ends[group] + self.groups[group][0]}"


@dataclass(frozen=True)
class _Table:
    """Columns found on disk: schema, groups of (rows, reader of a column), and the file's own stamp."""

    schema: Any
    groups: list[tuple[int, Any]]  # rows, function column name -> array
    stamp: str
    place: Path
    homes: list[str]  # per group: where it lies


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
        table = _local(dataset, place) if place.exists() else _hub(dataset)
        image, label = _columns(dataset, table, labelled)
        column = Column([(rows, _reader(read, image)) for rows, read in table.groups], table.homes)
        labels, classes = _labels(table, label) if labelled and label else (None, ())
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"dataset '{dataset.name}': {place} cannot be read: {error}") from error
    n = sum(rows for rows, _ in table.groups)
    if not n:
        raise empty(dataset, table.place)
    width = len(str(n - 1))
    names = tuple(str(i).zfill(width) for i in range(n))
    prints = tuple(f"{table.stamp}:{i}" for i in range(n))
    known = labels if labels is not None else np.full(n, -1)
    if labelled and (known < 0).any():
        raise unlabelled(dataset, table.place, f"row {int((known < 0).argmax())}")
    keys = (classes or numbered(known)) if labelled else ()
    return Items(table.place, names, prints, known, column, keys, classes)


def _local(dataset: Dataset, place: Path) -> _Table:
    """Parquet files, or the arrow files of a saved dataset; of a folder with splits, the one that is asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [place]
    if place.is_dir():
        place, files = _files(dataset, place)
    groups: list[tuple[int, Any]] = []
    homes: list[str] = []
    schema = None
    for path in files:
        if path.suffix == ".arrow":  # mapped into memory, not read
            whole = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            schema = schema or whole.schema
            groups.append((whole.num_rows, whole.column))
            homes.append(f"{path.resolve()}/0")
        else:
            opened = pq.ParquetFile(path)
            schema = schema or opened.schema_arrow
            for number in range(opened.num_row_groups):
                rows = opened.metadata.row_group(number).num_rows
                groups.append((rows, _GroupReader(opened, number)))
                homes.append(f"{path.resolve()}/{number}")
    return _Table(schema, groups, "+".join(print_of(path) for path in files), place, homes)


@dataclass(frozen=True)
class _GroupReader:
    file: Any
    number: int

    def __call__(self, column: str) -> Any:
        return self.file.read_row_group(self.number, columns=[column]).column(0)


def _files(dataset: Dataset, place: Path) -> tuple[Path, list[Path]]:
    """The folder of the split, and its files: what a saved dataset lists, else those found by name."""
    inner = _split_folder(dataset, place)
    state = inner / "state.json"
    if state.is_file():
        about = _json(dataset, state)
        split = about.get("split") if isinstance(about, dict) else None
        if inner == place and dataset.split and split and dataset.split != str(split):
            raise UserError(f"dataset '{dataset.name}': {place} has no split '{dataset.split}'; it has {split}")
        try:
            return inner, [inner / one["filename"] for one in about["_data_files"]]
        except (KeyError, TypeError) as error:
            raise UserError(f"dataset '{dataset.name}': {state} lists no data files") from error
    arrows = sorted(one for one in inner.glob("*.arrow") if not one.name.startswith("cache-"))
    files = sorted(inner.rglob("*.parquet")) or arrows
    if not files:
        raise UserError(f"dataset '{dataset.name}': {inner} holds no .parquet or .arrow file")
    if inner != place or dataset.split == inner.name:  # the folder is the split
        return inner, files

    def of(split: str) -> list[Path]:
        """Files below a folder of that name, or whose names begin with it."""
        return [f for f in files if f.name.startswith(split) or split in f.relative_to(inner).parts[:-1]]

    if dataset.split and not of(dataset.split):
        raise UserError(f"dataset '{dataset.name}': no file in {inner} is of split '{dataset.split}'")
    return inner, of(dataset.split or next((s for s in _SPLITS if of(s)), ""))


def _split_folder(dataset: Dataset, place: Path) -> Path:
    """The folder of a split below a dataset saved with several."""
    listed = place / "dataset_dict.json"
    if not listed.is_file():
        return place
    about = _json(dataset, listed)
    splits = about.get("splits") if isinstance(about, dict) else None
    if not splits or not isinstance(splits, list):
        raise UserError(f"dataset '{dataset.name}': {listed} names no splits")
    splits = [str(one) for one in splits]
    chosen = dataset.split or next((s for s in _SPLITS if s in splits), splits[0])
    if chosen not in splits:
        raise UserError(f"dataset '{dataset.name}': {place} has no split '{chosen}'; it has {', '.join(splits)}")
    return place / chosen


def _json(dataset: Dataset, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"dataset '{dataset.name}': {path} cannot be read: {error}") from error


def _hub(dataset: Dataset) -> _Table:
    """A dataset by its name on the hub, through Hugging Face's own library and cache."""
    try:
        hub: Any = importlib.import_module("datasets")
        hub.load_dataset  # noqa: B018  a folder named datasets is importable, too
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"dataset '{dataset.name}': {dataset.path} is no folder or parquet file here; "
            "to read it from the Hugging Face hub: pip install 'oodbench[hf]'"
        ) from error
    try:
        found = hub.load_dataset(dataset.path, split=dataset.split or None)
    except Exception as error:  # its errors are of many kinds
        raise UserError(f"dataset '{dataset.name}': Hugging Face cannot load {dataset.path}: {error}") from error
    split = dataset.split.partition("[")[0]  # test[:50] may share images with test
    if isinstance(found, dict):
        split = next((s for s in _SPLITS if s in found), next(iter(found)))
        found = found[split]
    whole = found.data.table
    stamp = str(getattr(found, "_fingerprint", ""))
    return _Table(
        whole.schema, [(whole.num_rows, whole.column)], stamp, Path(dataset.path), [f"{dataset.path}/{split}"]
    )


def _columns(dataset: Dataset, table: _Table, labelled: bool) -> tuple[str, str]:
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


def _labels(table: _Table, label: str) -> tuple[Any, tuple[str, ...]]:
    """Class indices [n], -1 for null; and the class names that Hugging Face keeps beside them."""
    cells = [-1 if one is None else one for _, read in table.groups for one in read(label).to_pylist()]
    values = np.array(cells, np.int64)
    about = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
    names = about.get("info", {}).get("features", {}).get(label, {}).get("names", ())
    return values, tuple(str(name) for name in names)


def _reader(read: Any, column: str) -> Any:
    return lambda: read(column)
