"""Images in tables: parquet files, Hugging Face datasets saved by save_to_disk (Arrow files) or on the Hub.

datasets.load_from_disk is not used, because it does not report the file of a row, and the fingerprint of an image
depends on its file.
"""

from __future__ import annotations

import bisect
import hashlib
import importlib
import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from oodbench.data.catalog import Dataset
from oodbench.data.imageset import ImageSet, class_keys, empty_error, missing_error, unlabelled_error
from oodbench.data.loaders.layout import Remark, first_few, is_hidden
from oodbench.errors import Unlabelled, UserError
from oodbench.storage.fingerprints import (
    ReadImage,
    combine_fingerprints,
    file_fingerprint,
    member_fingerprint,
    portable_part,
)

if TYPE_CHECKING:
    from PIL.Image import Image

_SPLITS = ("test", "validation", "val", "train")  # in order of preference
_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "images", "pixels", "bytes")
_LABEL_COLUMNS = ("label", "fine_label", "labels", "cls", "target", "class")


@dataclass(frozen=True)
class RowGroup:
    """Rows that are read together: a row group of a parquet file, or all rows of an Arrow file.

    rows         number of rows
    read         returns a column by name
    schema       names and types of the columns, and the class names that Hugging Face adds
    file         the file, or the name on the Hub
    location     the file and the number of the group in it
    fingerprint  fingerprint of the file before it was opened
    """

    rows: int
    read: Callable[[str], Any]
    schema: Any
    file: Path
    location: str
    fingerprint: str


@dataclass(frozen=True)
class ImageTable:
    """The row groups of a dataset, the schema of its first file, and its path for messages."""

    groups: list[RowGroup]
    schema: Any
    path: Path
    remarks: tuple[Remark, ...] = ()


@dataclass
class TableSource:
    """Reads images of a column by row number; the last row group read is held in memory."""

    groups: Sequence[RowGroup]
    column: str
    _held: tuple[int, Any] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def cell(self, index: int) -> Any:
        """Return the value of a row: encoded bytes, {"bytes": ...}, or nested lists of pixels."""
        group, row = self._position(index)
        with self._lock:
            if self._held is None or self._held[0] != group:
                self._held = (group, self.groups[group].read(self.column))
            return self._held[1][row].as_py()

    def stored_names(self) -> list[str]:
        """Return the original file name of every row, "" if there is none, without reading images."""
        import pyarrow as pa
        import pyarrow.compute as pc

        names: list[str] = []
        for group in self.groups:
            kind = group.schema.field(self.column).type
            if not (pa.types.is_struct(kind) and kind.get_field_index("path") >= 0):
                names += [""] * group.rows
                continue
            parts = isinstance(group.read, _ColumnReader)  # an Arrow file is mapped into memory, not read
            column = group.read(f"{self.column}.path" if parts else self.column)
            names += [name or "" for name in pc.struct_field(column, "path").to_pylist()]
        return names

    def stored(self, name: str) -> bytes | npt.NDArray[np.uint8]:
        """Return the bytes of the image file in a row, or the pixels. Raise ValueError if there are neither."""
        cell = self.cell(int(name))
        if isinstance(cell, dict):
            path, cell = cell.get("path"), cell.get("bytes")
            if cell is None and path:
                raise ValueError(
                    f"row {name} names the file {path} but does not contain it; write the table with its bytes"
                )
        if cell is None:
            raise ValueError(f"row {name} holds no image")
        return cell if isinstance(cell, bytes) else np.array(cell, np.uint8)

    def read(self, name: str) -> ReadImage:
        """Read the image of a row."""
        cell = self.stored(name)
        fingerprint = self._fingerprint(int(name))  # after the cell is read
        if isinstance(cell, bytes):
            return ReadImage.from_bytes(fingerprint, cell)

        def image() -> Image:
            from PIL import Image

            return Image.fromarray(cell)

        return ReadImage(fingerprint, image, lambda: hashlib.sha256(cell.tobytes()).hexdigest())

    def content(self, name: str) -> str:
        """Return the sha256 of the encoded image, or of its pixels."""
        return self.read(name).content()

    def location(self, name: str) -> str:
        """Return the file, the number of the row group in it, and the row in the group."""
        group, row = self._position(int(name))
        return f"{self.groups[group].location}/{row}"

    def _position(self, index: int) -> tuple[int, int]:
        """Return the row group of a row, and the number of the row in it."""
        ends = list(accumulate(group.rows for group in self.groups))
        group = bisect.bisect_right(ends, index)
        return group, index - (ends[group - 1] if group else 0)

    def _fingerprint(self, index: int) -> str:
        return member_fingerprint(file_fingerprint(self.groups[self._position(index)[0]].file), index)


