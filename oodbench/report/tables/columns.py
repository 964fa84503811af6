"""Columns of tables: selection, formatting and marking of a result's numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from oodbench.report.options import TableOptions
from oodbench.report.tables.table import DASH, Cell, Column, ColumnGroup, Number, TableLine
from oodbench.results import Result

COLUMNS = {
    "auroc": Column("AUROC", 1, "auroc"),
    "fpr95": Column("FPR95", -1, "fpr95"),
    "fpr95_ood": Column("FPR95-OOD", -1, "fpr95_ood"),
    "aupr_in": Column("AUPR-in", 1, "aupr_in"),
    "aupr_out": Column("AUPR-out", 1, "aupr_out"),
    "accuracy": Column("Acc.", 1, "accuracy"),
    "seconds": Column("Seconds", name="seconds"),
}

TYPED = {"fpr95": "FPR95 (i)", "fpr95_ood": "FPR95 (o)"}  # ID positive, OOD positive: in tables that show both


def column_groups(model: Result, options: TableOptions) -> list[ColumnGroup]:
    """Return the column groups in order; an average that would repeat the numbers of a single set is omitted.

    `model` is a result with the OOD sets of the table.
    """
    columns = tuple(COLUMNS[m] for m in options.shown)
    if model.stream:
        columns = tuple(replace(c, title=TYPED.get(c.name, c.title)) for c in columns)
    kept = [s for s in model.ood if not options.sets or s.dataset in options.sets]
    if options.sets:
        kept.sort(key=lambda s: options.sets.index(s.dataset))
    out: list[ColumnGroup] = []
    groups = dict.fromkeys(s.group for s in kept)
    for name in groups if columns else ():
        members = [s for s in kept if s.group == name]
        for s in members:
            out.append(ColumnGroup(s.title, columns, name, s.partial, s.dataset, _of_set(s.dataset, options)))
        if name and 1 < len(members) < len(kept):
            values = average(tuple(s.dataset for s in members), name, options)
            title = f"{name.capitalize()} average"
            out.append(ColumnGroup(title, columns, name, name=f"{name} mean", values=values, mean=name))
    if len(kept) > 1 and columns:
        values = average(tuple(s.dataset for s in kept), "", options)
        out.append(ColumnGroup("Average", columns, name="mean", values=values, mean=""))
    for metric in options.metrics:
        if metric == "accuracy":
            group = ColumnGroup("ID", (COLUMNS[metric],), partial=model.id.partial, values=_accuracy)
            out.append(group)
        elif metric == "seconds":
            out.append(ColumnGroup("", (COLUMNS[metric],), values=_seconds, fraction=False))
    return out


def sort_column(model: Result, options: TableOptions) -> ColumnGroup | None:
    """Return the column by which lines are sorted: the average over the sets shown, or the single set.

    `model` is a result with the OOD sets of the table. None keeps the order of the results.
    """
    metrics = tuple(filter(None, (options.sort_metric,)))
    return next(reversed(column_groups(model, replace(options, metrics=metrics))), None)


def sort_value(cell: Cell, group: ColumnGroup) -> float:
    """Return a number that is higher for a better cell; -inf without a value, or for another kind of FPR95."""
    if cell.value is None or cell.other:
        return -math.inf
    return round((group.columns[0].better or -1) * cell.value, 12)  # seconds: the fastest first


def cells(result: Result, group: ColumnGroup, options: TableOptions) -> tuple[Cell, ...]:
    """Return the cells of a result in a column group; dashes for a failed one."""
    if result.status != "ok":
        return tuple(Cell(None, DASH) for _ in group.columns)
    return tuple(cell(number, options, fraction=group.fraction) for number in group.values(result))


def cell(number: Number, options: TableOptions, *, fraction: bool = True, extra: str = "") -> Cell:
    """Format a number by the options; seconds always have two decimals."""
    if number.value is None or not math.isfinite(number.value):
        return Cell(None, DASH)
    text = formatted(number.value, options) if fraction else f"{number.value:.2f}"
    if number.interval and options.intervals and fraction:
        low, high = number.interval
        half = f"± {formatted((high - low) / 2, options)}"
        extra = half if options.intervals == "half" else f"[{formatted(low, options)}, {formatted(high, options)}]"
    return Cell(number.value, text, extra=extra)


def formatted(value: float, options: TableOptions) -> str:
    """Format a fraction by the options: 0.9234 as `92.34` or `0.9234`."""
    return f"{value * (100 if options.percent else 1):.{options.digits}f}"


def _of_set(dataset: str, options: TableOptions) -> Callable[[Result], tuple[Number, ...]]:
    def values(result: Result) -> tuple[Number, ...]:
        ood = next(s for s in result.ood if s.dataset == dataset)
        return tuple(Number(getattr(ood, m), ood.intervals.get(m)) for m in options.shown)

    return values


def average(names: tuple[str, ...], group: str, options: TableOptions) -> Callable[[Result], tuple[Number, ...]]:
    """Return a function that maps a result to the plain average of each metric over some sets.

    The average has an interval if these are all sets, or all sets of a group.
    """

    def values(result: Result) -> tuple[Number, ...]:
        chosen = [s for s in result.ood if s.dataset in names]
        complete = len(chosen) == len([s for s in result.ood if not group or s.group == group])
        intervals = result.mean_intervals.get(group, {}) if complete else {}
        averages = {m: sum(getattr(s, m) for s in chosen) / len(chosen) for m in options.shown}
        return tuple(Number(averages[m], intervals.get(m)) for m in options.shown)

    return values


def _accuracy(result: Result) -> tuple[Number, ...]:
    return (Number(result.id.accuracy),)


def _seconds(result: Result) -> tuple[Number, ...]:
    return (Number(result.seconds.get("score")),)


def mark_best(lines: Sequence[TableLine], groups: Sequence[ColumnGroup]) -> tuple[TableLine, ...]:
    """Mark the best and the second best number of each column.

    Tied best values are all marked as best, and then there is no second; tied second values are all marked. A column
    is marked if it has two values, ID accuracy if it has two different ones, seconds never. Lines without a result,
    which are published numbers, are not marked.
    """
    own = [i for i, line in enumerate(lines) if line.result is not None]
    marks = [
        [
            dict(zip(own, _marks([lines[i].cells[g][c] for i in own], column), strict=True))
            for c, column in enumerate(group.columns)
        ]
        for g, group in enumerate(groups)
    ]
    return tuple(
        replace(
            line,
            cells=tuple(
                tuple(replace(cell, mark=marks[g][c].get(i, "")) for c, cell in enumerate(cells))
                for g, cells in enumerate(line.cells)
            ),
        )
        for i, line in enumerate(lines)
    )


def _marks(cells: Sequence[Cell], column: Column) -> list[str]:
    values = [column.better * float(cell.text) for cell in cells if cell.value is not None]
    ranked = sorted(set(values), reverse=True)
    if not column.better or len(values) < 2 or (column == COLUMNS["accuracy"] and len(ranked) < 2):
        return [""] * len(cells)
    ranks = {ranked[0]: "best"}
    if len(ranked) > 1 and values.count(ranked[0]) == 1:
        ranks[ranked[1]] = "second"
    return [ranks.get(column.better * float(cell.text), "") if cell.value is not None else "" for cell in cells]
