"""The old name of oodbench.metrics: works, with a DeprecationWarning."""

from __future__ import annotations

import warnings

from oodbench.metrics import (
    Difference,
    Differences,
    Intervals,
    Marks,
    Scores,
    Settings,
    auroc_interval,
    auroc_variance,
    compare,
    holm,
    indistinguishable,
    intervals,
)

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

warnings.warn("oodbench.statistics is now oodbench.metrics", DeprecationWarning, stacklevel=2)
