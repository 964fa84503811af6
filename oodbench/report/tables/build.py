"""Build tables of comparable results, with captions that state what the numbers depend on."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.errors import UserError, printable
from oodbench.report.formats.bibtex import keys_of_benchmark, keys_of_dataset, keys_of_method
from oodbench.report.options import TableOptions
from oodbench.report.tables.access import (
    UNRANKED,
    access_footnotes,
    arranged,
    blocks,
    card,
    first_of_each_group,
)
from oodbench.report.tables.chance import warnings
from oodbench.report.tables.columns import (
    COLUMNS,
    TYPED,
    column_groups,
    mark_best,
    sort_column,
    sort_value,
)
from oodbench.report.tables.grouping import PromptGroup, TableGroup, by_prompts, group
from oodbench.report.tables.rows import line_cells, line_names, repeated
from oodbench.report.tables.streams import (
    PARTS,
    TITLE,
    UNTESTED,
    WITHIN,
    itself_note,
    part_of,
    protocol,
    protocol_caption,
    sizes_note,
    stream_options,
)
from oodbench.report.tables.table import ColumnGroup, Table, TableLine
from oodbench.results import IdRow, Result, SetRow, seedless_label

if TYPE_CHECKING:
    from oodbench.metrics import Scores

log = logging.getLogger(__name__)

MOST_TESTED = 40  # results; with more, the best of a column is one of many, and the bootstrap takes minutes
QUICK = 500_000  # scores, which take about two seconds


def caption(model: Result, differences: Sequence[str], options: TableOptions) -> tuple[str, ...]:
    """Return sentences on conventions, sets, encoder, and the settings that differ between a benchmark's tables."""
    weights = str(model.encoder.get("weights") or "")
    sentences = [
        _units(options),
        *conventions(model.conventions, options.metrics, TYPED["fpr95_ood"] if model.stream else "FPR95-OOD (o)"),
        f"ID: {_size(model.id, model.classes.get('count'))}.",
        *_ood(model, options.sets),
        f"Encoder weights: {weights[:12]}." if weights else "",
        "Seconds: scoring only." if "seconds" in options.metrics else "",
        _uncertainty(model, options),
        f"Not comparable with tables of other settings; here: {'; '.join(differences)}." if differences else "",
    ]
    return tuple(filter(None, sentences))


def _units(options: TableOptions) -> str:
    names = [
        "ID accuracy" if m == "accuracy" else COLUMNS[m].title.removesuffix("-OOD")
        for m in options.metrics
        if m != "seconds"
    ]
    if not names:
        return ""
    *most, last = dict.fromkeys(names)
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{listed} in %." if options.percent else f"{listed} as fractions."


def conventions(rules: Mapping[str, str], metrics: Sequence[str], fpr95_ood: str = "FPR95-OOD (o)") -> list[str]:
    """Return sentences that define the metrics by the rules of a result."""
    rule = rules.get("at95", "first")
    kept, note = ("at least 95 %", "") if rule == "first" else ("95 %", f"; at95 rule: {rule}")
    out = []
    if "fpr95" in metrics:
        out.append(
            f"FPR95 (i): fraction of OOD images accepted when {kept} of ID images are accepted (ID positive{note})."
        )
    if "fpr95_ood" in metrics:
        out.append(
            f"{fpr95_ood}: fraction of ID images rejected when {kept} of OOD images are rejected (OOD positive{note})."
        )
    if {"aupr_in", "aupr_out"} & set(metrics):
        area = str(rules.get("aupr", "average_precision")).replace("_", " ")
        out.append(f"AUPR-in has ID as its positive class, AUPR-out OOD ({area}).")
    return out


def _uncertainty(model: Result, options: TableOptions) -> str:
    if model.stream:
        first = "In brackets: the interval over images of the first stream seed, where the result has one."
        return first if options.intervals else ""
    if options.seeds:
        return "±: standard deviation over seeds, where there are several and it does not round to 0."
    if not options.intervals:
        return ""
    level = model.uncertainty.get("level", 0.95)
    what = "half the width of" if options.intervals == "half" else "in brackets"
    sign = "±: " if options.intervals == "half" else ""
    return f"{sign}{what} the {100 * float(level):g} % interval over images, where the result has one.".capitalize()


