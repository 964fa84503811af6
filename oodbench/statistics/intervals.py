"""Intervals of one method's metrics: DeLong for AUROC, the bootstrap for the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from oodbench.metrics import Floats
from oodbench.result import METRICS
from oodbench.statistics.bootstrap import Settings, check, observed, replicates
from oodbench.statistics.delong import Interval, interval, mean_placements, on_logit_scale, placements
from oodbench.statistics.pairs import Scores, pairs

# Percentiles of AUPR, which is skewed near 1, cover too little on hundreds of images.
METHODS = {
    "auroc": "DeLong, logit",
    "fpr95": "bootstrap percentiles",
    "fpr95_ood": "bootstrap percentiles",
    "aupr_in": "bootstrap standard error, logit",
    "aupr_out": "bootstrap standard error, logit",
}
ENGINE = 1  # raise when the same scores give other intervals than before


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
    sets = {name: {"auroc": interval(one, settings.level)} for name, one in placed.items()}
    groups = {
        group: {"auroc": interval(mean_placements([placed[name] for name in names]), settings.level)}
        for group, names in means.items()
    }
    resampled = [metric for metric in METRICS if metric != "auroc"] if settings.replicates else []
    drawn = replicates([found], settings, resampled) if resampled else {}
    position = {name: j for j, name in enumerate(found)}
    few = {name: min(pair.id.n, pair.ood.n) < 2 for name, pair in found.items()}
    values = {name: observed(pair, settings, resampled) for name, pair in found.items()} if resampled else {}
    for metric in resampled:
        columns = [(sets[name], [name]) for name in sets] + [(groups[group], names) for group, names in means.items()]
        for column, names in columns:
            if any(few[name] for name in names):  # one image, drawn again and again, says nothing about others
                column[metric] = 0.0, 1.0
                continue
            value = sum(values[name][metric] for name in names) / len(names)
            resamples = drawn[metric][0][[position[name] for name in names]].mean(axis=0)
            column[metric] = _resampled(metric, value, resamples, settings.level)
    return Intervals(sets, groups)


def _resampled(metric: str, value: float, resamples: Floats, level: float) -> Interval:
    if metric.startswith("aupr") and 1e-9 < value < 1 - 1e-9 and resamples.size > 1:
        return on_logit_scale(value, float(resamples.std(ddof=1)), level)
    low, high = np.quantile(resamples, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def methods(settings: Settings) -> Mapping[str, str]:
    """How each metric's intervals are made, for the row that holds them."""
    return METHODS if settings.replicates else {"auroc": METHODS["auroc"]}
