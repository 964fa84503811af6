"""Tables in a notebook: HTML without scripts, with a style that applies to the tables only."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import groupby

from oodbench.report.tables.table import EXCEEDS, Cell, Table, TableLine

_ARROWS = {1: "↑", -1: "↓", 0: ""}
_MARKS = {"best": "<b>{}</b>", "second": "<u>{}</u>", "exceeds": "<b>{}</b>", "": "{}"}
# Colours are inherited from the notebook, so that tables are legible in a dark theme, too.
_STYLE = """<style>
.oodbench-report { overflow-x: auto; margin-bottom: 1.5em; }
.oodbench-report table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 0.5em 0; }
.oodbench-report th, .oodbench-report td { text-align: right; padding: 0.15em 0.5em; border: 0; white-space: nowrap; }
.oodbench-report th[scope=colgroup] { text-align: center; }
.oodbench-report thead tr:last-child th { border-bottom: 1px solid currentColor; }
.oodbench-report tbody th, .oodbench-report thead tr:last-child th:first-child { text-align: left; }
.oodbench-report tbody th { font-weight: normal; }
.oodbench-report th[scope=rowgroup] { font-style: italic; padding-top: 0.5em; }
.oodbench-report td span { display: inline-block; text-align: right; }
.oodbench-report p, .oodbench-report details { font-size: 90%; margin: 0.3em 0; max-width: 60em; }
</style>
"""


def html(tables: Sequence[Table]) -> str:
    """Return tables as HTML, with the meaning of their marks; every name is escaped."""
    return _STYLE + "\n".join("\n".join(_parts(table)) for table in tables)


def _parts(table: Table) -> Iterator[str]:
    yield f'<div class="oodbench-report">\n<p><b>{escape(table.title)}</b></p>\n<table>\n<thead>'
    if table.grouped and table.first:  # a transposed table has its groups as titles
        runs = groupby(table.column_groups, key=lambda group: group.group)
        yield _headings([(table.heading(name), sum(len(group.columns) for group in run)) for name, run in runs])
    if any(group.title or group.partial for group in table.column_groups):
        yield _headings(
            [(f"{group.title} {group.partial}".strip(), len(group.columns)) for group in table.column_groups]
        )
    columns = [column for group in table.column_groups for column in group.columns]
    heads = [table.first, *(f"{column.title}{_ARROWS[column.better]}" for column in columns)]
    yield _row(f'<th scope="col">{escape(head)}</th>' for head in heads)
    yield "</thead>"
    signs, extras = _widths(table, _sign), _widths(table, lambda cell: cell.extra)
    for section, lines in groupby(table.lines, key=lambda line: line.section):
        yield "<tbody>"
        if section:
            yield _row([f'<th scope="rowgroup" colspan="{len(heads)}">{escape(section)}</th>'])
        for line in lines:
            cells = map(_cell, _cells(line), signs, extras)
            yield _row([f'<th scope="row">{escape(line.name)}</th>', *cells])
        yield "</tbody>"
    yield "</table>"
    yield from (f"<p>{escape(note)}</p>" for note in table.notes)
    marks = [
        *([f"Best in <b>bold</b>, second <u>underlined</u>{escape(table.within)}."] if table.marked else []),
        *([f"† {escape(table.not_significant)}"] if table.any_not_significant else []),
        *([f"! {escape(EXCEEDS)}"] if table.any_exceeds else []),
    ]
    caption = " ".join([*map(escape, (*table.footnotes, *table.caption)), *marks])
    yield f"<details><summary>What the numbers mean</summary>{caption}</details>\n</div>"


def _row(cells: Iterator[str] | Sequence[str]) -> str:
    return f"<tr>{''.join(cells)}</tr>"


def _headings(spans: Sequence[tuple[str, int]]) -> str:
    return _row(["<td></td>", *(f'<th scope="colgroup" colspan="{span}">{escape(text)}</th>' for text, span in spans)])


def _cells(line: TableLine) -> list[Cell]:
    return [cell for cells in line.cells for cell in cells]


def _widths(table: Table, text: Callable[[Cell], str]) -> list[int]:
    """Return the length of the longest text after a number, for each column."""
    return [
        max((len(text(cell)) for cell in column), default=0) for column in zip(*map(_cells, table.lines), strict=True)
    ]


def _sign(cell: Cell) -> str:
    return "†" if cell.not_significantly_different else "!" if cell.mark == "exceeds" else ""


def _cell(cell: Cell, sign: int, extra: int) -> str:
    """Return a cell in which the text after the number is as wide as in the other cells of its column."""
    follows = [(_sign(cell), sign), (f" {cell.extra}" if cell.extra else "", extra + 1 if extra else 0)]
    spans = (f'<span style="min-width:{width}ch">{escape(text)}</span>' for text, width in follows if width)
    return f"<td>{_MARKS[cell.mark].format(escape(cell.text))}{''.join(spans)}</td>"
