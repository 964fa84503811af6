"""CSV and parquet: one line per result, in full precision."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from csv import DictWriter
from dataclasses import replace
from pathlib import Path

from oodbench.errors import printable
from oodbench.method.access import UNKNOWN
from oodbench.report.options import TableOptions
from oodbench.report.tables.table import Table, TableLine
from oodbench.results import METRICS, Result, flatten

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet computes texts that begin so


def csv_text(value: object) -> object:
    r"""Return a value for a cell: text is made printable, and starts with `'` if a spreadsheet would compute it.

    A line break in a name would end the line for readers of lines, and csv.writer does not quote a lone `\r`.
    """
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


_RUN = ("precision", "resize", "limit", "seed", "device", "batch_size")


def csv(tables: Sequence[Table], options: TableOptions | None = None) -> str:
    """Return all tables under one header; metrics are fractions, and lines of equal `table` number are comparable.

    A cell is empty if the benchmark does not have the set, the result failed, or the method has no such value. Texts
    are made safe by `csv_text`. Of the options, sets and metrics choose columns.
    """
    found = _records(tables, options or TableOptions())
    records = [{printable(name): csv_text(value) for name, value in record.items()} for record in found]
    text = io.StringIO()
    writer = DictWriter(text, _names(records), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def parquet(tables: Sequence[Table], path: Path, options: TableOptions | None = None) -> None:
    """Write the records of `csv` with texts unchanged and nulls for empty cells."""
    import pyarrow as pa
    from pyarrow import parquet as file

    records = _records(tables, options or TableOptions())
    columns = {name: [_null(record.get(name)) for record in records] for name in _names(records)}
    made = io.BytesIO()  # given a path, pyarrow removes what is there when it cannot write, even a device
    file.write_table(pa.table({name: _array(pa, values) for name, values in columns.items()}), made)
    path.write_bytes(made.getvalue())


def _array(pa: object, values: list[object]) -> object:
    kinds = {type(v) for v in values if v is not None}
    if kinds == {int, float}:
        values = [None if v is None else float(v) for v in values]  # type: ignore[arg-type]
    elif len(kinds) > 1:
        values = [None if v is None else str(v) for v in values]
    return pa.array(values)  # type: ignore[attr-defined]


def _records(tables: Sequence[Table], options: TableOptions) -> list[dict[str, object]]:
    return [
        _record(number, line, row, options)
        for number, table in enumerate(tables, 1)
        for line in table.lines
        for row in line.results or (None,)
    ]


def _names(records: Sequence[dict[str, object]]) -> list[str]:
    # The means of a benchmark with groups come after the sets of all benchmarks.
    return sorted(dict.fromkeys(name for record in records for name in record), key=_rank)


def _rank(name: str) -> int:
    return next((i for i, prefix in enumerate(("ood.", "mean.", "seconds.", "row."), 1) if name.startswith(prefix)), 0)


def _record(number: int, line: TableLine, row: Result | None, options: TableOptions) -> dict[str, object]:
    if row is None:
        return {"table": number, "name": line.name, **_access(line), **line.facts}
    facts: dict[str, object] = {
        "table": number,
        "benchmark": row.benchmark,
        "encoder": row.encoder.get("name", ""),
        "weights": row.encoder.get("weights", ""),
        "method": row.method,
        "label": row.label,
        "name": line.name,
        "parameters": json.dumps(row.parameters, sort_keys=True, ensure_ascii=False),
        "prompts": row.templates.get("name", ""),
        **_access(line),
        "status": "imported" if row.imported else row.status,
        "error": row.error,
        "at95": row.conventions.get("at95"),
        **{name: row.run.get(name) for name in _RUN},
        **flatten({"stream": row.stream}),
        "id.dataset": row.id.dataset,
        "id.n": row.id.n,
        "id.expected": row.id.expected,
        "id.skipped": row.id.skipped,
        "id.accuracy": row.id.accuracy,
        **(_metrics(row, options) if row.status == "ok" else {}),
        **{f"seconds.{name}": seconds for name, seconds in row.seconds.items()},
        "row.commit": row.commit,
        "row.created": row.created,
        "row.digest": row.digest,
    }
    return {name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in facts.items()}


def _access(line: TableLine) -> dict[str, object]:
    """Return the group of a line, and what its method sees."""
    card = line.access.plain() if line.access else {"group": UNKNOWN}
    return {f"access.{name}": value for name, value in card.items()}


def _metrics(row: Result, options: TableOptions) -> dict[str, object]:
    metrics = tuple(dict.fromkeys((*options.shown, *METRICS))) if options.default_metrics else options.shown
    kept = [s for s in row.ood if not options.sets or s.dataset in options.sets]
    chosen = replace(row, ood=tuple(kept))
    out: dict[str, object] = {}
    for ood in kept:
        counts = {"n": ood.n, "expected": ood.expected, "skipped": ood.skipped, "tied": ood.tied}
        parts = {name: value for name, value in flatten(ood.stream).items() if name != "thousands"}
        values = {metric: getattr(ood, metric) for metric in metrics}
        bounds = _bounds({metric: ood.intervals[metric] for metric in metrics if metric in ood.intervals})
        out |= {f"ood.{ood.dataset}.{k}": v for k, v in (values | bounds | counts | parts).items()}
    for group in chosen.groups if len(chosen.groups) > 1 else ():
        out |= {f"mean.{group}.{metric}": chosen.mean(metric, group) for metric in metrics}
    return out | {f"mean.{metric}": chosen.mean(metric) for metric in metrics}


def _bounds(intervals: dict[str, tuple[float, float]]) -> dict[str, float]:
    return flatten({m: {"low": low, "high": high} for m, (low, high) in intervals.items()})


def _null(value: object) -> object:
    return None if value == "" else value
