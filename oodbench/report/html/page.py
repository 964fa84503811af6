"""Render tables, figures and results as one HTML page. No other file imports jinja2."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.errors import printable
from oodbench.report.html.figures import FigureGallery, FigureSource, gallery
from oodbench.report.html.record import Records
from oodbench.report.options import TableOptions
from oodbench.report.tables.table import EXCEEDS, Cell, ColumnGroup, Table, TableLine
from oodbench.results import slug

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

HERE = Path(__file__).parent
_ARROWS = {1: "↑", -1: "↓", 0: ""}


@dataclass(frozen=True)
class PageColumn:
    """The heading of a column: `first` is the direction of its first sort, `name` the metric.

    `address` is the <column> in the addresses `cell-<row>-<column>` of its cells, the same in every table.
    """

    title: str
    arrow: str
    first: str
    name: str
    address: str


@dataclass(frozen=True)
class PageColumnGroup:
    """The heading of a column group. `is_set`: it is an OOD set, which can be hidden; `run`: number of near or far."""

    title: str
    partial: str
    name: str
    run: int
    is_set: bool
    metrics: tuple[PageColumn, ...]


@dataclass(frozen=True)
class PageCell:
    """A cell; `exact` is its number with all digits, or ""."""

    cell: Cell
    exact: str


@dataclass(frozen=True)
class PageRow:
    """A line; `record` is the address of its provenance, or ""."""

    name: str
    record: str
    failed: bool
    cells: tuple[PageCell, ...]


@dataclass(frozen=True)
class PageSection:
    """Lines under one heading (or ""), which are sorted separately."""

    title: str
    entries: tuple[PageRow, ...]


@dataclass(frozen=True)
class PageTable:
    """A table of the page; `groups` are near and far with their numbers of columns, () if there are no groups."""

    number: int
    title: str
    benchmark: str
    encoder: str
    caption: tuple[str, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]
    footnotes: tuple[str, ...]
    first: str
    groups: tuple[tuple[str, int], ...]
    heads: tuple[PageColumnGroup, ...]
    marked: bool
    within: str
    sections: tuple[PageSection, ...]

    @property
    def columns(self) -> int:
        """The number of columns, including the names."""
        return 1 + sum(len(head.metrics) for head in self.heads)


def view(number: int, table: Table, records: Records) -> PageTable:
    """Return a table for the template, and add the provenance of its lines to the records."""
    model = next((line.result for line in table.lines if line.result), None)
    sets = {s.dataset for line in table.lines if line.result for s in line.result.ood}
    remarks = [f"† {table.not_significant}"] if table.any_not_significant else []
    remarks += [f"! {EXCEEDS}"] if table.any_exceeds else []
    sections = [
        PageSection(title, tuple(_entry(line, records) for line in lines))
        for title, lines in groupby(table.lines, key=lambda line: line.section)
    ]
    return PageTable(
        number=number,
        title=table.title,
        benchmark=(model.benchmark_title or model.benchmark) if model else table.title,
        encoder=str(model.encoder.get("name", "unknown")) if model else "unknown",
        caption=table.caption,
        remarks=tuple(remarks),
        notes=table.notes,
        footnotes=table.footnotes,
        first=table.first,
        groups=_groups(table) if table.grouped else (),
        heads=tuple(
            _head(group, run, group.name in sets)
            for run, members in enumerate(_runs(table.column_groups), 1)
            for group in members
        ),
        marked=table.marked,
        within=table.within,
        sections=tuple(sections),
    )


def _runs(column_groups: Sequence[ColumnGroup]) -> list[list[ColumnGroup]]:
    return [list(members) for _, members in groupby(column_groups, key=lambda group: group.group)]


def _groups(table: Table) -> tuple[tuple[str, int], ...]:
    runs = _runs(table.column_groups)
    return tuple((table.heading(run[0].group), sum(len(group.columns) for group in run)) for run in runs)


def _head(group: ColumnGroup, run: int, is_set: bool) -> PageColumnGroup:
    metrics = tuple(
        PageColumn(
            title=c.title,
            arrow=_ARROWS[c.better],
            first="descending" if c.better > 0 else "ascending",
            name=c.name,
            address=_address(f"{group.name}-{c.name}"),
        )
        for c in group.columns
    )
    return PageColumnGroup(group.title, group.partial, group.name, run, is_set, metrics)


def _address(name: str) -> str:
    """Return a unique name for an address: names that slug() changes get a part of their digest."""
    plain = slug(name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _entry(line: TableLine, records: Records) -> PageRow:
    failed = line.result is not None and line.result.status != "ok"
    cells = tuple(PageCell(c, "" if c.value is None else repr(c.value)) for group in line.cells for c in group)
    return PageRow(line.name, records.add(line), failed, cells)


def render(tables: Sequence[Table], source: FigureSource, options: TableOptions, figures: bool | None = None) -> str:
    """Return the page, which loads nothing from a network and escapes every name.

    Figures need scores per image; `figures` None draws them for up to MOST tables.
    """
    records = Records(source.paths, source.results, options.sets)
    views = [view(number, table, records) for number, table in enumerate(tables, 1)]
    drawn = gallery(tables, source, options, figures)
    return encodable(_page(views, drawn, records, tables))


def _page(views: Sequence[PageTable], figures: FigureGallery, records: Records, tables: Sequence[Table]) -> str:
    style, *scripts = map(page_file, ("page.css", "table.js", "provenance.js", "panel.js"))
    benchmarks, encoders = _distinct(v.benchmark for v in views), _distinct(v.encoder for v in views)
    return (
        environment(HERE)
        .get_template("page.html")
        .render(
            title=benchmarks[0] if len(benchmarks) == 1 else f"{len(benchmarks)} benchmarks",
            policy=policy(style, scripts),
            style=style,
            scripts=scripts,
            views=views,
            benchmarks=benchmarks,
            encoders=encoders,
            sets=_sets(views),
            gallery=figures,
            records=records,
            created=_days(line for table in tables for line in table.lines),
        )
    )


def page_file(name: str) -> str:
    """Return the text of a style or a script of this folder."""
    return (HERE / name).read_text(encoding="utf-8")


def environment(folder: Path) -> Environment:
    """Return the environment of the templates in a folder, which escapes every name."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    found.filters["size"] = lambda size: f"{size / 1e6:.1f} MB" if size > 950_000 else f"{size / 1e3:.0f} kB"
    found.filters["literal"] = _literal
    return found


def _printable(value: object) -> object:
    """Make names printable; the page's own parts and the records' JSON are markup and are kept."""
    return printable(value) if type(value) is str else value


def _literal(text: str) -> Markup:
    """Escape text for an element except quotation marks, which would make JSON half as long again."""
    from markupsafe import Markup

    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def policy(style: str, scripts: Sequence[str]) -> str:
    """Return the content security policy: nothing is loaded, and only this style and these scripts are allowed."""

    def allowed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    return (
        f"default-src 'none'; script-src {' '.join(map(allowed, scripts))}; style-src {allowed(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _sets(views: Iterable[PageTable]) -> dict[str, str]:
    """Return the names and titles of the OOD sets of all tables."""
    return {head.name: head.title for v in views for head in v.heads if head.is_set}


def _days(lines: Iterable[TableLine]) -> str:
    """Return the first and the last day of the results, or "" if unknown."""
    days = sorted({row.created[:10] for line in lines for row in line.results if row.created})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def encodable(html: str) -> str:
    """Return HTML that UTF-8 can encode: other bytes of file names become escapes."""
    return html.encode("utf-8", "backslashreplace").decode()
