"""Counts of ID and OOD images at every score threshold, from one sort of all scores.

Each score becomes an integer key with the label as its lowest bit: 1 for ID, so OOD comes first among ties. The bits
of a float64, inverted for negative numbers, sort like integers. Scaling by a power of two to below 2 frees the highest
bit, which makes room for the label. The sorted keys are then counted in blocks that fit into the processor's cache.
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
    """Counts at a threshold: images with lower scores and images with exactly this score.

    neighbour  OOD images up to the next lower ID score (threshold on ID), or ID images below the next higher OOD score
               (threshold on OOD); None if there is no such score
    """

    id_below: int
    id: int
    ood_below: int
    ood: int
    neighbour: int | None


@dataclass
class ThresholdCounts:
    """Running counts over the distinct scores ("levels") in ascending order; `n_id` and `n_ood` are the totals.

    id_rank, ood_rank    the thresholds, as 0-based positions among the ascending ID and OOD scores
    trapezoid            AUPR by trapezoids, not by steps
    id, ood              images counted so far
    concordant_pairs_x2  twice the number of pairs with ID above OOD, ties counted half: an exact integer
    area_in, area_out    sums of precision over ID images, over OOD images
    tied                 images with the score of another image
    """

    n_id: int
    n_ood: int
    id_rank: int
    ood_rank: int
    trapezoid: bool = False
    id: int = 0
    ood: int = 0
    concordant_pairs_x2: int = 0
    area_in: float = 0.0
    area_out: float = 0.0
    tied: int = 0
    at_id: ThresholdPoint | None = None
    at_ood: ThresholdPoint | None = None
    _ood_cumulative: int | None = field(default=None, repr=False)  # OOD images up to the highest ID level so far

    def add(self, id_cumulative: Counts, cumulative: Counts) -> None:
        """Add the next levels, all above the earlier ones.

        `id_cumulative` and `cumulative` [levels] count ID images and all images of these levels up to each of them.
        """
        ood_cumulative = cumulative - id_cumulative
        id, ood = _differences(id_cumulative), _differences(ood_cumulative)
        id_cumulative, ood_cumulative = id_cumulative + self.id, ood_cumulative + self.ood
        id_below, ood_below = id_cumulative - id, ood_cumulative - ood
        self.concordant_pairs_x2 += int((id * (ood_below + ood_cumulative)).sum())
        self.tied += int(cumulative[-1]) - int(np.count_nonzero(id + ood == 1))
        right_in, false_in = self.n_id - id_below, self.n_ood - ood_below
        self.area_in += _area(id, right_in, false_in, self.n_ood - ood_cumulative if self.trapezoid else None)
        self.area_out += _area(ood, ood_cumulative, id_cumulative, id_below if self.trapezoid else None)
        self._thresholds(id, ood, id_cumulative, ood_cumulative)
        self.id, self.ood = int(id_cumulative[-1]), int(ood_cumulative[-1])

    def _thresholds(self, id: Counts, ood: Counts, id_cumulative: Counts, ood_cumulative: Counts) -> None:
        of_id, of_ood = np.flatnonzero(id), np.flatnonzero(ood)

        def at(level: int, neighbour: int | None) -> ThresholdPoint:
            own, other = int(id[level]), int(ood[level])
            return ThresholdPoint(
                int(id_cumulative[level]) - own, own, int(ood_cumulative[level]) - other, other, neighbour
            )

        if self.id <= self.id_rank < id_cumulative[-1]:
            level = int(np.searchsorted(id_cumulative, self.id_rank, "right"))
            lower = of_id[: np.searchsorted(of_id, level)]
            self.at_id = at(level, int(ood_cumulative[lower[-1]]) if lower.size else self._ood_cumulative)
        if self.at_ood is not None and self.at_ood.neighbour is None and of_ood.size:
            self.at_ood = replace(self.at_ood, neighbour=int(id_cumulative[of_ood[0]] - id[of_ood[0]]))
        if self.ood <= self.ood_rank < ood_cumulative[-1]:
            level = int(np.searchsorted(ood_cumulative, self.ood_rank, "right"))
            higher = of_ood[np.searchsorted(of_ood, level, "right") :]
            self.at_ood = at(level, int(id_cumulative[higher[0]] - id[higher[0]]) if higher.size else None)
        if of_id.size:
            self._ood_cumulative = int(ood_cumulative[of_id[-1]])


def _differences(cumulative: Counts) -> Counts:
    out = cumulative.copy()
    out[1:] -= cumulative[:-1]
    return out


def _area(counts: Counts, found: Counts, false: Counts, false_before: Counts | None) -> float:
    """Return the sum of precision over the positives of these levels.

    At a level, `found` positives and `false` negatives are accepted; just before it, `false_before` negatives are,
    including those of levels without positives. The area is a sum of trapezoids with `false_before`, else of steps.
    """
    precision = found / (found + false)
    if false_before is not None:
        found_before = found - counts
        called = found_before + false_before
        # scikit-learn starts the curve, where nothing is accepted, at precision 1.
        precision += np.divide(found_before, called, out=np.ones_like(precision), where=called > 0)
        precision /= 2
    precision *= counts  # summed by numpy: a float dot product would start BLAS threads
    return float(precision.sum())


BLOCK = 3 << 12  # 96 KB: several blocks stay in the cache; larger ones would get new memory pages each time
_FOLD = np.int64(0x7FFFFFFFFFFFFFFF)


def keys(id: NDArray[Any], ood: NDArray[Any]) -> Counts:
    """Return the key 2 * place + (1 for ID) of every score, sorted; places have the order and ties of the scores.

    The scores must not be NaN.
    """
    values = np.empty(id.size + ood.size)
    np.add(id, 0.0, out=values[: id.size], casting="same_kind")  # turns -0.0 into 0.0
    np.add(ood, 0.0, out=values[id.size :], casting="same_kind")
    places = _places(values)
    places <<= 1
    places[: id.size] |= 1
    places.sort()
    return places


def _places(values: NDArray[np.float64]) -> Counts:
    """Return integers of at most 63 bits with the order and ties of the values; `values` is overwritten."""
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


def count(sorted_keys: Counts, counts: ThresholdCounts, *, by_level: bool) -> None:
    """Add all levels to the counts, block by block.

    Scores with few ties are counted image by image, which gives the same sums. `by_level` counts levels throughout,
    which `trapezoid` and `ThresholdPoint.neighbour` require.
    """
    n = sorted_keys.size
    some = np.arange(0, n - 1, max(1, n // 1024))
    tied = int((sorted_keys[some] == sorted_keys[some + 1]).sum()) / max(some.size, 1)
    if tied > 0.5:  # few levels: no blocks
        counts.add(*_levels(sorted_keys))
    elif by_level or tied > 0.1:
        for block in _blocks(sorted_keys, BLOCK // 2):
            counts.add(*_levels(block))
    else:
        for block in _blocks(sorted_keys, BLOCK):
            _images(counts, block)


def _blocks(sorted_keys: Counts, most: int) -> Iterator[Counts]:
    """Yield consecutive parts of at least `most` keys; no level is in two parts."""
    start, n = 0, sorted_keys.size
    while start < n:
        stop = min(start + most, n)
        if stop < n:
            stop = int(np.searchsorted(sorted_keys, sorted_keys[stop - 1] | 1, "right"))
        yield sorted_keys[start:stop]
        start = stop


def _levels(block: Counts) -> tuple[Counts, Counts]:
    """Return the ID images, and all images, up to each level, from runs of equal keys (one or two for each level)."""
    ends = _last(block)
    runs = block[ends]
    lengths = ends.copy()
    lengths[1:] -= ends[:-1]
    lengths[0] += 1
    lengths *= runs & 1
    of_level = _last(runs >> 1)
    return np.cumsum(lengths)[of_level], ends[of_level] + 1


def _last(ascending: Counts) -> Counts:
    """Return the last position of every distinct value."""
    is_last = np.ones(ascending.size, np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=is_last[:-1])
    return np.flatnonzero(is_last)


def _images(counts: ThresholdCounts, block: Counts) -> None:
    """Add a block image by image, then correct the tied ones. There are few temporaries, as the cache is small."""
    labels = (block & 1).astype(np.bool_)
    of_id = np.flatnonzero(labels)  # positions in the block
    of_ood = np.flatnonzero(np.logical_not(labels, out=labels))
    tied = np.flatnonzero((block[1:] ^ block[:-1]).view(np.uint64) < 2)
    if 0 <= counts.id_rank - counts.id < of_id.size:
        counts.at_id = _at(counts, block, of_id, int(of_id[counts.id_rank - counts.id]))
    if 0 <= counts.ood_rank - counts.ood < of_ood.size:
        counts.at_ood = _at(counts, block, of_id, int(of_ood[counts.ood_rank - counts.ood]))
    n, m = of_id.size, of_ood.size
    left, before = counts.n_id - counts.id, counts.id + counts.ood
    above = counts.n_id + counts.n_ood - before
    # The position of an ID image, less the number of ID images before it, is the number of OOD images below it.
    concordant = 2 * (int(of_id.sum()) - n * (n - 1) // 2 + n * counts.ood)
    precision_in = np.arange(float(left), float(left - n), -1.0)
    precision_in /= above - of_id
    precision_out = np.arange(float(counts.ood + 1), float(counts.ood + 1 + m))
    precision_out /= of_ood + (before + 1)
    if tied.size:  # all ID images of a level count as its first, all its OOD images as its last
        first = tied[np.diff(tied, prepend=-2) > 1]
        stop = tied[np.diff(tied, append=tied[-1] + 2) > 1] + 2
        start_id, stop_id = np.searchsorted(of_id, first), np.searchsorted(of_id, stop)
        start_ood, stop_ood = first - start_id, stop - stop_id
        concordant -= int(((stop_id - start_id) * (stop_ood - start_ood)).sum())
        counts.tied += int((stop - first).sum())
        _put(precision_in, start_id, stop_id, (left - start_id) / (above - first))
        _put(precision_out, start_ood, stop_ood, (counts.ood + stop_ood) / (before + stop))
    counts.concordant_pairs_x2 += concordant
    counts.area_in += float(precision_in.sum())
    counts.area_out += float(precision_out.sum())
    counts.id += n
    counts.ood += m


def _at(counts: ThresholdCounts, block: Counts, of_id: Counts, image: int) -> ThresholdPoint:
    """Return the counts at the score of the image at a position of the block."""
    key = int(block[image])
    start, middle = np.searchsorted(block, [key & -2, key | 1]).tolist()
    stop = int(np.searchsorted(block, key | 1, "right"))
    id_below = int(np.searchsorted(of_id, start))
    return ThresholdPoint(counts.id + id_below, stop - middle, counts.ood + start - id_below, middle - start, None)


def _put(array: NDArray[np.float64], starts: Counts, stops: Counts, values: NDArray[np.float64]) -> None:
    """Assign array[start:stop] = value for each range."""
    lengths = stops - starts
    behind = np.cumsum(lengths)
    array[np.arange(behind[-1]) + np.repeat(stops - behind, lengths)] = np.repeat(values, lengths)
