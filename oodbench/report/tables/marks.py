"""Marks: the best and second best of every column, decided on what is printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from oodbench.report.tables.columns import COLUMNS
from oodbench.report.tables.table import Block, Cell, Column, Line


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
