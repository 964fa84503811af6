"""Table: comparable rows with their headings, marks and notes, ready for any format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from oodbench.report.caption import caption
from oodbench.report.grouping import Group, group
from oodbench.report.naming import names
from oodbench.result import Result

DASH = "-"
Fill = Callable[[Result], tuple[float | None, ...]]


@dataclass(frozen=True)
class Column:
    """One column of numbers. `better`: 1 when higher is better, -1 when lower is, 0 when neither."""

    title: str
    better: int = 0


@dataclass(frozen=True)
class Block:
    """Columns under one heading: an OOD set, a mean, the ID set. `group` is its near or far, "" for none."""

    title: str
    columns: tuple[Column, ...]
    group: str = ""
    stamp: str = ""  # `partial n/N`


@dataclass(frozen=True)
class Cell:
    """A fraction or seconds, its print in percent or seconds, and its mark: "best", "second" or ""."""

    value: float | None
    text: str
    mark: str = ""


@dataclass(frozen=True)
class Line:
    """One method: its name and a tuple of cells for each block."""

    name: str
    cells: tuple[tuple[Cell, ...], ...]
    result: Result


@dataclass(frozen=True)
class Table:
    """Rows that may be compared. Texts are plain: each format escapes them."""

    title: str
    caption: tuple[str, ...]  # sentences
    blocks: tuple[Block, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]  # the errors of failed rows

    @property
    def marked(self) -> bool:
        """Whether any cell carries a mark."""
        return any(cell.mark for line in self.lines for cells in line.cells for cell in cells)

    @property
    def grouped(self) -> bool:
        """Whether headings tell groups (near, far) apart: there must be two."""
        return len({block.group for block in self.blocks} - {""}) > 1


_PAIR = (Column("AUROC", 1), Column("FPR95", -1))
_ACCURACY, _SECONDS = Column("Acc.", 1), Column("Seconds")


def tables(rows: Iterable[Result]) -> list[Table]:
    """One table for each set of comparable rows, in order of first appearance.

    Rows are comparable when benchmark, encoder with its weights, image lists, class names, precision, resize, limit and
    conventions are the same. Marks are decided on the printed values: equal best values are all best, and then there
    is no second; equal second values are all second. A column needs two values to be marked, ID accuracy two different
    ones; seconds are never marked.
    """
    return [_table(one) for one in group(rows)]


def _table(one: Group) -> Table:
    results = one.results
    model = next((row for row in results if row.status == "ok"), results[0])
    plan = _plan(model)
    blocks = tuple(block for block, _ in plan)
    printed = names(results)
    lines = [
        Line(name, tuple(_cells(row, block, fill) for block, fill in plan), row)
        for name, row in zip(printed, results, strict=True)
    ]
    return Table(
        title=f"{model.benchmark_title or model.benchmark}, encoder {model.encoder.get('name', 'unknown')}",
        caption=caption(model, one.apart),
        blocks=blocks,
        lines=_marked(lines, blocks),
        notes=tuple(_note(line) for line in lines if line.result.status != "ok"),
    )


def _plan(model: Result) -> list[tuple[Block, Fill]]:
    """Blocks in order, each with what fills it; a mean that would repeat the numbers of a single set is left out."""
    plan: list[tuple[Block, Fill]] = []
    grouped = len(model.groups) > 1
    for name in dict.fromkeys(s.group for s in model.ood):
        members = [s for s in model.ood if s.group == name]
        shown = name if grouped else ""
        plan += [(Block(s.title, _PAIR, shown, s.partial), partial(_of_set, s.dataset)) for s in members]
        if shown and len(members) > 1:
            plan.append((Block(f"{name.capitalize()} mean", _PAIR, shown), partial(_mean, name)))
    if len(model.ood) > 1:
        plan.append((Block("Mean", _PAIR), partial(_mean, None)))
    plan.append((Block("ID", (_ACCURACY,), stamp=model.id.partial), lambda row: (row.id.accuracy,)))
    plan.append((Block("", (_SECONDS,)), lambda row: (row.seconds.get("score"),)))
    return plan


def _of_set(dataset: str, row: Result) -> tuple[float, float]:
    ood = next(s for s in row.ood if s.dataset == dataset)
    return ood.auroc, ood.fpr95


def _mean(name: str | None, row: Result) -> tuple[float, float]:
    return row.mean("auroc", name), row.mean("fpr95", name)


def _cells(row: Result, block: Block, fill: Fill) -> tuple[Cell, ...]:
    if row.status != "ok":
        return tuple(Cell(None, DASH) for _ in block.columns)
    return tuple(_cell(value, column) for value, column in zip(fill(row), block.columns, strict=True))


def _cell(value: float | None, column: Column) -> Cell:
    if value is None or not math.isfinite(value):
        return Cell(None, DASH)
    return Cell(value, f"{value if column is _SECONDS else 100 * value:.2f}")


def _marked(lines: Sequence[Line], blocks: Sequence[Block]) -> tuple[Line, ...]:
    marks = [
        [_marks([line.cells[b][c] for line in lines], column) for c, column in enumerate(block.columns)]
        for b, block in enumerate(blocks)
    ]
    return tuple(
        replace(
            line,
            cells=tuple(
                tuple(replace(cell, mark=marks[b][c][i]) for c, cell in enumerate(cells))
                for b, cells in enumerate(line.cells)
            ),
        )
        for i, line in enumerate(lines)
    )


def _marks(cells: Sequence[Cell], column: Column) -> list[str]:
    values = [column.better * float(cell.text) for cell in cells if cell.value is not None]
    ranked = sorted(set(values), reverse=True)
    if not column.better or len(values) < 2 or (column == _ACCURACY and len(ranked) < 2):
        return [""] * len(cells)
    ranks = {ranked[0]: "best"}
    if len(ranked) > 1 and values.count(ranked[0]) == 1:
        ranks[ranked[1]] = "second"
    return [ranks.get(column.better * float(cell.text), "") if cell.value is not None else "" for cell in cells]


def _note(line: Line) -> str:
    error = " ".join((line.result.error or "no message").split())
    return f"{line.name} failed: {error if len(error) <= 300 else error[:297] + '...'}"
