"""Paired tests of methods on the same images, and which methods do not differ significantly from the best one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oodbench.errors import UserError, did_you_mean
from oodbench.metrics.bootstrap import Settings, check, observed, replicates
from oodbench.metrics.delong import Placements, Scores, mean_placements, pairs, placements
from oodbench.metrics.detection import Floats
from oodbench.results import METRICS

HIGHER_IS_BETTER = ("auroc", "aupr_in", "aupr_out")


@dataclass(frozen=True)
class Difference:
    """One method's metric minus another's on the same images.

    value  difference, as a fraction
    error  its standard error; NaN when it cannot be estimated
    p      two-sided p value; 1 when there is no standard error
    """

    value: float
    error: float
    p: float


@dataclass(frozen=True)
class Differences:
    """Differences between two methods.

    sets   OOD set -> difference
    means  group of OOD sets, "" for all -> difference of the means over these sets
    """

    sets: dict[str, Difference]
    means: dict[str, Difference]


@dataclass(frozen=True)
class Marks:
    """Methods that do not differ significantly from the best one, which is among them.

    sets   OOD set -> metric -> methods
    means  group of OOD sets, "" for all -> metric of the mean over these sets -> methods
    """

    sets: dict[str, dict[str, frozenset[str]]]
    means: dict[str, dict[str, frozenset[str]]]


def compare(a: Scores, b: Scores, metric: str = "auroc", settings: Settings | None = None) -> Differences:
    """Test whether two methods differ on the same images: by DeLong for AUROC, by the paired bootstrap for the others.

    Arguments:
        a, b      scores of the two methods, of the same images in the same order
        metric    "auroc", "fpr95", "fpr95_ood", "aupr_in" or "aupr_out"
        settings  conventions, replicates and seed; the defaults when None
    Returns:
        The differences a - b, with p values that are not adjusted for several tests (see `holm`).
    Raises:
        UserError  when sets or numbers of images differ, and for unknown metrics and settings out of range
    """
    table = _Comparison({"a": a, "b": b}, (metric,), settings or Settings())
    return Differences(
        {name: table.difference(metric, (name,), 0, 1) for name in a.ood},
        {group: table.difference(metric, names, 0, 1) for group, names in a.means().items()},
    )


def indistinguishable(
    methods: Mapping[str, Scores],
    settings: Settings | None = None,
    metrics: Sequence[str] = ("auroc", "fpr95"),
    alpha: float = 0.05,
) -> Marks:
    """Find, for every OOD set, mean and metric, the methods that do not differ significantly from the best one.

    The best method is tested against every other one (see `compare`). As it was chosen on the same images, each p value
    is corrected for all pairs that could have been tested (Bonferroni): k (k - 1) / 2 for k methods.

    Arguments:
        methods   name of each method -> its scores, all of the same images in the same order
        settings  conventions, replicates and seed; the defaults when None
        metrics   metrics to test
        alpha     maximum probability of leaving out a method that is as good as the best one
    Returns:
        The methods, the best one included.
    Raises:
        UserError  when sets or numbers of images differ, and for unknown metrics and settings out of range
    """
    labels = list(methods)
    if not labels:
        return Marks({}, {})
    table = _Comparison(methods, metrics, settings or Settings())
    tests = len(labels) * (len(labels) - 1) / 2

    def marks(names: Sequence[str]) -> dict[str, frozenset[str]]:
        out = {}
        for metric in metrics:
            values = [table.value(metric, names, i) for i in range(len(labels))]
            best = values.index(max(values) if metric in HIGHER_IS_BETTER else min(values))
            others = [i for i in range(len(labels)) if i != best]
            kept = [labels[i] for i in others if tests * table.difference(metric, names, i, best).p > alpha]
            out[metric] = frozenset([labels[best], *kept])
        return out

    scores = methods[labels[0]]
    return Marks(
        {name: marks((name,)) for name in scores.ood},
        {group: marks(names) for group, names in scores.means().items()},
    )


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p values for several tests by the method of S. Holm (1979).

    Arguments:
        p  p values of the tests
    Returns:
        The adjusted p values in the same order; reject the tests whose value is at most alpha.
    """
    adjusted = [1.0] * len(p)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


class _Comparison:
    """Values, placements and replicates of several methods on the same images, each computed once."""

    def __init__(self, methods: Mapping[str, Scores], metrics: Sequence[str], settings: Settings) -> None:
        check(settings)
        for metric in metrics:
            if metric not in METRICS:
                raise UserError(f"metric '{metric}' does not exist{did_you_mean(metric, METRICS)}")
        _check_same(methods)
        self._pairs = [pairs(scores, label) for label, scores in methods.items()]
        self._names = list(self._pairs[0])
        resampled = [metric for metric in metrics if metric != "auroc"]
        self._values = [
            {name: observed(pair, settings, metrics) for name, pair in of_method.items()} for of_method in self._pairs
        ]
        self._replicates = replicates(self._pairs, settings, resampled) if resampled and settings.replicates else {}
        self._placements: list[dict[str, Placements]] = []
        if "auroc" in metrics:
            self._placements = [
                {name: placements(pair) for name, pair in of_method.items()} for of_method in self._pairs
            ]

    def value(self, metric: str, names: Sequence[str], i: int) -> float:
        """Return a method's mean over sets."""
        return sum(self._values[i][name][metric] for name in names) / len(names)

    def difference(self, metric: str, names: Sequence[str], i: int, j: int) -> Difference:
        """Return the difference between two methods' means over sets."""
        value = self.value(metric, names, i) - self.value(metric, names, j)
        few = any(min(self._pairs[i][name].id.n, self._pairs[i][name].ood.n) < 2 for name in names)
        if few or (metric != "auroc" and metric not in self._replicates):
            return Difference(value, math.nan, 1.0)
        if metric == "auroc":
            variance = (self._placed(names, i) - self._placed(names, j)).variance
            return _tested(value, math.sqrt(variance))
        rows = [self._names.index(name) for name in names]
        drawn = self._replicates[metric]
        between: Floats = (drawn[i, rows] - drawn[j, rows]).mean(axis=0)
        return _tested(value, float(between.std(ddof=1)) if between.size > 1 else math.nan)

    def _placed(self, names: Sequence[str], i: int) -> Placements:
        return mean_placements([self._placements[i][name] for name in names])


def _check_same(methods: Mapping[str, Scores]) -> None:
    """Raise UserError unless all methods scored the same sets, with the same number of images."""
    sizes = {
        label: {"ID": len(scores.id), **{name: len(values) for name, values in scores.ood.items()}}
        for label, scores in methods.items()
    }
    (first, expected), *others = sizes.items()
    for label, found in others:
        if found != expected:
            raise UserError(
                f"{first} and {label} were not scored on the same images, which a paired test needs: "
                f"{_counts(expected)}; {_counts(found)}"
            )


def _counts(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {n}" for name, n in sizes.items())


def _tested(value: float, error: float) -> Difference:
    """Return a difference with its two-sided p value, assuming a normal distribution with this standard error."""
    if math.isnan(error) or abs(value) < 1e-12:
        return Difference(value, error, 1.0)
    return Difference(value, error, math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else 0.0)
