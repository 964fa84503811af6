"""Comparison of methods on the same images: paired tests, and which methods are not worse than the best by chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from oodbench.errors import UserError, did_you_mean
from oodbench.metrics.bootstrap import Settings, check, observed, replicates
from oodbench.metrics.delong import Placements, Scores, mean_placements, pairs, placements
from oodbench.metrics.detection import Floats
from oodbench.results import METRICS

HIGHER = ("auroc", "aupr_in", "aupr_out")  # better when higher


@dataclass(frozen=True)
class Difference:
    """One method's metric minus another's on the same images, its standard error, and the two-sided p value."""

    value: float
    error: float
    p: float


@dataclass(frozen=True)
class Differences:
    """Differences per OOD set, and of the mean per group of sets; group "" is all of them."""

    sets: dict[str, Difference]
    means: dict[str, Difference]


@dataclass(frozen=True)
class Marks:
    """OOD set, or group of sets for the mean ("": all) -> metric -> methods not distinguishable from the best."""

    sets: dict[str, dict[str, frozenset[str]]]
    means: dict[str, dict[str, frozenset[str]]]


def compare(a: Scores, b: Scores, metric: str = "auroc", settings: Settings | None = None) -> Differences:
    """Test whether two methods differ on the same images: DeLong for AUROC, else the paired bootstrap.

    UserError when their sets or numbers of images differ. The p values are not adjusted: see `holm`.
    """
    table = _Table({"a": a, "b": b}, (metric,), settings or Settings())
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
    """Per OOD set, mean and metric: the best method, and all whose difference from it may be chance.

    The best is tested against every other method in pairs (see `compare`). As it was chosen on the same images, each p
    value counts for all pairs that could have been chosen (Bonferroni): k (k - 1) / 2 of k methods. The chance that any
    method as good as the best is left out is then at most `alpha`, as far as the tests of pairs hold theirs.
    """
    labels = list(methods)
    if not labels:
        return Marks({}, {})
    table = _Table(methods, metrics, settings or Settings())
    compared = len(labels) * (len(labels) - 1) / 2

    def marks(names: Sequence[str]) -> dict[str, frozenset[str]]:
        found = {}
        for metric in metrics:
            values = [table.value(metric, names, i) for i in range(len(labels))]
            best = values.index(max(values) if metric in HIGHER else min(values))
            others = [i for i in range(len(labels)) if i != best]
            kept = [labels[i] for i in others if compared * table.difference(metric, names, i, best).p > alpha]
            found[metric] = frozenset([labels[best], *kept])
        return found

    scores = methods[labels[0]]
    return Marks(
        {name: marks((name,)) for name in scores.ood},
        {group: marks(names) for group, names in scores.means().items()},
    )


def holm(p: Sequence[float]) -> list[float]:
    """p values adjusted for so many tests (S. Holm 1979), in the same order: reject those at most alpha."""
    adjusted = [1.0] * len(p)
    least = 0.0
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        least = max(least, min(1.0, (len(p) - rank) * p[i]))
        adjusted[i] = least
    return adjusted


class _Table:
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
        self._values = [{name: observed(pair, settings, metrics) for name, pair in one.items()} for one in self._pairs]
        self._replicates = replicates(self._pairs, settings, resampled) if resampled and settings.replicates else {}
        self._placements: list[dict[str, Placements]] = []
        if "auroc" in metrics:
            self._placements = [{name: placements(pair) for name, pair in one.items()} for one in self._pairs]

    def value(self, metric: str, names: Sequence[str], i: int) -> float:
        """A method's mean over sets."""
        return sum(self._values[i][name][metric] for name in names) / len(names)

    def difference(self, metric: str, names: Sequence[str], i: int, j: int) -> Difference:
        """Of two methods' means over sets."""
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
    """UserError unless all methods scored the same sets, and as many images of each."""
    sizes = {label: {"ID": len(one.id), **{k: len(v) for k, v in one.ood.items()}} for label, one in methods.items()}
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
    """Two-sided p value of a difference that is normal with this standard error."""
    if math.isnan(error) or abs(value) < 1e-12:
        return Difference(value, error, 1.0)
    return Difference(value, error, math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else 0.0)
