"""Images in columns of tables: which column holds the images and which the labels, and a cell as an image."""

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
import numpy.typing as npt

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, class_keys, empty_error, missing_error, unlabelled_error
from oodbench.data.loaders.layout import Remark, is_hidden, some
from oodbench.errors import Unlabelled, UserError
from oodbench.storage.fingerprints import ReadImage, file_fingerprint, join_parts, member_fingerprint, portable_part
from oodbench.storage.store import digest

if TYPE_CHECKING:
    from PIL.Image import Image

_SPLITS = ("test", "validation", "val", "train")


@dataclass(frozen=True)
class ParquetTable:
    """Columns of one or several files.

    schema   names and types of the columns, with Hugging Face's own facts
    groups   rows, and a function that gives a column by its name
    prints   per group: the print of its file
    place    for messages: the file, the folder of the split, or the name on the hub
    homes    per group: where it lies
    files    per group: its file; of a dataset of the hub, all files of one group
    schemas  per group: the columns of its file, whose class names may stand in another order
    remarks  what was taken where several splits are there
    """

    schema: Any
    groups: list[tuple[int, Any]]
    prints: list[str]
    place: Path
    homes: list[str]
    files: list[Path]
    schemas: list[Any]
    remarks: tuple[Remark, ...] = ()


def on_disk(dataset: Dataset, place: Path) -> ParquetTable:
    """Parquet files, or the arrow files of a saved dataset; of a folder with splits, the one that is asked for."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [place]
    remarks: tuple[Remark, ...] = ()
    if place.is_dir():
        place, files, remarks = _files(dataset, place)
    groups: list[tuple[int, Any]] = []
    homes: list[str] = []
    prints: list[str] = []
    homed: list[Path] = []
    schemas: list[Any] = []
    first = None
    for path in files:
        now = file_fingerprint(path)  # before it is opened
        if path.suffix == ".arrow":  # mapped into memory, not read
            whole = pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
            schema = whole.schema
            groups.append((whole.num_rows, whole.column))
            homes.append(f"{path.resolve()}/0")
            prints.append(now)
            homed.append(path)
            schemas.append(schema)
        else:
            opened = pq.ParquetFile(path)
            schema = opened.schema_arrow
            for number in range(opened.num_row_groups):
                rows = opened.metadata.row_group(number).num_rows
                groups.append((rows, _GroupReader(opened, number)))
                homes.append(f"{path.resolve()}/{number}")
                prints.append(now)
                homed.append(path)
                schemas.append(schema)
        first = first or schema
    return ParquetTable(first, groups, prints, place, homes, homed, schemas, remarks)


@dataclass(frozen=True)
class _GroupReader:
    file: Any
    number: int

    def __call__(self, column: str) -> Any:
        return self.file.read_row_group(self.number, columns=[column]).column(0)


def _files(dataset: Dataset, place: Path) -> tuple[Path, list[Path], tuple[Remark, ...]]:
    """The folder of the split, and its files: what a saved dataset lists, else those found by name."""
    inner, remarks = _split_folder(dataset, place)
    state = inner / "state.json"
    if state.is_file():
        about = _json(dataset, state)
        split = about.get("split") if isinstance(about, dict) else None
        if inner == place and dataset.split and split and dataset.split != str(split):
            raise UserError(f"dataset '{dataset.name}': {place} has no split '{dataset.split}'; it has {split}")
        try:
            return inner, [inner / one["filename"] for one in about["_data_files"]], remarks
        except (KeyError, TypeError) as error:
            raise UserError(f"dataset '{dataset.name}': {state} lists no data files") from error
    arrows = sorted(one for one in inner.glob("*.arrow") if not one.name.startswith("cache-"))
    tables = sorted(one for one in inner.rglob("*.parquet") if not one.is_dir())
    files = [one for one in tables or arrows if not is_hidden(one.relative_to(inner).as_posix())]
    if not files:
        raise UserError(f"dataset '{dataset.name}': {inner} holds no .parquet or .arrow file")
    if inner != place or dataset.split == inner.name:  # the folder is the split
        return inner, files, remarks

    def of(split: str) -> list[Path]:
        """Files below a folder of that name, or whose names begin with it."""
        return [f for f in files if f.name.startswith(split) or split in f.relative_to(inner).parts[:-1]]

    if dataset.split and not of(dataset.split):
        raise UserError(f"dataset '{dataset.name}': no file in {inner} is of split '{dataset.split}'")
    split = dataset.split or next((s for s in _SPLITS if of(s)), "")
    if not dataset.split and len(of(split)) < len(files):
        remarks = _took(split, f"{len(of(split)):,} of {len(files):,} files")
    return inner, of(split), remarks


def _took(split: str, what: str) -> tuple[Remark, ...]:
    """The remark on a split that nobody named."""
    return (Remark("split", f"took the split {split}, {what}; name another with --split of: oodbench datasets add"),)


def _split_folder(dataset: Dataset, place: Path) -> tuple[Path, tuple[Remark, ...]]:
    """The folder of a split below a dataset saved with several."""
    listed = place / "dataset_dict.json"
    if not listed.is_file():
        return place, ()
    about = _json(dataset, listed)
    splits = about.get("splits") if isinstance(about, dict) else None
    if not splits or not isinstance(splits, list):
        raise UserError(f"dataset '{dataset.name}': {listed} names no splits")
    splits = [str(one) for one in splits]
    chosen = dataset.split or next((s for s in _SPLITS if s in splits), splits[0])
    if chosen not in splits:
        raise UserError(f"dataset '{dataset.name}': {place} has no split '{chosen}'; it has {', '.join(splits)}")
    return place / chosen, () if dataset.split or len(splits) == 1 else _took(chosen, f"of {', '.join(splits)}")


def _json(dataset: Dataset, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"dataset '{dataset.name}': {path} cannot be read: {error}") from error


def on_hub(dataset: Dataset) -> ParquetTable:
    """A dataset by its name on the hub, through Hugging Face's own library and cache."""
    if any(c in dataset.path for c in "*?[{"):
        raise UserError(
            f"dataset '{dataset.name}': hf: takes a file, a folder or a name on the hub, no pattern; "
            "name the folder of the parquet files"
        )
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
    remarks: tuple[Remark, ...] = ()
    if isinstance(found, dict):
        split = next((s for s in _SPLITS if s in found), next(iter(found)))
        remarks = _took(split, f"of {', '.join(found)}") if len(found) > 1 else ()
        found = found[split]
    whole = found.data.table
    files = [Path(one["filename"]) for one in getattr(found, "cache_files", None) or ()]
    now = cached_print(str(getattr(found, "_fingerprint", "")), files)
    home = f"{dataset.path}/{split}"
    groups = [(whole.num_rows, whole.column)]
    return ParquetTable(whole.schema, groups, [now], Path(dataset.path), [home], files, [whole.schema], remarks)


