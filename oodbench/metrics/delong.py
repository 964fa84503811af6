"""DeLong's variance and confidence intervals of AUROC (E. DeLong et al., 1988), from ranks (X. Sun and W. Xu, 2014).

The intervals are also used for AUPR and for the mean AUROC over several OOD sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics.counts import Counts
from oodbench.metrics.detection import Floats, ScoreSet, score_set
from oodbench.results import Interval

FEW = 5.0  # images; by convention, the normal approximation of a proportion needs at least as many
_MOST = 200.0  # largest log odds: the AUROC is 1 in floating point
_LOG_ODDS = np.arange(-60.0, 60.0, 0.05)


def has_few_errors(value: float, images: float) -> bool:
    """Return whether an area of this value, on this number of images, is fewer than `FEW` images away from 0 or 1."""
    return images * min(value, 1 - value) < FEW


def effective(sizes: Sequence[int]) -> float:
    """Return the size of a single set with the same variance as the mean over sets of these sizes."""
    return len(sizes) ** 2 / sum(1 / size for size in sizes)


def score_interval(value: float, n: float, m: float, z: float) -> Interval:
    """Return the score interval of an AUROC on n and m images, z standard errors to each side.

    It uses the variance of logistic scores, not that of the images. Each end lies z of its own standard errors from the
    value (R. G. Newcombe, 2006, method 5). At a value of 1 the upper end is 1, and the lower end is below it.
    """

    def excess(log_constant: float) -> float:
        end, spread = _logistic_auroc(log_constant), _logistic_variance(log_constant)
        variance = (end * (1 - end) + (n + m - 2) * spread) / (n * m)
        return (end - value) ** 2 - z * z * variance

    inside = logistic_constant(value)
    low = 0.0 if value <= 0 else _logistic_auroc(_root(excess, inside, -_MOST))
    high = 1.0 if value >= 1 else _logistic_auroc(_root(excess, inside, _MOST))
    return low, high


def logistic_aupr(auroc: float, ratio: float) -> float:
    """Return the AUPR of logistic scores with this AUROC and the same spread on both sides.

    `ratio` is the number of negatives per positive.
    """
    odds, constant = np.exp(_LOG_ODDS), math.exp(logistic_constant(auroc))
    lost = ratio * (1 + odds) / (odds + constant + ratio * (1 + odds))  # 1 - precision at the recall with these odds
    density = odds / (1 + odds) ** 2
    return float(1 - np.trapezoid(lost * density, _LOG_ODDS))


def logistic_constant(auroc: float) -> float:
    """Return the log odds ratio of TPR and FPR (the same at every threshold) of logistic scores with this AUROC."""
    sign = 1 if auroc >= 0.5 else -1
    return sign * _root(lambda x: _logistic_auroc(x) - max(auroc, 1 - auroc), 0.0, _MOST)


def _logistic_auroc(log_constant: float) -> float:
    if log_constant < 0:
        return 1 - _logistic_auroc(-log_constant)
    if log_constant < 0.01:
        return 0.5 + log_constant / 6
    constant = math.exp(log_constant)
    return 1 - (log_constant - 1 + 1 / constant) * constant / (constant - 1) ** 2


def _logistic_variance(log_constant: float) -> float:
    """Return the variance of an image's placement (see `Placements`) for logistic scores, equal for both sides."""
    x = abs(log_constant)
    if x < 0.1:
        return 1 / 12
    constant = math.exp(x)
    square = (constant - 1 / constant - 2 * x) * constant / (constant - 1) ** 3
    return square - (1 - _logistic_auroc(x)) ** 2


def _root(function: Callable[[float], float], start: float, end: float) -> float:
    """Find by bisection where a function becomes positive between `start`, where it is not, and `end`."""
    for _ in range(64):
        middle = (start + end) / 2
        if function(middle) > 0:
            end = middle
        else:
            start = middle
    return (start + end) / 2


