"""The table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oodbench.report.panels import panels
from oodbench.report.remarks import ALIKE, BEYOND
from oodbench.report.table import Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as Grid
    from rich.text import Text

_GAP, _NUMBER = 2, 6
_STYLES = {"best": "bold", "second": "underline", "beyond": "bold red", "": "none"}


@dataclass(frozen=True)
class TerminalTable:
    """A rich renderable that cuts the table into as many panels as the terminal's width asks for."""

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Title, panels, errors, caption."""
        from rich.text import Text

        table = self.table
        names = self._names(options.max_width)
        yield Text(table.title, style="bold")
        widths = [_wide(table, b) for b in range(len(table.blocks))]
        for cut in panels(table.blocks, widths, options.max_width - names):
            yield Text("")
            yield _grid(table, cut, names, arrows=not options.ascii_only)
        yield Text("")
        for note in table.notes:
            yield Text(note, style="red")
        marks = [
            *(["Best in bold, second underlined."] if table.marked else []),
            *([f"† {ALIKE}"] if table.alike else []),
            *([f"! {BEYOND}"] if table.beyond else []),
        ]
        yield Text(" ".join((*table.caption, *marks)), style="dim")

    def _names(self, width: int) -> int:
        """Width of the first column: names are folded if that avoids a second panel, or else at a quarter."""
        table = self.table
        longest = max(len(table.first), *(max(len(line.name), len(line.section)) for line in table.lines))
        room = width - sum(_wide(table, b) for b in range(len(table.blocks)))
        return min(longest, room if room >= 16 else max(width // 4, 12))


def console(table: Table) -> TerminalTable:
    """Something for `rich.print`; rich is loaded when it prints."""
    return TerminalTable(table)


def _wide(table: Table, b: int) -> int:
    return _inner(table, b) + _GAP


def _inner(table: Table, b: int) -> int:
    block = table.blocks[b]
    numbers = sum(_numbers(table, b)) + len(block.columns) - 1
    return max(numbers, min(len(block.title), 20), *(len(word) for word in block.stamp.split()), 0)


def _numbers(table: Table, b: int) -> list[int]:
    """Characters of each column of a block."""
    columns = enumerate(table.blocks[b].columns)
    return [
        max(_NUMBER, len(c.title) + 1, *(len(_print(line.cells[b][i])) for line in table.lines)) for i, c in columns
    ]


def _grid(table: Table, cut: Sequence[int], names: int, *, arrows: bool) -> Grid:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    # The box puts one column between two others, the padding another.
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0), pad_edge=False)
    grid.add_column(table.first, width=names, overflow="fold", vertical="bottom")
    stamps = any(table.blocks[i].stamp for i in cut)
    widths, tails = {i: _numbers(table, i) for i in cut}, {i: _tails(table, i) for i in cut}
    for i in cut:
        block = table.blocks[i]
        stamp = [Text(word, style="yellow") for word in block.stamp.split()] or [Text(""), Text("")]
        columns = zip(block.columns, widths[i], strict=True)
        heads = (Text(_head(column, arrows=arrows).rjust(width)) for column, width in columns)
        head = Text("\n").join([Text(block.title), *(stamp if stamps else []), Text(" ").join(heads)])
        grid.add_column(head, justify="right", width=_inner(table, i), overflow="fold", vertical="bottom")
    section = ""
    for line in table.lines:
        if line.section != section:
            section = line.section
            grid.add_row(Text(section, style="italic"), *[""] * len(cut))
        grid.add_row(Text(line.name), *(_row(line.cells[i], widths[i], tails[i]) for i in cut))
    return grid


def _head(column: Column, *, arrows: bool) -> str:
    return column.title + ({1: "↑", -1: "↓"}.get(column.better, "") if arrows else "")


def _print(cell: Cell) -> str:
    return f"{cell.plain}!" if cell.mark == "beyond" else cell.plain


def _tails(table: Table, b: int) -> list[bool]:
    """Of each column of a block whether a sign follows some of its numbers: the others get a blank."""
    return [
        any(line.cells[b][c].alike or line.cells[b][c].mark == "beyond" for line in table.lines)
        for c in range(len(table.blocks[b].columns))
    ]


def _row(cells: Sequence[Cell], widths: Sequence[int], tails: Sequence[bool]) -> Text:
    from rich.text import Text

    out = Text()
    for cell, width, tail in zip(cells, widths, tails, strict=True):
        # The mark covers the digits alone, not the blanks that align them.
        rest = _print(cell).removeprefix(cell.text) or (" " if tail else "")
        out.append(" " * (width - len(cell.text) - len(rest) + bool(out)))
        out.append(cell.text, style=_STYLES[cell.mark])
        out.append(rest)
    return out
