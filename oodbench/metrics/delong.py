"""DeLong's variance of AUROC, from ranks: E. DeLong et al. (1988), computed as X. Sun and W. Xu (2014) do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oodbench.errors import UserError
from oodbench.metrics.detection import Floats
from oodbench.metrics.few import Interval, effective, is_few, score_interval
from oodbench.metrics.pairs import Pair, pair, side

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


def placements(pair: Pair) -> Placements:
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
