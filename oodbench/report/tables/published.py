"""Published numbers: read from results/published/*.toml, added to tables, and compared with measured ones."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from oodbench.data.paths import published
from oodbench.errors import UserError, did_you_mean
from oodbench.method.access import Access, from_mapping
from oodbench.report.options import TableOptions
from oodbench.report.tables.access import UNRANKED, access_footnotes, arranged, card
from oodbench.report.tables.chance import warnings
from oodbench.report.tables.columns import cell, sort_column, sort_value
from oodbench.report.tables.table import DASH, Cell, Column, ColumnGroup, Number, Table, TableLine
from oodbench.results import METRICS, Result


@dataclass(frozen=True)
class PublishedValue:
    """One published number, as a fraction."""

    value: float
    source: str
    confidence: str


@dataclass(frozen=True)
class Quote:
    """One line of a published table; "" for values that the source does not state.

    key        its name for --quote, `method:source`
    settings   hyper-parameters that a measured result must have to be compared with it
    cite       BibTeX keys of the source, in report/formats/references.bib
    order      of the stream, for a method that adapts to it
    access     data that the method sees, as fields of Access; empty: only class names and the image
    tolerance  metric -> largest difference of a faithful run, in points; `why` is the source of the tolerance
    cells      OOD set, `mean` or `near mean` -> metric -> number
    """

    key: str
    method: str
    title: str
    benchmark: str
    source: str
    confidence: str
    cells: dict[str, dict[str, PublishedValue]]
    access: dict[str, Any]
    cite: tuple[str, ...] = ()
    architecture: str = ""
    weights: str = ""
    prompts: str = ""
    words: str = ""
    resize: str = ""
    at95: str = ""
    order: str = "shuffled"
    remark: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    tolerance: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def card(self) -> Access:
        """The access card."""
        return from_mapping(self.access)

    @property
    def name(self) -> str:
        """`CLIPN (quoted: paper)`; test-time adaptation is part of the name."""
        kind = "; test-time adaptation" if self.card.stream else ""
        return f"{self.title} (quoted: {self.key.partition(':')[2]}{kind})"

    @property
    def about(self) -> str:
        """Source, confidence and remark, in one sentence."""
        adapts = "; it adapts to the test stream: not comparable with methods that do not" if self.card.stream else ""
        remark = f"; {self.remark}" if self.remark else ""
        return f"{self.name}: {self.source} (confidence {self.confidence}){remark}{adapts}."


@functools.cache
def quotes() -> dict[str, Quote]:
    """Return every published result by key, in the order of file names. Raise UserError for invalid files."""
    found: dict[str, Quote] = {}
    for path in sorted(published().glob("*.toml")):
        for one in read(path):
            if one.key in found:
                raise UserError(f"{path}: published result '{one.key}' is defined twice")
            found[one.key] = one
    return found


def quote(key: str) -> Quote:
    """Return one published result by key; raise UserError with the closest keys, or those of the same method."""
    known = quotes()
    if key not in known:
        method = key.partition(":")[0]
        same = [k for k in known if k.partition(":")[0] == method]
        raise UserError(f"no published result '{key}'{did_you_mean(key, same or known)}")
    return known[key]


def read(path: Path) -> list[Quote]:
    """Read the published results of a file. Raise UserError for unknown fields, metrics and invalid percentages."""
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
            one = Quote(**{**merged, "cells": cells, "cite": tuple(merged.get("cite", ()))})
            _ = one.card  # raises ValueError for unknown fields
            out.append(one)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{where} is not complete: {error}") from error
    return out


def _cells(where: str, cell: dict[str, Any], row: dict[str, Any]) -> dict[str, PublishedValue]:
    source, confidence = cell.get("source", row["source"]), cell.get("confidence", row["confidence"])
    out = {}
    for metric, value in cell.items():
        if metric in ("source", "confidence"):
            continue
        if metric not in METRICS or not isinstance(value, int | float) or not 0 <= value <= 100:
            raise UserError(f"{where}: '{metric} = {value}' is not a percentage of {', '.join(METRICS)}")
        out[metric] = PublishedValue(float(Decimal(str(value)) / 100), source, confidence)  # 26.17 is 0.2617
    return out


_FACTS = ("architecture", "weights", "prompts", "resize", "words", "at95")
_WORDS = ("csp", "eoe", "neglabel", "negrefine")  # methods with a word list
_HERE = "all results measured here"
_LABELS = {"resize": "resize filter", "words": "word list", "at95": "rule of the 95 %"}


def with_quotes(tables: Sequence[Table], quotes: Sequence[Quote], options: TableOptions) -> list[Table]:
    """Add each published result to the tables of its benchmark, if possible only to those with its architecture.

    Results of test-time adaptation are added to tables of streams, and others to other tables, if there are any.
    Raises UserError for a published result that matches no table.
    """
    out = list(tables)
    for quote in quotes:
        fitting = [i for i, table in enumerate(out) if _benchmark(table) == quote.benchmark and not table.part]
        same = [i for i in fitting if _architecture(out[i]) == quote.architecture]
        if not fitting:
            have = ", ".join(dict.fromkeys(filter(None, map(_benchmark, out)))) or "none"
            raise UserError(f"--quote {quote.key} is for benchmark {quote.benchmark}; the tables are for: {have}")
        alike = [i for i in same or fitting if _of_streams(out[i]) == quote.card.stream]
        for i in alike or same or fitting:
            lines = arranged((*out[i].lines, _line(quote, out[i], options)), options.group)
            out[i] = replace(out[i], lines=lines, notes=(*out[i].notes, quote.about))
    return [
        replace(
            t,
            caption=(*t.caption, *_kinds_caption(t.lines, options)),
            brief=(*t.brief, *_brief_kinds(t.lines, options)),
            notes=(*t.notes, *differences(t.lines, quotes)),
            footnotes=access_footnotes(t.lines),
        )
        if _has_quote(t)
        else t
        for t in out
    ]


def quoted_cells(
    quote: Quote, column_groups: Sequence[ColumnGroup], options: TableOptions
) -> tuple[tuple[Cell, ...], ...]:
    """Return the published numbers in a table's columns; there is no published average over a selection of sets."""
    out = []
    for group in column_groups:
        known = {} if options.sets and group.name.endswith("mean") else quote.cells.get(group.name, {})
        shown = {column.name for column in group.columns}
        out.append(tuple(_quoted_cell(column.name, known, shown, options) for column in group.columns))
    return tuple(out)


