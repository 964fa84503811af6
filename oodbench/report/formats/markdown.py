"""Tables in GitHub's Markdown."""

from __future__ import annotations

import re
from itertools import groupby

from oodbench.report.tables.table import EXCEEDS, Cell, Column, ColumnGroup, Table

_ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_MARKS = {"best": "**{}**", "second": "<u>{}</u>", "exceeds": "**{}**!", "": "{}"}


def markdown(table: Table) -> str:
    """Return the caption on a separate line, the table, and one line per note."""
    remarks = [f"Best in **bold**, second <u>underlined</u>{table.within}."] if table.marked else []
    remarks += [f"† {table.not_significant}"] if table.any_not_significant else []
    remarks += [f"**!** {EXCEEDS}"] if table.any_exceeds else []
    heads = [table.first, *(_head(group, column) for group in table.column_groups for column in group.columns)]
    rows = []
    for section, lines in groupby(table.lines, key=lambda line: line.section):
        rows += [[f"*{_escape(section)}*", *[""] * (len(heads) - 1)]] if section else []
        rows += [[_escape(line.name), *(_cell(cell) for cells in line.cells for cell in cells)] for line in lines]
    out = [
        " ".join([f"**{_escape(table.title)}.**", *map(_escape, table.caption), *remarks]),
        "",
        _row(heads),
        _row(["---", *["---:"] * (len(heads) - 1)]),
        *map(_row, rows),
    ]
    for note in (*table.notes, *table.footnotes):
        out += ["", _escape(note)]
    return "\n".join(out) + "\n"


def _cell(cell: Cell) -> str:
    return cell.plain.replace(cell.text, _MARKS[cell.mark].format(cell.text), 1)


def _head(group: ColumnGroup, column: Column) -> str:
    """Return the heading of a column: the set, whether it is near or far, and the metric."""
    kind = group.group if group.name and group.mean is None else ""  # the columns of a transposed table are methods
    parts = (_escape(group.title), *(f"({_escape(x)})" for x in (kind, group.partial) if x), _escape(column.title))
    return " ".join(filter(None, parts)) + _ARROWS[column.better]


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    words = re.sub(r"([\\`*_\[\]<>|~&$])", r"\\\1", " ".join(text.split()))
    return re.sub(r"^(\d*)([.)+-]|#+)(?=\s|$)", r"\1\\\2", words)  # else a list or a heading
