"""DeLong's variance of AUROC, from ranks: E. DeLong et al. (1988), computed as X. Sun and W. Xu (2014) do."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics.detection import Counts, Floats, ScoreSet, score_set

Interval = tuple[float, float]

FEW = 5.0  # images; under so many, normal approximations of shares are not used by convention
_MOST = 200.0  # of the logarithm of odds: an AUROC that is 1 in floating point
_LOG_ODDS = np.arange(-60.0, 60.0, 0.05)


def is_few(value: float, images: float) -> bool:
    """Whether less than `FEW` of so many images are lost by an area, or won where it is near 0."""
    return images * min(value, 1 - value) < FEW


def effective(sizes: Sequence[int]) -> float:
    """Size of one set that is as certain as the mean over sets of these sizes."""
    return len(sizes) ** 2 / sum(1 / size for size in sizes)


def score_interval(value: float, n: float, m: float, z: float) -> Interval:
    """The interval of an AUROC on n and m images, z normal deviates to each side, that takes no variance from them.

    Both ends lie z of their own standard errors from the value, as in R. G. Newcombe (2006), method 5, here with the
    variance of logistic scores. At a value of 1 the upper end is 1, and the lower one is below it.
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
    """Area under precision and recall where both sides' scores are logistic with the same spread.

    `ratio` is the number of negatives for each positive.
    """
    odds, constant = np.exp(_LOG_ODDS), math.exp(logistic_constant(auroc))
    lost = ratio * (1 + odds) / (odds + constant + ratio * (1 + odds))  # 1 - precision, where recall has these odds
    density = odds / (1 + odds) ** 2
    return float(1 - np.trapezoid(lost * density, _LOG_ODDS))


def logistic_constant(auroc: float) -> float:
    """Of logistic scores with an AUROC the logarithm of what the odds of TPR and FPR differ by, at any threshold."""
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
    """Variance of the share of one side that an image of the other is right about, in either direction."""
    x = abs(log_constant)
    if x < 0.1:
        return 1 / 12
    constant = math.exp(x)
    square = (constant - 1 / constant - 2 * x) * constant / (constant - 1) ** 3
    return square - (1 - _logistic_auroc(x)) ** 2


def _root(function: Callable[[float], float], start: float, end: float) -> float:
    """Where a function that is not positive at the start becomes positive on the way to the end."""
    for _ in range(64):
        middle = (start + end) / 2
        if function(middle) > 0:
            end = middle
        else:
            start = middle
    return (start + end) / 2


@dataclass(frozen=True, eq=False)
class Scores:
    """One method's scores, higher for ID: [images] of the ID set and of each OOD set, in the order of the image lists.

    `groups` names the group ("near", "far") of the OOD sets that have one.
    """

    id: NDArray[Any]
    ood: Mapping[str, NDArray[Any]]
    groups: Mapping[str, str] = field(default_factory=dict)

    def means(self) -> dict[str, list[str]]:
        """Group -> its OOD sets; group "" is all of them."""
        named = {group: [name for name in self.ood if self.groups.get(name) == group] for group in self._named()}
        return {"": list(self.ood), **named}

    def _named(self) -> list[str]:
        return list(dict.fromkeys(group for name in self.ood if (group := self.groups.get(name, ""))))


@dataclass(frozen=True, eq=False)
class ScoreSide:
    """Scores of one image set in ascending order: sorted position -> image, and the levels of tied ones."""

    sorted: ScoreSet
    order: Counts

    @property
    def n(self) -> int:
        return self.order.size

    def cells(self, times: NDArray[np.uint8]) -> NDArray[Any]:
        """Times drawn per image [replicates, n] as those per level [replicates, levels], ascending."""
        ascending = np.take(times, self.order, axis=1)
        if self.sorted.levels.size < self.n:
            return np.add.reduceat(ascending, self.sorted.starts[:-1], axis=1, dtype=np.uint32)
        return ascending

    def by_image(self, of_levels: Floats) -> Floats:
        """One number per level as one per image, in the order of the image list."""
        out = np.empty(self.n)
        out[self.order] = np.repeat(of_levels, np.diff(self.sorted.starts))
        return out


@dataclass(frozen=True, eq=False)
class ScorePair:
    """ID and OOD sides, and for each level of one side how many levels of the other lie below it, or not above it."""

    id: ScoreSide
    ood: ScoreSide
    id_over: Counts  # [ID levels]: OOD levels below
    id_upto: Counts  # OOD levels below or equal
    ood_over: Counts  # [OOD levels]: ID levels below
    ood_upto: Counts


def side(scores: NDArray[Any], what: str) -> ScoreSide:
    """Sort one image set's scores. UserError when they are none, not numbers of one dimension, or NaN."""
    found = score_set(scores, what)
    return ScoreSide(found, np.argsort(found.given))