def _ood(model: Result, chosen: Sequence[str]) -> list[str]:
    """Return one sentence on the OOD sets, or one per group, and one if not all sets are shown."""
    out = []
    kept = [s for s in model.ood if not chosen or s.dataset in chosen]
    for name in dict.fromkeys(s.group for s in kept):
        sizes = ", ".join(_size(s) for s in kept if s.group == name)
        out.append(f"{name.capitalize()} OOD: {sizes}." if name else f"OOD: {sizes}.")
    if len(kept) < len(model.ood):
        out.append(f"Shown: {len(kept)} of the {len(model.ood)} OOD sets of the benchmark; averages are over these.")
    return out


def _size(images: IdRow | SetRow, classes: object = None) -> str:
    remarks = [images.partial or f"n = {images.n:,}", f"{images.skipped:,} skipped" if images.skipped else ""]
    remarks += [f"{classes:,} class{'' if classes == 1 else 'es'}"] if isinstance(classes, int) else []
    return f"{images.title} ({', '.join(filter(None, remarks))})"


Digests = Mapping[str, Mapping[str, frozenset[str]]]


@dataclass(frozen=True)
class NotSignificantlyDifferent:
    """Digests of the results that do not differ significantly from the best one, by metric.

    sets   OOD set -> metric -> digests
    means  group of OOD sets, "" for all -> metric of the average over these sets -> digests
    """

    sets: Digests = field(default_factory=dict)
    means: Digests = field(default_factory=dict)


Test = Callable[[Sequence[Result], Sequence[str]], NotSignificantlyDifferent]


def tables(results: Iterable[Result], options: TableOptions | None = None, test: Test | None = None) -> list[Table]:
    """Return one table for each set of comparable results, in order of first appearance.

    Results are comparable if benchmark, encoder with its weights, image lists, class names, precision, resize, limit
    and conventions are equal. Results with the same given prompts have a separate table, and so do streams. `test`
    finds the results that do not differ significantly from the best one, on the OOD sets shown.
    """
    options = options or TableOptions()
    out: list[Table] = []
    for comparable in group(filter(options.chooses, results)):
        for prompts in by_prompts(comparable.results):
            if not options.sets or any(s.dataset in options.sets for row in prompts.results for s in row.ood):
                out += _tables(comparable, prompts, options, test)
    return out


def _tables(comparable: TableGroup, prompts: PromptGroup, options: TableOptions, test: Test | None) -> Iterator[Table]:
    """Yield the table of results; for streams, the table of all images and, if requested, those of parts."""
    if not prompts.results[0].stream:
        yield _table(comparable, prompts, options, test)
        return
    table = _table(comparable, prompts, stream_options(options), None)
    yield replace(table, caption=(*table.caption, UNTESTED)) if test else table
    for part in PARTS if options.stream_parts else ():
        if (shown := stream_options(options, part)).metrics:
            yield _table(comparable, prompts, shown, None, part)


def _table(
    comparable: TableGroup, prompts: PromptGroup, options: TableOptions, test: Test | None, part: str = ""
) -> Table:
    results = _ordered(prompts.results, options.methods)
    model = min(results, key=lambda row: (row.status != "ok", bool(row.imported)))  # the first with all facts
    groups = column_groups(model, options)
    by = sort_column(model, options)
    found = _lines(results, groups, options, by, "templates" if prompts.prompts else "", part)
    ordered = arranged(found, options.group)
    ranked = (_ranked(block, groups, options, test) if may else block for block, may in blocks(ordered))
    every = [line for block in ranked for line in block]
    # After the marks: what is left out may be the best of a column.
    lines, tied = first_of_each_group(every, options.top)
    order = tuple(_order(by, every, lines, options, part, tied=tied))
    benchmark = f"{model.benchmark_title or model.benchmark}, encoder {model.encoder.get('name', 'unknown')}"
    stream = (TITLE, PARTS.get(part, "")) if model.stream else ()
    return Table(
        title=", ".join(filter(None, (benchmark, prompts.title, *stream))),
        caption=(
            *caption(model, comparable.differences, options),
            *order,
            *_unranked(lines),
            *_protocol(lines),
        ),
        column_groups=tuple(groups),
        lines=lines,
        notes=() if part else tuple(_notes(lines, prompts, options)),
        footnotes=() if part else (*access_footnotes(lines), *itself_note(row for x in lines for row in x.results)),
        within=_within(lines),
        cites=_cites(model, options) if options.cite else (),
        part=part,
        missing=", ".join(comparable.missing),
        slug=f"{model.benchmark}-streams" if model.stream else model.benchmark,
        encoder=str(model.encoder.get("name", "unknown")),
        brief=(*_brief(model, comparable.differences, lines, options), *(order if len(lines) < len(every) else ())),
        order=order,
    )


