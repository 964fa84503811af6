"""Bootstrap: metrics of many resamples of the images, from counts on scores that are sorted once."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics import detection as metrics
from oodbench.metrics.delong import ScorePair, ScoreSide
from oodbench.metrics.detection import Counts, Floats, min_accepted
from oodbench.results import METRICS

_BLOCK = 256


class Workspace:
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

    def __init__(self, side: ScoreSide, times: Times, scratch: Workspace, name: str) -> None:
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

    def __init__(self, side: ScoreSide, times: Times) -> None:
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


TPR = 0.95


@dataclass(frozen=True)
class Settings:
    """How uncertainty is computed: the conventions of the metrics, replicates of the bootstrap, level of intervals."""

    at95: str = "first"
    aupr: str = "average_precision"
    replicates: int = 1000
    level: float = 0.95
    seed: int = 0


def replicates(
    methods: Sequence[Mapping[str, ScorePair]], settings: Settings, wanted: Collection[str] = METRICS
) -> dict[str, Floats]:
    """Metric -> its values [methods, OOD sets, replicates] on the same resampled images for all methods.

    ID and OOD images are resampled apart, the ID images once for all OOD sets.
    """
    names = list(methods[0])
    first = next(iter(methods[0].values())).id
    id_draws = Draws("id", first.n, settings.seed)
    ood_draws = [Draws(f"ood {name}", methods[0][name].ood.n, settings.seed) for name in names]
    found = {metric: np.empty((len(methods), len(names), settings.replicates)) for metric in wanted}
    images = first.n + max(pair.ood.n for pair in methods[0].values())
    scratch = Workspace()
    sides = [next(iter(pairs.values())).id for pairs in methods]
    single = {"fpr95", "fpr95_ood"}.issuperset(wanted)  # a few levels of each resample are enough
    start = 0
    for size in chunks(settings.replicates, images, 1 << 19 if single else 1 << 17):
        rows = slice(start, start := start + size)
        times = id_draws.times(size)
        of_id = [Blocks(one, times) if single else Sums(one, times, scratch, f"id {i}") for i, one in enumerate(sides)]
        for j, name in enumerate(names):
            times = ood_draws[j].times(size)
            for i, pairs in enumerate(methods):
                pair, id = pairs[name], of_id[i]
                if isinstance(id, Sums):
                    ood = Sums(pair.ood, times, scratch, "ood")
                    values = measured(Drawn(pair, id, ood, scratch), settings, wanted)
                else:
                    values = fprs(pair, id, Blocks(pair.ood, times), settings.at95, wanted)
                for metric, of_rows in values.items():
                    found[metric][i, j, rows] = of_rows
    return found


def observed(pair: ScorePair, settings: Settings, wanted: Collection[str] = METRICS) -> dict[str, float]:
    """Metric -> its value on the images themselves, every one drawn once."""
    scratch = Workspace()
    id = Sums(pair.id, np.ones((1, pair.id.n), np.uint8), scratch, "id")
    ood = Sums(pair.ood, np.ones((1, pair.ood.n), np.uint8), scratch, "ood")
    found = measured(Drawn(pair, id, ood, scratch), settings, wanted)
    return {metric: float(values[0]) for metric, values in found.items()}


@dataclass(frozen=True)
class Drawn:
    """Some resamples of a pair."""

    pair: ScorePair
    id: Sums
    ood: Sums
    scratch: Workspace


def measured(drawn: Drawn, settings: Settings, wanted: Collection[str] = METRICS) -> dict[str, Floats]:
    """Metric -> its value on each resample [replicates]; as `metrics.evaluate` on the resampled images."""
    pair, id, ood = drawn.pair, drawn.id, drawn.ood
    n, m = pair.id.n, pair.ood.n
    rows = len(id.cells)
    trapezoid = settings.aupr == "trapezoid"
    found = fprs(pair, id, ood, settings.at95, wanted)

    def at(below: Floats, levels: Counts, name: str) -> Floats:
        out = drawn.scratch.array(name, rows, levels.size)
        np.take(below, levels, axis=1, out=out, mode="clip")  # another mode would copy
        return out

    if "auroc" in wanted:
        won = at(ood.below, pair.id_over, "a")
        won += at(ood.below, pair.id_upto, "b")
        won *= id.cells  # summed by numpy: a product of matrices would wake the threads of BLAS
        found["auroc"] = won.sum(axis=1) / (2 * n * m)
    if "aupr_in" in wanted:
        false = at(ood.below, pair.id_over, "a")
        np.subtract(m, false, out=false)
        right = drawn.scratch.array("c", rows, false.shape[1])
        np.subtract(n, id.below[:, :-1], out=right)
        before = m - at(ood.below, pair.id_upto, "b") if trapezoid else None
        found["aupr_in"] = _area(id.cells, right, false, before) / n
    if "aupr_out" in wanted:
        false = at(id.below, pair.ood_upto, "a")
        before = at(id.below, pair.ood_over, "b") if trapezoid else None
        found["aupr_out"] = _area(ood.cells, ood.below[:, 1:], false, before) / m
    return found


def _area(counts: Floats, found: Floats, false: Floats, false_before: Floats | None) -> Floats:
    """As `metrics._area`, times the positives; `false` is overwritten.

    Levels that were not drawn have weight 0, whatever their precision.
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


