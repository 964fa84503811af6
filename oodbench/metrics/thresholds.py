"""Thresholds: intervals of both FPR95s, from where the threshold may lie and how many images pass it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.metrics.bootstrap import TPR, Settings, fpr95, fpr95_ood
from oodbench.metrics.detection import Counts, Floats, fewest
from oodbench.metrics.draws import generator
from oodbench.metrics.pairs import Pair, Side

Interval = tuple[float, float]

DRAWS = 10  # for each replicate of the bootstrap, which costs as much as thousands of these


class Once:
    """The images themselves, asked about single levels as resamples are."""

    def __init__(self, side: Side) -> None:
        self._starts = side.sorted.starts

    def level(self, positions: NDArray[Any] | int) -> Counts:
        """The level of the image at a sorted position (from 0)."""
        return np.searchsorted(self._starts, np.atleast_1d(positions), "right") - 1

    def under(self, levels: Counts) -> NDArray[Any]:
        """Images below a level."""
        return self._starts[levels]


def fpr_interval(found: Mapping[str, Pair], metric: str, settings: Settings) -> Interval:
    """The interval of one set's FPR95 (`fpr95` or `fpr95_ood`), or of the mean over sets with the same ID images.

    The side that sets the threshold has binomially many images beyond the point that 95 % of all there could be keep:
    drawn numbers of them say where that point may lie among its scores. Of the other side, the share beyond such a
    point has Clopper and Pearson's distributions, one for each end of the interval.
    """
    draws = DRAWS * settings.replicates
    of_id = metric == "fpr95"  # whether ID sets the threshold, and each OOD set is counted
    kept, accepted = {}, {}
    for name, pair in found.items():
        side = pair.id if of_id else pair.ood
        kept[name] = _kept(generator(f"threshold {'id' if of_id else name}", settings.seed), side.n, draws)
        accepted[name] = _accepted(pair, metric, settings, kept[name])
    low, high = (_shares(found, accepted, extra, of_id, settings) for extra in (0, 1))
    tail = (1 - settings.level) / 2
    values = [float(_accepted(pair, metric, settings)[0]) / _counted(pair, of_id).n for pair in found.values()]
    ends = [float(np.quantile(low.mean(axis=0), tail)), float(np.quantile(high.mean(axis=0), 1 - tail))]
    short = [i for i, pair in enumerate(found.values()) if TPR ** (pair.id if of_id else pair.ood).n > tail]
    if short:
        ends.append(float(np.quantile(_continued(found, short, high, metric, settings).mean(axis=0), 1 - tail)))
    mean = sum(values) / len(values)
    return min(ends[0], mean), max(*ends[1:], mean)


def _counted(pair: Pair, of_id: bool) -> Side:
    return pair.ood if of_id else pair.id


def _kept(random: np.random.Generator, n: int, draws: int) -> Counts:
    """Numbers of images that the true threshold may keep of n: all but the drawn ones, or one more."""
    beyond = random.binomial(n, 1 - TPR, draws) - random.integers(0, 2, draws)
    return n - beyond.clip(0, n - 1)


def _accepted(pair: Pair, metric: str, settings: Settings, kept: Counts | None = None) -> Floats:
    """How many of the other side pass the thresholds that keep so many; the metric's own threshold for None."""
    one, other = Once(pair.id), Once(pair.ood)
    of_id = metric == "fpr95"
    n = (pair.id if of_id else pair.ood).n
    point = (np.array([fewest(n, TPR)]), TPR) if kept is None else (kept, kept / n)
    function = fpr95 if of_id else fpr95_ood
    shares: Floats = function(pair, one, other, settings.at95, *point)
    return shares * _counted(pair, of_id).n


def _shares(
    found: Mapping[str, Pair], accepted: Mapping[str, Floats], extra: int, of_id: bool, settings: Settings
) -> Floats:
    """True shares of the counted side for accepted numbers [sets, draws]; `extra` 0 for the lower end, 1 for the upper.

    ID images, which all sets share, have their shares of all there could be in common: the sets' are sums of these.
    """
    if of_id:
        parts = [
            _beta(generator(f"passed {name}", settings.seed), accepted[name][None], pair.ood.n, extra)
            for name, pair in found.items()
        ]
        return np.concatenate(parts)
    n = next(iter(found.values())).id.n
    return _beta(generator("passed id", settings.seed), np.stack(list(accepted.values())), n, extra)


def _beta(random: np.random.Generator, counts: Floats, n: int, extra: int) -> Floats:
    """Draws from Beta(k + extra, n - k + 1 - extra) for counts k [sets, draws] of the same n images.

    They are order statistics of one uniform sample for all sets, so that a set with more accepted images has no less.
    """
    order = np.argsort(counts, axis=0, kind="stable")
    ascending = np.take_along_axis(counts, order, axis=0)
    shapes = np.diff(ascending, axis=0, prepend=0.0)
    shapes[0] += extra
    sums = np.cumsum(random.standard_gamma(shapes.clip(0)), axis=0)
    total = sums[-1] + random.standard_gamma((n + 1 - extra - ascending[-1]).clip(0))
    out = np.empty_like(sums)
    np.put_along_axis(out, order, sums / total, axis=0)
    return out


def _continued(
    found: Mapping[str, Pair], short: Sequence[int], high: Floats, metric: str, settings: Settings
) -> Floats:
    """As `high`, but for sets whose threshold may lie beyond all images of its side.

    There the curve is continued from the metric's own threshold, whose true TPR has a beta distribution, as that of
    logistic scores with the same spread: the odds of FPR and TPR keep their ratio.
    """
    of_id, draws = metric == "fpr95", high.shape[1]
    out = high.copy()
    accepted = {name: np.full(draws, _accepted(pair, metric, settings)[0]) for name, pair in found.items()}
    shares = _shares(found, accepted, 1, of_id, settings)
    for i, (name, pair) in enumerate(found.items()):
        if i in short:
            n = (pair.id if of_id else pair.ood).n
            few = fewest(n, TPR)
            random = generator(f"continued {'id' if of_id else name}", settings.seed)
            tpr = random.beta(few, n - few + 1, draws)
            with np.errstate(divide="ignore"):
                odds = shares[i] / (1 - shares[i]) * (TPR / (1 - TPR)) * ((1 - tpr) / tpr)
                out[i] = 1 / (1 + 1 / odds)
    return out