def _brief(
    model: Result, differences: Sequence[str], lines: Sequence[TableLine], options: TableOptions
) -> Iterator[str]:
    """Yield the short notes that a short caption needs."""
    if differences:
        yield f"{'; '.join(differences)}."
    shown = [s for s in model.ood if not options.sets or s.dataset in options.sets]
    if len(shown) < len(model.ood):
        yield f"Shown: {len(shown)} of {len(model.ood)} OOD sets."
    several = any(len(line.results) > 1 for line in lines)
    if several:
        yield f"±: standard deviation over {'stream ' if model.stream else ''}seeds."
    if options.intervals:
        level = f"{100 * float(model.uncertainty.get('level', 0.95)):g} % interval"
        level += " of the first stream seed" if several else ""
        yield f"±: half the {level}." if options.intervals == "half" else f"In brackets: the {level}."


def _notes(lines: Sequence[TableLine], prompts: PromptGroup, options: TableOptions) -> Iterator[str]:
    yield from (_note(line) for line in lines if line.result and line.result.status != "ok")
    yield from warnings(lines, options.sets)
    yield from sizes_note(row for line in lines for row in line.results)
    if prompts.missing:
        yield f"Not run with these prompts: {', '.join(prompts.missing)}."


def _protocol(lines: Sequence[TableLine]) -> list[str]:
    """Return sentences on the protocol of streams, none for other results."""
    streams = [line.results for line in lines if line.result and line.result.stream]
    return protocol_caption(streams) if streams else []


def _within(lines: Sequence[TableLine]) -> str:
    """Return the scope in which best and second are marked, "" in a table of one block."""
    streams = [protocol(line.results) for line in lines if line.result and line.result.stream]
    if any(one != streams[0] for one in streams):
        return WITHIN
    return " within each group" if len({line.section for line in lines}) > 1 else ""


def _order(
    by: ColumnGroup | None,
    every: Sequence[TableLine],
    kept: Sequence[TableLine],
    options: TableOptions,
    part: str,
    *,
    tied: bool,
) -> Iterator[str]:
    """Yield sentences on the column that lines are sorted by, and on the number of omitted lines."""
    if by is None:
        return
    title = {"accuracy": "ID accuracy", "seconds": "seconds"}.get(options.sort_metric, by.columns[0].title)
    name = f"average {title}" if by.mean is not None else title
    name += " over all images of the streams" if part else ""
    if len(kept) == len(every):
        yield f"Sorted by {name}."
        return
    each = " of each group" if len({line.section for line in every}) > 1 else ""
    equal = ", with all that equal the last of these" if tied else ""
    ours = len({line.result.method for line in kept if line.ours and line.result})
    own = f" and our own method{'s' if ours > 1 else ''}" if ours else ""
    yield f"Shown: the best {options.top}{each} by {name}{equal}{own}."
    marked = any(cell.mark for line in every for cells in line.cells for cell in cells)
    counted = ", but count for best and second" if marked else ""
    yield f"{len(every) - len(kept)} of {len(every)} lines are left out{counted}."


def _unranked(lines: Sequence[TableLine]) -> list[str]:
    """Return a sentence if blocks have no marks because their methods see different data."""
    mixed = any(len(block) > 1 and not may for block, may in blocks(lines))
    return [UNRANKED] if mixed else []


def _ranked(
    lines: Sequence[TableLine], groups: Sequence[ColumnGroup], options: TableOptions, test: Test | None
) -> Sequence[TableLine]:
    """Mark the best and second of each column, and results not significantly worse; streams per protocol."""
    if any(line.result and line.result.stream for line in lines):
        keys = [str(protocol(line.results)) if line.result else "" for line in lines]
        members = {key: [line for line, own in zip(lines, keys, strict=True) if own == key] for key in keys}
        marked = {key: iter(mark_best(found, groups)) for key, found in members.items()}
        return [next(marked[key]) for key in keys]
    marked_lines = mark_best(lines, groups)
    return _tested(marked_lines, groups, options, test) if test and not options.seeds else marked_lines


def _ordered(results: Sequence[Result], methods: Sequence[str]) -> list[Result]:
    def position(row: Result) -> int:
        return methods.index(row.label) if row.label in methods else methods.index(row.method)

    return sorted(results, key=position) if methods else list(results)