@dataclass
class HubTableSource(TableSource):
    """Reads images of a dataset on the Hub. Its files have one fingerprint: the file of a row is unknown."""

    files: Sequence[Path] = ()
    listed_fingerprint: str = ""

    def tree_fingerprint(self) -> str:
        """Return the fingerprint of all its files."""
        return hub_fingerprint(portable_part(self.listed_fingerprint), self.files)

    def _fingerprint(self, index: int) -> str:
        return member_fingerprint(self.listed_fingerprint, index)


def load(dataset: Dataset, data: Path, labelled: bool) -> ImageSet:
    """List the rows of a parquet file, of a folder of parquet or Arrow files, or of a dataset on the Hub.

    Columns are found by name and type. Raise UserError if there is no such dataset, if a file is damaged, or if no
    column holds images or (labelled) labels.
    """
    import pyarrow as pa

    path = data / dataset.path
    if dataset.loader == "parquet" and not path.exists():
        raise missing_error(dataset, path)
    try:
        files: list[Path] | None = None
        if path.exists():
            table = open_files(dataset, path)
        else:
            table, files = open_hub(dataset)
        image, label = _columns(dataset, table, labelled)
        labels, classes, remarks = _labels(dataset, table, label) if labelled and label else (None, (), ())
    except (OSError, OverflowError, pa.ArrowException) as error:
        raise UserError(f"dataset '{dataset.name}': {path} cannot be read: {error}") from error
    n = sum(group.rows for group in table.groups)
    if not n:
        raise empty_error(dataset, table.path)
    width = len(str(n - 1))
    names = tuple(str(i).zfill(width) for i in range(n))
    of_rows = [group.fingerprint for group in table.groups for _ in range(group.rows)]
    fingerprints = tuple(member_fingerprint(fingerprint, i) for i, fingerprint in enumerate(of_rows))
    if labels is None:
        labels = np.full(n, -1)
    if labelled and (labels < 0).any():
        raise unlabelled_error(dataset, table.path, f"row {int((labels < 0).argmax())}")
    keys = class_keys(dataset, labels, table.path, classes) if labelled else ()
    source = TableSource(table.groups, image)
    if files is not None:
        source = HubTableSource(table.groups, image, files=files, listed_fingerprint=table.groups[0].fingerprint)
    return ImageSet(
        dataset,
        table.path,
        names,
        fingerprints,
        labels,
        classes or keys,
        source=source,
        named=classes,
        remarks=(*table.remarks, *remarks),
    )


