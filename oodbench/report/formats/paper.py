"""Tables for a two-column paper: one float per benchmark, in one column if it fits, else across the page.

Widths are those of Computer Modern. Times is narrower, so tables fit in Times, too.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from oodbench.report.formats.latex import Description, described, latex, tabular, unique, with_remark
from oodbench.report.formats.latex_text import is_printed
from oodbench.report.tables.columns import COLUMNS
from oodbench.report.tables.grouping import facts
from oodbench.report.tables.table import Column, ColumnGroup, Table, TableLine

log = logging.getLogger(__name__)

COLUMN, PAGE = 237.0, 496.0  # points: width of a column and of the page in CVPR's style
_HEIGHT = 560.0  # points of a page for a tabular, of 641
_SHORT = {"auroc": "AUC", "fpr95": "FPR", "fpr95_ood": "FPR-o", "aupr_in": "PR-in", "aupr_out": "PR-out"}
_NARROWEST = 80.0  # points: a wrapped name


@dataclass(frozen=True)
class Layout:
    """Layout of a table: its float, font, space on both sides of a column in points, and short names of metrics."""

    environment: str
    width: float
    font: str
    space: float
    short: bool = False
    names: float = 0  # the width of wrapped names, 0 if names are not wrapped

    @property
    def size(self) -> float:
        """The font's size in points, increased because small letters are relatively wider than at 10 points."""
        return {"footnotesize": 8 * 1.063, "scriptsize": 7 * 1.139}[self.font]

    @property
    def line(self) -> float:
        """The height of a line in points."""
        return {"footnotesize": 9.5, "scriptsize": 8.0}[self.font]


_STEPS = (
    *(("footnotesize", half / 2) for half in range(8, 4, -1)),
    *(("scriptsize", half / 2) for half in range(8, 2, -1)),
)
LAYOUTS = tuple(
    Layout(environment, points, *step, short=short)
    for environment, points in (("table", COLUMN), ("table*", PAGE))
    for short in (False, True)
    for step in _STEPS
)


def paper(tables: Sequence[Table], *, caption: str = "short", label: str = "") -> str:
    r"""Return all tables in LaTeX, with the encoders of one benchmark in one float.

    `label` is the label of the first table, and the others are numbered; "" stands for `tab:mos` with benchmark `mos`.
    """
    floats = joined(tables)
    labels = unique([label or f"tab:{_slug(table)}" for table in floats])
    return "\n".join(_float(table, caption, own) for table, own in zip(floats, labels, strict=True))


def joined(tables: Sequence[Table]) -> list[Table]:
    """Merge tables that differ only in the encoder, and comparisons that differ only in the method."""
    groups: list[list[Table]] = []
    for table in tables:
        heading = (table.encoder, table.compared)
        fitting = (g for g in groups if _fits(g[0], table) and heading not in {(t.encoder, t.compared) for t in g})
        found = next(fitting, None)
        if found is None:
            groups.append([table])
        else:
            found.append(table)
    return [_as_one(group) if len(group) > 1 else group[0] for group in groups]


def _subject(table: Table, *, encoder: bool = False) -> str:
    """Return the title of a table without its encoder and its compared method."""
    title = table.title if encoder else table.title.replace(f", encoder {table.encoder}", "", 1)
    return re.sub(rf": {re.escape(table.compared)}, \w+ and published$", "", title) if table.compared else title


def _fits(a: Table, b: Table) -> bool:
    """Return whether two tables have the same benchmark, columns, images and settings."""
    if _subject(a) != _subject(b) or a.column_groups != b.column_groups:
        return False
    known = [_facts(table) for table in (a, b)]
    return all(known) and all(known[1].get(name, value) == value for name, value in known[0].items())


def _facts(table: Table) -> dict[str, str]:
    """Return the common facts of a table's results, without the encoder; {} for a transposed table."""
    # The first has the most facts.
    rows = sorted(table.results, key=lambda row: (row.status != "ok", bool(row.imported)))
    return {name: value for name, value in facts(rows[0]).items() if not name.startswith("encoder ")} if rows else {}


def _as_one(tables: Sequence[Table]) -> Table:
    first = tables[0]
    within = " within each encoder" + (" and group" if any(" group" in table.within for table in tables) else "")
    several = len({table.encoder for table in tables}) > 1
    headings = [", ".join(filter(None, (table.encoder if several else "", table.compared))) for table in tables]

    def texts(name: str) -> tuple[str, ...]:
        """Return the sentences common to all tables, then the others, each preceded by its table's heading."""
        every = [getattr(table, name) for table in tables]
        own = first.order[1:]  # the number of lines left out, of one table
        common = [text for text in every[0] if text not in own and all(text in other for other in every)]
        named = zip(headings, every, strict=True)
        return (*common, *(f"{heading}: {x}" for heading, found in named for x in found if x not in common))

    return replace(
        first,
        title=_subject(first, encoder=not several),
        caption=texts("caption"),
        notes=texts("notes"),
        footnotes=texts("footnotes"),
        brief=texts("brief"),
        cites=tuple(dict.fromkeys(cited for table in tables for cited in table.cites)),
        lines=tuple(replace(x, encoder=heading) for heading, t in zip(headings, tables, strict=True) for x in t.lines),
        missing=max(table.missing for table in tables),
        within=first.within if "protocol" in first.within else within,
        encoder="",
    )


