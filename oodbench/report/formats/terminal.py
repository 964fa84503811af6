"""Tables in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oodbench.report.tables.table import EXCEEDS, Cell, Column, Table, panels

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as Grid
    from rich.text import Text

_GAP, _NUMBER = 2, 6
_STYLES = {"best": "bold", "second": "underline", "exceeds": "bold red", "": "none"}


@dataclass(frozen=True)
class TerminalTable:
    """A rich renderable that cuts the table into as many panels as the terminal's width requires."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, panels, notes and caption."""
        from rich.text import Text

        table = self.table
        names = self._names(options.max_width)
        yield Text(table.title, style="bold")
        widths = [_wide(table, b) for b in range(len(table.column_groups))]
        for cut in panels(table.column_groups, widths, options.max_width - names):
            yield Text("")
            yield _grid(table, cut, names, arrows=not options.ascii_only)
        yield Text("")
        for note in table.notes:
            yield Text(note, style="red")
        for note in table.footnotes:
            yield Text(note, style="dim")
        marks = [
            *([f"Best in bold, second underlined{table.within}."] if table.marked else []),
            *([f"† {table.not_significant}"] if table.any_not_significant else []),
            *([f"! {EXCEEDS}"] if table.any_exceeds else []),
        ]
        yield Text(" ".join((*table.caption, *marks)), style="dim")

    def _names(self, width: int) -> int:
        """Return the width of the first column: names are wrapped to avoid a second panel, or else at a quarter."""
        from rich.cells import cell_len

        table = self.table
        longest = max(cell_len(table.first), *(max(map(cell_len, (x.name, x.section))) for x in table.lines))
        space = width - sum(_wide(table, b) for b in range(len(table.column_groups)))
        return min(longest, space if space >= 16 else max(width // 4, 12))


def console(table: Table) -> TerminalTable:
    """Return a renderable for `rich.print`; rich is imported when it is printed."""
    return TerminalTable(table)


@dataclass(frozen=True)
class _ColumnWidth:
    """Characters of a column: all, its widest number, the sign after a number, and its longest extra."""

    all: int
    number: int
    sign: int
    extra: int


def _wide(table: Table, b: int) -> int:
    return _inner(table, b) + _GAP


def _inner(table: Table, b: int) -> int:
    from rich.cells import cell_len

    group = table.column_groups[b]
    numbers = sum(column_width.all for column_width in _column_widths(table, b)) + len(group.columns) - 1
    return max(numbers, min(cell_len(group.title), 20), *(cell_len(word) for word in group.partial.split()), 0)


def _column_widths(table: Table, b: int) -> list[_ColumnWidth]:
    """Return the widths of each column of a group, so that digits are aligned whatever follows them."""
    out = []
    for c, column in enumerate(table.column_groups[b].columns):
        cells = [line.cells[b][c] for line in table.lines]
        number = max((len(cell.text) for cell in cells), default=0)
        sign = max((len(_sign(cell)) for cell in cells), default=0)
        extra = max((len(cell.extra) for cell in cells), default=0)
        together = number + sign + (1 + extra if extra else 0)
        out.append(_ColumnWidth(max(_NUMBER, len(column.title) + 1, together), number, sign, extra))
    return out


def _sign(cell: Cell) -> str:
    return "†" if cell.not_significantly_different else "!" if cell.mark == "exceeds" else ""


def _grid(table: Table, cut: Sequence[int], names: int, *, arrows: bool) -> Grid:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    # The box puts one column between two others, the padding another.
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0), pad_edge=False)
    grid.add_column(table.first, width=names, overflow="fold", vertical="bottom")
    any_partial = any(table.column_groups[i].partial for i in cut)
    column_widths = {i: _column_widths(table, i) for i in cut}
    for i in cut:
        group = table.column_groups[i]
        partial = [Text(word, style="yellow") for word in group.partial.split()] or [Text(""), Text("")]
        columns = zip(group.columns, column_widths[i], strict=True)
        heads = (Text(_head(column, arrows=arrows).rjust(column_width.all)) for column, column_width in columns)
        head = Text("\n").join([Text(group.title), *(partial if any_partial else []), Text(" ").join(heads)])
        grid.add_column(head, justify="right", width=_inner(table, i), overflow="fold", vertical="bottom")
    section = ""
    for line in table.lines:
        if line.section != section:
            section = line.section
            grid.add_row(Text(section, style="italic"), *[""] * len(cut))
        grid.add_row(Text(line.name), *(_row(line.cells[i], column_widths[i], _inner(table, i)) for i in cut))
    return grid


def _head(column: Column, *, arrows: bool) -> str:
    return column.title + ({1: "↑", -1: "↓"}.get(column.better, "") if arrows else "")


def _row(cells: Sequence[Cell], column_widths: Sequence[_ColumnWidth], width: int) -> Text:
    """Return text as wide as the group, aligned left: rich strips trailing blanks of text that is aligned right."""
    from rich.text import Text

    out = Text(justify="left")
    for cell, column_width in zip(cells, column_widths, strict=True):
        sign = _sign(cell).ljust(column_width.sign)
        extra = f" {_aligned(cell.extra, column_width.extra)}" if column_width.extra else ""
        # The mark covers the digits alone, not the blanks that align them.
        out.append(" " * (column_width.all - len(cell.text) - len(sign) - len(extra) + bool(out)))
        out.append(cell.text, style=_STYLES[cell.mark])
        out.append(sign + extra)
    out.pad_left(width - len(out))
    return out


def _aligned(extra: str, width: int) -> str:
    """Return `± 0.50` as wide as `± 12.50`, with its digits to the right."""
    return f"± {extra[2:].rjust(width - 2)}" if extra.startswith("± ") else extra.rjust(width)
