"""AUROC, FPR95 and AUPR, their confidence intervals, and paired tests of the differences between methods."""

from __future__ import annotations

from oodbench.metrics.bootstrap import Settings
from oodbench.metrics.delong import Scores, auroc_interval, auroc_variance
from oodbench.metrics.detection import (
    AT95,
    AUPR,
    INTEGERS,
    Floats,
    Metrics,
    RocPoint,
    ScoreSet,
    auroc,
    check_options,
    evaluate,
    exact,
    false_positive_rate,
    fpr_at_tpr,
    metrics_of,
    min_accepted,
    score_set,
    threshold_at_tpr,
    threshold_counts,
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
    "RocPoint",
    "ScoreSet",
    "Scores",
    "Settings",
    "auroc",
    "auroc_interval",
    "auroc_variance",
    "check_options",
    "compare",
    "evaluate",
    "exact",
    "false_positive_rate",
    "fpr_at_tpr",
    "holm",
    "indistinguishable",
    "intervals",
    "metrics_of",
    "min_accepted",
    "score_set",
    "threshold_at_tpr",
    "threshold_counts",
]