def fprs(pair: ScorePair, id: Below, ood: Below, rule: str, wanted: Collection[str]) -> dict[str, Floats]:
    """Both FPR95s, as far as they are wanted, per replicate."""
    found = {}
    if "fpr95" in wanted:
        found["fpr95"] = fpr95(pair, id, ood, rule, min_accepted(pair.id.n, TPR), TPR)
    if "fpr95_ood" in wanted:
        found["fpr95_ood"] = fpr95_ood(pair, id, ood, rule, min_accepted(pair.ood.n, TPR), TPR)
    return found


def fpr95(pair: ScorePair, id: Below, ood: Below, rule: str, kept: Counts | int, tpr: Floats | float) -> Floats:
    """Share of OOD accepted where so many ID images are, which is the fewest for a TPR; per replicate."""
    n, m = pair.id.n, pair.ood.n
    level = id.level(n - kept)
    first: Floats = (m - ood.under(pair.id_over[level])) / m
    if rule == "first":
        return first
    start, stop = id.under(level), id.under(level + 1)
    before = (m - ood.under(pair.id_upto[level])) / m
    lower = id.level(np.maximum(start - 1, 0))  # the next ID level that was drawn
    last = np.where(start > 0, (m - ood.under(pair.id_upto[lower])) / m, first)
    return _ruled(rule, tpr, ((n - stop) / n, (n - start) / n), (before, first, last))


def fpr95_ood(pair: ScorePair, id: Below, ood: Below, rule: str, kept: Counts | int, tpr: Floats | float) -> Floats:
    """Share of ID rejected where so many OOD images are caught: as `fpr95` seen from the other end."""
    n, m = pair.id.n, pair.ood.n
    level = ood.level(kept - 1)
    first: Floats = id.under(pair.ood_upto[level]) / n
    if rule == "first":
        return first
    start, stop = ood.under(level), ood.under(level + 1)
    before = id.under(pair.ood_over[level]) / n
    higher = ood.level(np.minimum(stop, m - 1))
    last = np.where(stop < m, id.under(pair.ood_over[higher]) / n, first)
    return _ruled(rule, tpr, (start / m, stop / m), (before, first, last))


def _ruled(rule: str, tpr: Floats | float, tprs: tuple[Floats, Floats], fprs: tuple[Floats, Floats, Floats]) -> Floats:
    """The rules of `metrics.fpr_at_tpr` between the TPRs around the one that is wanted."""
    (low, high), (before, first, last) = tprs, fprs
    if rule == "nearest":
        exists = (low > 0) | (before > 0)
        return np.where(exists & (np.abs(low - tpr) < np.abs(high - tpr)), before, last)
    between = (first - before) / (high - low) * (tpr - low) + before
    return np.where(high == tpr, last, between)


def check(settings: Settings) -> None:
    """UserError for conventions that do not exist and numbers out of range."""
    for option, given, known in (("at95", settings.at95, metrics.AT95), ("aupr", settings.aupr, metrics.AUPR)):
        if given not in known:
            raise UserError(f"{option} '{given}' does not exist; there are {', '.join(known)}")
    if settings.replicates < 0:
        raise UserError(f"{settings.replicates} replicates: 0 or more are needed, such as 1000")
    if not 0 < settings.level < 1:
        raise UserError(f"level {settings.level}: a probability between 0 and 1 is needed, such as 0.95")
