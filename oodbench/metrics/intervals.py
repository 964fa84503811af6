"""Intervals of one method's metrics: DeLong for AUROC, order statistics for FPR95, the bootstrap for AUPR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.metrics.bootstrap import TPR, Settings, check, fpr95, fpr95_ood, generator, observed, replicates
from oodbench.metrics.delong import (
    Interval,
    Placements,
    ScorePair,
    Scores,
    ScoreSide,
    effective,
    interval,
    is_few,
    logistic_aupr,
    mean_placements,
    normal_deviate,
    on_logit_scale,
    pairs,
    placements,
    score_interval,
)
from oodbench.metrics.detection import Counts, Floats, min_accepted
from oodbench.results import METRICS

DRAWS = 10  # for each replicate of the bootstrap, which costs as much as thousands of these


class Once:
    """The images themselves, asked about single levels as resamples are."""

    def __init__(self, side: ScoreSide) -> None:
        self._starts = side.sorted.starts

    def level(self, positions: NDArray[Any] | int) -> Counts:
        """The level of the image at a sorted position (from 0)."""
        return np.searchsorted(self._starts, np.atleast_1d(positions), "right") - 1

    def under(self, levels: Counts) -> NDArray[Any]:
        """Images below a level."""
        return self._starts[levels]


def fpr_interval(found: Mapping[str, ScorePair], metric: str, settings: Settings) -> Interval:
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


def _counted(pair: ScorePair, of_id: bool) -> ScoreSide:
    return pair.ood if of_id else pair.id


def _kept(random: np.random.Generator, n: int, draws: int) -> Counts:
    """Numbers of images that the true threshold may keep of n: all but the drawn ones, or one more."""
    beyond = random.binomial(n, 1 - TPR, draws) - random.integers(0, 2, draws)
    return n - beyond.clip(0, n - 1)


def _accepted(pair: ScorePair, metric: str, settings: Settings, kept: Counts | None = None) -> Floats:
    """How many of the other side pass the thresholds that keep so many; the metric's own threshold for None."""
    one, other = Once(pair.id), Once(pair.ood)
    of_id = metric == "fpr95"
    n = (pair.id if of_id else pair.ood).n
    point = (np.array([min_accepted(n, TPR)]), TPR) if kept is None else (kept, kept / n)
    function = fpr95 if of_id else fpr95_ood
    shares: Floats = function(pair, one, other, settings.at95, *point)
    return shares * _counted(pair, of_id).n


def _shares(
    found: Mapping[str, ScorePair], accepted: Mapping[str, Floats], extra: int, of_id: bool, settings: Settings
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
    found: Mapping[str, ScorePair], short: Sequence[int], high: Floats, metric: str, settings: Settings
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
            few = min_accepted(n, TPR)
            random = generator(f"continued {'id' if of_id else name}", settings.seed)
            tpr = random.beta(few, n - few + 1, draws)
            with np.errstate(divide="ignore"):
                odds = shares[i] / (1 - shares[i]) * (TPR / (1 - TPR)) * ((1 - tpr) / tpr)
                out[i] = 1 / (1 + 1 / odds)
    return out


# Percentiles of AUPR, which is skewed near 1, cover too little on hundreds of images.
METHODS = {
    "auroc": "DeLong, logit; score interval where few are lost",
    "fpr95": "binomial threshold, Clopper-Pearson",
    "fpr95_ood": "binomial threshold, Clopper-Pearson",
    "aupr_in": "bootstrap standard error, logit; that of logistic scores where few are lost",
    "aupr_out": "bootstrap standard error, logit; that of logistic scores where few are lost",
}
ENGINE = 2  # raise when the same scores give other intervals than before
_RESAMPLED = ("aupr_in", "aupr_out")


@dataclass(frozen=True)
class Intervals:
    """OOD set, or group of sets for the mean ("": all) -> metric -> the interval."""

    sets: dict[str, dict[str, Interval]]
    means: dict[str, dict[str, Interval]]


def intervals(scores: Scores, settings: Settings | None = None, what: str = "scores") -> Intervals:
    """Intervals of every metric on every OOD set and of the means, which resample the ID images once for all sets.

    With 0 replicates, AUROC alone has them. UserError for scores or settings that cannot be.
    """
    settings = settings or Settings()
    check(settings)
    found = pairs(scores, what)
    placed = {name: placements(pair) for name, pair in found.items()}
    means = scores.means()
    sets: dict[str, dict[str, Interval]] = {name: {} for name in found}
    groups: dict[str, dict[str, Interval]] = {group: {} for group in means}
    drawn = replicates([found], settings, _RESAMPLED) if settings.replicates else {}
    position = {name: j for j, name in enumerate(found)}
    values = {name: observed(pair, settings, _RESAMPLED) for name, pair in found.items()} if drawn else {}
    columns = [(sets[name], [name]) for name in sets] + [(groups[group], names) for group, names in means.items()]
    for column, names in columns:
        chosen = {name: found[name] for name in names}
        area = mean_placements([placed[name] for name in names])
        column["auroc"] = interval(area, settings.level)
        for metric in METRICS[1:] if drawn else ():
            if any(min(pair.id.n, pair.ood.n) < 2 for pair in chosen.values()):
                column[metric] = 0.0, 1.0  # one image says nothing about others
            elif metric in _RESAMPLED:
                value = sum(values[name][metric] for name in names) / len(names)
                resamples = drawn[metric][0][[position[name] for name in names]].mean(axis=0)
                column[metric] = _aupr(metric, value, resamples, area, settings.level)
            else:
                column[metric] = fpr_interval(chosen, metric, settings)
    return Intervals(sets, groups)


def _aupr(metric: str, value: float, resamples: Floats, area: Placements, level: float) -> Interval:
    """From the resamples' deviation; where it rests on few images, wide enough for logistic scores of such an AUROC."""
    error = float(resamples.std(ddof=1)) if resamples.size > 1 else 0.0
    low = high = value
    if error > 0 and 1e-9 < value < 1 - 1e-9:
        low, high = on_logit_scale(value, error, level)
    n, sizes = area.id.size, [part.size for part in area.ood]
    m = effective(sizes)
    if error <= 0 or is_few(value, n if metric == "aupr_in" else m):
        ends = []
        for auroc in score_interval(min(max(area.auroc, 0.0), 1.0), n, m, normal_deviate(level)):
            ratios = [size / n if metric == "aupr_in" else n / size for size in sizes]
            ends.append(sum(logistic_aupr(auroc, ratio) for ratio in ratios) / len(ratios))
        low, high = min(low, ends[0]), max(high, ends[1])
    return low, high


def methods(settings: Settings) -> Mapping[str, str]:
    """How each metric's intervals are made, for the row that holds them."""
    return METHODS if settings.replicates else {"auroc": METHODS["auroc"]}
