"""Table: headings, lines and cells, ready for any format. Names in them are printable, wherever they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from oodbench.errors import printable
from oodbench.results import Result

DASH = "-"


@dataclass(frozen=True)
class Column:
    """One column of numbers. `better`: 1 when higher is better, -1 when lower is, 0 for neither; `name`: the metric."""

    title: str
    better: int = 0
    name: str = ""

    def __post_init__(self) -> None:
        _print(self, "title")


@dataclass(frozen=True)
class Block:
    """Columns under one heading: an OOD set, a mean, the ID set. `group` is its near or far, "" for none.

    stamp  `partial n/N`
    name   the OOD set, `mean` or `near mean`; "" for other columns
    """

    title: str
    columns: tuple[Column, ...]
    group: str = ""
    stamp: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        _print(self, "title", "group", "stamp")


@dataclass(frozen=True)
class Cell:
    """A fraction or seconds, its print, and its mark: "best", "second", "beyond" (a tolerance) or "".

    extra    the print of its interval or deviation, "" for none
    alike    not distinguishable from the best of its column
    """

    value: float | None
    text: str
    mark: str = ""
    extra: str = ""
    alike: bool = False

    @property
    def plain(self) -> str:
        """The number with what follows it, for formats without markup."""
        return f"{self.text}{'†' if self.alike else ''}{' ' if self.extra else ''}{self.extra}"


@dataclass(frozen=True)
class Line:
    """One line: its name and a tuple of cells for each block.

    result     the row behind it (of several seeds the first); None for a number from elsewhere
    section    the heading that it stands under, "" for none
    cites      BibTeX keys
    facts      of a quoted line, as CSV has them
    others     the rows of the other seeds
    """

    name: str
    cells: tuple[tuple[Cell, ...], ...]
    result: Result | None
    section: str = ""
    cites: tuple[str, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)
    others: tuple[Result, ...] = ()

    def __post_init__(self) -> None:
        _print(self, "name", "section")

    @property
    def rows(self) -> tuple[Result, ...]:
        """Every row behind it."""
        return (self.result, *self.others) if self.result else ()


@dataclass(frozen=True)
class Table:
    """Rows that may be compared. Texts are plain: each format escapes them."""

    title: str
    caption: tuple[str, ...]  # sentences
    blocks: tuple[Block, ...]
    lines: tuple[Line, ...]
    notes: tuple[str, ...]  # below the table: errors of failed rows, sources of quoted ones, differences
    cites: tuple[tuple[str, tuple[str, ...]], ...] = ()  # title of a dataset, its BibTeX keys
    first: str = "Method"  # heading of the first column

    def __post_init__(self) -> None:
        _print(self, "title", "first")
        object.__setattr__(self, "caption", tuple(map(printable, self.caption)))
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))
        object.__setattr__(self, "cites", tuple((printable(title), keys) for title, keys in self.cites))

    @property
    def marked(self) -> bool:
        """Whether any cell is marked as best or second."""
        return any(cell.mark in ("best", "second") for cell in self.cells)

    @property
    def alike(self) -> bool:
        """Whether any cell is marked as not distinguishable from the best."""
        return any(cell.alike for cell in self.cells)

    @property
    def beyond(self) -> bool:
        """Whether any cell lies beyond a tolerance."""
        return any(cell.mark == "beyond" for cell in self.cells)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, line by line."""
        return [cell for line in self.lines for cells in line.cells for cell in cells]

    @property
    def grouped(self) -> bool:
        """Whether headings tell groups (near, far) apart: there must be two."""
        return len({block.group for block in self.blocks} - {""}) > 1


def _print(one: object, *names: str) -> None:
    """Make some texts of a frozen dataclass printable."""
    for name in names:
        object.__setattr__(one, name, printable(getattr(one, name)))


def panels(blocks: Sequence[Block], widths: Sequence[float], limit: float) -> list[list[int]]:
    """Positions of the blocks of each panel, cut between groups where that fits; wider than the limit only when a
    single block is.
    """
    segments = [list(places) for _, places in groupby(range(len(blocks)), key=lambda i: blocks[i].group)]
    if len(segments) > 1 and not blocks[-1].group:
        # The mean and the ID side stand beside a set where they can.
        segments[-2:] = [segments[-2] + segments[-1]]
    out: list[list[int]] = []
    for segment in segments:
        if out and sum(widths[i] for i in out[-1] + segment) <= limit:
            out[-1] += segment
        else:
            out += _cut(segment, widths, limit)
    return out


def _cut(segment: Sequence[int], widths: Sequence[float], limit: float) -> list[list[int]]:
    """As few parts as the limit allows, and of these the most even ones."""
    fewest = len(_fill(segment, widths, limit))
    rooms = {sum(widths[i] for i in segment[a:b]) for b in range(1, len(segment) + 1) for a in range(b)}
    trials = (_fill(segment, widths, room) for room in sorted(rooms))
    return next(parts for parts in trials if len(parts) == fewest)


def _fill(segment: Sequence[int], widths: Sequence[float], room: float) -> list[list[int]]:
    parts: list[list[int]] = []
    for i in segment:
        if parts and sum(widths[j] for j in parts[-1]) + widths[i] <= room:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


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


NOT_SIGNIFICANT = (
    "not significantly different from the best of its column (paired tests on the same images: DeLong for AUROC, "
    "bootstrap for the others; corrected for all pairs, level 0.05)."
)
EXCEEDS = "difference exceeds the tolerance."
