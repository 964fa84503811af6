"""Table: column headings, lines and cells for all formats, with printable names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby

from oodbench.errors import printable
from oodbench.method.access import Access
from oodbench.results import Interval, Result

DASH = "-"
EXCEEDS = "difference exceeds the tolerance."


@dataclass(frozen=True)
class Number:
    """A value of a result, None if missing, and its confidence interval."""

    value: float | None
    interval: Interval | None = None


@dataclass(frozen=True)
class Column:
    """One column of numbers. `better`: 1 when higher is better, -1 when lower is, 0 for neither; `name`: the metric."""

    title: str
    better: int = 0
    name: str = ""
    ours: bool = False  # in a transposed table: whether the column is shaded

    def __post_init__(self) -> None:
        _make_printable(self, "title")


@dataclass(frozen=True)
class ColumnGroup:
    """Columns under one heading: an OOD set, an average over sets, or the ID set.

    group     "near" or "far", "" for neither
    partial   `partial n/N` for a set with missing images, or ""
    name      the OOD set, `mean` or `near mean`; "" for other columns
    values    returns the numbers of a finished result, one for each column
    fraction  whether these are fractions (seconds are not)
    mean      the group of sets that the numbers are averages over, "" for all sets; None: they are not averages
    """

    title: str
    columns: tuple[Column, ...]
    group: str = ""
    partial: str = ""
    name: str = ""
    values: Callable[[Result], tuple[Number, ...]] = field(default=lambda result: (), repr=False, compare=False)
    fraction: bool = True
    mean: str | None = None

    def __post_init__(self) -> None:
        _make_printable(self, "title", "group", "partial")


@dataclass(frozen=True)
class Cell:
    """A fraction or a number of seconds, with its printed form.

    text   the number as printed
    mark   "best", "second", "exceeds" (a tolerance) or ""
    extra  its interval or standard deviation as printed, "i" or "o" for the other kind of FPR95, or ""
    other  whether the number is the other kind of FPR95: a published one with OOD positive in a column with ID
           positive, or vice versa; it is not compared
    """

    value: float | None
    text: str
    mark: str = ""
    extra: str = ""
    not_significantly_different: bool = False  # from the best of its column
    other: bool = False

    @property
    def plain(self) -> str:
        """The number with its dagger and extra, for formats without markup."""
        dagger = "†" if self.not_significantly_different else ""
        return f"{self.text}{dagger}{' ' if self.extra else ''}{self.extra}"


@dataclass(frozen=True)
class TableLine:
    """One line: its name and a tuple of cells for each column group.

    result   the result shown (the first of several seeds); None for a published number
    section  the heading above the line, or ""
    access   data that the method sees, None if unknown
    cites    BibTeX keys
    facts    the CSV fields of a published number
    others   the results of the other seeds
    names    with `--seeds`: the names of the results in a table without it; else ()
    ours     whether the line comes last and is shaded
    encoder  the heading above its section, in a table of several encoders
    rank     the number by which lines are sorted, the highest first; None comes last
    """

    name: str
    cells: tuple[tuple[Cell, ...], ...]
    result: Result | None
    section: str = ""
    access: Access | None = None
    cites: tuple[str, ...] = ()
    facts: dict[str, object] = field(default_factory=dict)
    others: tuple[Result, ...] = ()
    names: tuple[str, ...] = ()
    ours: bool = False
    encoder: str = ""
    rank: float | None = None

    def __post_init__(self) -> None:
        _make_printable(self, "name", "section", "encoder")

    @property
    def results(self) -> tuple[Result, ...]:
        """Every result shown in this line."""
        return (self.result, *self.others) if self.result else ()


@dataclass(frozen=True)
class Table:
    """Comparable results. Texts are plain: each format escapes them."""

    title: str
    caption: tuple[str, ...]  # sentences
    column_groups: tuple[ColumnGroup, ...]
    lines: tuple[TableLine, ...]
    notes: tuple[str, ...]  # below the table: errors of failed results, sources of published results, differences
    cites: tuple[tuple[str, tuple[str, ...]], ...] = ()  # title of the benchmark or a dataset, its BibTeX keys
    first: str = "Method"  # heading of the first column
    footnotes: tuple[str, ...] = ()  # below the notes: access of the methods
    within: str = ""  # scope of best and second: " within each group", or "" in a table of one block
    part: str = ""  # of the streams, by position: "first" or "rest"; "" for all images
    encoder: str = ""  # its name in the title
    compared: str = ""  # the line that is compared with published numbers
    brief: tuple[str, ...] = ()  # short notes below a table with a short caption
    missing: str = ""  # titles of OOD sets that only other tables of the benchmark and encoder have
    slug: str = ""  # of its label in LaTeX: the benchmark
    order: tuple[str, ...] = ()  # what of caption and brief is on the order of the lines, and on those left out

    def __post_init__(self) -> None:
        _make_printable(self, "title", "first", "encoder", "compared", "missing")
        object.__setattr__(self, "caption", tuple(map(printable, self.caption)))
        object.__setattr__(self, "notes", tuple(map(printable, self.notes)))
        object.__setattr__(self, "footnotes", tuple(map(printable, self.footnotes)))
        object.__setattr__(self, "brief", tuple(map(printable, self.brief)))
        object.__setattr__(self, "order", tuple(map(printable, self.order)))
        object.__setattr__(self, "cites", tuple((printable(title), keys) for title, keys in self.cites))

    @property
    def results(self) -> list[Result]:
        """Every result that the table shows."""
        return [row for line in self.lines for row in line.results]

    @property
    def marked(self) -> bool:
        """Whether any cell is marked as best or second."""
        return any(cell.mark in ("best", "second") for cell in self.cells)

    @property
    def not_significant(self) -> str:
        """The meaning of a dagger."""
        where = "group and column" if self.within else "column"
        return (
            f"not significantly different from the best of its {where} (paired tests on the same images: DeLong for "
            "AUROC, bootstrap for the others; corrected for all pairs, level 0.05)."
        )

    @property
    def any_not_significant(self) -> bool:
        """Whether any cell is marked as not significantly different from the best of its column."""
        return any(cell.not_significantly_different for cell in self.cells)

    @property
    def any_exceeds(self) -> bool:
        """Whether any difference from a published number exceeds its tolerance."""
        return any(cell.mark == "exceeds" for cell in self.cells)

    @property
    def cells(self) -> list[Cell]:
        """Every cell, line by line."""
        return [cell for line in self.lines for cells in line.cells for cell in cells]

    @property
    def grouped(self) -> bool:
        """Whether there are headings for groups (near, far)."""
        return any(group.group for group in self.column_groups)

    def heading(self, group: str) -> str:
        """Return the heading of a group of columns, "" for none: sets are near or far OOD, methods have a section."""
        kind = " OOD" if self.first and "OOD" not in group else ""  # the columns of a transposed table are methods
        return f"{group[0].upper()}{group[1:]}{kind}" if group else ""


def _make_printable(instance: object, *names: str) -> None:
    """Make some texts of a frozen dataclass printable."""
    for name in names:
        object.__setattr__(instance, name, printable(getattr(instance, name)))


def panels(
    column_groups: Sequence[ColumnGroup], widths: Sequence[float], limit: float, *, even: bool = False
) -> list[list[int]]:
    """Divide column groups (by position) into panels no wider than the limit, except for groups that exceed it alone.

    The cuts are between near and far if possible; with `even`, panels are as equal as possible.
    """
    if even:
        return _cut(range(len(column_groups)), widths, limit)
    segments = [
        list(positions) for _, positions in groupby(range(len(column_groups)), key=lambda i: column_groups[i].group)
    ]
    if len(segments) > 1 and not column_groups[-1].group:
        # The average and the ID side are in the same panel as a set where they fit.
        segments[-2:] = [segments[-2] + segments[-1]]
    out: list[list[int]] = []
    for segment in segments:
        if out and sum(widths[i] for i in out[-1] + segment) <= limit:
            out[-1] += segment
        else:
            out += _cut(segment, widths, limit)
    return out


def _cut(segment: Sequence[int], widths: Sequence[float], limit: float) -> list[list[int]]:
    """Cut into as few parts as the limit allows, as evenly as possible."""
    fewest = len(_fill(segment, widths, limit))
    candidates = {sum(widths[i] for i in segment[a:b]) for b in range(1, len(segment) + 1) for a in range(b)}
    trials = (_fill(segment, widths, width) for width in sorted(candidates))
    return next(parts for parts in trials if len(parts) == fewest)


def _fill(segment: Sequence[int], widths: Sequence[float], limit: float) -> list[list[int]]:
    parts: list[list[int]] = []
    for i in segment:
        if parts and sum(widths[j] for j in parts[-1]) + widths[i] <= limit:
            parts[-1].append(i)
        else:
            parts.append([i])
    return parts


ARROWS = {1: " ↑", -1: " ↓", 0: ""}


def transposed(table: Table) -> Table:
    """Return the table with a line for each column, under near or far and its set; sections become groups."""
    columns = [(line.section, Column(line.name, ours=line.ours)) for line in table.lines]
    groups = tuple(ColumnGroup(section, (column,), section) for section, column in columns)
    lines = []
    for g, group in enumerate(table.column_groups):
        title = ": ".join(filter(None, (table.heading(group.group) if group.mean is None else "", group.title)))
        section = " ".join(filter(None, (title, f"({group.partial})" if group.partial else "")))
        for c, column in enumerate(group.columns):
            cells = tuple((line.cells[g][c],) for line in table.lines)
            lines.append(TableLine(f"{column.title}{ARROWS[column.better]}", cells, None, section))
    brief = (*table.brief, *exceptions(table))
    return replace(table, column_groups=groups, lines=tuple(lines), first="", brief=brief)


def exceptions(table: Table) -> list[str]:
    """Return, in a few words, which lines failed and which have imported scores; of several encoders with theirs."""
    named = [(f"{x.name} ({x.encoder})" if x.encoder and not table.compared else x.name, x.result) for x in table.lines]
    failed = [name for name, row in named if row and row.status != "ok"]
    imported = [name for name, row in named if row and row.imported]
    found = {"Failed": failed, "Imported scores": imported}
    return [f"{what}: {', '.join(dict.fromkeys(names))}." for what, names in found.items() if names]
