"""Rendering: tables, pictures and rows -> the text of the page. The only file that imports jinja2."""

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
from oodbench.report.tables.table import EXCEEDS, NOT_SIGNIFICANT, Block, Cell, Line, Table
from oodbench.results import slug

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

_ARROWS = {1: "↑", -1: "↓", 0: ""}


@dataclass(frozen=True)
class Metric:
    """The heading of a column: `first` is the direction of its first sort, `name` the metric.

    `address` is its part of the addresses of its cells, `cell-<row>-<column>`: the same in every table.
    """

    title: str
    arrow: str
    first: str
    name: str
    address: str


@dataclass(frozen=True)
class Head:
    """The heading of a block; `is_set`: of an OOD set, which a reader may hide; `run`: which of the groups it is in."""

    title: str
    stamp: str
    name: str
    run: int
    is_set: bool
    metrics: tuple[Metric, ...]


@dataclass(frozen=True)
class PageNumber:
    """A cell; `exact` is "" for one without a number."""

    cell: Cell
    exact: str


@dataclass(frozen=True)
class PageRow:
    """A line; `record` is the address of what lies behind it, "" for none."""

    name: str
    record: str
    failed: bool
    cells: tuple[PageNumber, ...]


@dataclass(frozen=True)
class Section:
    """Lines under one heading, "" for none; they are sorted among themselves."""

    title: str
    entries: tuple[PageRow, ...]


@dataclass(frozen=True)
class View:
    """A table of the page; `groups` are near and far with their number of columns, () when there is but one."""

    number: int
    title: str
    benchmark: str
    encoder: str
    caption: tuple[str, ...]
    remarks: tuple[str, ...]
    notes: tuple[str, ...]
    first: str
    groups: tuple[tuple[str, int], ...]
    heads: tuple[Head, ...]
    marked: bool
    sections: tuple[Section, ...]

    @property
    def columns(self) -> int:
        """All columns, the names' included."""
        return 1 + sum(len(head.metrics) for head in self.heads)


def view(number: int, table: Table, records: Records) -> View:
    """A table for the template; what lies behind its lines is put into the records."""
    model = next((line.result for line in table.lines if line.result), None)
    sets = {s.dataset for line in table.lines if line.result for s in line.result.ood}
    remarks = [f"† {NOT_SIGNIFICANT}"] if table.alike else []
    remarks += [f"! {EXCEEDS}"] if table.beyond else []
    sections = [
        Section(title, tuple(_entry(line, records) for line in lines))
        for title, lines in groupby(table.lines, key=lambda line: line.section)
    ]
    return View(
        number=number,
        title=table.title,
        benchmark=(model.benchmark_title or model.benchmark) if model else table.title,
        encoder=str(model.encoder.get("name", "unknown")) if model else "unknown",
        caption=table.caption,
        remarks=tuple(remarks),
        notes=table.notes,
        first=table.first,
        groups=_groups(table.blocks) if table.grouped else (),
        heads=tuple(
            _head(block, run, block.name in sets) for run, those in enumerate(_runs(table.blocks), 1) for block in those
        ),
        marked=table.marked,
        sections=tuple(sections),
    )


def _runs(blocks: Sequence[Block]) -> list[list[Block]]:
    return [list(those) for _, those in groupby(blocks, key=lambda block: block.group)]


def _groups(blocks: Sequence[Block]) -> tuple[tuple[str, int], ...]:
    runs = ((those[0].group, sum(len(block.columns) for block in those)) for those in _runs(blocks))
    return tuple((f"{name.capitalize()} OOD" if name else "", width) for name, width in runs)


def _head(block: Block, run: int, is_set: bool) -> Head:
    metrics = tuple(
        Metric(
            title=c.title,
            arrow=_ARROWS[c.better],
            first="descending" if c.better > 0 else "ascending",
            name=c.name,
            address=_address(f"{block.name}-{c.name}"),
        )
        for c in block.columns
    )
    return Head(block.title, block.stamp, block.name, run, is_set, metrics)


def _address(name: str) -> str:
    """A name for an address, its own in every page: what slug() changes gets a part of its digest."""
    plain = slug(name)
    return plain if plain == name else f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _entry(line: Line, records: Records) -> PageRow:
    failed = line.result is not None and line.result.status != "ok"
    cells = tuple(PageNumber(c, "" if c.value is None else repr(c.value)) for those in line.cells for c in those)
    return PageRow(line.name, records.add(line), failed, cells)


HERE = Path(__file__).parent


def render(tables: Sequence[Table], source: FigureSource, options: TableOptions, pictures: bool | None = None) -> str:
    """The page. It asks for nothing from a network, and every name in it is text.

    Pictures are of rows with their scores per image beside them; None: where there are few tables (`gallery.MOST`).
    """
    records = Records(source.paths, source.results, options.sets)
    views = [view(number, table, records) for number, table in enumerate(tables, 1)]
    shown = gallery(tables, source, options.sets, pictures)
    return _text(_page(views, shown, records, tables))


def _page(views: Sequence[View], pictures: FigureGallery, records: Records, tables: Sequence[Table]) -> str:
    style, *scripts = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "table.js", "panel.js"))
    benchmarks, encoders = _distinct(v.benchmark for v in views), _distinct(v.encoder for v in views)
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_allowed, scripts))}; style-src {_allowed(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=benchmarks[0] if len(benchmarks) == 1 else f"{len(benchmarks)} benchmarks",
            policy=policy,
            style=style,
            scripts=scripts,
            views=views,
            benchmarks=benchmarks,
            encoders=encoders,
            sets=_sets(views),
            gallery=pictures,
            records=records,
            created=_span(line for table in tables for line in table.lines),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(HERE),
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
    """Every name in the page; the page's own parts and the records' JSON are markup, and stay."""
    return printable(value) if type(value) is str else value


def _literal(text: str) -> Markup:
    """Text for an element, with its quotation marks as they are: JSON would be half as long again without."""
    from markupsafe import Markup

    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _allowed(text: str) -> str:
    """The one script or style that may run, by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _sets(views: Iterable[View]) -> dict[str, str]:
    """OOD sets of all tables by name, with their titles."""
    return {head.name: head.title for v in views for head in v.heads if head.is_set}


def _span(lines: Iterable[Line]) -> str:
    """First and last day on which rows were made; "" when rows do not say."""
    days = sorted({row.created[:10] for line in lines for row in line.rows if row.created})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def _text(html: str) -> str:
    """Fit for a file: bytes of a file name that are not UTF-8 become escapes."""
    return html.encode("utf-8", "backslashreplace").decode()