def pair(id: ScoreSide, ood: ScoreSide) -> ScorePair:
    """Place the levels of each side among those of the other."""
    a, b = id.sorted.levels, ood.sorted.levels
    id_over, ood_over = np.searchsorted(b, a), np.searchsorted(a, b)
    shared = np.take(b, id_over, mode="clip") == a
    if not shared.any():  # the same objects: no level is tied, and sums up to one are sums below it
        return ScorePair(id, ood, id_over, id_over, ood_over, ood_over)
    return ScorePair(id, ood, id_over, id_over + shared, ood_over, ood_over + (np.take(a, ood_over, mode="clip") == b))


def pairs(scores: Scores, what: str = "scores") -> dict[str, ScorePair]:
    """OOD set -> its pair; the ID side is sorted once. UserError without OOD sets or for scores that are refused."""
    if not scores.ood:
        raise UserError(f"{what}: no OOD set to compare with")
    id = side(scores.id, f"{what} on ID")
    return {name: pair(id, side(values, f"{what} on {name}")) for name, values in scores.ood.items()}


SCALES = ("logit", "plain")


@dataclass(frozen=True, eq=False)
class Placements:
    """Per image, in list order, the share of the other side that it is right about, ties counting half.

    `id` [n_id], and for every OOD set of a mean its `ood` [n_ood]; AUROC is the mean of either. Placements of several
    sets, or the difference of two methods', are again placements: everything is linear in them.
    """

    id: Floats
    ood: tuple[Floats, ...]

    @property
    def auroc(self) -> float:
        return float(self.id.mean())

    @property
    def variance(self) -> float:
        """Variance of `auroc`; NaN when a side has one image, from which none can be had."""
        if min(self.id.size, *(part.size for part in self.ood)) < 2:
            return math.nan
        return sum(float(part.var(ddof=1)) / part.size for part in (self.id, *self.ood))

    def __sub__(self, other: Placements) -> Placements:
        return Placements(self.id - other.id, tuple(a - b for a, b in zip(self.ood, other.ood, strict=True)))


def placements(pair: ScorePair) -> Placements:
    """Placements of one ID and one OOD set; O(n) after sorting, exact with ties."""
    id, ood = pair.id.sorted, pair.ood.sorted
    of_id = (ood.starts[pair.id_over] + ood.starts[pair.id_upto]) / (2 * pair.ood.n)
    of_ood = 1 - (id.starts[pair.ood_over] + id.starts[pair.ood_upto]) / (2 * pair.id.n)
    return Placements(pair.id.by_image(of_id), (pair.ood.by_image(of_ood),))


def mean_placements(several: Sequence[Placements]) -> Placements:
    """Placements of the mean AUROC over OOD sets that share their ID images."""
    k = len(several)
    id = np.mean([one.id for one in several], axis=0)
    return Placements(id, tuple(part / k for one in several for part in one.ood))


def auroc_variance(id: NDArray[Any], ood: NDArray[Any]) -> float:
    """DeLong's variance of the AUROC of scores [n_id] v [n_ood]; NaN when a side has one image."""
    return placements(pair(side(id, "ID"), side(ood, "OOD"))).variance


def auroc_interval(id: NDArray[Any], ood: NDArray[Any], level: float = 0.95, scale: str = "logit") -> Interval:
    """The interval of the AUROC of scores [n_id] v [n_ood] that covers the true one with probability `level`.

    `logit`: symmetric on the scale of log(a / (1 - a)), which stays within 0 and 1; where so few images are misplaced
    that their variance says little, or all scores tie, at least as wide as `score_interval`'s. `plain`: AUROC plus and
    minus so many standard errors, cut at 0 and 1.
    """
    return interval(placements(pair(side(id, "ID"), side(ood, "OOD"))), level, scale)


def interval(placed: Placements, level: float = 0.95, scale: str = "logit") -> Interval:
    """As `auroc_interval`, from placements, those of a mean included."""
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
    if not ends or is_few(value, min(n, m)):
        ends += score_interval(value, n, m, normal_deviate(level))
    return min(ends), max(ends)


def on_logit_scale(value: float, error: float, level: float) -> Interval:
    """The interval around a share with a standard error that is symmetric on the scale of log(a / (1 - a))."""
    half = normal_deviate(level) * error / (value * (1 - value))
    centre = math.log(value / (1 - value))
    return _expit(centre - half), _expit(centre + half)


def normal_deviate(level: float) -> float:
    """How many standard errors to each side hold a normal value with this probability."""
    from statistics import NormalDist

    return NormalDist().inv_cdf((1 + level) / 2)


def _expit(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > 0 else 1 - 1 / (1 + math.exp(min(x, 700.0)))
