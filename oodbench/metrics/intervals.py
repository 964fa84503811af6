"""Confidence intervals of one method's metrics: DeLong for AUROC, order statistics for FPR95, bootstrap for AUPR."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.metrics.bootstrap import Settings, check, fpr95, fpr95_ood, generator, observed, replicates
from oodbench.metrics.counts import Counts
from oodbench.metrics.delong import (
    Placements,
    ScorePair,
    Scores,
    ScoreSide,
    effective,
    has_few_errors,
    interval,
    logistic_aupr,
    mean_placements,
    normal_deviate,
    on_logit_scale,
    placements,
    score_interval,
)
from oodbench.metrics.delong import (
    pairs as pairs_of,
)
from oodbench.metrics.detection import TPR, Floats, min_accepted
from oodbench.results import METRICS, Interval

DRAWS = 10  # for each replicate of the bootstrap, which costs as much as thousands of these draws


class ObservedCounts:
    """Counts per level (distinct score) of the images themselves; implements `bootstrap.LevelCounts`."""

    def __init__(self, side: ScoreSide) -> None:
        self._starts = side.sorted.starts

    def level_at(self, positions: NDArray[Any] | int) -> Counts:
        """Return the level of the image at each ascending position from 0."""
        return np.searchsorted(self._starts, np.atleast_1d(positions), "right") - 1

    def count_below(self, levels: Counts) -> NDArray[Any]:
        """Return the number of images below each level."""
        return self._starts[levels]


def fpr_interval(pairs: Mapping[str, ScorePair], metric: str, settings: Settings) -> Interval:
    """Return the interval of one set's FPR95 (`fpr95` or `fpr95_ood`), or of the mean over sets that share ID images.

    Among the n images of the side that sets the threshold, the number beyond the population's threshold is binomial;
    draws of it give possible positions of that threshold among the scores. The population's fraction of the other side
    beyond such a position has Clopper and Pearson's distributions, one for each end.
    """
    draws = DRAWS * settings.replicates
    of_id = metric == "fpr95"  # whether ID sets the threshold, and each OOD set is counted
    accepted = {}
    for name, pair in pairs.items():
        n = _threshold_side(pair, of_id).n
        positions = _threshold_positions(generator(f"threshold {'id' if of_id else name}", settings.seed), n, draws)
        accepted[name] = _accepted(pair, metric, settings, positions)
    low, high = (_fractions(pairs, accepted, extra, of_id, settings) for extra in (0, 1))
    tail = (1 - settings.level) / 2
    values = [float(_accepted(pair, metric, settings)[0]) / _counted_side(pair, of_id).n for pair in pairs.values()]
    ends = [float(np.quantile(low.mean(axis=0), tail)), float(np.quantile(high.mean(axis=0), 1 - tail))]
    short = [i for i, pair in enumerate(pairs.values()) if TPR ** _threshold_side(pair, of_id).n > tail]
    if short:
        ends.append(float(np.quantile(_continued(pairs, short, high, metric, settings).mean(axis=0), 1 - tail)))
    mean = sum(values) / len(values)
    return min(ends[0], mean), max(*ends[1:], mean)


def _threshold_side(pair: ScorePair, of_id: bool) -> ScoreSide:
    return pair.id if of_id else pair.ood


def _counted_side(pair: ScorePair, of_id: bool) -> ScoreSide:
    return pair.ood if of_id else pair.id


def _threshold_positions(random: np.random.Generator, n: int, draws: int) -> Counts:
    """Draw the number of n images that the population's threshold accepts: n less a binomial number, or one more."""
    rejected = random.binomial(n, 1 - TPR, draws) - random.integers(0, 2, draws)
    return n - rejected.clip(0, n - 1)


def _accepted(pair: ScorePair, metric: str, settings: Settings, positions: Counts | None = None) -> Floats:
    """Return the number of images of the counted side beyond thresholds at positions of the other side.

    With `positions` None, the threshold is the metric's own.
    """
    of_id = metric == "fpr95"
    n = _threshold_side(pair, of_id).n
    point = (np.array([min_accepted(n, TPR)]), TPR) if positions is None else (positions, positions / n)
    rate = fpr95 if of_id else fpr95_ood
    rates = rate(pair, ObservedCounts(pair.id), ObservedCounts(pair.ood), settings.at95, *point)
    return rates * _counted_side(pair, of_id).n


def _fractions(
    pairs: Mapping[str, ScorePair], accepted: Mapping[str, Floats], extra: int, of_id: bool, settings: Settings
) -> Floats:
    """Draw the population's fractions [sets, draws] of the counted side, given each set's accepted numbers [draws].

    `extra` is 0 for the lower end of the interval, 1 for the upper. For `fpr95_ood`, all sets share their ID images and
    therefore the draws.
    """
    if of_id:
        parts = [
            _beta(generator(f"passed {name}", settings.seed), accepted[name][None], pair.ood.n, extra)
            for name, pair in pairs.items()
        ]
        return np.concatenate(parts)
    n = next(iter(pairs.values())).id.n
    return _beta(generator("passed id", settings.seed), np.stack(list(accepted.values())), n, extra)


