"""Images that two lists share: the same pixels, or perceptual hashes that differ in few bits."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oodbench.data.checks.inspection import ImageFacts

Marks = npt.NDArray[np.uint64]
_ROWS, _COLUMNS = 16, 4096  # a block of distances that stays in a core's cache
_KEEP = 1000  # pairs that are returned; all are counted


@dataclass(frozen=True)
class DuplicatePair:
    """Positions in two lists, and in how many bits the hashes differ."""

    first: int
    second: int
    distance: int = 0


@dataclass(frozen=True)
class DuplicatePairs:
    """The closest pairs, and how many images of the second list have a partner in the first."""

    pairs: list[DuplicatePair]
    images: int


def identical_pairs(first: Sequence[ImageFacts], second: Sequence[ImageFacts]) -> list[DuplicatePair]:
    """Every image of the second list whose pixels are those of an image of the first."""
    known: dict[str, int] = {}
    for i, one in enumerate(first):
        if not one.problem:
            known.setdefault(one.pixels, i)
    return [
        DuplicatePair(known[one.pixels], j) for j, one in enumerate(second) if not one.problem and one.pixels in known
    ]


def repeated_images(looks: Sequence[ImageFacts]) -> list[DuplicatePair]:
    """Every image that has the pixels of an earlier one of its list."""
    seen: dict[str, int] = {}
    pairs = [DuplicatePair(seen.setdefault(one.pixels, i), i) for i, one in enumerate(looks) if not one.problem]
    return [pair for pair in pairs if pair.first != pair.second]


def similar_pairs(first: Sequence[ImageFacts], second: Sequence[ImageFacts], radius: int) -> DuplicatePairs:
    """Pairs whose hashes differ in at most `radius` of 64 bits and whose pixels differ, closest first."""
    known = {one.pixels for one in first}
    at, marks = _marks(first, frozenset())
    at_other, other = _marks(second, known)
    found = near_hashes(marks, other, radius)
    pairs = [DuplicatePair(int(at[p.first]), int(at_other[p.second]), p.distance) for p in found.pairs]
    return DuplicatePairs(sorted(pairs, key=lambda p: (p.distance, p.second)), found.images)


def near_hashes(first: Marks, second: Marks, radius: int, keep: int = _KEEP) -> DuplicatePairs:
    """Pairs of 64-bit hashes [n], [m] that differ in at most `radius` bits: every distance is taken.

    About 1e9 distances a second and core. At most `keep` pairs are returned; the number of images is exact.
    """
    hit = np.zeros(len(second), bool)
    pairs: list[DuplicatePair] = []

    def rows(start: int) -> list[DuplicatePair]:
        kept: list[DuplicatePair] = []
        block = first[start : start + _ROWS, None]
        for left in range(0, len(second), _COLUMNS):
            distance = np.bitwise_count(block ^ second[None, left : left + _COLUMNS])
            close = distance <= radius
            if not close.any():
                continue
            hit[left : left + _COLUMNS] |= close.any(0)
            i, j = np.nonzero(close)
            order = np.argsort(distance[i, j], kind="stable")[: keep - len(kept)]
            kept += [
                DuplicatePair(start + int(a), left + int(b), int(distance[a, b]))
                for a, b in zip(i[order], j[order], strict=True)
            ]
        return kept

    with ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        for found in pool.map(rows, range(0, len(first), _ROWS)):
            pairs += found[: keep - len(pairs)]
    return DuplicatePairs(pairs, int(hit.sum()))


def _marks(looks: Sequence[ImageFacts], without: Collection[str]) -> tuple[npt.NDArray[np.int64], Marks]:
    """Positions and hashes of the images that have one, but for those with certain pixels."""
    at = [i for i, one in enumerate(looks) if one.mark and one.pixels not in without]
    return np.array(at, np.int64), np.array([int(looks[i].mark, 16) for i in at], np.uint64)
