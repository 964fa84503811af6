"""Lines of a table: names of results, and averages over seeds."""

from __future__ import annotations

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from oodbench.method.parameters import split
from oodbench.report.options import TableOptions
from oodbench.report.tables.access import title_of
from oodbench.report.tables.columns import cell, cells, formatted
from oodbench.report.tables.streams import differing
from oodbench.report.tables.table import DASH, Cell, ColumnGroup, Number
from oodbench.results import Result, seedless_label


def repeated(results: Sequence[Result], *, seeds: bool) -> list[list[Result]]:
    """Group the results of one line, in order: streams that differ only in their seed.

    With `seeds`, also group results that differ only in the seed of the run and in weights trained with it.
    """
    out: dict[str, list[Result]] = {}
    for number, row in enumerate(results):
        if row.stream:
            key = json.dumps([_key(row), row.status, row.error, *(() if seeds else _drawn(row))], sort_keys=True)
        else:
            key = _key(row) if seeds and row.status == "ok" else str(number)
        out.setdefault(key, []).append(row)
    return list(out.values())


def _drawn(row: Result) -> tuple[object, ...]:
    """Return the seed of a run, and the weights and images that depend on it."""
    return row.run.get("seed"), row.weights, row.run.get("calibration")


def line_cells(results: Sequence[Result], group: ColumnGroup, options: TableOptions) -> tuple[Cell, ...]:
    """Return the cells of a line: for several results the average, and the standard deviation unless it rounds to 0.

    For several streams, the interval over images is the first one that is known.
    """
    if len(results) == 1 or results[0].status != "ok":
        return cells(results[0], group, options)
    columns = zip(*(group.values(row) for row in results), strict=True)
    return tuple(_average(_by_stream(column, results), options, group.fraction) for column in columns)


def _by_stream(numbers: Sequence[Number], results: Sequence[Result]) -> list[Number]:
    """Average runs that differ only in the seed of the run, so that there is one number per stream seed."""
    by_seed: dict[object, list[Number]] = {}
    for i, (number, row) in enumerate(zip(numbers, results, strict=True)):
        by_seed.setdefault(row.stream.get("seed") if row.stream else i, []).append(number)
    out = []
    for same in by_seed.values():
        values = [number.value for number in same if number.value is not None]
        mean = statistics.fmean(values) if len(values) == len(same) else None
        out.append(same[0] if len(same) == 1 else Number(mean, same[0].interval))
    return out


def _average(numbers: Sequence[Number], options: TableOptions, fraction: bool) -> Cell:
    known = [n.value for n in numbers if n.value is not None and math.isfinite(n.value)]
    if len(known) < len(numbers):
        return Cell(None, DASH)
    if len(known) == 1:
        return cell(numbers[0], options, fraction=fraction)
    deviation = statistics.stdev(known)
    interval = next((n.interval for n in numbers if n.interval), None)
    found = cell(Number(statistics.fmean(known), interval), options, fraction=fraction)
    text = formatted(deviation, options) if fraction else f"{deviation:.2f}"
    extra = f"± {text}" if float(text) else ""  # no deviation if the seed has no effect
    return replace(found, extra=f"{extra} {found.extra}".strip())


_VARIATIONS = ("seed", "device", "batch_size")  # parts of `Result.run` that may differ within a table


def _key(row: Result) -> str:
    weights: dict[str, Any] = {"recipe": _seedless(row.weights.get("recipe") or {})} if row.weights else {}
    if row.weights and not row.weights.get("recipe"):  # released weights: which training they come from is unknown
        weights = {"digest": row.weights.get("digest")}
    settings = {k: v for k, v in row.run.items() if k not in ("seed", "extracted", "imported")}
    if settings.get("calibration"):  # drawn from the training images by the seed
        drawn = ("digest", "list", "shot_seed")
        settings["calibration"] = {k: v for k, v in settings["calibration"].items() if k not in drawn}
    stream = {k: v for k, v in row.stream.items() if k != "seed"}
    access = row.access if row.imported else {}  # for others it follows from method and settings
    known = [
        seedless_label(row),
        row.parameters,
        row.templates,
        row.files,
        row.source,
        weights,
        settings,
        stream,
        access,
        row.imported.get("by"),  # seeds of two labs are two lines
    ]
    return json.dumps(known, sort_keys=True, default=str)


_SEEDED = (
    "seed",
    "list",
    "loss",
    "created",
    "commit",
)  # parts of a recipe that depend on the seed or the date


def _seedless(recipe: dict[str, Any]) -> dict[str, Any]:
    return {k: _seedless(v) if isinstance(v, dict) else v for k, v in recipe.items() if k not in _SEEDED}


def by_shots(results: Sequence[Result]) -> list[list[Result]]:
    """Group results, in order, that differ only in the number of labelled images per class and the seeds."""
    return _alike(results, without_shots)


def by_parameter(results: Sequence[Result], name: str) -> list[list[Result]]:
    """Group results with a hyper-parameter, in order, that differ only in its value and the seeds."""
    return _alike([row for row in results if name in row.parameters], lambda row: without_parameter(row, name))


def _alike(results: Sequence[Result], without: Callable[[Result], Result]) -> list[list[Result]]:
    out: dict[str, list[Result]] = {}
    for row in results:
        out.setdefault(_key(without(row)), []).append(row)
    return list(out.values())