@dataclass(frozen=True, eq=False)
class Scores:
    """One method's scores of the ID set and of each OOD set; a higher score means more in-distribution.

    Arguments:
        id      [n_id], in the order of the image list
        ood     name of each OOD set -> its scores [n_ood], in the order of the image list
        groups  name of an OOD set -> its group ("near", "far"), for the sets that have one
    """

    id: NDArray[Any]
    ood: Mapping[str, NDArray[Any]]
    groups: Mapping[str, str] = field(default_factory=dict)

    def means(self) -> dict[str, list[str]]:
        """Return the OOD sets of every mean, by group; group "" has all sets."""
        named = {group: [name for name in self.ood if self.groups.get(name) == group] for group in self._named()}
        return {"": list(self.ood), **named}

    def _named(self) -> list[str]:
        return list(dict.fromkeys(group for name in self.ood if (group := self.groups.get(name, ""))))


@dataclass(frozen=True, eq=False)
class ScoreSide:
    """Sorted scores of one image set; `order` [n] is the image at each ascending position."""

    sorted: ScoreSet
    order: Counts

    @property
    def n(self) -> int:
        return self.order.size

    def cells(self, times: NDArray[np.uint8]) -> NDArray[Any]:
        """Sum the draws per image [replicates, n] to draws per level [replicates, levels], in ascending order."""
        ascending = np.take(times, self.order, axis=1)
        if self.sorted.levels.size < self.n:
            return np.add.reduceat(ascending, self.sorted.starts[:-1], axis=1, dtype=np.uint32)
        return ascending

    def by_image(self, of_levels: Floats) -> Floats:
        """Expand one number per level to one per image [n], in the order of the image list."""
        out = np.empty(self.n)
        out[self.order] = np.repeat(of_levels, np.diff(self.sorted.starts))
        return out


@dataclass(frozen=True, eq=False)
class ScorePair:
    """Sorted ID and OOD scores, and for each level (distinct score) of one side the levels of the other up to it.

    ood_below, ood_up_to  [ID levels]: OOD levels below each, and below or equal
    id_below, id_up_to    [OOD levels]: ID levels below each, and below or equal
    """

    id: ScoreSide
    ood: ScoreSide
    ood_below: Counts
    ood_up_to: Counts
    id_below: Counts
    id_up_to: Counts


def side(scores: NDArray[Any], what: str) -> ScoreSide:
    """Sort the scores [n] of one image set. Raise UserError for no scores, NaN, or anything but numbers."""
    checked = score_set(scores, what)
    return ScoreSide(checked, np.argsort(checked.given))


def pair(id: ScoreSide, ood: ScoreSide) -> ScorePair:
    """Find the position of every level of each side among the levels of the other."""
    a, b = id.sorted.levels, ood.sorted.levels
    ood_below, id_below = np.searchsorted(b, a), np.searchsorted(a, b)
    shared = np.take(b, ood_below, mode="clip") == a
    if not shared.any():  # without ties between the sides, sums up to a level equal sums below it
        return ScorePair(id, ood, ood_below, ood_below, id_below, id_below)
    return ScorePair(
        id, ood, ood_below, ood_below + shared, id_below, id_below + (np.take(a, id_below, mode="clip") == b)
    )


def pairs(scores: Scores, what: str = "scores") -> dict[str, ScorePair]:
    """Return the pair of each OOD set; the ID side is sorted once. Raise UserError if there is no set, or as `side`."""
    if not scores.ood:
        raise UserError(f"{what}: no OOD set to compare with")
    id = side(scores.id, f"{what} on ID")
    return {name: pair(id, side(values, f"{what} on {name}")) for name, values in scores.ood.items()}


SCALES = ("logit", "plain")


@dataclass(frozen=True, eq=False)
class Placements:
    """DeLong's placements: for each image, the fraction of the other side that it is ranked correctly against.

    Ties count half. `id` [n_id] and the `ood` [n_ood] of every OOD set of a mean are in the order of the image lists;
    AUROC is the mean of either. The mean over several sets and the difference of two methods are placements, too,
    because AUROC is linear in them.
    """

    id: Floats
    ood: tuple[Floats, ...]

    @property
    def auroc(self) -> float:
        """AUROC, equal to `detection.auroc` up to rounding, or the mean AUROC over several OOD sets."""
        return float(self.id.mean())

    @property
    def variance(self) -> float:
        """Variance of `auroc`; NaN when a side has only one image."""
        if min(self.id.size, *(part.size for part in self.ood)) < 2:
            return math.nan
        return sum(float(part.var(ddof=1)) / part.size for part in (self.id, *self.ood))

    def __sub__(self, other: Placements) -> Placements:
        return Placements(self.id - other.id, tuple(a - b for a, b in zip(self.ood, other.ood, strict=True)))


