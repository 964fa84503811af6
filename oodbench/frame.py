"""Rows as a long pandas table."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from oodbench.results import METRICS, Result


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """One line per method, OOD set and metric; ID accuracy with `ood` empty."""
    lines = []
    for result in results:
        head = {
            "method": result.method,
            "label": result.label,
            "benchmark": result.benchmark,
            "encoder": result.encoder["name"],
            "id": result.id.dataset,
        }
        tail = {"n_id": result.id.n, "digest": result.digest}
        for one in result.ood:
            where = {
                "ood": one.dataset,
                "group": one.group,
                "n_ood": one.n,
                "partial": one.partial or result.id.partial,
            }
            lines += [{**head, **where, "metric": m, "value": getattr(one, m), **tail} for m in METRICS]
        alone = {"ood": "", "group": "", "n_ood": 0, "partial": result.id.partial}
        if result.status == "failed":
            lines.append({**head, **alone, "metric": "failed", "value": math.nan, **tail})
        elif result.id.accuracy is not None:
            lines.append({**head, **alone, "metric": "id_accuracy", "value": result.id.accuracy, **tail})
    columns = ["method", "label", "benchmark", "encoder", "id", "ood", "group", "metric", "value"]
    return pd.DataFrame(lines, columns=[*columns, "n_id", "n_ood", "partial", "digest"])