_KINDS = {"fpr95": "i", "fpr95_ood": "o"}  # ID positive, OOD positive
_OTHER = {"fpr95": "fpr95_ood", "fpr95_ood": "fpr95"}


def _quoted_cell(metric: str, known: Mapping[str, PublishedValue], shown: Set[str], options: TableOptions) -> Cell:
    """Return a published number; if only the other kind of FPR95 was published, return that with a letter."""
    if metric in known:
        return cell(Number(known[metric].value), options)
    other = _OTHER.get(metric, "")
    if other in known and other not in shown:
        return replace(cell(Number(known[other].value), options, extra=_KINDS[other]), other=True)
    return Cell(None, DASH)


def _kinds_caption(lines: Iterable[TableLine], options: TableOptions) -> tuple[str, ...]:
    """Return a sentence on published FPR95 values of another kind than their column, if there are any."""
    cells = (cell for line in lines for cells in line.cells for cell in cells)
    if not any(cell.other for cell in cells):
        return ()
    if "fpr95" in options.metrics:
        return (
            "o: published FPR95 with OOD positive (ID images rejected), not comparable with those without a letter.",
        )
    return ("i: published FPR95 with ID positive (OOD images accepted), not comparable with those without a letter.",)


def _brief_kinds(lines: Iterable[TableLine], options: TableOptions) -> tuple[str, ...]:
    """Return the short meaning of the letter after an FPR95."""
    return tuple(f"{text.partition(' (')[0]}." for text in _kinds_caption(lines, options))


