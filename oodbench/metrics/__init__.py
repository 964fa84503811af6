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
    ScoreSet,
    check_options,
    evaluate,
    exact,
    fpr_at_tpr,
    metrics_of,
    min_accepted,
    score_set,
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
    "ScoreSet",
    "Scores",
    "Settings",
    "auroc_interval",
    "auroc_variance",
    "check_options",
    "compare",
    "evaluate",
    "exact",
    "fpr_at_tpr",
    "holm",
    "indistinguishable",
    "intervals",
    "metrics_of",
    "min_accepted",
    "score_set",
    "tally_of",
    "threshold_at_tpr",
]
