"""Files of scores, read part by part: .npy arrays and the column `score` of parquet files; and sorting such files.

A part is copied, not mapped: mapped pages would count as this process's memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics.detection import Floats, exact

ROWS = 1 << 22  # of a sorted run: 32 MB


class Shard(Protocol):
    """Scores that are read in order: `size` of them, in parts of at most `rows`, float64."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def parts(self, rows: int) -> Iterator[Floats]: ...


@dataclass(frozen=True)
class Array:
    """Scores in memory."""

    name: str
    values: NDArray[Any]

    @property
    def size(self) -> int:
        return int(self.values.size)

    def parts(self, rows: int) -> Iterator[Floats]:
        for start in range(0, self.size, rows):
            yield _widened(self.values[start : start + rows], self.name)


@dataclass(frozen=True)
class Npy:
    """An .npy file, opened for each part: thousands of shards would run out of handles."""

    name: str
    size: int
    dtype: np.dtype[Any]
    offset: int

    def parts(self, rows: int) -> Iterator[Floats]:
        for start in range(0, self.size, rows):
            count = min(rows, self.size - start)
            found = np.fromfile(self.name, self.dtype, count, offset=self.offset + start * self.dtype.itemsize)
            if found.size < count:
                raise UserError(f"{self.name}: {start + found.size} scores, though its head says {self.size}")
            yield _widened(found, self.name)


@dataclass(frozen=True)
class Parquet:
    """The column `score` of a parquet file; of one image set where `dataset` is named."""

    name: str
    size: int
    dataset: str | None = None

    def parts(self, rows: int) -> Iterator[Floats]:
        import pyarrow.compute as pc
        from pyarrow import parquet

        with parquet.ParquetFile(self.name) as file:
            columns = ["score"] if self.dataset is None else ["score", "dataset"]
            for batch in file.iter_batches(rows, columns=columns):
                if self.dataset is not None:
                    batch = batch.filter(pc.equal(batch["dataset"].cast("string"), self.dataset))
                yield _widened(batch["score"].to_numpy(zero_copy_only=False), self.name)


def open_shard(source: Path | str | NDArray[Any], dataset: str | None = None) -> Shard:
    """Scores to be read. UserError for what is no file of scores; `dataset` chooses an image set of a row's parquet."""
    if isinstance(source, np.ndarray):
        _check(f"array of shape {source.shape}", source.shape, source.dtype)
        return Array("array", source)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of scores")
    if path.suffix == ".parquet":
        return _parquet(path, dataset)
    if path.suffix != ".npy" or dataset is not None:
        what = "an image set can be chosen from .parquet alone" if dataset else "scores are read from .npy and .parquet"
        raise UserError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            head = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = head(file)
            offset = file.tell()
    except ValueError as error:
        raise UserError(f"{path}: not an .npy file ({error})") from error
    _check(str(path), shape, dtype)
    return Npy(str(path), shape[0], dtype, offset)


def _check(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if len(shape) != 1 or dtype.kind not in "fiu":
        raise UserError(f"{name}: one real number per image is needed, not {dtype} of shape {shape}")


def _widened(scores: NDArray[Any], name: str) -> Floats:
    return exact(scores, name).astype(np.float64)


def _parquet(path: Path, dataset: str | None) -> Parquet:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            names, rows, schema = file.schema_arrow.names, file.metadata.num_rows, file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as parquet ({error})") from error
    lacking = [name for name in ("score", *(["dataset"] if dataset else [])) if name not in names]
    if lacking:
        raise UserError(f"{path}: no column '{lacking[0]}', its columns are {', '.join(names)}")
    kind = schema.field("score").type
    if not pa.types.is_integer(kind) and not pa.types.is_floating(kind):
        raise UserError(f"{path}: one real number per image is needed, not a column of {kind}")
    return Parquet(str(path), rows, dataset)


def sort(
    source: Path | str | NDArray[Any] | Sequence[Path | str],
    folder: Path | str,
    *,
    rows: int = ROWS,
    dataset: str | None = None,
) -> list[Path]:
    """Write scores in any order as ascending shards `00000.npy`, ... of at most `rows` each, for evaluate_shards.

    Memory is a few times `rows` whatever the size. UserError for scores that are NaN, and for a folder that is in use.
    """
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: name a new folder for the sorted scores")
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    kept: list[Floats] = []

    def write(values: Floats) -> None:
        values.sort()
        written.append(target / f"{len(written):05}.npy")
        np.save(written[-1], values)

    sources = [source] if isinstance(source, np.ndarray | str | Path) else source
    for shard in [open_shard(one, dataset) for one in sources]:
        seen = 0
        for part in shard.parts(rows):
            if np.isnan(part).any():
                raise UserError(f"{shard.name}: score {seen + int(np.isnan(part).argmax()) + 1} is NaN")
            seen += part.size
            kept.append(part)
            while sum(one.size for one in kept) >= rows:
                together = np.concatenate(kept)
                kept = [together[rows:]]
                write(together[:rows])
    if sum(one.size for one in kept):
        write(np.concatenate(kept))
    if not written:
        raise UserError(f"{target}: no scores to sort" + (f" of image set '{dataset}'" if dataset else ""))
    return written
