"""Statistics: how sure the numbers of a row are, and which differences between methods are more than chance."""

from __future__ import annotations

from oodbench.statistics.bootstrap import Settings
from oodbench.statistics.comparison import Difference, Differences, Marks, compare, holm, indistinguishable
from oodbench.statistics.delong import auroc_interval, auroc_variance
from oodbench.statistics.intervals import Intervals, intervals
from oodbench.statistics.pairs import Scores

__all__ = [
    "Difference",
    "Differences",
    "Intervals",
    "Marks",
    "Scores",
    "Settings",
    "auroc_interval",
    "auroc_variance",
    "compare",
    "holm",
    "indistinguishable",
    "intervals",
]