def _lines(
    results: Sequence[Result],
    groups: Sequence[ColumnGroup],
    options: TableOptions,
    by: ColumnGroup | None,
    omitted: str,
    part: str,
) -> list[TableLine]:
    found = repeated(results, seeds=options.seeds)
    shown = [[part_of(row, part) for row in rows] if part else rows for rows in found]
    apart = repeated(results, seeds=False) if options.seeds else []
    names = {row.digest: name for name, rows in zip(line_names(apart, omitted), apart, strict=True) for row in rows}
    return [
        TableLine(
            name,
            tuple(line_cells(numbers, group, options) for group in groups),
            rows[0],
            access=card(rows[0]),
            cites=_method_keys(rows[0], options),
            others=tuple(rows[1:]),
            names=tuple(names[row.digest] for row in rows) if options.seeds else (),
            ours=bool({rows[0].method, rows[0].label, seedless_label(rows[0])} & set(options.ours)),
            rank=sort_value(line_cells(rows, by, options)[0], by) if by and rows[0].status == "ok" else None,
        )
        for name, rows, numbers in zip(line_names(found, omitted), found, shown, strict=True)
    ]


def _tested(
    lines: Sequence[TableLine], groups: Sequence[ColumnGroup], options: TableOptions, test: Test
) -> list[TableLine]:
    """Mark the cells that do not differ significantly from the best of their column."""
    found = test([line.result for line in lines if line.result and line.result.status == "ok"], options.sets)
    by_group = [found.sets.get(g.name, {}) if g.mean is None else found.means.get(g.mean, {}) for g in groups]
    out = []
    for line in lines:
        digest = line.result.digest if line.result else ""
        grid = [
            tuple(
                replace(cell, not_significantly_different=cell.mark != "best" and digest in digests.get(metric, ()))
                for cell, metric in zip(cells, options.shown, strict=True)
            )
            if digests
            else cells
            for cells, digests in zip(line.cells, by_group, strict=True)
        ]
        out.append(replace(line, cells=tuple(grid)))
    return out


def _method_keys(row: Result, options: TableOptions) -> tuple[str, ...]:
    base = str(row.stream.get("base", "")).partition("[")[0]
    return (*keys_of_method(row.method), *keys_of_method(base)) if options.cite else ()


def _cites(model: Result, options: TableOptions) -> tuple[tuple[str, tuple[str, ...]], ...]:
    kept = [s for s in model.ood if not options.sets or s.dataset in options.sets]
    images: list[IdRow | SetRow] = [model.id, *kept]
    found = [(model.benchmark_title or model.benchmark, keys_of_benchmark(model.benchmark))]
    found += [(s.title, keys_of_dataset(s.dataset)) for s in images]
    return tuple((title, keys) for title, keys in found if keys)


def _note(line: TableLine) -> str:
    error = " ".join(((line.result and line.result.error) or "no message").split())
    return f"{line.name} failed: {error if len(error) <= 300 else error[:297] + '...'}"


def tester(paths: Mapping[str, Path], options: TableOptions, *, quick: bool = False) -> Test:
    """Return a test for `tables`; `paths` are the results' files by digest.

    Results without scores per image are not compared. `quick` skips tables whose tests would take more than seconds.
    """

    def test(rows: Sequence[Result], sets: Sequence[str]) -> NotSignificantlyDifferent:
        metrics = [m for m in ("auroc", "fpr95") if m in options.shown]
        files = {row.digest: paths[row.digest].with_suffix(".parquet") for row in rows if row.digest in paths}
        files = {digest: path for digest, path in files.items() if path.exists() or path.is_symlink()}
        images = sum(row.id.n + sum(s.n for s in row.ood) for row in rows if row.digest in files)
        if not metrics or not 2 <= len(files) <= MOST_TESTED or (quick and images > QUICK):
            return NotSignificantlyDifferent()
        from oodbench.metrics import Settings, indistinguishable

        scores = {}
        for row in rows:
            if row.digest in files:
                try:
                    scores[row.digest] = _scores(row, files[row.digest], sets)
                except UserError as error:
                    log.warning("%s is not compared: %s", printable(row.label), printable(str(error)))
        if len(scores) < 2:
            return NotSignificantlyDifferent()
        rules = rows[0].conventions
        settings = Settings(at95=rules.get("at95", "first"), aupr=rules.get("aupr", "average_precision"))
        marks = indistinguishable(scores, settings, metrics)
        return NotSignificantlyDifferent(marks.sets, marks.means)

    return test


def _scores(row: Result, path: Path, sets: Sequence[str]) -> Scores:
    from oodbench.metrics import Scores
    from oodbench.report.verify import checked_scores

    found = checked_scores(row, path)
    kept = [s for s in row.ood if not sets or s.dataset in sets]
    ood = {s.dataset: found[s.dataset].scores for s in kept}
    return Scores(found[row.id.dataset].scores, ood, {s.dataset: s.group for s in kept})
