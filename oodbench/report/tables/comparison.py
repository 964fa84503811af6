"""Comparison: measured rows beside the published ones of the same method, with the difference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from oodbench.errors import UserError
from oodbench.report.options import Options
from oodbench.report.tables.published import Quote, quotes
from oodbench.report.tables.quoting import differences, numbers, of_row
from oodbench.report.tables.table import DASH, Cell, Column, Line, Table
from oodbench.results import Result

CAPTION = (
    "Difference: measured less published, in points, flagged beyond the tolerance that stands with the published row; "
    "published rows without one are not flagged."
)


def compared(tables: Sequence[Table], options: Options) -> list[Table]:
    """For each line that has been published a table: measured, then published and difference.

    UserError when no row of any table has been published.
    """
    out = [_compared(table, line, options) for table in tables for line in table.lines if _published(line)]
    if not out:
        rows = [line.result for table in tables for line in table.lines if line.result]
        have = ", ".join(dict.fromkeys(f"{r.method} on {r.benchmark}, {r.encoder.get('name')}" for r in rows))
        benchmarks = ", ".join(dict.fromkeys(one.benchmark for one in quotes().values()))
        raise UserError(f"no published row fits those at hand ({have}); there are some of: {benchmarks}")
    return out


def published_of(row: Result) -> list[Quote]:
    """Published rows of the same method, settings, benchmark and architecture; of the same weights where any are."""
    found = [
        one
        for one in quotes().values()
        if (one.method, one.benchmark) == (row.method, row.benchmark)
        and one.architecture == row.encoder.get("architecture")
        and all(row.parameters.get(k) == v for k, v in one.settings.items())
    ]
    return [one for one in found if one.weights == of_row(row)["weights"]] or found


def _published(line: Line) -> list[Quote]:
    return published_of(line.result) if line.result and line.result.status == "ok" else []


def _compared(table: Table, line: Line, options: Options) -> Table:
    found = _published(line)
    lines = tuple(_beside(table, line, found, options))
    return replace(
        table,
        title=f"{table.title}: {line.name}, measured and published",
        caption=(*table.caption, CAPTION),
        lines=lines,
        notes=(*map(_about, found), *differences(lines, found)),
    )


def _beside(table: Table, line: Line, found: Sequence[Quote], options: Options) -> Iterator[Line]:
    """The measured line, then two for each published one; columns that were not published are dashes in these."""
    own = tuple(tuple(replace(cell, mark="", alike=False) for cell in cells) for cells in line.cells)
    yield replace(line, name=f"{line.name}, measured", cells=own, section="")
    for one in found:
        theirs = numbers(one, table.blocks, options)
        yield Line(one.name, theirs, None, facts={"quote": one.key, "source": one.source})
        cells = tuple(
            tuple(_difference(a, b, c, one, options) for a, b, c in zip(mine, said, block.columns, strict=True))
            for mine, said, block in zip(own, theirs, table.blocks, strict=True)
        )
        yield Line("difference", cells, None)


def _difference(own: Cell, theirs: Cell, column: Column, one: Quote, options: Options) -> Cell:
    if own.value is None or theirs.value is None:
        return Cell(None, DASH)
    value = own.value - theirs.value
    allowed = one.tolerance.get(column.name)
    beyond = allowed is not None and abs(value) * 100 > allowed + 1e-9
    scale = 100 if options.percent else 1
    return Cell(value, f"{value * scale:+.{options.digits}f}", "beyond" if beyond else "")


def _about(one: Quote) -> str:
    parts = [f"{m} {v}" for m, v in one.tolerance.items() if m != "why"]
    stated = f" Tolerance: {', '.join(parts)} points ({one.tolerance.get('why', 'ours')})." if parts else ""
    return f"{one.about}{stated}"