def _slug(table: Table) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", (table.slug or _subject(table)).lower()).strip("-") or "ood"


def _float(table: Table, caption: str, label: str) -> str:
    """Return a table in the first layout that fits, or else in panels."""
    found = layout(table)
    if found is None:
        fewer = "sets with --ood, metrics with --metrics" if table.first else "methods with --methods or --top"
        log.warning(
            "the table of %s is wider than a page at \\scriptsize and is split into panels: select %s, --decimals 1, "
            "or shorter names with --rename",
            table.title,
            fewer,
        )
        reason = f"\n% Panels: the table is wider than {PAGE:g}pt at \\scriptsize.\n"
        return latex(_prepared(table), caption=caption, label=label, even=True).replace("\n", reason, 1)
    chosen, shown = found
    said = described(shown, caption, label)
    dropped = ["% Without Seconds, to fit."] if _seconds(table) and not _seconds(shown) else []
    style = [r"\centering", rf"\{chosen.font}", rf"\setlength{{\tabcolsep}}{{{chosen.space:g}pt}}"]
    names = rf"p{{{chosen.names:g}pt}}" if chosen.names else "l"
    begin, end = rf"\begin{{{chosen.environment}}}[t]", rf"\end{{{chosen.environment}}}"
    out = [*said.comments, *dropped]
    continued = (said.caption[0], r"\addtocounter{table}{-1}", r"\caption{Continued.}")
    for number, page in enumerate(_pages(shown, chosen, said)):
        lines = replace(shown, lines=page.lines)
        body = tabular(lines, range(len(shown.column_groups)), names, heads="") if page.lines else []
        out += [begin, style[0], *(said.caption if number == 0 else continued), *style[1:], *body]
        out += [*(said.notes if page.notes else ()), end]
    return with_remark("\n".join(out) + "\n")


def layout(table: Table) -> tuple[Layout, Table] | None:
    """Return the first layout in which a table fits, with the table for it; None if it fits in none."""
    without = _prepared(table)
    table = replace(table, column_groups=tuple(map(_plain_average, table.column_groups)))
    signs = table.any_not_significant or table.any_exceeds  # printed in the space between columns
    for number, one in enumerate(LAYOUTS):
        if signs and one.space < 2:
            continue
        shown = _shortened(without) if one.short else without
        # Seconds are shown if there is room for them without any other change.
        for candidate in (table, shown) if number % (2 * len(_STEPS)) == 0 else (shown,):
            if _width(candidate, one) <= one.width:
                return one, candidate
    last, shown = LAYOUTS[-1], _shortened(without)
    room = int(last.width - _numbers(shown, last) - 2 * last.space)
    word = max((width(word, last.size) for line in table.lines for word in line.name.split()), default=0)
    return (replace(last, names=room), shown) if room >= max(word, _NARROWEST) else None


def _prepared(table: Table) -> Table:
    """Return a table without seconds, with averages of near and far sets named `Average`."""
    return _without_seconds(replace(table, column_groups=tuple(map(_plain_average, table.column_groups))))


def _plain_average(group: ColumnGroup) -> ColumnGroup:
    """Rename `Near average` to `Average`, as it is under the heading `Near OOD`."""
    if not group.mean:
        return group
    title = group.title.removeprefix(f"{group.group[:1].upper()}{group.group[1:]} ")
    return replace(group, title=title[:1].upper() + title[1:])


def _seconds(table: Table) -> bool:
    return any(column.name == "seconds" for group in table.column_groups for column in group.columns)


def _without_seconds(table: Table) -> Table:
    kept = [i for i, group in enumerate(table.column_groups) if [c.name for c in group.columns] != ["seconds"]]
    if not kept or len(kept) == len(table.column_groups):
        return table
    lines = tuple(replace(line, cells=tuple(line.cells[i] for i in kept)) for line in table.lines)
    return replace(table, column_groups=tuple(table.column_groups[i] for i in kept), lines=lines)


