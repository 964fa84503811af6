"""Transposition: OOD sets and metrics down the side, methods across."""

from __future__ import annotations

from dataclasses import replace

from oodbench.report.tables.table import Block, Column, Line, Table

ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def transposed(table: Table) -> Table:
    """The same cells with a line for each column of numbers, under the title of its set; sections become groups."""
    blocks = tuple(Block(line.section, (Column(line.name),), line.section) for line in table.lines)
    lines = []
    for b, block in enumerate(table.blocks):
        section = " ".join(filter(None, (block.title, f"({block.stamp})" if block.stamp else "")))
        for c, column in enumerate(block.columns):
            cells = tuple((line.cells[b][c],) for line in table.lines)
            lines.append(Line(f"{column.title}{ARROWS[column.better]}", cells, None, section))
    return replace(table, blocks=blocks, lines=tuple(lines), first="")
