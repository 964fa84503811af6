"""Where tables lie: parquet files, folders saved by Hugging Face datasets, and datasets of its hub (extra `hf`)."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.data.catalog import Dataset
from oodbench.data.loaders.layout import Remark, is_hidden
from oodbench.data.prints import joined, print_of
from oodbench.errors import UserError
from oodbench.storage.store import digest

_SPLITS = ("test", "validation", "val", "train")


@dataclass(frozen=True)
class Table:
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


def on_disk(dataset: Dataset, place: Path) -> Table:
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
        now = print_of(path)  # before it is opened
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
    return Table(first, groups, prints, place, homes, homed, schemas, remarks)


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


def on_hub(dataset: Dataset) -> Table:
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
    return Table(whole.schema, groups, [now], Path(dataset.path), [home], files, [whole.schema], remarks)


def cached_print(fingerprint: str, files: Sequence[Path]) -> str:
    """The print of a dataset of the hub: its fingerprint, and the files of the cache that hold it."""
    return joined(fingerprint, digest([print_of(path) for path in files]))
