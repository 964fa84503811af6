"""Columns: which numbers of a row a table shows, and how they are printed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from oodbench.report.options import TableOptions
from oodbench.report.tables.table import DASH, Block, Cell, Column, Line
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
Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Number:
    """A value of a row, None where it has none, and its interval."""

    value: float | None
    interval: Interval = None


@dataclass(frozen=True)
class ColumnPlan:
    """A block, what fills it from a finished row, and whether its numbers are shares (seconds are not).

    mean     the group of sets that it is the mean of, "" for all sets; None: of none
    """

    block: Block
    fill: Callable[[Result], tuple[Number, ...]]
    share: bool = True
    mean: str | None = None


def plan(model: Result, options: TableOptions) -> list[ColumnPlan]:
    """Blocks in order; a mean that would repeat the numbers of a single set is left out."""
    columns = tuple(COLUMNS[m] for m in options.shown)
    kept = [s for s in model.ood if not options.sets or s.dataset in options.sets]
    if options.sets:
        kept.sort(key=lambda s: options.sets.index(s.dataset))
    out: list[ColumnPlan] = []
    groups = dict.fromkeys(s.group for s in kept)
    grouped = len([name for name in groups if name]) > 1
    for name in groups if columns else ():
        members = [s for s in kept if s.group == name]
        shown = name if grouped else ""
        for s in members:
            block = Block(s.title, columns, shown, s.partial, s.dataset)
            out.append(ColumnPlan(block, _of_set(s.dataset, options)))
        if shown and len(members) > 1:
            names = tuple(s.dataset for s in members)
            block = Block(f"{name.capitalize()} mean", columns, shown, name=f"{name} mean")
            out.append(ColumnPlan(block, _mean(names, name, options), mean=name))
    if len(kept) > 1 and columns:
        block = Block("Mean", columns, name="mean")
        out.append(ColumnPlan(block, _mean(tuple(s.dataset for s in kept), "", options), mean=""))
    for metric in options.metrics:
        if metric == "accuracy":
            block = Block("ID", (COLUMNS[metric],), stamp=model.id.partial)
            out.append(ColumnPlan(block, lambda row: (Number(row.id.accuracy),)))
        elif metric == "seconds":
            block = Block("", (COLUMNS[metric],))
            out.append(ColumnPlan(block, lambda row: (Number(row.seconds.get("score")),), share=False))
    return out


def cells(row: Result, one: ColumnPlan, options: TableOptions) -> tuple[Cell, ...]:
    """The cells of a row in a block; dashes for a failed row."""
    if row.status != "ok":
        return tuple(Cell(None, DASH) for _ in one.block.columns)
    return tuple(cell(number, options, share=one.share) for number in one.fill(row))


def cell(number: Number, options: TableOptions, *, share: bool = True, extra: str = "") -> Cell:
    """A number in print; seconds always with two decimals."""
    if number.value is None or not math.isfinite(number.value):
        return Cell(None, DASH)
    text = written(number.value, options) if share else f"{number.value:.2f}"
    if number.interval and options.intervals and share:
        low, high = number.interval
        half = f"± {written((high - low) / 2, options)}"
        extra = half if options.intervals == "half" else f"[{written(low, options)}, {written(high, options)}]"
    return Cell(number.value, text, extra=extra)


def written(value: float, options: TableOptions) -> str:
    """A fraction as the options want it: 0.9234 as `92.34` or `0.9234`."""
    return f"{value * (100 if options.percent else 1):.{options.digits}f}"


def _of_set(dataset: str, options: TableOptions) -> Callable[[Result], tuple[Number, ...]]:
    def fill(row: Result) -> tuple[Number, ...]:
        ood = next(s for s in row.ood if s.dataset == dataset)
        return tuple(Number(getattr(ood, m), ood.intervals.get(m)) for m in options.shown)

    return fill


def _mean(names: tuple[str, ...], group: str, options: TableOptions) -> Callable[[Result], tuple[Number, ...]]:
    """The plain mean over some sets; its interval is known where these are all sets, or all of a group."""

    def fill(row: Result) -> tuple[Number, ...]:
        chosen = [s for s in row.ood if s.dataset in names]
        whole = len(chosen) == len([s for s in row.ood if not group or s.group == group])
        known = row.mean_intervals.get(group, {}) if whole else {}
        values = {m: sum(getattr(s, m) for s in chosen) / len(chosen) for m in options.shown}
        return tuple(Number(values[m], known.get(m)) for m in options.shown)

    return fill


def marked(lines: Sequence[Line], blocks: Sequence[Block]) -> tuple[Line, ...]:
    """Lines with marks. Equal best values are all best, and then there is no second; equal second ones are all second.

    A column needs two values to be marked, ID accuracy two different ones; seconds are never marked. Lines without a
    row, quoted ones, take no part.
    """
    own = [i for i, line in enumerate(lines) if line.result is not None]
    marks = [
        [dict(zip(own, _marks([lines[i].cells[b][c] for i in own], column), strict=True)) for c, column in columns]
        for b, columns in enumerate(list(enumerate(block.columns)) for block in blocks)
    ]
    return tuple(
        replace(
            line,
            cells=tuple(
                tuple(replace(cell, mark=marks[b][c].get(i, "")) for c, cell in enumerate(cells))
                for b, cells in enumerate(line.cells)
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
