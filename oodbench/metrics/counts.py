"""ID and OOD scores in one order, by one sort: each score is an integer whose lowest bit says ID.

A float64 with its sign bit folded in orders as an integer does. Scaled by a power of two to below 2 it leaves the
highest bit free, so the label fits; OOD comes first among ties. Blocks of the sorted integers are then counted in the
processor's cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ThresholdPoint:
    """The level of a threshold: images below it, images that have it, and the point next to it on the curve.

    beside    of the other kind: up to the next lower ID level (threshold on ID), or below the next higher OOD level
              (on OOD); None where there is no such level
    """

    id_below: int
    id: int
    ood_below: int
    ood: int
    beside: int | None


@dataclass
class ThresholdCounts:
    """What is known after some levels, the lowest first; `n_id` and `n_ood` images are in all.

    id_rank, ood_rank   the thresholds: those of the ID and OOD images with so many of their kind before them
    trapezoid           AUPR by trapezoids, not by steps
    id, ood             images so far
    won                 twice the pairs so far in which ID is above OOD, ties counted half: an integer, exact
    area_in, area_out   sums of precision over ID, over OOD images
    tied                images that share their score with another
    """

    n_id: int
    n_ood: int
    id_rank: int
    ood_rank: int
    trapezoid: bool = False
    id: int = 0
    ood: int = 0
    won: int = 0
    area_in: float = 0.0
    area_out: float = 0.0
    tied: int = 0
    at_id: ThresholdPoint | None = None
    at_ood: ThresholdPoint | None = None
    _ood_upto: int | None = field(default=None, repr=False)  # OOD images up to the last ID level so far

    def add(self, id_upto: Counts, upto: Counts) -> None:
        """Take the next levels, above all before: ID images, and all images, up to each of them [levels], from here."""
        ood_upto = upto - id_upto
        id, ood = _differences(id_upto), _differences(ood_upto)
        id_upto, ood_upto = id_upto + self.id, ood_upto + self.ood
        id_below, ood_below = id_upto - id, ood_upto - ood
        self.won += int((id * (ood_below + ood_upto)).sum())
        self.tied += int(upto[-1]) - int(np.count_nonzero(id + ood == 1))
        right_in, false_in = self.n_id - id_below, self.n_ood - ood_below
        self.area_in += _area(id, right_in, false_in, self.n_ood - ood_upto if self.trapezoid else None)
        self.area_out += _area(ood, ood_upto, id_upto, id_below if self.trapezoid else None)
        self._thresholds(id, ood, id_upto, ood_upto)
        self.id, self.ood = int(id_upto[-1]), int(ood_upto[-1])

    def _thresholds(self, id: Counts, ood: Counts, id_upto: Counts, ood_upto: Counts) -> None:
        of_id, of_ood = np.flatnonzero(id), np.flatnonzero(ood)

        def at(level: int, beside: int | None) -> ThresholdPoint:
            own, other = int(id[level]), int(ood[level])
            return ThresholdPoint(int(id_upto[level]) - own, own, int(ood_upto[level]) - other, other, beside)

        if self.id <= self.id_rank < id_upto[-1]:
            level = int(np.searchsorted(id_upto, self.id_rank, "right"))
            lower = of_id[: np.searchsorted(of_id, level)]
            self.at_id = at(level, int(ood_upto[lower[-1]]) if lower.size else self._ood_upto)
        if self.at_ood is not None and self.at_ood.beside is None and of_ood.size:
            self.at_ood = replace(self.at_ood, beside=int(id_upto[of_ood[0]] - id[of_ood[0]]))
        if self.ood <= self.ood_rank < ood_upto[-1]:
            level = int(np.searchsorted(ood_upto, self.ood_rank, "right"))
            higher = of_ood[np.searchsorted(of_ood, level, "right") :]
            self.at_ood = at(level, int(id_upto[higher[0]] - id[higher[0]]) if higher.size else None)
        if of_id.size:
            self._ood_upto = int(ood_upto[of_id[-1]])


def _differences(upto: Counts) -> Counts:
    out = upto.copy()
    out[1:] -= upto[:-1]
    return out


def _area(counts: Counts, found: Counts, false: Counts, false_before: Counts | None) -> float:
    """Sum of precision over the positives of these levels.

    With a level, `found` positives and `false` negatives are accepted; just before it, `false_before` negatives
    were, those of levels without positives included. With these it is the area by trapezoids, without by steps.
    """
    precision = found / (found + false)
    if false_before is not None:
        found_before = found - counts
        called = found_before + false_before
        # scikit-learn starts the curve, where nothing is accepted, at precision 1.
        precision += np.divide(found_before, called, out=np.ones_like(precision), where=called > 0)
        precision /= 2
    precision *= counts  # summed by numpy: a float dot product would wake the threads of BLAS
    return float(precision.sum())


BLOCK = 3 << 12  # 96 KB, several of which stay in the cache; larger ones would take new pages each time
_FOLD = np.int64(0x7FFFFFFFFFFFFFFF)


def keys(id: NDArray[Any], ood: NDArray[Any]) -> Counts:
    """Every score as 2 * place + (1 for ID), ascending; places order and tie as the scores do. NaN is not expected."""
    values = np.empty(id.size + ood.size)
    np.add(id, 0.0, out=values[: id.size], casting="same_kind")  # makes -0.0 and 0.0 one
    np.add(ood, 0.0, out=values[id.size :], casting="same_kind")
    places = _places(values)
    places <<= 1
    places[: id.size] |= 1
    places.sort()
    return places


def _places(values: NDArray[np.float64]) -> Counts:
    """Integers of at most 63 bits that order and tie as the values do; `values` is overwritten."""
    low, high = float(values.min()), float(values.max())
    top = max(high, -low)
    if top >= 2:
        exponent = math.frexp(top)[1] - 1
        scaled = values * math.ldexp(1.0, -exponent) if top < math.inf else values
        if top == math.inf or not np.array_equal(scaled * math.ldexp(1.0, exponent), values):
            ranks: Counts = np.unique(values, return_inverse=True)[1].astype(np.int64)
            return ranks
        values = scaled
    bits = values.view(np.int64)
    if low < 0:
        bits ^= (bits >> 63) & _FOLD
    return bits


def count(sorted_keys: Counts, tally: ThresholdCounts, *, plain: bool) -> None:
    """Add all levels to the tally, block by block.

    What has few ties is counted image by image, which gives the same sums. `plain`: by levels throughout, which alone
    finds what `trapezoid` and `At.beside` need.
    """
    n = sorted_keys.size
    some = np.arange(0, n - 1, max(1, n // 1024))
    tied = int((sorted_keys[some] == sorted_keys[some + 1]).sum()) / max(some.size, 1)
    if tied > 0.5:  # few levels: no blocks
        tally.add(*_levels(sorted_keys))
    elif plain or tied > 0.1:
        for block in _blocks(sorted_keys, BLOCK // 2):
            tally.add(*_levels(block))
    else:
        for block in _blocks(sorted_keys, BLOCK):
            _images(tally, block)


def _blocks(sorted_keys: Counts, most: int) -> Iterator[Counts]:
    """Consecutive parts, no level in two of them."""
    start, n = 0, sorted_keys.size
    while start < n:
        stop = min(start + most, n)
        if stop < n:
            stop = int(np.searchsorted(sorted_keys, sorted_keys[stop - 1] | 1, "right"))
        yield sorted_keys[start:stop]
        start = stop


def _levels(block: Counts) -> tuple[Counts, Counts]:
    """ID images, and all images, up to each level: from runs of equal keys, of which a level has one or two."""
    ends = _last(block)
    runs = block[ends]
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    lengths[0] += 1
    lengths *= runs & 1
    of_level = _last(runs >> 1)
    return np.cumsum(lengths)[of_level], ends[of_level] + 1


def _last(ascending: Counts) -> Counts:
    """The last position of every distinct value."""
    is_last = np.ones(ascending.size, np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=is_last[:-1])
    return np.flatnonzero(is_last)


def _images(tally: ThresholdCounts, block: Counts) -> None:
    """Add a block, image by image, then put right those that are tied. Few temporaries: the cache is small."""
    labels = (block & 1).astype(np.bool_)
    of_id = np.flatnonzero(labels)  # positions in the block
    of_ood = np.flatnonzero(np.logical_not(labels, out=labels))
    tied = np.flatnonzero((block[1:] ^ block[:-1]).view(np.uint64) < 2)
    if 0 <= tally.id_rank - tally.id < of_id.size:
        tally.at_id = _at(tally, block, of_id, int(of_id[tally.id_rank - tally.id]))
    if 0 <= tally.ood_rank - tally.ood < of_ood.size:
        tally.at_ood = _at(tally, block, of_id, int(of_ood[tally.ood_rank - tally.ood]))
    n, m = of_id.size, of_ood.size
    left, before = tally.n_id - tally.id, tally.id + tally.ood
    above = tally.n_id + tally.n_ood - before
    # An ID image at its position, less the ID images before it, has the OOD images below it.
    won = 2 * (int(of_id.sum()) - n * (n - 1) // 2 + n * tally.ood)
    precision_in = np.arange(float(left), float(left - n), -1.0)
    precision_in /= above - of_id
    precision_out = np.arange(float(tally.ood + 1), float(tally.ood + 1 + m))
    precision_out /= of_ood + (before + 1)
    if tied.size:  # all ID images of a level are as its first one, all its OOD images as its last
        first = tied[np.diff(tied, prepend=-2) > 1]
        stop = tied[np.diff(tied, append=tied[-1] + 2) > 1] + 2
        start_id, stop_id = np.searchsorted(of_id, first), np.searchsorted(of_id, stop)
        start_ood, stop_ood = first - start_id, stop - stop_id
        won -= int(((stop_id - start_id) * (stop_ood - start_ood)).sum())
        tally.tied += int((stop - first).sum())
        _put(precision_in, start_id, stop_id, (left - start_id) / (above - first))
        _put(precision_out, start_ood, stop_ood, (tally.ood + stop_ood) / (before + stop))
    tally.won += won
    tally.area_in += float(precision_in.sum())
    tally.area_out += float(precision_out.sum())
    tally.id += n
    tally.ood += m


def _at(tally: ThresholdCounts, block: Counts, of_id: Counts, image: int) -> ThresholdPoint:
    """The level of the image at a position of the block."""
    key = int(block[image])
    start, middle = np.searchsorted(block, [key & -2, key | 1]).tolist()
    stop = int(np.searchsorted(block, key | 1, "right"))
    id_below = int(np.searchsorted(of_id, start))
    return ThresholdPoint(tally.id + id_below, stop - middle, tally.ood + start - id_below, middle - start, None)


def _put(array: NDArray[np.float64], starts: Counts, stops: Counts, values: NDArray[np.float64]) -> None:
    """array[start:stop] = value, of each range."""
    lengths = stops - starts
    behind = np.cumsum(lengths)
    array[np.arange(behind[-1]) + np.repeat(stops - behind, lengths)] = np.repeat(values, lengths)
