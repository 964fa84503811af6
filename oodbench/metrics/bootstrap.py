"""Bootstrap: metrics of many resamples of the images, from counts on scores that are sorted once."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from oodbench.errors import UserError
from oodbench.metrics import detection as metrics
from oodbench.metrics.detection import Counts, Floats, fewest
from oodbench.metrics.draws import Draws, chunks
from oodbench.metrics.pairs import Pair
from oodbench.metrics.sums import Below, Blocks, Scratch, Sums
from oodbench.results import METRICS

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
    methods: Sequence[Mapping[str, Pair]], settings: Settings, wanted: Collection[str] = METRICS
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
    scratch = Scratch()
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


def observed(pair: Pair, settings: Settings, wanted: Collection[str] = METRICS) -> dict[str, float]:
    """Metric -> its value on the images themselves, every one drawn once."""
    scratch = Scratch()
    id = Sums(pair.id, np.ones((1, pair.id.n), np.uint8), scratch, "id")
    ood = Sums(pair.ood, np.ones((1, pair.ood.n), np.uint8), scratch, "ood")
    found = measured(Drawn(pair, id, ood, scratch), settings, wanted)
    return {metric: float(values[0]) for metric, values in found.items()}


@dataclass(frozen=True)
class Drawn:
    """Some resamples of a pair."""

    pair: Pair
    id: Sums
    ood: Sums
    scratch: Scratch


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


def fprs(pair: Pair, id: Below, ood: Below, rule: str, wanted: Collection[str]) -> dict[str, Floats]:
    """Both FPR95s, as far as they are wanted, per replicate."""
    found = {}
    if "fpr95" in wanted:
        found["fpr95"] = fpr95(pair, id, ood, rule, fewest(pair.id.n, TPR), TPR)
    if "fpr95_ood" in wanted:
        found["fpr95_ood"] = fpr95_ood(pair, id, ood, rule, fewest(pair.ood.n, TPR), TPR)
    return found


def fpr95(pair: Pair, id: Below, ood: Below, rule: str, kept: Counts | int, tpr: Floats | float) -> Floats:
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


def fpr95_ood(pair: Pair, id: Below, ood: Below, rule: str, kept: Counts | int, tpr: Floats | float) -> Floats:
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
