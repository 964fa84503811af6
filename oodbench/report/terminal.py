"""The table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oodbench.report.panels import panels
from oodbench.report.table import Block, Cell, Column, Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table as Grid
    from rich.text import Text

_GAP, _NUMBER = 2, 6
_STYLES = {"best": "bold", "second": "underline", "": "none"}


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
        for cut in panels(table.blocks, _wide, options.max_width - names):
            yield Text("")
            yield _grid(table, cut, names, arrows=not options.ascii_only)
        yield Text("")
        for note in table.notes:
            yield Text(note, style="red")
        marks = ("Best in bold, second underlined.",) if table.marked else ()
        yield Text(" ".join((*table.caption, *marks)), style="dim")

    def _names(self, width: int) -> int:
        """Width of the first column: names are folded if that avoids a second panel, or else at a quarter."""
        longest = max(len("Method"), *(len(line.name) for line in self.table.lines))
        room = width - sum(_wide(block) for block in self.table.blocks)
        return min(longest, room if room >= 16 else max(width // 4, 12))


def console(table: Table) -> TerminalTable:
    """Something for `rich.print`; rich is loaded when it prints."""
    return TerminalTable(table)


def _wide(block: Block) -> int:
    return _inner(block) + _GAP


def _inner(block: Block) -> int:
    numbers = sum(_number(column) for column in block.columns) + len(block.columns) - 1
    return max(numbers, min(len(block.title), 20), *(len(word) for word in block.stamp.split()), 0)


def _number(column: Column) -> int:
    return max(_NUMBER, len(column.title) + 1)


def _grid(table: Table, cut: Sequence[int], names: int, *, arrows: bool) -> Grid:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    # The box puts one column between two others, the padding another.
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0), pad_edge=False)
    grid.add_column("Method", width=names, overflow="fold", vertical="bottom")
    stamps = any(table.blocks[i].stamp for i in cut)
    for block in (table.blocks[i] for i in cut):
        stamp = [Text(word, style="yellow") for word in block.stamp.split()] or [Text(""), Text("")]
        heads = (Text(_head(column, arrows=arrows).rjust(_number(column))) for column in block.columns)
        head = Text("\n").join([Text(block.title), *(stamp if stamps else []), Text(" ").join(heads)])
        grid.add_column(head, justify="right", width=_inner(block), overflow="fold", vertical="bottom")
    for line in table.lines:
        grid.add_row(Text(line.name), *(_numbers(line.cells[i], table.blocks[i]) for i in cut))
    return grid


def _head(column: Column, *, arrows: bool) -> str:
    return column.title + ({1: "↑", -1: "↓"}.get(column.better, "") if arrows else "")


def _numbers(cells: Sequence[Cell], block: Block) -> Text:
    from rich.text import Text

    out = Text()
    for cell, column in zip(cells, block.columns, strict=True):
        # The mark covers the digits alone, not the blanks that align them.
        out.append(" " * (_number(column) - len(cell.text) + bool(out)))
        out.append(cell.text, style=_STYLES[cell.mark])
    return out
