"""CSV: one line per row, everything in full precision."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from csv import DictWriter

from oodbench.report.table import Line, Table
from oodbench.result import METRICS, Result

_RUN = ("precision", "resize", "limit", "seed", "device", "batch_size")


def csv(tables: Sequence[Table]) -> str:
    """All tables under one header; metrics are fractions, and rows of equal `table` number are comparable.

    Empty cells: the benchmark of that row lacks the set, the row failed, or the method has no such value.
    """
    records = [_record(number, line) for number, table in enumerate(tables, 1) for line in table.lines]
    # The means of a benchmark with groups come after the sets of all benchmarks.
    names = dict.fromkeys(name for record in records for name in record)
    order = sorted(names, key=_rank)
    text = io.StringIO()
    writer = DictWriter(text, order, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _rank(name: str) -> int:
    return next((i for i, prefix in enumerate(("ood.", "mean.", "seconds.", "row."), 1) if name.startswith(prefix)), 0)


def _record(number: int, line: Line) -> dict[str, object]:
    row = line.result
    facts: dict[str, object] = {
        "table": number,
        "benchmark": row.benchmark,
        "encoder": row.encoder.get("name", ""),
        "weights": row.encoder.get("weights", ""),
        "method": row.method,
        "label": row.label,
        "name": line.name,
        "parameters": json.dumps(row.parameters, sort_keys=True, ensure_ascii=False),
        "status": row.status,
        "error": row.error,
        "at95": row.conventions.get("at95"),
        **{name: row.run.get(name) for name in _RUN},
        "id.dataset": row.id.dataset,
        "id.n": row.id.n,
        "id.expected": row.id.expected,
        "id.skipped": row.id.skipped,
        "id.accuracy": row.id.accuracy,
        **(_metrics(row) if row.status == "ok" else {}),
        **{f"seconds.{name}": seconds for name, seconds in row.seconds.items()},
        "row.commit": row.commit,
        "row.created": row.created,
        "row.digest": row.digest,
    }
    return {name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in facts.items()}


def _metrics(row: Result) -> dict[str, object]:
    out: dict[str, object] = {}
    for ood in row.ood:
        counts = {"n": ood.n, "expected": ood.expected, "skipped": ood.skipped, "tied": ood.tied}
        values = {metric: getattr(ood, metric) for metric in METRICS}
        out |= {f"ood.{ood.dataset}.{k}": v for k, v in (values | counts).items()}
    for group in row.groups if len(row.groups) > 1 else ():
        out |= {f"mean.{group}.{metric}": row.mean(metric, group) for metric in METRICS}
    return out | {f"mean.{metric}": row.mean(metric) for metric in METRICS}
