"""Intervals of one method's metrics: DeLong for AUROC, order statistics for FPR95, the bootstrap for AUPR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from oodbench.metrics.bootstrap import Settings, check, observed, replicates
from oodbench.metrics.delong import Placements, interval, mean_placements, normal_deviate, on_logit_scale, placements
from oodbench.metrics.detection import Floats
from oodbench.metrics.few import Interval, effective, is_few, logistic_aupr, score_interval
from oodbench.metrics.pairs import Scores, pairs
from oodbench.metrics.thresholds import fpr_interval
from oodbench.results import METRICS

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
