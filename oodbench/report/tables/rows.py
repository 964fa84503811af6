"""Lines of a table: names of results, and averages over seeds."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from oodbench.report.options import TableOptions
from oodbench.report.tables.columns import cell, cells, formatted
from oodbench.report.tables.table import DASH, Cell, ColumnGroup, Number
from oodbench.results import Result


def by_seed(results: Sequence[Result]) -> list[list[Result]]:
    """Group results that differ only in the seed (and in what was trained from it), in order."""
    out: dict[str, list[Result]] = {}
    for number, row in enumerate(results):
        key = _key(row) if row.status == "ok" else str(number)
        out.setdefault(key, []).append(row)
    return list(out.values())


def average_over_seeds(results: Sequence[Result], group: ColumnGroup, options: TableOptions) -> tuple[Cell, ...]:
    """Return the average and the sample standard deviation over results; a single result has no deviation."""
    if len(results) == 1:
        return cells(results[0], group, options)
    columns = zip(*(group.values(row) for row in results), strict=True)
    return tuple(_average([number.value for number in column], options, group.fraction) for column in columns)


def _average(values: Sequence[float | None], options: TableOptions, fraction: bool) -> Cell:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return Cell(None, DASH)
    deviation = statistics.stdev(known)
    extra = f"± {formatted(deviation, options) if fraction else f'{deviation:.2f}'}"
    return cell(Number(statistics.fmean(known)), options, fraction=fraction, extra=extra)


def _key(row: Result) -> str:
    weights: dict[str, Any] = {"recipe": _seedless(row.weights.get("recipe") or {})} if row.weights else {}
    if row.weights and not row.weights.get("recipe"):  # released weights: which training they come from is unknown
        weights = {"digest": row.weights.get("digest")}
    settings = {k: v for k, v in row.run.items() if k not in ("seed", "extracted", "imported")}
    if settings.get("calibration"):  # drawn from the training images by the seed
        drawn = ("digest", "list", "shot_seed")
        settings["calibration"] = {k: v for k, v in settings["calibration"].items() if k not in drawn}
    known = [row.label, row.parameters, row.templates, row.files, row.source, weights, settings]
    return json.dumps(known, sort_keys=True, default=str)


def _seedless(recipe: dict[str, Any]) -> dict[str, Any]:
    return {k: _seedless(v) if isinstance(v, dict) else v for k, v in recipe.items() if k != "seed"}


_VARIATIONS = ("seed", "device", "batch_size")  # parts of `Result.run` that may differ within a table


def names(results: Sequence[Result], omitted: str = "") -> list[str]:
    """Return `Energy (scale=1)` from title and label, or `Energy (seed 2)` where equal names differ in the seed.

    `omitted` is a hyper-parameter that the table's title states.
    """
    out = [_name(row, omitted) for row in results]
    positions: dict[str, list[int]] = {}
    for i, name in enumerate(out):
        positions.setdefault(name, []).append(i)
    for name, same in positions.items():
        if len(same) > 1:
            for i, remark in zip(same, _remarks([results[i] for i in same]), strict=True):
                out[i] = f"{name[:-1]}, {remark})" if name.endswith(")") else f"{name} ({remark})"
    return out


def _name(row: Result, omitted: str) -> str:
    title, bracket = row.title or row.method, row.label.removeprefix(row.method)
    settings = re.split(r",(?=[A-Za-z_]\w*=)", bracket.removeprefix("[").removesuffix("]"))
    said = ", ".join(s for s in settings if s and not (omitted and s.startswith(f"{omitted}=")))
    return f"{title} ({said})" if said else title


def _remarks(rows: Sequence[Result]) -> list[str]:
    """Return what differs between results of one name, and their digests where nothing else distinguishes them."""
    known = [
        {"scores": "imported" if row.imported else "measured"}
        | {k: str(row.run.get(k)) for k in _VARIATIONS}
        | {f"calibration_{k}": str((row.run.get("calibration") or {}).get(k)) for k in ("n", "labels", "shot_seed")}
        | {"weights": row.weights.get("digest", "none")[:8], "source": row.source[:8]}
        | {"commit": (row.commit or "none")[:8]}
        for row in rows
    ]
    differing: list[str] = []
    for k in known[0]:  # as few as distinguish all of them
        if len({tuple(facts[d] for d in differing) for facts in known}) < len(rows):
            differing += [k] if len({facts[k] for facts in known}) > 1 else []
    remarks = [", ".join(f"{k.replace('_', ' ')} {facts[k]}" for k in differing) for facts in known]
    counts = Counter(remarks)
    return [
        remark if counts[remark] == 1 else ", ".join(filter(None, (remark, f"result {row.digest[:8]}")))
        for remark, row in zip(remarks, rows, strict=True)
    ]
