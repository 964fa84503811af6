"""Markdown as GitHub reads it."""

from __future__ import annotations

import re

from oodbench.report.table import Column, Table

_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_MARKS = {"best": "**{}**", "second": "<u>{}</u>", "": "{}"}


def markdown(table: Table) -> str:
    """The caption in a line of its own, the table, then one line for each failed row."""
    remarks = ["Best in **bold**, second <u>underlined</u>."] if table.marked else []
    heads = ["Method", *(_head(b.title, b.stamp, column) for b in table.blocks for column in b.columns)]
    rows = [
        [_escape(line.name), *(_MARKS[cell.mark].format(cell.text) for cells in line.cells for cell in cells)]
        for line in table.lines
    ]
    out = [
        " ".join([f"**{_escape(table.title)}.**", *map(_escape, table.caption), *remarks]),
        "",
        _row(heads),
        _row(["---", *["---:"] * (len(heads) - 1)]),
        *map(_row, rows),
    ]
    for note in table.notes:
        out += ["", _escape(note)]
    return "\n".join(out) + "\n"


def _head(title: str, stamp: str, column: Column) -> str:
    return (
        " ".join(filter(None, (_escape(title), f"({stamp})" if stamp else "", column.title))) + _ARROWS[column.better]
    )


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", " ".join(text.split()))