def cached_print(known: str, files: Sequence[Path]) -> str:
    """The print of a dataset of the hub: its fingerprint, and the files of the cache that hold it."""
    return join_parts(known, digest([file_fingerprint(path) for path in files]))


_IMAGES = ("image", "img", "jpg", "png", "images", "pixels", "bytes")
_LABELS = ("label", "fine_label", "labels", "cls", "target", "class")


@dataclass
class ParquetColumn:
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

    def read(self, name: str) -> ReadImage:
        """The image of a row."""
        cell = self.stored(name)
        now = self._print(int(name))  # after the cell is read
        if isinstance(cell, bytes):
            return ReadImage.from_bytes(now, cell)

        def image() -> Image:
            from PIL import Image

            return Image.fromarray(cell)

        return ReadImage(now, image, lambda: hashlib.sha256(cell.tobytes()).hexdigest())

    def _print(self, index: int) -> str:
        return member_fingerprint(file_fingerprint(self.files[self._group(index)]), index)

    def _group(self, index: int) -> int:
        ends = list(accumulate(rows for rows, _ in self.groups))
        return bisect.bisect_right(ends, index)

    def content(self, name: str) -> str:
        """sha256 of the encoded image, or of its pixels."""
        return self.read(name).content()

    def location(self, name: str) -> str:
        """The file, the group of rows in it, and the row."""
        group = self._group(int(name))
        before = sum(rows for rows, _ in self.groups[:group])
        return f"{self.homes[group]}/{int(name) - before}"


@dataclass
class Cached(ParquetColumn):
    """Image cells of a dataset of the hub, whose library says which files hold them, not which of them holds which."""

    listed_fingerprint: str = ""

    def tree_fingerprint(self) -> str:
        """The print of all its files."""
        return cached_print(portable_part(self.listed_fingerprint), self.files)

    def _print(self, index: int) -> str:
        return member_fingerprint(self.listed_fingerprint, index)


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """The rows of a parquet file, of a folder of parquet or arrow files, or of a dataset on the hub.

    Columns are found by name and type. UserError when nothing is there, when a file is damaged, or when no column holds
    images or (labelled) labels.
    """
    import pyarrow as pa

    place = data / dataset.path
    if dataset.loader == "parquet" and not place.exists():
        raise missing_error(dataset, place)
    try:
        table = on_disk(dataset, place) if place.exists() else on_hub(dataset)
        image, label = _columns(dataset, table, labelled)
        groups = [(rows, _reader(read, image)) for rows, read in table.groups]
        column = (
            ParquetColumn(groups, table.homes, table.files)
            if place.exists()
            else Cached(groups, table.homes, table.files, listed_fingerprint=table.prints[0])
        )
        labels, classes, remarks = _labels(dataset, table, label) if labelled and label else (None, (), ())
    except (OSError, OverflowError, pa.ArrowException) as error:
        raise UserError(f"dataset '{dataset.name}': {place} cannot be read: {error}") from error
    n = sum(rows for rows, _ in table.groups)
    if not n:
        raise empty_error(dataset, table.place)
    width = len(str(n - 1))
    names = tuple(str(i).zfill(width) for i in range(n))
    files = np.repeat(np.arange(len(table.groups)), [rows for rows, _ in table.groups]).tolist()
    prints = tuple(member_fingerprint(table.prints[file], i) for i, file in enumerate(files))
    known = labels if labels is not None else np.full(n, -1)
    if labelled and (known < 0).any():
        raise unlabelled_error(dataset, table.place, f"row {int((known < 0).argmax())}")
    keys = class_keys(dataset, known, table.place, classes) if labelled else ()
    remarks = (*table.remarks, *remarks)
    return ImageSet(
        dataset,
        table.place,
        names,
        prints,
        known,
        classes or keys,
        source=column,
        named=classes,
        remarks=remarks,
    )


def _columns(dataset: Dataset, table: ParquetTable, labelled: bool) -> tuple[str, str]:
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
    dataset: Dataset, table: ParquetTable, label: str
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
            class_keys(dataset, values, Path(home).parent, own)
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