def _shortened(table: Table) -> Table:
    """Return a table with short names of metrics, unless renamed by the user, and a note that explains them."""
    explained: dict[str, str] = {}

    def short(column: Column) -> Column:
        if column.name not in _SHORT or not column.title.startswith(COLUMNS[column.name].title):
            return column
        name = _SHORT[column.name]
        explained[name] = column.title
        return replace(column, title=name)

    groups = tuple(replace(group, columns=tuple(map(short, group.columns))) for group in table.column_groups)
    note = (f"{', '.join(f'{new}: {old}' for new, old in explained.items())}.",) if explained else ()
    return replace(table, column_groups=groups, caption=(*table.caption, *note), brief=(*note, *table.brief))


def _width(table: Table, one: Layout) -> float:
    headings = max((width(text, one.size) for line in table.lines for text in (line.section, line.encoder)), default=0)
    return max(_names(table, one) + _numbers(table, one), headings + 2 * one.space)


def _names(table: Table, one: Layout) -> float:
    """Return the width of the first column in points, with the space on its sides."""
    texts = (width(line.name, one.size) + _cited(line, one) for line in table.lines)
    return max(width(table.first, one.size), *texts) + 2 * one.space


def _cited(line: TableLine, one: Layout) -> float:
    return one.size * (1.4 * len(line.cites) + 0.6) if line.cites else 0.0  # as in `[12, 34]`


def _numbers(table: Table, one: Layout) -> float:
    """Return the width of all columns but the first in points, with the space on their sides."""
    return sum(_group(table, i, one) for i in range(len(table.column_groups)))


def _group(table: Table, i: int, one: Layout) -> float:
    group, scriptsize = table.column_groups[i], LAYOUTS[-1].size
    columns = 0.0
    for c, column in enumerate(group.columns):
        cells = [line.cells[i][c] for line in table.lines]
        number = max((width(cell.text, one.size, bold=True) for cell in cells), default=0)
        extra = max((width(re.sub("(?<=[±,]) ", "", cell.extra), scriptsize) for cell in cells), default=0)
        head = width(column.title, one.size) + (0.5 * one.size if column.better else 0)
        columns += max(head, number + (extra + 2 if extra else 0)) + 2 * one.space
    return max(columns, max(width(group.title, one.size), width(group.partial, scriptsize)) + 2 * one.space)


# Of letters in ems, at 10 points.
_EMS = {
    "il.,:;'!|": 0.28,
    "j": 0.31,
    "fIrst()[]-` ": 0.4,
    "acegoz0123456789/?": 0.5,
    "bdhknpquvxyJS": 0.56,
    "EFLPZ": 0.69,
    "BCRT": 0.74,
    "m": 0.84,
    "M": 0.92,
    "w": 0.73,
    "@%=+<>": 1.0,
    "W": 1.03,
}
_EM = {letter: em for some, em in _EMS.items() for letter in some}


@functools.lru_cache(maxsize=10_000)
def width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width of a text in points at a font size in points; letters that pdflatex lacks count as codes."""
    return size * sum(_EM.get(c, 0.79 if is_printed(c) else 3.2) for c in text) * (1.12 if bold else 1)


@dataclass(frozen=True)
class _Page:
    """Lines of a page, and whether the notes are below them."""

    lines: tuple[TableLine, ...]
    notes: bool = False


def _pages(table: Table, one: Layout, said: Description) -> Iterator[_Page]:
    """Yield pages with as many lines as fit, keeping an encoder on one page if possible; notes are on the last page."""
    page: list[TableLine] = []
    head = 6 * one.line
    height = head + (_lines(said.caption[1], one) - 1) * 12  # `head` includes one line of it
    for _, same in groupby(table.lines, key=lambda line: line.encoder):
        lines = list(same)
        heights = [_height(line, one) for line in lines]
        room = sum(heights) + (len({line.section for line in lines}) + 1) * 2 * one.line
        if page and height + room > _HEIGHT >= head + room:
            yield _Page(tuple(page))
            page, height = [], head
        previous = None
        for line, own in zip(lines, heights, strict=True):
            heading = 2 * one.line if line.section != previous else 0
            if page and height + own + heading > _HEIGHT:  # at least one line is on every page
                yield _Page(tuple(page))
                page, height = [], head
            page.append(line)
            height += own + heading
            previous = line.section
    notes = sum(_lines(note, one) + 0.5 for note in said.notes) * one.line
    together = height + notes <= _HEIGHT or len(said.notes) < 2  # a short note always fits
    yield _Page(tuple(page), notes=together)
    if not together:
        yield _Page((), notes=True)


def _lines(text: str, one: Layout) -> int:
    """Estimate the number of lines of a caption or a note."""
    return 1 + int(len(text) * 5 // one.width)


def _height(line: TableLine, one: Layout) -> float:
    rows = -(-(width(line.name, one.size) + _cited(line, one)) // (0.8 * one.names)) if one.names else 1
    return one.line * rows
