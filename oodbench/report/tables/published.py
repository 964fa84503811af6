"""Published numbers: results/published/*.toml -> quotes, each cell with its source and how sure it is."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from oodbench.data.paths import published
from oodbench.errors import UserError, did_you_mean
from oodbench.report.options import TableOptions
from oodbench.report.tables.columns import Number, cell
from oodbench.report.tables.table import DASH, Block, Cell, Column, Line, Table
from oodbench.results import METRICS, Result


@dataclass(frozen=True)
class Quoted:
    """One published number, as a fraction."""

    value: float
    source: str
    confidence: str


@dataclass(frozen=True)
class Quote:
    """One row of somebody's table. "" where the source does not say.

    key        what --quote names it by, `method:source`
    settings   hyper-parameters of a measured row that it may be compared with
    training   "none", "trained" or a word such as `16-shot`
    adapts     whether the method learns from the test stream
    tolerance  metric -> how far a faithful run may lie off, in points; `why` says who says so
    cells      OOD set, `mean` or `near mean` -> metric -> number
    """

    key: str
    method: str
    title: str
    benchmark: str
    source: str
    confidence: str
    cells: dict[str, dict[str, Quoted]]
    cite: tuple[str, ...] = ()
    training: str = ""
    architecture: str = ""
    weights: str = ""
    prompts: str = ""
    words: str = ""
    resize: str = ""
    at95: str = ""
    remark: str = ""
    adapts: bool = False
    settings: dict[str, Any] = field(default_factory=dict)
    tolerance: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`CLIPN (quoted: paper)`; test-time adaptation is part of the name."""
        kind = "; test-time adaptation" if self.adapts else ""
        return f"{self.title} (quoted: {self.key.partition(':')[2]}{kind})"

    @property
    def about(self) -> str:
        """Source, confidence, remark, in one sentence."""
        adapts = "; it adapts to the test stream: not comparable with rows that do not" if self.adapts else ""
        remark = f"; {self.remark}" if self.remark else ""
        return f"{self.name}: {self.source} (confidence {self.confidence}){remark}{adapts}."


@functools.cache
def quotes() -> dict[str, Quote]:
    """Every published row by key, files in order of name. UserError for keys or fields that cannot be."""
    found: dict[str, Quote] = {}
    for path in sorted(published().glob("*.toml")):
        for one in read(path):
            if one.key in found:
                raise UserError(f"{path}: published row '{one.key}' is there twice")
            found[one.key] = one
    return found


def quote(key: str) -> Quote:
    """One published row by key; UserError with the closest, or with those of the same method."""
    known = quotes()
    if key not in known:
        method = key.partition(":")[0]
        same = [k for k in known if k.partition(":")[0] == method]
        raise UserError(f"no published row '{key}'{did_you_mean(key, same or known)}")
    return known[key]


def read(path: Path) -> list[Quote]:
    """The rows of a file. UserError for unknown fields, metrics, or numbers that are no percentages."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"{path}: {error}") from error
    fields = {f.name for f in dataclasses.fields(Quote)}
    out = []
    for row in raw.get("rows", ()):
        merged = {**raw.get("defaults", {}), **row}
        where = f"{path}: row '{merged.get('key', '?')}'"
        unknown = sorted(set(merged) - fields)
        if unknown:
            raise UserError(f"{where}: no field '{unknown[0]}'{did_you_mean(unknown[0], fields)}")
        try:
            cells = {name: _cells(where, cell, merged) for name, cell in merged["cells"].items()}
            out.append(Quote(**{**merged, "cells": cells, "cite": tuple(merged.get("cite", ()))}))
        except (KeyError, TypeError) as error:
            raise UserError(f"{where} is not complete: {error}") from error
    return out


def _cells(where: str, cell: dict[str, Any], row: dict[str, Any]) -> dict[str, Quoted]:
    source, confidence = cell.get("source", row["source"]), cell.get("confidence", row["confidence"])
    out = {}
    for metric, value in cell.items():
        if metric in ("source", "confidence"):
            continue
        if metric not in METRICS or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise UserError(f"{where}: '{metric} = {value}' is no percentage of {', '.join(METRICS)}")
        out[metric] = Quoted(value / 100, source, confidence)
    return out


QUOTED = "Quoted, not run here"
_FACTS = ("architecture", "weights", "prompts", "resize", "words", "at95")
_WORDS = ("neglabel",)  # methods with a word list
_SAID = {"resize": "resize filter", "words": "word list", "at95": "rule of the 95 %"}


def quoted(tables: Sequence[Table], quotes: Sequence[Quote], options: TableOptions) -> list[Table]:
    """The tables with the quotes of their benchmark; of several, those with the quote's architecture.

    UserError when a quote fits no table.
    """
    out = list(tables)
    for one in quotes:
        places = [i for i, table in enumerate(out) if _benchmark(table) == one.benchmark]
        same = [i for i in places if _architecture(out[i]) == one.architecture]
        if not places:
            have = ", ".join(dict.fromkeys(filter(None, map(_benchmark, out)))) or "none"
            raise UserError(f"--quote {one.key} is of benchmark {one.benchmark}; the tables here are of: {have}")
        for i in same or places:
            lines = (*out[i].lines, _line(one, out[i].blocks, options))
            out[i] = replace(out[i], lines=lines, notes=(*out[i].notes, one.about))
    return [replace(t, notes=(*t.notes, *differences(t.lines, quotes))) if _has_quote(t) else t for t in out]


def numbers(one: Quote, blocks: Sequence[Block], options: TableOptions) -> tuple[tuple[Cell, ...], ...]:
    """Its cells in a table's columns; a mean over some sets only is not what was published."""
    out = []
    for block in blocks:
        known = {} if options.sets and block.name.endswith("mean") else one.cells.get(block.name, {})
        values = (known.get(column.name) for column in block.columns)
        out.append(tuple(cell(Number(v.value), options) if v else Cell(None, DASH) for v in values))
    return tuple(out)


