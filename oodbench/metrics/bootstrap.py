"""Bootstrap: the metrics of many resamples of the images, computed from counts on scores that are sorted once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics.counts import Counts
from oodbench.metrics.delong import ScorePair, ScoreSide
from oodbench.metrics.detection import TPR, Floats, RocPoint, auroc, check_options, false_positive_rate, min_accepted
from oodbench.results import METRICS

_BLOCK = 256


class Workspace:
    """Arrays that are allocated once and reused: fresh memory pages would cost more than the arithmetic on them."""

    def __init__(self) -> None:
        self._arrays: dict[str, Floats] = {}

    def array(self, name: str, rows: int, columns: int) -> Floats:
        """Return an uninitialised array [rows, columns]; the same name gets the same memory."""
        if name not in self._arrays or self._arrays[name].size < rows * columns:
            self._arrays[name] = np.zeros(rows * columns)
        return self._arrays[name][: rows * columns].reshape(rows, columns)


class LevelCounts(Protocol):
    """Counts per level (distinct score) of resamples of one image set."""

    def level_at(self, positions: NDArray[Any] | int) -> Counts:
        """Return the levels [replicates] at 0-based positions among the sorted images; one position may serve all."""

    def count_below(self, levels: Counts) -> NDArray[Any]:
        """Return the numbers of images [replicates] below the given level of each replicate."""


class CumulativeSums:
    """Images drawn per level (`cells` [replicates, levels]) and below each level (`below` [replicates, levels + 1]).

    The counts are stored as float64, which represents them exactly and avoids conversions.
    """

    def __init__(self, side: ScoreSide, times: Times, scratch: Workspace, name: str) -> None:
        rows, levels = len(times), side.sorted.levels.size
        self.cells = scratch.array(f"{name} cells", rows, levels)
        self.below = scratch.array(f"{name} below", rows, levels + 1)
        self.cells[:] = side.cells(times)
        self.below[:, 0] = 0
        np.cumsum(self.cells, axis=1, out=self.below[:, 1:])

    def level_at(self, positions: NDArray[Any] | int) -> Counts:
        queries = zip(self.below, np.broadcast_to(positions, len(self.below)).tolist(), strict=True)
        return np.array([below.searchsorted(position, "right") - 1 for below, position in queries])

    def count_below(self, levels: Counts) -> NDArray[Any]:
        return self.below[np.arange(len(levels)), levels]


class BlockSums:
    """The counts of CumulativeSums for a few levels only, in a quarter of the time.

    Sums are stored per block of levels, and computed within a block on demand.
    """

    def __init__(self, side: ScoreSide, times: Times) -> None:
        self._cells = side.cells(times)
        starts = np.arange(0, self._cells.shape[1], _BLOCK)
        self._sums = np.zeros((len(times), starts.size + 1), dtype=np.int64)
        full = self._cells.shape[1] // _BLOCK  # blocks
        inner = self._cells[:, : full * _BLOCK].reshape(len(times), full, _BLOCK)
        inner.sum(axis=2, out=self._sums[:, 1 : full + 1])
        if full < starts.size:
            self._sums[:, -1] = self._cells[:, full * _BLOCK :].sum(axis=1)
        np.cumsum(self._sums, axis=1, out=self._sums)

    def level_at(self, positions: NDArray[Any] | int) -> Counts:
        levels = []
        queries = np.broadcast_to(positions, len(self._cells)).tolist()
        for cells, sums, position in zip(self._cells, self._sums, queries, strict=True):
            block = int(sums.searchsorted(position, "right")) - 1
            inner = cells[block * _BLOCK : (block + 1) * _BLOCK].cumsum(dtype=np.int64)
            levels.append(block * _BLOCK + int(inner.searchsorted(position - sums[block], "right")))
        return np.array(levels)

    def count_below(self, levels: Counts) -> NDArray[Any]:
        counts = []
        for cells, sums, level in zip(self._cells, self._sums, levels.tolist(), strict=True):
            block = level // _BLOCK
            counts.append(sums[block] + cells[block * _BLOCK : level].sum())
        return np.array(counts, dtype=np.int64)


Times = NDArray[np.uint8]  # how often each image was drawn, [replicates, n]

_ONE = np.uint8(1)


class Resampler:
    """Draws bootstrap resamples of one image set: n of its n images with replacement.

    The resamples depend on seed, name and n alone, not on how many are drawn at once: methods scored on the same images
    get the same resamples, which makes the comparison paired, and the ID images are resampled once for all OOD sets.

    Multinomial counts are independent Poisson counts given their sum. So every image gets a Poisson count from a table,
    with a mean slightly below 1, and the rest up to n is drawn image by image, which takes a quarter of the time.
    """

    def __init__(self, name: str, n: int, seed: int = 0) -> None:
        bulk, rest = _sequence(name, seed).spawn(2)
        self._n = n
        self._words = -(-n // 4)
        self._bulk = np.random.PCG64(bulk)
        self._rest = np.random.Generator(np.random.PCG64(rest))
        self._table = _poisson(max(0.0, 1 - 4 / math.sqrt(n)))  # 4 sd below: more than n is rare

    def draw(self, replicates: int) -> Times:
        """Return the next resamples [replicates, n] as counts per image; each row sums to n."""
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
    """Return a random generator that depends on the name and the seed alone."""
    return np.random.Generator(np.random.PCG64(_sequence(name, seed)))


def _sequence(name: str, seed: int) -> np.random.SeedSequence:
    words = np.frombuffer(hashlib.sha256(name.encode()).digest(), dtype="<u4").tolist()
    return np.random.SeedSequence([seed, *words])


def _poisson(mean: float) -> Times:
    """Return a table of 65,536 counts: a random entry is Poisson, with probabilities rounded to 1 / 65,536."""
    probabilities, probability = [], math.exp(-mean)
    for k in range(1, 40):
        probabilities.append(probability)
        probability *= mean / k
    ends = np.round(np.cumsum(probabilities) * 65536).astype(np.int64)
    return np.searchsorted(ends, np.arange(65536), side="right").clip(max=39).astype(np.uint8)


def chunks(replicates: int, images: int, cells: int) -> Iterator[int]:
    """Yield sizes of batches of replicates; each has about `cells` counts, which fit into the processor's cache."""
    most = max(1, cells // images)
    for start in range(0, replicates, most):
        yield min(most, replicates - start)


@dataclass(frozen=True)
class Settings:
    """How intervals and tests are computed.

    Arguments:
        at95        rule of both FPR95s: "first", "nearest" or "interpolate"
        aupr        rule of both AUPRs: "average_precision" or "trapezoid"
        replicates  number of bootstrap resamples; with 0, only AUROC has intervals and tests
        level       probability that an interval covers the true value
        seed        seed of the resamples; the same seed gives the same intervals
    """

    at95: str = "first"
    aupr: str = "average_precision"
    replicates: int = 1000
    level: float = 0.95
    seed: int = 0


def replicates(
    methods: Sequence[Mapping[str, ScorePair]], settings: Settings, metrics: Collection[str] = METRICS
) -> dict[str, Floats]:
    """Return each metric's values [methods, OOD sets, replicates] on the same resampled images for all methods.

    ID and OOD images are resampled separately, the ID images once for all OOD sets.
    """
    names = list(methods[0])
    first = next(iter(methods[0].values())).id
    id_resampler = Resampler("id", first.n, settings.seed)
    ood_resamplers = [Resampler(f"ood {name}", methods[0][name].ood.n, settings.seed) for name in names]
    found = {metric: np.empty((len(methods), len(names), settings.replicates)) for metric in metrics}
    images = first.n + max(pair.ood.n for pair in methods[0].values())
    scratch = Workspace()
    sides = [next(iter(pairs.values())).id for pairs in methods]
    fpr_only = {"fpr95", "fpr95_ood"}.issuperset(metrics)  # a few levels of each resample are enough
    start = 0
    for size in chunks(settings.replicates, images, 1 << 19 if fpr_only else 1 << 17):
        rows = slice(start, start := start + size)
        times = id_resampler.draw(size)
        of_id = [
            BlockSums(side, times) if fpr_only else CumulativeSums(side, times, scratch, f"id {i}")
            for i, side in enumerate(sides)
        ]
        for j, name in enumerate(names):
            times = ood_resamplers[j].draw(size)
            for i, pairs in enumerate(methods):
                pair, id = pairs[name], of_id[i]
                if isinstance(id, CumulativeSums):
                    ood = CumulativeSums(pair.ood, times, scratch, "ood")
                    values = measured(ResampledPair(pair, id, ood, scratch), settings, metrics)
                else:
                    values = fprs(pair, id, BlockSums(pair.ood, times), settings.at95, metrics)
                for metric, of_rows in values.items():
                    found[metric][i, j, rows] = of_rows
    return found


def observed(pair: ScorePair, settings: Settings, metrics: Collection[str] = METRICS) -> dict[str, float]:
    """Return each metric's value on the images themselves: a resample with every image once."""
    scratch = Workspace()
    id = CumulativeSums(pair.id, np.ones((1, pair.id.n), np.uint8), scratch, "id")
    ood = CumulativeSums(pair.ood, np.ones((1, pair.ood.n), np.uint8), scratch, "ood")
    found = measured(ResampledPair(pair, id, ood, scratch), settings, metrics)
    return {metric: float(values[0]) for metric, values in found.items()}


@dataclass(frozen=True)
class ResampledPair:
    """Some resamples of the images of one ID and one OOD set."""

    pair: ScorePair
    id: CumulativeSums
    ood: CumulativeSums
    scratch: Workspace


def measured(resampled: ResampledPair, settings: Settings, metrics: Collection[str] = METRICS) -> dict[str, Floats]:
    """Return each metric's value on each resample [replicates], equal to `evaluate` on the resampled images."""
    pair, id, ood = resampled.pair, resampled.id, resampled.ood
    n, m = pair.id.n, pair.ood.n
    rows = len(id.cells)
    trapezoid = settings.aupr == "trapezoid"
    found = fprs(pair, id, ood, settings.at95, metrics)

    def at(below: Floats, levels: Counts, name: str) -> Floats:
        out = resampled.scratch.array(name, rows, levels.size)
        np.take(below, levels, axis=1, out=out, mode="clip")  # another mode would copy
        return out

    if "auroc" in metrics:
        concordant_x2 = at(ood.below, pair.ood_below, "a")
        concordant_x2 += at(ood.below, pair.ood_up_to, "b")
        concordant_x2 *= id.cells  # summed by numpy: a matrix product would start BLAS threads
        found["auroc"] = auroc(concordant_x2.sum(axis=1), n, m)
    if "aupr_in" in metrics:
        false = at(ood.below, pair.ood_below, "a")
        np.subtract(m, false, out=false)
        right = resampled.scratch.array("c", rows, false.shape[1])
        np.subtract(n, id.below[:, :-1], out=right)
        before = m - at(ood.below, pair.ood_up_to, "b") if trapezoid else None
        found["aupr_in"] = _area(id.cells, right, false, before) / n
    if "aupr_out" in metrics:
        false = at(id.below, pair.id_up_to, "a")
        before = at(id.below, pair.id_below, "b") if trapezoid else None
        found["aupr_out"] = _area(ood.cells, ood.below[:, 1:], false, before) / m
    return found


def _area(counts: Floats, found: Floats, false: Floats, false_before: Floats | None) -> Floats:
    """Return `counts._area` of each resample [replicates]; `false` is overwritten.

    Levels that were not drawn have weight 0, whatever their precision is.
    """
    precision = called = false
    called += found
    np.maximum(called, 1, out=called)
    np.divide(found, called, out=precision)
    if false_before is not None:
        found_before = found - counts
        called_before = found_before + false_before
        precision += np.divide(found_before, called_before, out=np.ones_like(precision), where=called_before > 0)
        precision /= 2
    precision *= counts
    out: Floats = precision.sum(axis=1)
    return out


def fprs(pair: ScorePair, id: LevelCounts, ood: LevelCounts, rule: str, metrics: Collection[str]) -> dict[str, Floats]:
    """Return the FPR95s that are in `metrics`, each [replicates]."""
    found = {}
    if "fpr95" in metrics:
        found["fpr95"] = fpr95(pair, id, ood, rule, min_accepted(pair.id.n, TPR), TPR)
    if "fpr95_ood" in metrics:
        found["fpr95_ood"] = fpr95_ood(pair, id, ood, rule, min_accepted(pair.ood.n, TPR), TPR)
    return found


def fpr95(
    pair: ScorePair, id: LevelCounts, ood: LevelCounts, rule: str, accepted: Counts | int, tpr: Floats | float
) -> Floats:
    """Return the FPR [replicates] at the threshold that accepts `accepted` ID images, the minimum for this TPR."""
    n, m = pair.id.n, pair.ood.n
    level = id.level_at(n - accepted)
    negatives = m - ood.count_below(pair.ood_below[level])
    point = RocPoint(n, m, negatives)
    if rule != "first":
        start, stop = id.count_below(level), id.count_below(level + 1)
        next_lower = id.level_at(np.maximum(start - 1, 0))  # among the ID levels that were drawn
        point = RocPoint(
            n,
            m,
            negatives,
            positives=n - start,
            positives_before=n - stop,
            negatives_before=m - ood.count_below(pair.ood_up_to[level]),
            negatives_after=np.where(start > 0, m - ood.count_below(pair.ood_up_to[next_lower]), negatives),
        )
    rates: Floats = false_positive_rate(point, tpr, rule)
    return rates


def fpr95_ood(
    pair: ScorePair, id: LevelCounts, ood: LevelCounts, rule: str, rejected: Counts | int, tpr: Floats | float
) -> Floats:
    """Return the fraction [replicates] of ID images rejected at the threshold that rejects `rejected` OOD images."""
    n, m = pair.id.n, pair.ood.n
    level = ood.level_at(rejected - 1)
    negatives = id.count_below(pair.id_up_to[level])
    point = RocPoint(m, n, negatives)
    if rule != "first":
        start, stop = ood.count_below(level), ood.count_below(level + 1)
        next_higher = ood.level_at(np.minimum(stop, m - 1))
        point = RocPoint(
            m,
            n,
            negatives,
            positives=stop,
            positives_before=start,
            negatives_before=id.count_below(pair.id_below[level]),
            negatives_after=np.where(stop < m, id.count_below(pair.id_below[next_higher]), negatives),
        )
    rates: Floats = false_positive_rate(point, tpr, rule)
    return rates


def check(settings: Settings) -> None:
    """Raise UserError for conventions that do not exist and numbers out of range."""
    check_options(settings.at95, settings.aupr)
    if settings.replicates < 0:
        raise UserError(f"{settings.replicates} replicates: 0 or more are needed, such as 1000")
    if not 0 < settings.level < 1:
        raise UserError(f"level {settings.level}: a probability between 0 and 1 is needed, such as 0.95")
