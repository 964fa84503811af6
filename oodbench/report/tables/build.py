"""Assembly: rows -> tables of comparable rows, in the shape that the options ask for."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.errors import UserError, printable
from oodbench.report.formats.bibtex import keys_of_benchmark, keys_of_dataset, keys_of_method
from oodbench.report.options import TableOptions
from oodbench.report.tables.columns import COLUMNS, ColumnPlan, cells, marked, plan
from oodbench.report.tables.grouping import PromptGroup, TableGroup, by_prompts, group
from oodbench.report.tables.rows import by_training, names, repeats, summary
from oodbench.report.tables.table import Line, Table
from oodbench.results import IdRow, Result, SetRow

if TYPE_CHECKING:
    from oodbench.metrics import Scores


def caption(model: Result, apart: Sequence[str], options: TableOptions) -> tuple[str, ...]:
    """Sentences on conventions, sets, encoder; `apart` is what other tables of the same benchmark have otherwise."""
    weights = str(model.encoder.get("weights") or "")
    sentences = [
        _units(options),
        *_conventions(model.conventions, options.metrics),
        f"ID: {_size(model.id, model.classes.get('count'))}.",
        *_ood(model, options.sets),
        f"Encoder weights: {weights[:12]}." if weights else "",
        "Seconds: scoring only." if "seconds" in options.metrics else "",
        _uncertainty(model, options),
        f"Not comparable with tables of other settings; here: {'; '.join(apart)}." if apart else "",
    ]
    return tuple(filter(None, sentences))


def _units(options: TableOptions) -> str:
    names = [
        "ID accuracy" if m == "accuracy" else COLUMNS[m].title.removesuffix("-OOD")
        for m in options.metrics
        if m != "seconds"
    ]
    *most, last = dict.fromkeys(names) or ("Nothing",)
    listed = f"{', '.join(most)} and {last}" if most else last
    return f"{listed} in %." if options.percent else f"{listed} as fractions."


def _conventions(rules: Mapping[str, str], metrics: Sequence[str]) -> list[str]:
    rule = rules.get("at95", "first")
    kept, said = ("at least 95 %", "") if rule == "first" else ("95 %", f"; at95 rule: {rule}")
    out = []
    if "fpr95" in metrics:
        out.append(f"FPR95: share of OOD images accepted when {kept} of ID images are kept (ID positive{said}).")
    if "fpr95_ood" in metrics:
        out.append(f"FPR95-OOD: share of ID images rejected when {kept} of OOD images are caught (OOD positive{said}).")
    if {"aupr_in", "aupr_out"} & set(metrics):
        area = str(rules.get("aupr", "average_precision")).replace("_", " ")
        out.append(f"AUPR-in has ID as its positive class, AUPR-out OOD ({area}).")
    return out


def _uncertainty(model: Result, options: TableOptions) -> str:
    if options.seeds:
        return "±: standard deviation over seeds, where there are several."
    if not options.intervals:
        return ""
    level = model.uncertainty.get("level", 0.95)
    what = "half the width of" if options.intervals == "half" else "in brackets"
    sign = "±: " if options.intervals == "half" else ""
    return f"{sign}{what} the {100 * float(level):g} % interval over images, where the row has one.".capitalize()


def _ood(model: Result, chosen: Sequence[str]) -> list[str]:
    """One sentence on the OOD sets, or one for each group; says so when they are a choice."""
    out = []
    kept = [s for s in model.ood if not chosen or s.dataset in chosen]
    for name in dict.fromkeys(s.group for s in kept):
        sizes = ", ".join(_size(s) for s in kept if s.group == name)
        out.append(f"{name.capitalize()} OOD: {sizes}." if name else f"OOD: {sizes}.")
    if len(kept) < len(model.ood):
        out.append(f"Shown: {len(kept)} of the {len(model.ood)} OOD sets of the benchmark; means are over these.")
    return out


def _size(images: IdRow | SetRow, classes: object = None) -> str:
    remarks = [images.partial or f"n = {images.n:,}", f"{images.skipped:,} skipped" if images.skipped else ""]
    remarks += [f"{classes:,} class{'' if classes == 1 else 'es'}"] if isinstance(classes, int) else []
    return f"{images.title} ({', '.join(filter(None, remarks))})"


Digests = Mapping[str, Mapping[str, frozenset[str]]]


@dataclass(frozen=True)
class Alike:
    """OOD set, or group of sets for the mean ("": all) -> metric -> digests of rows that may be the best."""

    sets: Digests = field(default_factory=dict)
    means: Digests = field(default_factory=dict)


Test = Callable[[Sequence[Result], Sequence[str]], Alike]


def tables(rows: Iterable[Result], options: TableOptions | None = None, test: Test | None = None) -> list[Table]:
    """One table for each set of comparable rows, in order of first appearance.

    Rows are comparable when benchmark, encoder with its weights, image lists, class names, precision, resize, limit and
    conventions are the same; rows that were all given the same prompts have a table of their own. `test` says which
    rows cannot be told from the best of them, on the sets that are shown.
    """
    options = options or TableOptions()
    chosen = [row for row in rows if not options.methods or {row.method, row.label} & set(options.methods)]
    out = []
    for one in group(chosen):
        for footing in by_prompts(one.results):
            if not options.sets or any(s.dataset in options.sets for row in footing.rows for s in row.ood):
                out.append(_table(one, footing, options, test))
    return out


def _table(one: TableGroup, footing: PromptGroup, options: TableOptions, test: Test | None) -> Table:
    results = _ordered(footing.rows, options.methods)
    model = next((row for row in results if row.status == "ok"), results[0])
    plans = plan(model, options)
    blocks = tuple(p.block for p in plans)
    lines = _lines(results, plans, options, "templates" if footing.prompts else "")
    said = [footing.title] if footing.title else []
    notes = [_note(line) for line in lines if line.result and line.result.status != "ok"]
    notes += dict.fromkeys(f"{line.name}: {one}." for line in lines for row in line.rows for one in row.warnings)
    if footing.missing:
        notes.append(f"Not run with these prompts: {', '.join(footing.missing)}.")
    lines = list(marked(lines, blocks))
    if test and not options.seeds:
        lines = _tested(lines, plans, options, test)
    return Table(
        title=", ".join(
            [f"{model.benchmark_title or model.benchmark}, encoder {model.encoder.get('name', 'unknown')}", *said]
        ),
        caption=caption(model, one.apart, options),
        blocks=blocks,
        lines=tuple(by_training(lines) if options.trained else lines),
        notes=tuple(notes),
        cites=_cites(model, options) if options.cite else (),
    )


def _ordered(rows: Sequence[Result], wanted: Sequence[str]) -> list[Result]:
    def place(row: Result) -> int:
        return wanted.index(row.label) if row.label in wanted else wanted.index(row.method)

    return sorted(rows, key=place) if wanted else list(rows)


def _lines(results: Sequence[Result], plans: Sequence[ColumnPlan], options: TableOptions, unsaid: str) -> list[Line]:
    if options.seeds:
        sets = repeats(results)
        printed = names([rows[0] for rows in sets], unsaid)
        return [
            Line(
                f"{name}, {len(rows)} seeds" if len(rows) > 1 else name,
                tuple(summary(rows, p, options) for p in plans),
                rows[0],
                cites=_method_keys(rows[0], options),
                others=tuple(rows[1:]),
            )
            for name, rows in zip(printed, sets, strict=True)
        ]
    return [
        Line(name, tuple(cells(row, p, options) for p in plans), row, cites=_method_keys(row, options))
        for name, row in zip(names(results, unsaid), results, strict=True)
    ]


def _tested(lines: Sequence[Line], plans: Sequence[ColumnPlan], options: TableOptions, test: Test) -> list[Line]:
    """Lines whose cells say whether they cannot be told from the best of their column."""
    alike = test([line.result for line in lines if line.result and line.result.status == "ok"], options.sets)
    known = [alike.sets.get(p.block.name, {}) if p.mean is None else alike.means.get(p.mean, {}) for p in plans]
    out = []
    for line in lines:
        digest = line.result.digest if line.result else ""
        grid = [
            tuple(
                replace(cell, alike=cell.mark != "best" and digest in found.get(metric, ()))
                for cell, metric in zip(cells, options.shown, strict=True)
            )
            if found
            else cells
            for cells, found in zip(line.cells, known, strict=True)
        ]
        out.append(replace(line, cells=tuple(grid)))
    return out


def _method_keys(row: Result, options: TableOptions) -> tuple[str, ...]:
    return keys_of_method(row.method) if options.cite else ()


def _cites(model: Result, options: TableOptions) -> tuple[tuple[str, tuple[str, ...]], ...]:
    kept = [s for s in model.ood if not options.sets or s.dataset in options.sets]
    images: list[IdRow | SetRow] = [model.id, *kept]
    found = [(model.benchmark_title or model.benchmark, keys_of_benchmark(model.benchmark))]
    found += [(s.title, keys_of_dataset(s.dataset)) for s in images]
    return tuple((title, keys) for title, keys in found if keys)


def _note(line: Line) -> str:
    error = " ".join(((line.result and line.result.error) or "no message").split())
    return f"{line.name} failed: {error if len(error) <= 300 else error[:297] + '...'}"


log = logging.getLogger(__name__)

MOST = 40  # rows; of more, a column's best is one of many, and the bootstrap takes minutes
QUICK = 500_000  # scores, which take about two seconds


def tester(paths: Mapping[str, Path], options: TableOptions, *, quick: bool = False) -> Test:
    """A test for `tables`; `paths` are the rows' files by digest. Rows without scores per image are not compared.

    `quick` leaves out tables whose tests would take more than some seconds.
    """

    def test(rows: Sequence[Result], sets: Sequence[str]) -> Alike:
        metrics = [m for m in ("auroc", "fpr95") if m in options.shown]
        found = {row.digest: paths[row.digest].with_suffix(".parquet") for row in rows if row.digest in paths}
        there = {digest: path for digest, path in found.items() if path.exists() or path.is_symlink()}
        images = sum(row.id.n + sum(s.n for s in row.ood) for row in rows if row.digest in there)
        if not metrics or not 2 <= len(there) <= MOST or (quick and images > QUICK):
            return Alike()
        from oodbench.metrics import Settings, indistinguishable

        scores = {}
        for row in rows:
            if row.digest in there:
                try:
                    scores[row.digest] = _scores(row, there[row.digest], sets)
                except UserError as error:
                    log.warning("%s is not compared: %s", printable(row.label), printable(str(error)))
        if len(scores) < 2:
            return Alike()
        rules = rows[0].conventions
        settings = Settings(at95=rules.get("at95", "first"), aupr=rules.get("aupr", "average_precision"))
        marks = indistinguishable(scores, settings, metrics)
        return Alike(marks.sets, marks.means)

    return test


def _scores(row: Result, path: Path, sets: Sequence[str]) -> Scores:
    from oodbench.metrics import Scores
    from oodbench.report.verify import of_row

    found = of_row(row, path)
    kept = [s for s in row.ood if not sets or s.dataset in sets]
    ood = {s.dataset: found[s.dataset].scores for s in kept}
    return Scores(found[row.id.dataset].scores, ood, {s.dataset: s.group for s in kept})