def differences(lines: Sequence[TableLine], quotes: Sequence[Quote]) -> list[str]:
    """Return sentences on facts (weights, prompts, ...) that differ or that sources do not state."""
    by_key = {quote.key: quote for quote in quotes}
    measured = {line.name: comparable_facts(line.result) for line in lines if line.result}
    published = [by_key[key] for line in lines if (key := str(line.facts.get("quote"))) in by_key]
    here = "all results here" if any(line.result and line.result.imported for line in lines) else _HERE
    out = []
    for fact in _FACTS:
        values: dict[str, list[str]] = {}
        for name, facts in measured.items():
            if facts.get(fact):
                values.setdefault(facts[fact], []).append(name)
        shared = len(measured) > 1 and list(values.values()) == [list(measured)]
        for quote in published:
            if getattr(quote, fact):
                values.setdefault(getattr(quote, fact), []).append(quote.name)
        if len(values) > 1:
            clauses = []
            for value, names in values.items():
                listed = [name for name in names if not (shared and name in measured)]
                all_measured = [here] if len(listed) < len(names) else []
                clauses.append(f"{value}: {', '.join([*all_measured, *listed])}")
            out.append(f"Differing {_LABELS.get(fact, fact)}. {'; '.join(clauses)}.")
    for quote in published:
        expected = [f for f in _FACTS if f != "words" or quote.method in _WORDS]
        missing = [_LABELS.get(fact, fact) for fact in expected if not getattr(quote, fact)]
        if missing:
            out.append(f"{quote.name} does not state: {', '.join(missing)}.")
    return out


def comparable_facts(row: Result) -> dict[str, str]:
    """Return the facts of a measured result; prompts and word list are missing if the method has none."""
    out = {
        "architecture": str(row.encoder.get("architecture") or ""),
        "weights": str(row.encoder.get("tag") or str(row.encoder.get("name", "")).rpartition("/")[2]),
        "resize": str(row.encoder.get("interpolation") or ""),
        "at95": str(row.conventions.get("at95") or ""),
    }
    out |= {"prompts": str(row.templates.get("name"))} if row.templates else {}
    return out | ({"words": str(row.parameters["words"])} if "words" in row.parameters else {})


def _line(one: Quote, table: Table, options: TableOptions) -> TableLine:
    facts: dict[str, object] = {
        "quote": one.key,
        "source": one.source,
        "confidence": one.confidence,
        "benchmark": one.benchmark,
        "method": one.method,
        "status": "quoted; test-time adaptation" if one.card.stream else "quoted",
    }
    for name, metrics in one.cells.items():
        prefix = ".".join(reversed(name.split())) if name.endswith("mean") else f"ood.{name}"
        facts |= {f"{prefix}.{metric}": number.value for metric, number in metrics.items()}
    cites = one.cite if options.cite else ()
    found = quoted_cells(one, table.column_groups, options)
    model = max((line.result for line in table.lines if line.result), key=lambda row: len(row.ood))
    by = sort_column(model, options)
    rank = sort_value(quoted_cells(one, (by,), options)[0][0], by) if by else None
    return TableLine(one.name, found, None, access=one.card, cites=cites, facts=facts, rank=rank)


def _has_quote(table: Table) -> bool:
    return any("quote" in line.facts for line in table.lines)


def _benchmark(table: Table) -> str:
    return next((line.result.benchmark for line in table.lines if line.result), "")


def _of_streams(table: Table) -> bool:
    return any(line.result.stream for line in table.lines if line.result)


def _architecture(table: Table) -> str:
    return next((str(line.result.encoder.get("architecture", "")) for line in table.lines if line.result), "")


CAPTION = (
    "Difference: {} minus published, in points, flagged where it exceeds the tolerance stated with the published "
    "result; published results without a tolerance are not flagged."
)


