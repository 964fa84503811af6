"""AUROC, FPR95 and AUPR, how sure they are, and which differences between methods are more than chance."""

from __future__ import annotations

from oodbench.metrics.bootstrap import Settings
from oodbench.metrics.delong import Scores, auroc_interval, auroc_variance
from oodbench.metrics.detection import (
    AT95,
    AUPR,
    INTEGERS,
    Floats,
    Metrics,
    Sorted,
    check_options,
    evaluate,
    exact,
    fewest,
    fpr_at_tpr,
    metrics_of,
    sort_scores,
    tally_of,
    threshold_at_tpr,
)
from oodbench.metrics.intervals import Intervals, intervals
from oodbench.metrics.significance import Difference, Differences, Marks, compare, holm, indistinguishable

__all__ = [
    "AT95",
    "AUPR",
    "INTEGERS",
    "Difference",
    "Differences",
    "Floats",
    "Intervals",
    "Marks",
    "Metrics",
    "Scores",
    "Settings",
    "Sorted",
    "auroc_interval",
    "auroc_variance",
    "check_options",
    "compare",
    "evaluate",
    "exact",
    "fewest",
    "fpr_at_tpr",
    "holm",
    "indistinguishable",
    "intervals",
    "metrics_of",
    "sort_scores",
    "tally_of",
    "threshold_at_tpr",
]
