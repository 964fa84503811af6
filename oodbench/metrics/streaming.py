"""Metrics of more scores than fit into memory: sorted shards, merged level by level, are counted once, exactly.

    ood = streaming.sort("scores.npy", "sorted/ood")          # any order -> ascending shards
    streaming.evaluate_shards(["id.npy"], ood).auroc          # .npy, the column `score` of .parquet, arrays

Memory is bounded by `memory`, not by the scores: 10^9 of them (8 GB a side) take one pass over their files. Counts are
exact integers, so AUROC, both FPR95s and ties are bit for bit those of `metrics.evaluate`; the two areas under
precision-recall are sums in another order, and differ by at most the number of batches times 1e-16.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics import counts as merged
from oodbench.metrics import detection as metrics
from oodbench.metrics.detection import Floats, Metrics
from oodbench.metrics.levels import Counts, Tally
from oodbench.metrics.scorefiles import Shard, open_shard, sort

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

    def __init__(self, tally: Tally, *, plain: bool) -> None:
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