def open_files(dataset: Dataset, path: Path) -> ImageTable:
    """Open a parquet file, or the parquet or Arrow files of one split in a folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = [path]
    remarks: tuple[Remark, ...] = ()
    if path.is_dir():
        path, files, remarks = _split_files(dataset, path)
    groups: list[RowGroup] = []
    schemas = []
    for file in files:
        fingerprint, location = file_fingerprint(file), file.resolve()
        if file.suffix == ".arrow":  # mapped into memory, not read
            table = pa.ipc.open_stream(pa.memory_map(str(file))).read_all()
            schemas.append(table.schema)
            groups.append(RowGroup(table.num_rows, table.column, table.schema, file, f"{location}/0", fingerprint))
        else:
            parquet = pq.ParquetFile(file)
            schemas.append(parquet.schema_arrow)
            for number in range(parquet.num_row_groups):
                rows = parquet.metadata.row_group(number).num_rows
                read = _ColumnReader(parquet, number)
                groups.append(RowGroup(rows, read, schemas[-1], file, f"{location}/{number}", fingerprint))
    return ImageTable(groups, schemas[0] if schemas else None, path, remarks)


@dataclass(frozen=True)
class _ColumnReader:
    """Reads a column of a row group."""

    file: Any
    number: int

    def __call__(self, column: str) -> Any:
        return self.file.read_row_group(self.number, columns=[column]).column(0)


def _split_files(dataset: Dataset, path: Path) -> tuple[Path, list[Path], tuple[Remark, ...]]:
    """Return the folder of the split and its files: those listed by a saved dataset, else those found by name."""
    folder, remarks = _split_folder(dataset, path)
    state_file = folder / "state.json"
    if state_file.is_file():
        state = _read_json(dataset, state_file)
        split = state.get("split") if isinstance(state, dict) else None
        if folder == path and dataset.split and split and dataset.split != str(split):
            raise UserError(f"dataset '{dataset.name}': {path} has no split '{dataset.split}'; it has {split}")
        try:
            return folder, [folder / file["filename"] for file in state["_data_files"]], remarks
        except (KeyError, TypeError) as error:
            raise UserError(f"dataset '{dataset.name}': {state_file} lists no data files") from error
    arrow = sorted(file for file in folder.glob("*.arrow") if not file.name.startswith("cache-"))
    parquet = sorted(file for file in folder.rglob("*.parquet") if not file.is_dir())
    files = [file for file in parquet or arrow if not is_hidden(file.relative_to(folder).as_posix())]
    if not files:
        raise UserError(f"dataset '{dataset.name}': {folder} holds no .parquet or .arrow file")
    if folder != path or dataset.split == folder.name:  # the folder is the split
        return folder, files, remarks

    def files_of(split: str) -> list[Path]:
        """Return the files in folders of that name, and files with names that begin with it."""
        return [f for f in files if f.name.startswith(split) or split in f.relative_to(folder).parts[:-1]]

    if dataset.split and not files_of(dataset.split):
        raise UserError(f"dataset '{dataset.name}': no file in {folder} belongs to split '{dataset.split}'")
    split = dataset.split or next((s for s in _SPLITS if files_of(s)), "")
    chosen = files_of(split)
    if not dataset.split and len(chosen) < len(files):
        remarks = _split_remark(split, f"{len(chosen):,} of {len(files):,} files")
    return folder, chosen, remarks


def _split_folder(dataset: Dataset, path: Path) -> tuple[Path, tuple[Remark, ...]]:
    """Return the folder of a split in a dataset that was saved with several splits."""
    splits_file = path / "dataset_dict.json"
    if not splits_file.is_file():
        return path, ()
    state = _read_json(dataset, splits_file)
    splits = state.get("splits") if isinstance(state, dict) else None
    if not splits or not isinstance(splits, list):
        raise UserError(f"dataset '{dataset.name}': {splits_file} names no splits")
    splits = [str(split) for split in splits]
    chosen = dataset.split or next((s for s in _SPLITS if s in splits), splits[0])
    if chosen not in splits:
        raise UserError(f"dataset '{dataset.name}': {path} has no split '{chosen}'; it has {', '.join(splits)}")
    remarks = () if dataset.split or len(splits) == 1 else _split_remark(chosen, f"of {', '.join(splits)}")
    return path / chosen, remarks


def _split_remark(split: str, what: str) -> tuple[Remark, ...]:
    """Return the remark on the split that was chosen because the declaration names none."""
    return (Remark("split", f"took the split {split}, {what}; choose another with --split of oodbench datasets add"),)


def _read_json(dataset: Dataset, path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"dataset '{dataset.name}': {path} cannot be read: {error}") from error


def open_hub(dataset: Dataset) -> tuple[ImageTable, list[Path]]:
    """Open a dataset on the Hugging Face Hub with its library, and return it with its cached files."""
    if any(c in dataset.path for c in "*?[{"):
        raise UserError(
            f"dataset '{dataset.name}': hf: takes a file, a folder or a name on the Hub, not a pattern; "
            "give the folder of the parquet files"
        )
    try:
        hub: Any = importlib.import_module("datasets")
        hub.load_dataset  # noqa: B018  a folder named datasets is importable, too
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"dataset '{dataset.name}': {dataset.path} is not a folder or parquet file here; "
            "to read it from the Hugging Face Hub: pip install 'oodbench[hf]'"
        ) from error
    try:
        loaded = hub.load_dataset(dataset.path, split=dataset.split or None)
    except Exception as error:  # it raises many kinds of errors
        raise UserError(f"dataset '{dataset.name}': Hugging Face cannot load {dataset.path}: {error}") from error
    split = dataset.split.partition("[")[0]  # test[:50] may share images with test
    remarks: tuple[Remark, ...] = ()
    if isinstance(loaded, dict):
        split = next((s for s in _SPLITS if s in loaded), next(iter(loaded)))
        remarks = _split_remark(split, f"of {', '.join(loaded)}") if len(loaded) > 1 else ()
        loaded = loaded[split]
    table = loaded.data.table
    files = [Path(file["filename"]) for file in getattr(loaded, "cache_files", None) or ()]
    fingerprint = hub_fingerprint(str(getattr(loaded, "_fingerprint", "")), files)
    path = Path(dataset.path)
    group = RowGroup(table.num_rows, table.column, table.schema, path, f"{dataset.path}/{split}", fingerprint)
    return ImageTable([group], table.schema, path, remarks), files


def hub_fingerprint(portable: str, files: Sequence[Path]) -> str:
    """Return the fingerprint of a dataset on the Hub, from its library's fingerprint and those of its cached files."""
    return combine_fingerprints({str(path): file_fingerprint(path) for path in files}, portable, times=False)


