"""Tables for a terminal, or as plain text for a file or a pipe."""

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
_SIGNS = {"best": "*", "second": "+", "exceeds": "!", "": ""}


@dataclass(frozen=True)
class TerminalTable:
    """A rich renderable that splits the table into as many panels as the terminal's width requires.

    The best and second are bold and underlined, or have signs if the console has no styles, as in a file.
    """

    table: Table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield title, panels, notes and caption."""
        from rich.text import Text

        table, plain = self.table, console.color_system is None or console.no_color
        layout = _Layout(table, plain=plain, ascii=options.ascii_only)
        names = layout.names(options.max_width)
        yield Text(table.title, style="bold")
        widths = [layout.inner(b) + _GAP for b in range(len(table.column_groups))]
        for cut in panels(table.column_groups, widths, options.max_width - names):
            yield Text("")
            yield layout.grid(cut, names)
        yield Text("")
        for note in table.notes:
            yield Text(note, style="red")
        for note in table.footnotes:
            yield Text(note, style="dim")
        best = "Best: *, second: +" if plain else "Best in bold, second underlined"
        marks = [
            *([f"{best}{table.within}."] if table.marked else []),
            *([f"† {table.not_significant}"] if table.any_not_significant else []),
            *([f"! {EXCEEDS}"] if table.any_exceeds else []),
        ]
        yield Text(" ".join((*table.caption, *marks)), style="dim")


def console(table: Table) -> TerminalTable:
    """Return a renderable for `rich.print`; rich is imported when it is printed."""
    return TerminalTable(table)


@dataclass(frozen=True)
class _ColumnWidth:
    """Widths in a column, in characters: in total, its widest number, the signs after it, and its longest extra."""

    all: int
    number: int
    sign: int
    extra: int


class _Layout:
    """Column widths and grids of a table; `plain` marks cells with signs, `ascii` has no arrows."""

    def __init__(self, table: Table, *, plain: bool, ascii: bool) -> None:
        self.table, self._plain, self._ascii = table, plain, ascii
        self._widths = [self._column_widths(b) for b in range(len(table.column_groups))]

    def names(self, width: int) -> int:
        """Return the width of the first column; names are wrapped to avoid a second panel, else at a quarter."""
        from rich.cells import cell_len

        table = self.table
        longest = max(cell_len(table.first), *(max(map(cell_len, (x.name, x.section))) for x in table.lines))
        space = width - sum(self.inner(b) + _GAP for b in range(len(table.column_groups)))
        return min(longest, space if space >= 16 else max(width // 4, 12))

    def inner(self, b: int) -> int:
        """Return the width of a column group."""
        from rich.cells import cell_len

        group = self.table.column_groups[b]
        numbers = sum(column_width.all for column_width in self._widths[b]) + len(group.columns) - 1
        words = (*group.partial.split(), self._heading(b))
        return max(numbers, min(cell_len(group.title), 20), *map(cell_len, words))

    def _column_widths(self, b: int) -> list[_ColumnWidth]:
        """Return the widths of each column of a group, so that digits are aligned whatever follows them."""
        from rich.cells import cell_len

        out = []
        for c, column in enumerate(self.table.column_groups[b].columns):
            cells = [line.cells[b][c] for line in self.table.lines]
            number = max((len(cell.text) for cell in cells), default=0)
            sign = max((len(self._sign(cell)) for cell in cells), default=0)
            extra = max((len(self._extra(cell)) for cell in cells), default=0)
            together = number + sign + (1 + extra if extra else 0)
            out.append(_ColumnWidth(max(_NUMBER, cell_len(column.title) + 1, together), number, sign, extra))
        return out

    def grid(self, cut: Sequence[int], names: int) -> Grid:
        """Return a panel: the names of the lines, and some of the column groups."""
        from rich import box
        from rich.table import Table as Grid
        from rich.text import Text

        table = self.table
        # The box adds one blank between columns, the padding another.
        grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, _GAP - 1, 0, 0), pad_edge=False)
        grid.add_column(Text(table.first), width=names, overflow="fold", vertical="bottom")
        any_partial = any(table.column_groups[i].partial for i in cut)
        for place, i in enumerate(cut):
            group = table.column_groups[i]
            first = not place or table.column_groups[cut[place - 1]].group != group.group
            near_far = [Text(self._rule(i, first=first))] if any(map(self._heading, cut)) else []
            partial = [Text(word, style="yellow") for word in group.partial.split()] or [Text(""), Text("")]
            heads = [self._head(*pair) for pair in zip(group.columns, self._widths[i], strict=True)]
            lines = [*near_far, Text(group.title), *(partial if any_partial else []), Text(" ").join(heads)]
            grid.add_column(
                Text("\n").join(lines), justify="right", width=self.inner(i), overflow="fold", vertical="bottom"
            )
        section = ""
        for line in table.lines:
            if line.section != section:
                section = line.section
                grid.add_row(Text(section, style="italic"), *[""] * len(cut))
            grid.add_row(Text(line.name), *(self._row(line.cells[i], i) for i in cut))
        return grid

    def _heading(self, b: int) -> str:
        """Return the heading of near or far, "" for others and for transposed tables, whose titles state it."""
        return self.table.heading(self.table.column_groups[b].group) if self.table.first else ""

    def _rule(self, b: int, *, first: bool) -> str:
        """Return the line above a group: near or far at the first one of these, and a rule over all of them."""
        from rich.cells import cell_len

        heading = self._heading(b)
        said = f"{heading} " if first else ""
        rule = "-" if self._ascii else "─"
        return f"{said}{rule * (self.inner(b) - cell_len(said))}".rstrip() if heading else ""

    def _head(self, column: Column, width: _ColumnWidth) -> Text:
        from rich.text import Text

        arrow = "" if self._ascii else {1: "↑", -1: "↓"}.get(column.better, "")
        out = Text(f"{column.title}{arrow}")
        out.pad_left(width.all - out.cell_len)
        return out

    def _sign(self, cell: Cell) -> str:
        mark = _SIGNS[cell.mark] if self._plain or cell.mark == "exceeds" else ""
        return mark + ("†" if cell.not_significantly_different else "")

    def _extra(self, cell: Cell) -> str:
        return cell.extra.replace("±", "+-") if self._ascii else cell.extra

    def _row(self, cells: Sequence[Cell], b: int) -> Text:
        """Return text as wide as the group, aligned left: rich strips trailing blanks of text that is aligned right."""
        from rich.text import Text

        out = Text(justify="left")
        for cell, column_width in zip(cells, self._widths[b], strict=True):
            sign = self._sign(cell).ljust(column_width.sign)
            extra = f" {_aligned(self._extra(cell), column_width.extra)}" if column_width.extra else ""
            # The style applies to the digits only, not to the blanks that align them.
            out.append(" " * (column_width.all - len(cell.text) - len(sign) - len(extra) + bool(out)))
            out.append(cell.text, style=_STYLES[cell.mark])
            out.append(sign + extra)
        out.pad_left(self.inner(b) - len(out))
        return out


def _aligned(extra: str, width: int) -> str:
    """Return `± 0.50` as wide as `± 12.50`, with its digits to the right."""
    sign, blank, half = extra.partition(" ")
    return f"{sign} {half.rjust(width - len(sign) - 1)}" if sign in ("±", "+-") and blank else extra.rjust(width)
