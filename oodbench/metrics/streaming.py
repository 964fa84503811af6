"""Metrics of more scores than fit into memory: sorted shards, merged level by level, are counted once, exactly.

    ood = streaming.sort("scores.npy", "sorted/ood")          # any order -> ascending shards
    streaming.evaluate_shards(["id.npy"], ood).auroc          # .npy, the column `score` of .parquet, arrays

Memory is bounded by `memory`, not by the scores: 10^9 of them (8 GB a side) take one pass over their files. Counts are
exact integers, so AUROC, both FPR95s and ties are bit for bit those of `metrics.evaluate`; the two areas under
precision-recall are sums in another order, and differ by at most the number of batches times 1e-16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics import counts as merged
from oodbench.metrics import detection as metrics
from oodbench.metrics.counts import Counts, ThresholdCounts
from oodbench.metrics.detection import Floats, Metrics, exact

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
    """`metrics.evaluate` of scores in ascending shards, which may overlap and tie with each other in any way.

    Higher scores mean more in-distribution. `memory` is in bytes, about; `at95` and `aupr` are those of
    `metrics.evaluate`. UserError for shards that do not ascend (`sort` makes such), hold NaN or cannot be read.
    """
    sides = [[open_shard(one) for one in side] for side in (id, ood)]
    n_id, n_ood = (sum(shard.size for shard in side) for side in sides)
    for what, n in (("ID", n_id), ("OOD", n_ood)):
        if not n:
            raise UserError(f"no {what} scores in {len(id if what == 'ID' else ood)} shards")
    metrics.check_options(at95, aupr)
    tally = metrics.tally_of(n_id, n_ood, aupr)
    waiting = _Waiting(tally, plain=at95 != "first" or aupr == "trapezoid")
    rows = max(1, memory // (8 * _COPIES * sum(len(side) for side in sides)))
    for of_id, of_ood, highest in _batches(sides, rows):
        lowest = min(float(one.min()) for one in (of_id, of_ood) if one.size)
        waiting.add(merged.keys(of_id, of_ood), lowest, highest)
    waiting.close()
    return metrics.metrics_of(tally, at95)


class _Waiting:
    """A tally whose highest level waits: the next batch may have more of it."""

    def __init__(self, tally: ThresholdCounts, *, plain: bool) -> None:
        self._tally = tally
        self._plain = plain
        self._value = np.nan
        self._id = self._ood = 0

    def add(self, keys: Counts, lowest: float, highest: float) -> None:
        """Take a batch in one order, none of it below what came before."""
        if lowest == self._value:
            stop = int(np.searchsorted(keys, keys[0] | 1, "right"))
            self._wait(keys[:stop])
            keys = keys[stop:]
        if keys.size:
            self.close()
            start = int(np.searchsorted(keys, keys[-1] & -2))
            if start:
                merged.count(keys[:start], self._tally, plain=self._plain)
            self._wait(keys[start:])
        self._value = highest

    def _wait(self, level: Counts) -> None:
        id = int((level & 1).sum())
        self._id += id
        self._ood += level.size - id

    def close(self) -> None:
        """Add the waiting level."""
        if self._id + self._ood:
            self._tally.add(np.array([self._id]), np.array([self._id + self._ood]))
        self._id = self._ood = 0


class _Cursor:
    """A place in a shard: what is read and not yet taken."""

    def __init__(self, shard: Shard, rows: int) -> None:
        self._shard = shard
        self._parts = shard.parts(rows)
        self._read = 0
        self._last = -np.inf
        self.ahead = np.zeros(0)
        self._fill()

    def take(self, highest: float) -> Floats:
        """What is at most `highest`."""
        stop = int(np.searchsorted(self.ahead, highest, "right"))
        taken, self.ahead = self.ahead[:stop], self.ahead[stop:]
        if not self.ahead.size:
            self._fill()
        return taken

    def _fill(self) -> None:
        for part in self._parts:
            if not part.size:
                continue
            fine = np.append(part[0] >= self._last, part[1:] >= part[:-1])
            if not fine.all():
                number = self._read + int(fine.argmin()) + 1
                raise UserError(
                    f"{self._shard.name}: score {number} is NaN or below the one before it; shards must ascend: "
                    "oodbench.metrics.streaming.sort(FILE, FOLDER) makes such"
                )
            self._read, self._last, self.ahead = self._read + part.size, float(part[-1]), part
            return


def _batches(sides: Sequence[Sequence[Shard]], rows: int) -> Iterator[tuple[Floats, Floats, float]]:
    """ID and OOD scores, ascending from batch to batch, and the highest of each batch, which the next may have, too."""
    cursors = [_Cursor(shard, rows) for side in sides for shard in side]
    n_id = len(sides[0])

    def ends(which: int) -> list[float]:
        return [float(one.ahead[which]) if one.ahead.size else np.nan for one in cursors]

    firsts, lasts = np.array(ends(0)), np.array(ends(-1))
    while (left := ~np.isnan(lasts)).any():
        highest = float(lasts[left].min())
        taken: tuple[list[Floats], list[Floats]] = [np.zeros(0)], [np.zeros(0)]
        for i in np.flatnonzero(firsts <= highest).tolist():  # few of many, where shards do not overlap
            one = cursors[i]
            taken[i >= n_id].append(one.take(highest))
            firsts[i], lasts[i] = (one.ahead[0], one.ahead[-1]) if one.ahead.size else (np.nan, np.nan)
        yield np.concatenate(taken[0]), np.concatenate(taken[1]), highest
