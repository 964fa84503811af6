"""Draws of the bootstrap: how often each image of a set is in each resample, the same for every method."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.uint8]  # how often each image was drawn, [replicates, n]

_ONE = np.uint8(1)


class Draws:
    """Resamples of one image set: n of its n images with replacement, so many times.

    They follow from seed, name and n alone, not from how many are drawn at once: methods scored on the same images
    are resampled alike, which makes the comparison paired, and the ID images once for all OOD sets.

    Counts of independent draws are independent Poisson counts, given their sum. So every image gets a Poisson count
    from a table, of a mean a little below 1, and what is missing to n is drawn image by image: a quarter of the time.
    """

    def __init__(self, name: str, n: int, seed: int = 0) -> None:
        bulk, rest = _sequence(name, seed).spawn(2)
        self._n = n
        self._words = -(-n // 4)
        self._bulk = np.random.PCG64(bulk)
        self._rest = np.random.Generator(np.random.PCG64(rest))
        self._table = _poisson(max(0.0, 1 - 4 / math.sqrt(n)))  # 4 sd below: more than n is rare

    def times(self, replicates: int) -> Times:
        """The next resamples, every row with sum n."""
        n = self._n
        raw = self._bulk.random_raw(replicates * self._words).view(np.uint16).reshape(replicates, -1)
        times = np.take(self._table, raw[:, :n], mode="clip")
        sums = times.sum(axis=1, dtype=np.uint32).astype(np.int64)
        times[sums > n] = 0
        missing = n - np.where(sums > n, 0, sums)
        images = self._rest.integers(0, n, missing.sum())
        images += np.repeat(np.arange(0, replicates * n, n), missing)
        np.add.at(times.reshape(-1), images, _ONE)
        return times


def generator(name: str, seed: int = 0) -> np.random.Generator:
    """Random numbers that follow from a name and a seed."""
    return np.random.Generator(np.random.PCG64(_sequence(name, seed)))


def _sequence(name: str, seed: int) -> np.random.SeedSequence:
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4").tolist()
    return np.random.SeedSequence([seed, *words])


def _poisson(mean: float) -> Times:
    """Counts of which a random one of 65,536 is Poisson, its probabilities rounded to 1 / 65,536."""
    shares, share = [], math.exp(-mean)
    for k in range(1, 40):
        shares.append(share)
        share *= mean / k
    ends = np.round(np.cumsum(shares) * 65536).astype(np.int64)
    return np.searchsorted(ends, np.arange(65536), side="right").clip(max=39).astype(np.uint8)


def chunks(replicates: int, images: int, cells: int) -> Iterator[int]:
    """Numbers of replicates to take at once, so that about so many counts stay in the processor's cache."""
    most = max(1, cells // images)
    for start in range(0, replicates, most):
        yield min(most, replicates - start)
