"""The old name of oodbench.metrics.streaming: works, with a DeprecationWarning."""

from __future__ import annotations

import warnings

from oodbench.metrics.streaming import evaluate_shards, sort

__all__ = ["evaluate_shards", "sort"]

warnings.warn("oodbench.streaming is now oodbench.metrics.streaming", DeprecationWarning, stacklevel=2)