def compare_with_published(tables: Sequence[Table], options: TableOptions) -> list[Table]:
    """Return a table for each line that has published numbers: measured, published and difference.

    Raises UserError if no line has published numbers.
    """
    lines = [(table, line) for table in tables if not table.part for line in table.lines]
    out = [_compared(table, line, options) for table, line in lines if _published(line)]
    if not out:
        rows = [line.result for table in tables for line in table.lines if line.result]
        have = ", ".join(dict.fromkeys(f"{r.method} on {r.benchmark}, encoder {r.encoder.get('name')}" for r in rows))
        benchmarks = ", ".join(dict.fromkeys(one.benchmark for one in quotes().values()))
        raise UserError(f"no published result matches these ({have}); there are some for: {benchmarks}")
    return out


def published_of(row: Result) -> list[Quote]:
    """Return published results with the same method, settings, benchmark and architecture, and weights if possible."""
    found = [
        one
        for one in quotes().values()
        if (one.method, one.benchmark) == (row.method, row.benchmark)
        and one.architecture == row.encoder.get("architecture")
        and one.card == card(row)
        and row.stream.get("order", one.order) == one.order
        and row.stream.get("ratio", "all") == "all"
        and all(row.parameters.get(k) == v for k, v in one.settings.items())
    ]
    return [one for one in found if one.weights == comparable_facts(row)["weights"]] or found


def _published(line: TableLine) -> list[Quote]:
    return published_of(line.result) if line.result and line.result.status == "ok" else []


def _compared(table: Table, line: TableLine, options: TableOptions) -> Table:
    found = _published(line)
    lines = tuple(_compared_lines(table, line, found, options))
    of_all_methods = (UNRANKED, *table.order)
    return replace(
        table,
        title=f"{table.title}: {line.name}, {_origin(line)} and published",
        compared=line.name,
        caption=(
            *(text for text in table.caption if text not in of_all_methods),
            *_kinds_caption(lines, options),
            CAPTION.format(_origin(line)),
        ),
        brief=(
            *(text for text in table.brief if text not in of_all_methods),
            *_brief_kinds(lines, options),
            f"Difference: {_origin(line)} minus published, in points.",
        ),
        lines=lines,
        notes=(*warnings([line], options.sets), *map(_about, found), *differences(lines, found)),
        footnotes=access_footnotes(lines),
    )


def _origin(line: TableLine) -> str:
    return "imported" if line.result and line.result.imported else "measured"


def _compared_lines(
    table: Table, line: TableLine, found: Sequence[Quote], options: TableOptions
) -> Iterator[TableLine]:
    """Yield the measured line, then two lines per published result, with dashes for unpublished numbers."""
    own = tuple(
        tuple(replace(cell, mark="", not_significantly_different=False) for cell in cells) for cells in line.cells
    )
    yield replace(line, name=f"{line.name}, {_origin(line)}", cells=own, section="")
    for one in found:
        theirs = quoted_cells(one, table.column_groups, options)
        cites = one.cite if options.cite else ()
        yield TableLine(
            one.name, theirs, None, access=one.card, cites=cites, facts={"quote": one.key, "source": one.source}
        )
        cells = tuple(
            tuple(_difference(a, b, c, one, options) for a, b, c in zip(mine, published, group.columns, strict=True))
            for mine, published, group in zip(own, theirs, table.column_groups, strict=True)
        )
        yield TableLine("difference", cells, None)


def _difference(own: Cell, theirs: Cell, column: Column, one: Quote, options: TableOptions) -> Cell:
    if own.value is None or theirs.value is None or theirs.other:
        return Cell(None, DASH)
    value = own.value - theirs.value
    allowed = one.tolerance.get(column.name)
    exceeds = allowed is not None and abs(value) * 100 > allowed + 1e-9
    scale = 100 if options.percent else 1
    return Cell(value, f"{value * scale:+z.{options.digits}f}", "exceeds" if exceeds else "")


def _about(one: Quote) -> str:
    parts = [f"{m} {v}" for m, v in one.tolerance.items() if m != "why"]
    stated = f" Tolerance: {', '.join(parts)} points ({one.tolerance.get('why', 'ours')})." if parts else ""
    return f"{one.about}{stated}"
