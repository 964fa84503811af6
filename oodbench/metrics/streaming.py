"""Metrics of more scores than fit into memory: sorted shards are merged and counted in one pass, exactly.

    ood = streaming.sort("scores.npy", "sorted/ood")          # any order -> ascending shards
    streaming.evaluate_shards(["id.npy"], ood).auroc          # .npy, the column `score` of .parquet, arrays

Memory is bounded by `memory`, not by the number of scores: 10^9 scores (8 GB per side) take one pass over their files.
Counts are exact integers, so AUROC, both FPR95s and ties equal those of `metrics.evaluate` bit for bit; both AUPRs are
summed in another order, and differ by at most the number of batches times 1e-16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics.counts import Counts, ThresholdCounts, count, keys
from oodbench.metrics.detection import Floats, Metrics, check_options, check_shape, exact, metrics_of, threshold_counts

ROWS = 1 << 22  # scores in a sorted shard: 32 MB


class Shard(Protocol):
    """Scores that are read in order, as float64: `parts` yields all `size` scores, at most `rows` at a time."""

    @property
    def name(self) -> str: ...

    @property
    def size(self) -> int: ...

    def parts(self, rows: int) -> Iterator[Floats]: ...


@dataclass(frozen=True)
class ArrayShard:
    """Scores in memory."""

    name: str
    values: NDArray[Any]

    @property
    def size(self) -> int:
        return int(self.values.size)

    def parts(self, rows: int) -> Iterator[Floats]:
        for start in range(0, self.size, rows):
            yield _as_float64(self.values[start : start + rows], self.name)


@dataclass(frozen=True)
class NpyShard:
    """An .npy file.

    It is opened for each part, because thousands of open shards would exhaust the file handles. A part is copied, not
    mapped: mapped pages would count as this process's memory.
    """

    name: str
    size: int
    dtype: np.dtype[Any]
    offset: int

    def parts(self, rows: int) -> Iterator[Floats]:
        for start in range(0, self.size, rows):
            expected = min(rows, self.size - start)
            scores = np.fromfile(self.name, self.dtype, expected, offset=self.offset + start * self.dtype.itemsize)
            if scores.size < expected:
                raise UserError(f"{self.name}: {start + scores.size} scores, but its header says {self.size}")
            yield _as_float64(scores, self.name)


@dataclass(frozen=True)
class ParquetShard:
    """The column `score` of a parquet file, for one image set if `dataset` is given."""

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
                yield _as_float64(batch["score"].to_numpy(zero_copy_only=False), self.name)


def open_shard(source: Path | str | NDArray[Any], dataset: str | None = None) -> Shard:
    """Open scores for reading; `dataset` chooses one image set of a result's parquet file.

    Raises UserError if the source holds no scores.
    """
    if isinstance(source, np.ndarray):
        _check(f"array of shape {source.shape}", source.shape, source.dtype)
        return ArrayShard("array", source)
    path = Path(source)
    if not path.is_file():
        raise UserError(f"{path}: this score file does not exist")
    if path.suffix.lower() == ".parquet":
        return _parquet(path, dataset)
    if path.suffix.lower() != ".npy" or dataset is not None:
        what = "only .parquet files hold several image sets" if dataset else "scores are read from .npy and .parquet"
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
    return NpyShard(str(path), shape[0], dtype, offset)


def _check(name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    if dtype.hasobject:
        raise UserError(f"{name}: Python objects are pickled, and loading them can run code; save float64 numbers")
    check_shape(shape, dtype, name)


def _as_float64(scores: NDArray[Any], name: str) -> Floats:
    return exact(scores, name).astype(np.float64)


def _parquet(path: Path, dataset: str | None) -> ParquetShard:
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
    return ParquetShard(str(path), rows, dataset)


def sort(
    source: Path | str | NDArray[Any] | Iterable[Path | str | NDArray[Any]],
    folder: Path | str,
    *,
    rows: int = ROWS,
    dataset: str | None = None,
) -> list[Path]:
    """Write scores in any order as ascending shards `00000.npy`, ..., for evaluate_shards.

    Arguments: `source` is one or several .npy or .parquet files or arrays [n], which an iterator may read one after the
    other, `folder` a new or empty folder, `rows` the maximum number of scores in a shard (memory is a few times this),
    `dataset` the image set to take from parquet files.
    Returns the paths of the shards in order. Raises UserError for NaN and for a folder that is not empty.
    """
    target = Path(folder)
    if target.is_dir() and any(target.iterdir()):
        raise UserError(f"{target} is not empty: name a new folder for the sorted scores")
    target.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    buffered: list[Floats] = []

    def write(values: Floats) -> None:
        values.sort()
        written.append(target / f"{len(written):05}.npy")
        np.save(written[-1], values)

    sources = [source] if isinstance(source, np.ndarray | str | Path) else source
    for shard in (open_shard(file, dataset) for file in sources):
        seen = 0
        for part in shard.parts(rows):
            if np.isnan(part).any():
                raise UserError(f"{shard.name}: score {seen + int(np.isnan(part).argmax()) + 1} is NaN")
            seen += part.size
            buffered.append(part)
            while sum(scores.size for scores in buffered) >= rows:
                together = np.concatenate(buffered)
                buffered = [together[rows:]]
                write(together[:rows])
    if sum(scores.size for scores in buffered):
        write(np.concatenate(buffered))
    if not written:
        raise UserError(f"{target}: no scores to sort" + (f" of image set '{dataset}'" if dataset else ""))
    return written


__all__ = ["evaluate_shards", "sort"]

Source = Path | str | NDArray[Any]
MEMORY = 1 << 27
_COPIES = 12  # float64 copies of a batch that are alive at once


def evaluate_shards(
    id: Sequence[Source],
    ood: Sequence[Source],
    *,
    at95: str = "first",
    aupr: str = "average_precision",
    memory: int = MEMORY,
) -> Metrics:
    """Return `metrics.evaluate` of scores in ascending shards, which may overlap and tie with each other in any way.

    Arguments: `id` and `ood` are .npy or .parquet files or arrays [n] of ascending scores (higher means more
    in-distribution); `memory` is approximate and in bytes; `at95` and `aupr` are those of `metrics.evaluate`.
    Returns the metrics as fractions. Raises UserError for shards that do not ascend (`sort` writes ascending ones),
    hold NaN or cannot be read.
    """
    sides = [[open_shard(source) for source in side] for side in (id, ood)]
    n_id, n_ood = (sum(shard.size for shard in side) for side in sides)
    for what, n in (("ID", n_id), ("OOD", n_ood)):
        if not n:
            raise UserError(f"no {what} scores in {len(id if what == 'ID' else ood)} shards")
    check_options(at95, aupr)
    counts = threshold_counts(n_id, n_ood, aupr)
    merger = _LevelMerger(counts, by_level=at95 != "first" or aupr == "trapezoid")
    rows = max(1, memory // (8 * _COPIES * sum(len(side) for side in sides)))
    for of_id, of_ood, highest in _batches(sides, rows):
        lowest = min(float(scores.min()) for scores in (of_id, of_ood) if scores.size)
        merger.add(keys(of_id, of_ood), lowest, highest)
    merger.close()
    return metrics_of(counts, at95)


class _LevelMerger:
    """Adds ascending batches to the counts; the highest level of a batch is held back, as the next batch may have it.

    A level is the set of images with one score.
    """

    def __init__(self, counts: ThresholdCounts, *, by_level: bool) -> None:
        self._counts = counts
        self._by_level = by_level
        self._value = np.nan
        self._id = self._ood = 0

    def add(self, batch: Counts, lowest: float, highest: float) -> None:
        """Add the ascending keys of a batch; no key is below that of an earlier batch."""
        if lowest == self._value:
            stop = int(np.searchsorted(batch, batch[0] | 1, "right"))
            self._hold(batch[:stop])
            batch = batch[stop:]
        if batch.size:
            self.close()
            start = int(np.searchsorted(batch, batch[-1] & -2))
            if start:
                count(batch[:start], self._counts, by_level=self._by_level)
            self._hold(batch[start:])
        self._value = highest

    def _hold(self, level: Counts) -> None:
        id = int((level & 1).sum())
        self._id += id
        self._ood += level.size - id

    def close(self) -> None:
        """Add the level that was held back."""
        if self._id + self._ood:
            self._counts.add(np.array([self._id]), np.array([self._id + self._ood]))
        self._id = self._ood = 0


class _Cursor:
    """A position in a shard; `buffer` holds scores that were read but not yet taken."""

    def __init__(self, shard: Shard, rows: int) -> None:
        self._shard = shard
        self._parts = shard.parts(rows)
        self._read = 0
        self._last = -np.inf
        self.buffer = np.zeros(0)
        self._fill()

    def take(self, highest: float) -> Floats:
        """Take the buffered scores that are at most `highest`."""
        stop = int(np.searchsorted(self.buffer, highest, "right"))
        taken, self.buffer = self.buffer[:stop], self.buffer[stop:]
        if not self.buffer.size:
            self._fill()
        return taken

    def _fill(self) -> None:
        for part in self._parts:
            if not part.size:
                continue
            ascending = np.append(part[0] >= self._last, part[1:] >= part[:-1])
            if not ascending.all():
                number = self._read + int(ascending.argmin()) + 1
                raise UserError(
                    f"{self._shard.name}: score {number} is NaN or below the score before it; shards must ascend: "
                    "oodbench.metrics.streaming.sort(FILE, FOLDER) writes ascending ones"
                )
            self._read, self._last, self.buffer = self._read + part.size, float(part[-1]), part
            return


def _batches(sides: Sequence[Sequence[Shard]], rows: int) -> Iterator[tuple[Floats, Floats, float]]:
    """Yield ID scores, OOD scores and the highest score of each batch; batches ascend, and may share that score."""
    cursors = [_Cursor(shard, rows) for side in sides for shard in side]
    n_id = len(sides[0])

    def ends(position: int) -> list[float]:
        return [float(cursor.buffer[position]) if cursor.buffer.size else np.nan for cursor in cursors]

    firsts, lasts = np.array(ends(0)), np.array(ends(-1))
    while (unread := ~np.isnan(lasts)).any():
        highest = float(lasts[unread].min())
        taken: tuple[list[Floats], list[Floats]] = [np.zeros(0)], [np.zeros(0)]
        for i in np.flatnonzero(firsts <= highest).tolist():  # few of many, where shards do not overlap
            cursor = cursors[i]
            taken[i >= n_id].append(cursor.take(highest))
            buffer = cursor.buffer
            firsts[i], lasts[i] = (buffer[0], buffer[-1]) if buffer.size else (np.nan, np.nan)
        yield np.concatenate(taken[0]), np.concatenate(taken[1]), highest
