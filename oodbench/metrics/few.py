"""Few errors: intervals of areas where so few images are misplaced that a standard error from them says little."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

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