def _beta(random: np.random.Generator, counts: Floats, n: int, extra: int) -> Floats:
    """Draw from Beta(k + extra, n - k + 1 - extra) for counts k [sets, draws] of the same n images.

    The draws are order statistics of one uniform sample for all sets, so that a larger count has no smaller fraction.
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
    pairs: Mapping[str, ScorePair], short: Sequence[int], high: Floats, metric: str, settings: Settings
) -> Floats:
    """Return `high` with new draws for the sets `short`: their true threshold may lie below all images that set it.

    For these, the ROC curve is continued beyond the metric's own threshold as that of logistic scores with the same
    spread: the odds ratio of FPR and TPR stays the same. The true TPR at that threshold has a beta distribution.
    """
    of_id, draws = metric == "fpr95", high.shape[1]
    out = high.copy()
    accepted = {name: np.full(draws, _accepted(pair, metric, settings)[0]) for name, pair in pairs.items()}
    fractions = _fractions(pairs, accepted, 1, of_id, settings)
    for i, (name, pair) in enumerate(pairs.items()):
        if i in short:
            n = _threshold_side(pair, of_id).n
            fewest = min_accepted(n, TPR)
            random = generator(f"continued {'id' if of_id else name}", settings.seed)
            tpr = random.beta(fewest, n - fewest + 1, draws)
            with np.errstate(divide="ignore"):
                odds = fractions[i] / (1 - fractions[i]) * (TPR / (1 - TPR)) * ((1 - tpr) / tpr)
                out[i] = 1 / (1 + 1 / odds)
    return out


# AUPR is skewed near 1: percentile intervals would cover the true value too rarely on hundreds of images.
METHODS = {
    "auroc": "DeLong, logit; score interval where few are lost",
    "fpr95": "binomial threshold, Clopper-Pearson",
    "fpr95_ood": "binomial threshold, Clopper-Pearson",
    "aupr_in": "bootstrap standard error, logit; that of logistic scores where few are lost",
    "aupr_out": "bootstrap standard error, logit; that of logistic scores where few are lost",
}
ENGINE = 2  # increment when the same scores get different intervals
_RESAMPLED = ("aupr_in", "aupr_out")


@dataclass(frozen=True)
class Intervals:
    """Confidence intervals (lower and upper end, as fractions) of every metric.

    sets   OOD set -> metric -> interval
    means  group of OOD sets, "" for all -> metric -> interval of the mean over these sets
    """

    sets: dict[str, dict[str, Interval]]
    means: dict[str, dict[str, Interval]]


def intervals(scores: Scores, settings: Settings | None = None, what: str = "scores") -> Intervals:
    """Compute confidence intervals of every metric on every OOD set, and of the means over sets.

    Arguments:
        scores    one method's scores per image
        settings  conventions, replicates, level and seed; the defaults when None
        what      name of the scores in error messages
    Returns:
        The intervals; only AUROC has one when `settings.replicates` is 0.
    Raises:
        UserError  for scores that are empty or NaN, no OOD set, and settings out of range
    """
    settings = settings or Settings()
    check(settings)
    found = pairs_of(scores, what)
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
                column[metric] = 0.0, 1.0  # nothing can be inferred from one image
            elif metric in _RESAMPLED:
                value = sum(values[name][metric] for name in names) / len(names)
                resamples = drawn[metric][0][[position[name] for name in names]].mean(axis=0)
                column[metric] = _aupr(metric, value, resamples, area, settings.level)
            else:
                column[metric] = fpr_interval(chosen, metric, settings)
    return Intervals(sets, groups)


def _aupr(metric: str, value: float, resamples: Floats, area: Placements, level: float) -> Interval:
    """Return the interval from the standard deviation of the resamples.

    Where few images are misplaced, it is at least as wide as that of logistic scores with the same AUROC.
    """
    error = float(resamples.std(ddof=1)) if resamples.size > 1 else 0.0
    low = high = value
    if error > 0 and 1e-9 < value < 1 - 1e-9:
        low, high = on_logit_scale(value, error, level)
    n, sizes = area.id.size, [part.size for part in area.ood]
    m = effective(sizes)
    if error <= 0 or has_few_errors(value, n if metric == "aupr_in" else m):
        ends = []
        for auroc in score_interval(min(max(area.auroc, 0.0), 1.0), n, m, normal_deviate(level)):
            ratios = [size / n if metric == "aupr_in" else n / size for size in sizes]
            ends.append(sum(logistic_aupr(auroc, ratio) for ratio in ratios) / len(ratios))
        low, high = min(low, ends[0]), max(high, ends[1])
    return low, high


def methods(settings: Settings) -> Mapping[str, str]:
    """Return the interval method of each metric, as it is stored with the result."""
    return METHODS if settings.replicates else {"auroc": METHODS["auroc"]}
