"""The table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oodbench.report.tables.table import EXCEEDS, NOT_SIGNIFICANT, Cell, Column, Table, panels

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
            *([f"† {NOT_SIGNIFICANT}"] if table.alike else []),
            *([f"! {EXCEEDS}"] if table.beyond else []),
        ]
        yield Text(" ".join((*table.caption, *marks)), style="dim")

    def _names(self, width: int) -> int:
        """Width of the first column: names are folded if that avoids a second panel, or else at a quarter."""
        from rich.cells import cell_len

        table = self.table
        longest = max(cell_len(table.first), *(max(map(cell_len, (x.name, x.section))) for x in table.lines))
        room = width - sum(_wide(table, b) for b in range(len(table.blocks)))
        return min(longest, room if room >= 16 else max(width // 4, 12))


def console(table: Table) -> TerminalTable:
    """Something for `rich.print`; rich is loaded when it prints."""
    return TerminalTable(table)


@dataclass(frozen=True)
class _Room:
    """Characters of a column: all, of its widest number, of the sign that follows some, of its longest extra."""

    all: int
    number: int
    sign: int
    extra: int


def _wide(table: Table, b: int) -> int:
    return _inner(table, b) + _GAP


def _inner(table: Table, b: int) -> int:
    from rich.cells import cell_len

    block = table.blocks[b]
    numbers = sum(room.all for room in _rooms(table, b)) + len(block.columns) - 1
    return max(numbers, min(cell_len(block.title), 20), *(cell_len(word) for word in block.stamp.split()), 0)


def _rooms(table: Table, b: int) -> list[_Room]:
    """Of each column of a block, so that digits stand under digits whatever follows them."""
    out = []
    for c, column in enumerate(table.blocks[b].columns):
        cells = [line.cells[b][c] for line in table.lines]
        number = max((len(cell.text) for cell in cells), default=0)
        sign = max((len(_sign(cell)) for cell in cells), default=0)
        extra = max((len(cell.extra) for cell in cells), default=0)
        together = number + sign + (1 + extra if extra else 0)
        out.append(_Room(max(_NUMBER, len(column.title) + 1, together), number, sign, extra))
    return out


def _sign(cell: Cell) -> str:
    return "†" if cell.alike else "!" if cell.mark == "beyond" else ""


def _grid(table: Table, cut: Sequence[int], names: int, *, arrows: bool) -> Grid:
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    # The box puts one column between two others, the padding another.
    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0), pad_edge=False)
    grid.add_column(table.first, width=names, overflow="fold", vertical="bottom")
    stamps = any(table.blocks[i].stamp for i in cut)
    rooms = {i: _rooms(table, i) for i in cut}
    for i in cut:
        block = table.blocks[i]
        stamp = [Text(word, style="yellow") for word in block.stamp.split()] or [Text(""), Text("")]
        columns = zip(block.columns, rooms[i], strict=True)
        heads = (Text(_head(column, arrows=arrows).rjust(room.all)) for column, room in columns)
        head = Text("\n").join([Text(block.title), *(stamp if stamps else []), Text(" ").join(heads)])
        grid.add_column(head, justify="right", width=_inner(table, i), overflow="fold", vertical="bottom")
    section = ""
    for line in table.lines:
        if line.section != section:
            section = line.section
            grid.add_row(Text(section, style="italic"), *[""] * len(cut))
        grid.add_row(Text(line.name), *(_row(line.cells[i], rooms[i], _inner(table, i)) for i in cut))
    return grid


def _head(column: Column, *, arrows: bool) -> str:
    return column.title + ({1: "↑", -1: "↓"}.get(column.better, "") if arrows else "")


def _row(cells: Sequence[Cell], rooms: Sequence[_Room], width: int) -> Text:
    """As wide as the block and set from the left: of a text to the right, rich takes the blanks at its end away."""
    from rich.text import Text

    out = Text(justify="left")
    for cell, room in zip(cells, rooms, strict=True):
        sign = _sign(cell).ljust(room.sign)
        extra = f" {_aligned(cell.extra, room.extra)}" if room.extra else ""
        # The mark covers the digits alone, not the blanks that align them.
        out.append(" " * (room.all - len(cell.text) - len(sign) - len(extra) + bool(out)))
        out.append(cell.text, style=_STYLES[cell.mark])
        out.append(sign + extra)
    out.pad_left(width - len(out))
    return out


def _aligned(extra: str, width: int) -> str:
    """`± 0.50` as wide as `± 12.50`, its digits to the right."""
    return f"± {extra[2:].rjust(width - 2)}" if extra.startswith("± ") else extra.rjust(width)
