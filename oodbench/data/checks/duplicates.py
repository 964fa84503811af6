"""Images that two sets share: equal pixels, or perceptual hashes that differ in few bits."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from oodbench.data.checks.inspection import ImageFacts

Hashes = npt.NDArray[np.uint64]
_ROWS, _COLUMNS = 16, 4096  # a block of distances that fits in a core's cache
_MAX_PAIRS = 1000  # pairs that are returned; all are counted


@dataclass(frozen=True)
class DuplicatePair:
    """Positions of two images in their sets, and the number of bits in which their hashes differ."""

    first: int
    second: int
    distance: int = 0


@dataclass(frozen=True)
class DuplicatePairs:
    """The closest pairs, and the number of images of the second set with a duplicate in the first."""

    pairs: list[DuplicatePair]
    images: int


def identical_pairs(first: Sequence[ImageFacts], second: Sequence[ImageFacts]) -> list[DuplicatePair]:
    """Return every image of the second set that has the pixels of an image of the first."""
    known: dict[str, int] = {}
    for i, facts in enumerate(first):
        if not facts.problem:
            known.setdefault(facts.pixels, i)
    return [
        DuplicatePair(known[facts.pixels], j)
        for j, facts in enumerate(second)
        if not facts.problem and facts.pixels in known
    ]


def repeated_images(images: Sequence[ImageFacts]) -> list[DuplicatePair]:
    """Return every image that has the pixels of an earlier image of its set."""
    seen: dict[str, int] = {}
    pairs = [DuplicatePair(seen.setdefault(facts.pixels, i), i) for i, facts in enumerate(images) if not facts.problem]
    return [pair for pair in pairs if pair.first != pair.second]


def similar_pairs(first: Sequence[ImageFacts], second: Sequence[ImageFacts], radius: int) -> DuplicatePairs:
    """Return pairs whose hashes differ in at most `radius` of 64 bits and whose pixels differ, closest first."""
    pixels = {facts.pixels for facts in first}
    positions, hashes = _hashes(first, frozenset())
    other_positions, other_hashes = _hashes(second, pixels)
    near = near_hashes(hashes, other_hashes, radius)
    pairs = [DuplicatePair(int(positions[p.first]), int(other_positions[p.second]), p.distance) for p in near.pairs]
    return DuplicatePairs(sorted(pairs, key=lambda p: (p.distance, p.second)), near.images)


def near_hashes(first: Hashes, second: Hashes, radius: int, keep: int = _MAX_PAIRS) -> DuplicatePairs:
    """Return pairs of 64-bit hashes [n], [m] that differ in at most `radius` bits, by computing every distance.

    A core computes about 1e9 distances a second. At most `keep` pairs are returned; the number of images is exact.
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
        for block_pairs in pool.map(rows, range(0, len(first), _ROWS)):
            pairs += block_pairs[: keep - len(pairs)]
    return DuplicatePairs(pairs, int(hit.sum()))


def _hashes(images: Sequence[ImageFacts], without: Collection[str]) -> tuple[npt.NDArray[np.int64], Hashes]:
    """Return the positions and hashes of the images that have a hash and not the pixels in `without`."""
    positions = [i for i, facts in enumerate(images) if facts.hash and facts.pixels not in without]
    return np.array(positions, np.int64), np.array([int(images[i].hash, 16) for i in positions], np.uint64)