def differences(lines: Sequence[Line], quotes: Sequence[Quote]) -> list[str]:
    """Where rows have other weights, prompts, resize filter, word list or rule, and what quotes do not state."""
    known = {one.key: one for one in quotes}
    here = {line.name: of_row(line.result) for line in lines if line.result}
    there = [known[key] for line in lines if (key := str(line.facts.get("quote"))) in known]
    out = []
    for fact in _FACTS:
        values: dict[str, list[str]] = {}
        for name, those in here.items():
            if those.get(fact):
                values.setdefault(those[fact], []).append(name)
        shared = len(here) > 1 and list(values.values()) == [list(here)]
        for one in there:
            if getattr(one, fact):
                values.setdefault(getattr(one, fact), []).append(one.name)
        if len(values) > 1:
            said = []
            for value, names in values.items():
                rows = [name for name in names if not (shared and name in here)]
                said.append(
                    f"{value}: {', '.join([*(['all rows measured here'] if len(rows) < len(names) else []), *rows])}"
                )
            out.append(f"Differing {_SAID.get(fact, fact)}. {'; '.join(said)}.")
    for one in there:
        missing = [_SAID.get(f, f) for f in _FACTS if not getattr(one, f) and (f != "words" or one.method in _WORDS)]
        if missing:
            out.append(f"{one.name} does not state: {', '.join(missing)}.")
    return out


def of_row(row: Result) -> dict[str, str]:
    """What a measured row has of the facts; a method without prompts or words lacks these."""
    out = {
        "architecture": str(row.encoder.get("architecture") or ""),
        "weights": str(row.encoder.get("tag") or str(row.encoder.get("name", "")).rpartition("/")[2]),
        "resize": str(row.encoder.get("interpolation") or ""),
        "at95": str(row.conventions.get("at95") or ""),
    }
    out |= {"prompts": str(row.templates.get("name"))} if row.templates else {}
    return out | ({"words": str(row.parameters["words"])} if "words" in row.parameters else {})


def _line(one: Quote, blocks: Sequence[Block], options: TableOptions) -> Line:
    facts: dict[str, object] = {
        "quote": one.key,
        "source": one.source,
        "confidence": one.confidence,
        "benchmark": one.benchmark,
        "method": one.method,
        "status": "quoted; test-time adaptation" if one.adapts else "quoted",
    }
    for name, metrics in one.cells.items():
        prefix = ".".join(reversed(name.split())) if name.endswith("mean") else f"ood.{name}"
        facts |= {f"{prefix}.{metric}": number.value for metric, number in metrics.items()}
    cites = one.cite if options.cite else ()
    return Line(one.name, numbers(one, blocks, options), None, QUOTED, cites=cites, facts=facts)


def _has_quote(table: Table) -> bool:
    return any("quote" in line.facts for line in table.lines)


def _benchmark(table: Table) -> str:
    return next((line.result.benchmark for line in table.lines if line.result), "")


def _architecture(table: Table) -> str:
    return next((str(line.result.encoder.get("architecture", "")) for line in table.lines if line.result), "")


CAPTION = (
    "Difference: measured less published, in points, flagged beyond the tolerance that stands with the published row; "
    "published rows without one are not flagged."
)


def compared(tables: Sequence[Table], options: TableOptions) -> list[Table]:
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


def _compared(table: Table, line: Line, options: TableOptions) -> Table:
    found = _published(line)
    lines = tuple(_beside(table, line, found, options))
    return replace(
        table,
        title=f"{table.title}: {line.name}, measured and published",
        caption=(*table.caption, CAPTION),
        lines=lines,
        notes=(*map(_about, found), *differences(lines, found)),
    )


def _beside(table: Table, line: Line, found: Sequence[Quote], options: TableOptions) -> Iterator[Line]:
    """The measured line, then two for each published one; columns that were not published are dashes in these."""
    own = tuple(tuple(replace(cell, mark="", alike=False) for cell in cells) for cells in line.cells)
    yield replace(line, name=f"{line.name}, measured", cells=own, section="")
    for one in found:
        theirs = numbers(one, table.blocks, options)
        cites = one.cite if options.cite else ()
        yield Line(one.name, theirs, None, cites=cites, facts={"quote": one.key, "source": one.source})
        cells = tuple(
            tuple(_difference(a, b, c, one, options) for a, b, c in zip(mine, said, block.columns, strict=True))
            for mine, said, block in zip(own, theirs, table.blocks, strict=True)
        )
        yield Line("difference", cells, None)


def _difference(own: Cell, theirs: Cell, column: Column, one: Quote, options: TableOptions) -> Cell:
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
