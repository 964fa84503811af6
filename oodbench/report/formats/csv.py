"""CSV, parquet and DataFrames, in full precision: one line per result, or one per number."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from csv import DictWriter
from dataclasses import dataclass, replace
from pathlib import Path

from oodbench.errors import printable
from oodbench.method.access import UNKNOWN
from oodbench.report.options import TableOptions
from oodbench.report.tables.columns import average
from oodbench.report.tables.streams import MEASURED, PARTS, part_of
from oodbench.report.tables.table import Number, Table, TableLine
from oodbench.results import METRICS, Result, flatten

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet evaluates texts that start with one of these


def csv_text(value: object) -> object:
    r"""Return a value for a cell: text is made printable, and starts with `'` if a spreadsheet would evaluate it.

    A line break in a name would end the line for readers of lines, and csv.writer does not quote a lone `\r`.
    """
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


_RUN = ("precision", "resize", "limit", "seed", "device", "batch_size")


def csv(tables: Sequence[Table], options: TableOptions | None = None, *, long: bool = False) -> str:
    """Return all tables under one header; metrics are fractions, and lines of equal `table` number are comparable.

    A cell is empty if the benchmark does not have the set, the result failed, or the method has no such value. Texts
    are made safe by `csv_text`. The options `sets` and `metrics` select columns, or lines with one number if `long`.
    """
    found = records_of(tables, options, long=long)
    records = [{printable(name): csv_text(value) for name, value in record.items()} for record in found]
    text = io.StringIO()
    writer = DictWriter(text, _names(records), restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def parquet(tables: Sequence[Table], path: Path, options: TableOptions | None = None, *, long: bool = False) -> None:
    """Write the records of `csv` with texts unchanged and nulls for empty cells."""
    import pyarrow as pa
    from pyarrow import parquet as file

    columns = columns_of(records_of(tables, options, long=long))
    buffer = io.BytesIO()  # when it cannot write, pyarrow would remove the file at a path, even a device
    file.write_table(pa.table({name: pa.array(values) for name, values in columns.items()}), buffer)
    path.write_bytes(buffer.getvalue())


def columns_of(records: Sequence[Mapping[str, object]]) -> dict[str, list[object]]:
    """Return the columns of records, each with values of one type, and None for empty cells."""
    return {name: _of_one_type([_null(record.get(name)) for record in records]) for name in _names(records)}


def _of_one_type(values: list[object]) -> list[object]:
    kinds = {type(v) for v in values if v is not None}
    if kinds == {int, float}:
        return [None if v is None else float(v) for v in values]  # type: ignore[arg-type]
    return [None if v is None else str(v) for v in values] if len(kinds) > 1 else values


def records_of(
    tables: Sequence[Table], options: TableOptions | None = None, *, long: bool = False
) -> list[dict[str, object]]:
    """Return one record for each result or published result, or with `long` one for each of its numbers."""
    options = options or TableOptions()
    found = [
        (number, line, row)
        for number, table in enumerate(tables, 1)
        if not table.part  # every stream has its parts
        for merged in table.lines
        for line, row in _lines(merged)
    ]
    if long:
        return [record for one in found for record in _long(*one, options)]
    return [_record(*one, options) for one in found]


def _lines(merged: TableLine) -> list[tuple[TableLine, Result | None]]:
    """Return a line for each result of a line, or the line itself for a published result."""
    names = merged.names or [merged.name] * len(merged.results)
    return [(replace(merged, name=n), row) for n, row in zip(names, merged.results, strict=True)] or [(merged, None)]


def _names(records: Sequence[Mapping[str, object]]) -> list[str]:
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
    """Return the access card of a line, with its group."""
    card = line.access.plain() if line.access else {"group": UNKNOWN}
    return {f"access.{name}": value for name, value in card.items()}


def _metrics(row: Result, options: TableOptions) -> dict[str, object]:
    metrics = _shown(options)
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


@dataclass(frozen=True)
class _LongNumber:
    """A number with its set (or `near mean`), group, metric, number of images, and part of a stream."""

    set: str
    group: str
    metric: str
    number: Number
    n: int | None = None
    part: str = ""


def _long(number: int, line: TableLine, row: Result | None, options: TableOptions) -> Iterator[dict[str, object]]:
    wide = _record(number, line, row, options)
    head = {name: wide[name] for name in _LONG if name in wide}
    streams = {name: value for name, value in wide.items() if name.startswith("stream.")}
    for one in _numbers(row, options) if row else _quoted_numbers(line, options):
        value, interval = one.number.value, one.number.interval
        low, high = interval or (None, None)
        yield {
            **head,
            **streams,
            "part": one.part,
            "set": one.set,
            "group": one.group,
            "metric": one.metric,
            "value": None if value is None or math.isnan(value) else value,
            "low": low,
            "high": high,
            "n": one.n,
            "row.digest": wide.get("row.digest", ""),
        }


_LONG = ("table", "benchmark", "encoder", "method", "label", "name", "access.group", "status", "source", "seed")


def _numbers(row: Result, options: TableOptions) -> Iterator[_LongNumber]:
    """Yield the numbers of a result; a failed one has the metric "failed" without a value."""
    if row.status != "ok":
        yield _LongNumber("", "", "failed", Number(None))
        return
    yield from _numbers_of_sets(row, options, "")
    for part in PARTS if row.stream else ():
        yield from _numbers_of_sets(part_of(row, part), options, part)
    if "accuracy" in options.metrics and row.id.accuracy is not None:
        yield _LongNumber(row.id.dataset, "", "accuracy", Number(row.id.accuracy), row.id.n)
    for name, seconds in row.seconds.items() if "seconds" in options.metrics else ():
        yield _LongNumber("", "", f"seconds.{name}", Number(seconds))


def _numbers_of_sets(row: Result, options: TableOptions, part: str) -> Iterator[_LongNumber]:
    kept = [s for s in row.ood if not options.sets or s.dataset in options.sets]
    metrics = tuple(m for m in _shown(options) if not part or m in MEASURED)
    for s in kept:
        n = s.n if not part else (s.stream.get(part) or {}).get("n")
        for metric in metrics:
            yield _LongNumber(s.dataset, s.group, metric, Number(getattr(s, metric), s.intervals.get(metric)), n, part)
    groups = tuple(dict.fromkeys(s.group for s in kept if s.group))
    for group in (*groups, "") if len(groups) > 1 else ("",):
        members = tuple(s.dataset for s in kept if not group or s.group == group)
        averages = average(members, group, replace(options, metrics=metrics))(row) if members else ()
        for metric, number in zip(metrics, averages, strict=False):
            yield _LongNumber(f"{group} mean".strip(), group, metric, number, None, part)


def _quoted_numbers(line: TableLine, options: TableOptions) -> Iterator[_LongNumber]:
    """Yield the numbers of a published result from the names in `facts`: `ood.sun.auroc`, `mean.near.fpr95`."""
    for name, value in line.facts.items():
        kind, _, rest = name.partition(".")
        of, _, metric = rest.rpartition(".")
        if isinstance(value, float) and metric in _shown(options):
            if kind == "mean" and not options.sets:
                yield _LongNumber(f"{of} mean".strip(), of, metric, Number(value))
            elif kind == "ood" and (not options.sets or of in options.sets):
                yield _LongNumber(of, "", metric, Number(value))


def _shown(options: TableOptions) -> tuple[str, ...]:
    """Return the requested metrics of OOD sets, all by default."""
    return tuple(dict.fromkeys((*options.shown, *METRICS))) if options.default_metrics else options.shown


def _bounds(intervals: dict[str, tuple[float, float]]) -> dict[str, float]:
    return flatten({m: {"low": low, "high": high} for m, (low, high) in intervals.items()})


def _null(value: object) -> object:
    return None if value == "" else value