def without_parameter(row: Result, name: str) -> Result:
    """Return a result without a hyper-parameter, in its label and its parameters."""
    settings = split(row.label.removeprefix(row.method).removeprefix("[").removesuffix("]"), ",")
    kept = ",".join(setting for setting in settings if setting.partition("=")[0] != name)
    parameters = {k: v for k, v in row.parameters.items() if k != name}
    return replace(row, label=f"{row.method}[{kept}]" if kept else row.method, parameters=parameters)


def without_shots(row: Result) -> Result:
    """Return a result without the number and the draw of its labelled images, in label, weights and settings."""
    calibration = {k: v for k, v in (row.run.get("calibration") or {}).items() if k == "dataset"}
    row = replace(row, run={**row.run, "calibration": calibration})
    recipe = row.weights.get("recipe") or {}
    if not recipe.get("id"):
        return row
    # Images, steps and batch size follow from the number; the variant in the label follows from number and seed.
    kept = {k: recipe.get(k) for k in ("method", "parameters", "source", "crops", "augment", "precision", "epochs")}
    optimiser = {k: v for k, v in (recipe.get("optimiser") or {}).items() if k != "batch"}
    shots = f"K={recipe['id'].get('shots')}]"
    label = seedless_label(row).replace(f",{shots}", "]").removesuffix(f"[{shots}")
    return replace(row, label=label, weights={"recipe": {**kept, "optimiser": optimiser}})


def line_names(lines: Sequence[Sequence[Result]], omitted: str = "") -> list[str]:
    """Return `Energy (scale=1)` from title and label, or `Energy (seed 2)` if equal names differ in the seed.

    Names of streams are `OODD, base MCM; shuffled`, followed by other differences between the protocols of the lines.
    `omitted` is a hyper-parameter that the table's title states.
    """
    first = [replace(rows[0], label=seedless_label(rows[0])) if len(rows) > 1 else rows[0] for rows in lines]
    if not first or not first[0].stream:
        found = _distinguished([_name(row, (omitted,)) for row in first], first)
        return [f"{x}, {len(rows)} seeds" if len(rows) > 1 else x for x, rows in zip(found, lines, strict=True)]
    runs = [len({row.run.get("seed") for row in rows}) for rows in lines]
    differences = [
        f"{each}, {n} seeds of the run" if n > 1 else each for each, n in zip(differing(lines), runs, strict=True)
    ]
    return _distinguished([f"{_stream_name(r, omitted)}{d}" for r, d in zip(first, differences, strict=True)], first)


def _distinguished(names: Sequence[str], results: Sequence[Result]) -> list[str]:
    """Return the names; equal ones get a remark on what differs between their results."""
    return distinguished(names, [_variations(row) for row in results], [row.digest[:8] for row in results])


def distinguished(names: Sequence[str], facts: Sequence[Mapping[str, str]], digests: Sequence[str]) -> list[str]:
    """Return the names; equal ones get a remark on what differs in their facts, or their digests if nothing does."""
    out = list(names)
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        positions.setdefault(name, []).append(i)
    for name, same in positions.items():
        if len(same) > 1:
            for i, remark in zip(same, _remarks([facts[i] for i in same], [digests[i] for i in same]), strict=True):
                out[i] = f"{name[:-1]}, {remark})" if name.endswith(")") else f"{name} ({remark})"
    return out


def _stream_name(row: Result, omitted: str) -> str:
    method, bracket, settings = str(row.stream.get("base", "")).partition("[")
    base = f", base {_titled(title_of(method), bracket + settings)}" if method else ""
    return f"{_name(row, (omitted, 'base'))}{base}; {row.stream.get('order')}"


def _name(row: Result, omitted: Collection[str]) -> str:
    return _titled(row.title or row.method, row.label.removeprefix(row.method), omitted)


def _titled(title: str, bracket: str, omitted: Collection[str] = ()) -> str:
    settings = split(bracket.removeprefix("[").removesuffix("]"), ",")
    shown = ", ".join(s for s in settings if s.partition("=")[0] not in omitted)
    return f"{title} ({shown})" if shown else title


def _variations(row: Result) -> dict[str, str]:
    """Return what may differ between results of one name in a table."""
    return (
        {"scores": "imported" if row.imported else "measured", "by": str(row.imported.get("by", ""))}
        | {k: str(row.run.get(k)) for k in _VARIATIONS}
        | {f"calibration_{k}": str((row.run.get("calibration") or {}).get(k)) for k in ("labels", "n", "shot_seed")}
        | {"weights": row.weights.get("digest", "none")[:8], "source": row.source[:8]}
        | {"commit": (row.commit or "none")[:8], "stream_seed": str(row.stream.get("seed"))}
    )


def distinguishing(facts: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the names of as few facts as distinguish all of them, in their order."""
    found: list[str] = []
    for name in facts[0]:
        if len({tuple(one[k] for k in found) for one in facts}) < len(facts):
            found += [name] if len({one[name] for one in facts}) > 1 else []
    return found


def _remarks(facts: Sequence[Mapping[str, str]], digests: Sequence[str]) -> list[str]:
    names = distinguishing(facts)
    remarks = [", ".join(f"{name.replace('_', ' ')} {one[name]}" for name in names) for one in facts]
    counts = Counter(remarks)
    return [
        remark if counts[remark] == 1 else ", ".join(filter(None, (remark, f"result {digest}")))
        for remark, digest in zip(remarks, digests, strict=True)
    ]