def _columns(dataset: Dataset, table: ImageTable, labelled: bool) -> tuple[str, str]:
    """Return the names of the image column and of the label column, "" if no labels are needed."""
    import pyarrow as pa

    types = {column.name: column.type for column in table.schema}

    def holds_image(kind: Any) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
        if pa.types.is_list(kind) and pa.types.is_list(kind.value_type):  # rows of pixels
            inner = kind.value_type.value_type
            inner = inner.value_type if pa.types.is_list(inner) else inner
            return bool(pa.types.is_integer(inner))
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def choose(usual: Sequence[str], fits: Any) -> str:
        fitting = [name for name, kind in types.items() if fits(kind)]
        return next((name for name in usual if name in fitting), fitting[0] if len(fitting) == 1 else "")

    image = choose(_IMAGE_COLUMNS, holds_image)
    label = choose(_LABEL_COLUMNS, pa.types.is_integer) if labelled else ""
    if not image or (labelled and not label):
        lacking = "labels (integers)" if image else "images (one a row: encoded, or pixels 0 to 255)"
        columns = ", ".join(f"{name} ({kind})" for name, kind in types.items())
        problem = Unlabelled if image else UserError
        raise problem(f"dataset '{dataset.name}': no column of {table.path} holds {lacking}; it has {columns}")
    for group in table.groups:
        own = {column.name: column.type for column in group.schema}
        if not (
            image in own and holds_image(own[image]) and (not label or pa.types.is_integer(own.get(label, pa.null())))
        ):
            columns = ", ".join(f"{name} ({kind})" for name, kind in own.items())
            raise UserError(f"dataset '{dataset.name}': {group.file} has other columns than the first file: {columns}")
    return image, label


def _labels(
    dataset: Dataset, table: ImageTable, label: str
) -> tuple[npt.NDArray[np.int64], tuple[str, ...], tuple[Remark, ...]]:
    """Return class indices [n], -1 for null; the class names that Hugging Face stores with them; and remarks.

    Names are in the order of the first file, and the labels of other files are converted to it. Raise UserError if
    files have different names.
    """
    classes = _class_names(table.schema, label)
    parts, reordered = [], []
    for group in table.groups:
        values = np.array([-1 if value is None else value for value in group.read(label).to_pylist()], np.int64)
        own = _class_names(group.schema, label)
        if set(own) != set(classes) or len(own) != len(classes):
            raise UserError(
                f"dataset '{dataset.name}': {group.file} and the first file have different classes in "
                f"{table.path}: {first_few(sorted(set(own) ^ set(classes))) or 'some twice'}"
            )
        if own != classes:
            class_keys(dataset, values, group.file, own)
            order = np.array([classes.index(name) for name in own])
            values = np.where(values < 0, -1, order[values])
            reordered.append(group.file.name)
        parts.append(values)
    files = list(dict.fromkeys(reordered))
    message = (
        f"the order of the class names differs from the first file in {first_few(files)}: labels are matched by name"
    )
    remarks = (Remark("class-order", message, len(files), tuple(files[:10])),) if files else ()
    return np.concatenate(parts) if parts else np.zeros(0, np.int64), classes, remarks


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """Return the class names in the metadata that Hugging Face adds to a schema."""
    metadata = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = metadata.get("info", {}).get("features", {}).get(label, {}).get("names", ())
    return tuple(str(name) for name in names or ())
