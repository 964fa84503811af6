"""View: a table as the page's template wants it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from oodbench.report.html.record import Records
from oodbench.report.tables.remarks import ALIKE, BEYOND
from oodbench.report.tables.table import Block, Cell, Line, Table
from oodbench.results import slug

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
class Shown:
    """A cell; `exact` is "" for one without a number."""

    cell: Cell
    exact: str


@dataclass(frozen=True)
class Entry:
    """A line; `record` is the address of what lies behind it, "" for none."""

    name: str
    record: str
    failed: bool
    cells: tuple[Shown, ...]


@dataclass(frozen=True)
class Section:
    """Lines under one heading, "" for none; they are sorted among themselves."""

    title: str
    entries: tuple[Entry, ...]


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
    remarks = [f"† {ALIKE}"] if table.alike else []
    remarks += [f"! {BEYOND}"] if table.beyond else []
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


def _entry(line: Line, records: Records) -> Entry:
    failed = line.result is not None and line.result.status != "ok"
    cells = tuple(Shown(c, "" if c.value is None else repr(c.value)) for those in line.cells for c in those)
    return Entry(line.name, records.add(line), failed, cells)
