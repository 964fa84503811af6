"""How many drawn images lie below a level of the scores: in full for areas, in blocks where a few answers do."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oodbench.metrics.detection import Counts, Floats
from oodbench.metrics.draws import Times
from oodbench.metrics.pairs import Side

_BLOCK = 256


class Scratch:
    """Memory that is taken once: fresh pages would cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._kept: dict[str, Floats] = {}

    def array(self, name: str, rows: int, columns: int) -> Floats:
        """An array [rows, columns] with anything in it, the same memory for the same name."""
        if name not in self._kept or self._kept[name].size < rows * columns:
            self._kept[name] = np.zeros(rows * columns)
        return self._kept[name][: rows * columns].reshape(rows, columns)


class Below(Protocol):
    """Resamples of one side, asked about single levels, one per replicate."""

    def level(self, positions: NDArray[Any] | int) -> Counts:
        """The level of the image at a sorted position (from 0), one for all or one each."""

    def under(self, levels: Counts) -> NDArray[Any]:
        """Images below a level."""


class Sums:
    """Times drawn per level [replicates, levels], and in all levels below [replicates, levels + 1]: whole numbers.

    As float64, which holds them exactly and saves conversions.
    """

    def __init__(self, side: Side, times: Times, scratch: Scratch, name: str) -> None:
        rows, levels = len(times), side.sorted.levels.size
        self.cells = scratch.array(f"{name} cells", rows, levels)
        self.below = scratch.array(f"{name} below", rows, levels + 1)
        self.cells[:] = side.cells(times)
        self.below[:, 0] = 0
        np.cumsum(self.cells, axis=1, out=self.below[:, 1:])

    def level(self, positions: NDArray[Any] | int) -> Counts:
        asked = zip(self.below, np.broadcast_to(positions, len(self.below)).tolist(), strict=True)
        return np.array([row.searchsorted(position, "right") - 1 for row, position in asked])

    def under(self, levels: Counts) -> NDArray[Any]:
        return self.below[np.arange(len(levels)), levels]


class Blocks:
    """As Sums for a few questions, at a quarter of the time: sums of blocks, and within one block when asked."""

    def __init__(self, side: Side, times: Times) -> None:
        self._cells = side.cells(times)
        starts = np.arange(0, self._cells.shape[1], _BLOCK)
        self._sums = np.zeros((len(times), starts.size + 1), dtype=np.int64)
        whole = self._cells.shape[1] // _BLOCK
        inner = self._cells[:, : whole * _BLOCK].reshape(len(times), whole, _BLOCK)
        inner.sum(axis=2, out=self._sums[:, 1 : whole + 1])
        if whole < starts.size:
            self._sums[:, -1] = self._cells[:, whole * _BLOCK :].sum(axis=1)
        np.cumsum(self._sums, axis=1, out=self._sums)

    def level(self, positions: NDArray[Any] | int) -> Counts:
        found = []
        asked = np.broadcast_to(positions, len(self._cells)).tolist()
        for cells, sums, position in zip(self._cells, self._sums, asked, strict=True):
            block = int(sums.searchsorted(position, "right")) - 1
            inner = cells[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.int64)
            found.append(block * _BLOCK + int(inner.searchsorted(position - sums[block], "right")))
        return np.array(found)

    def under(self, levels: Counts) -> NDArray[Any]:
        found = []
        for cells, sums, level in zip(self._cells, self._sums, levels.tolist(), strict=True):
            block = level // _BLOCK
            found.append(sums[block] + cells[block * _BLOCK : level].sum())
        return np.array(found, dtype=np.int64)