def placements(pair: ScorePair) -> Placements:
    """Return the placements of one ID and one OOD set, in O(n) after sorting."""
    id, ood = pair.id.sorted, pair.ood.sorted
    of_id = (ood.starts[pair.ood_below] + ood.starts[pair.ood_up_to]) / (2 * pair.ood.n)
    of_ood = 1 - (id.starts[pair.id_below] + id.starts[pair.id_up_to]) / (2 * pair.id.n)
    return Placements(pair.id.by_image(of_id), (pair.ood.by_image(of_ood),))


def mean_placements(several: Sequence[Placements]) -> Placements:
    """Return the placements of the mean AUROC over OOD sets that share their ID images."""
    k = len(several)
    id = np.mean([placed.id for placed in several], axis=0)
    return Placements(id, tuple(part / k for placed in several for part in placed.ood))


def auroc_variance(id: NDArray[Any], ood: NDArray[Any]) -> float:
    """Estimate the variance of an AUROC by DeLong's method.

    Arguments:
        id   scores [n_id] of ID images; a higher score means more in-distribution
        ood  scores [n_ood] of OOD images
    Returns:
        The variance of the AUROC as a fraction; NaN when a side has only one image.
    Raises:
        UserError  for no scores, NaN, or anything but real numbers of one dimension
    """
    return placements(pair(side(id, "ID"), side(ood, "OOD"))).variance


def auroc_interval(id: NDArray[Any], ood: NDArray[Any], level: float = 0.95, scale: str = "logit") -> Interval:
    """Compute a confidence interval of an AUROC by DeLong's method.

    With perfect separation (AUROC = 1), and wherever fewer than 5 images are misplaced, DeLong's variance is too small,
    so the "logit" interval is at least as wide as a score interval with the variance of logistic scores.

    Arguments:
        id     scores [n_id] of ID images; a higher score means more in-distribution
        ood    scores [n_ood] of OOD images
        level  probability that the interval covers the true AUROC
        scale  "logit": symmetric on the scale of log(a / (1 - a)), which stays within 0 and 1; "plain": AUROC plus and
               minus a multiple of its standard error, clipped to 0 and 1
    Returns:
        The lower and the upper end, as fractions.
    Raises:
        UserError  for scores as in `auroc_variance`, an unknown scale, and a level that is not between 0 and 1
    """
    return interval(placements(pair(side(id, "ID"), side(ood, "OOD"))), level, scale)


def interval(placed: Placements, level: float = 0.95, scale: str = "logit") -> Interval:
    """Return `auroc_interval` from placements, which may be those of a mean over OOD sets."""
    if scale not in SCALES:
        raise UserError(f"scale '{scale}' does not exist; there are {', '.join(SCALES)}")
    if not 0 < level < 1:
        raise UserError(f"level {level}: a probability between 0 and 1 is needed, such as 0.95")
    value, variance = min(max(placed.auroc, 0.0), 1.0), placed.variance
    if math.isnan(variance):
        return 0.0, 1.0
    if scale == "plain":
        half = normal_deviate(level) * math.sqrt(variance)
        return max(value - half, 0.0), min(value + half, 1.0)
    n, m = placed.id.size, effective([part.size for part in placed.ood])
    ends: list[float] = []
    if variance > 0 and 1e-12 < value < 1 - 1e-12:
        ends += on_logit_scale(value, math.sqrt(variance), level)
    if not ends or has_few_errors(value, min(n, m)):
        ends += score_interval(value, n, m, normal_deviate(level))
    return min(ends), max(ends)


def on_logit_scale(value: float, error: float, level: float) -> Interval:
    """Return the interval around a fraction with a standard error that is symmetric on the logit scale."""
    half = normal_deviate(level) * error / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return _expit(centre - half), _expit(centre + half)


def normal_deviate(level: float) -> float:
    """Return the number of standard errors to each side that contain a normal value with this probability."""
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + level) / 2)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else 1 - 1 / (1 + math.exp(min(x, 700.0)))
