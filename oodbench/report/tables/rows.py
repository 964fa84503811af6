"""Repeats: rows that differ in the seed alone become one line."""

from __future__ import annotations

import json
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from oodbench.report.options import TableOptions
from oodbench.report.tables.columns import ColumnPlan, Number, cell, cells, written
from oodbench.report.tables.table import DASH, Cell, Line
from oodbench.results import Result


def repeats(rows: Sequence[Result]) -> list[list[Result]]:
    """Rows in order, those together that differ in the seed (and in what was trained from it) alone."""
    out: dict[str, list[Result]] = {}
    for number, row in enumerate(rows):
        key = _key(row) if row.status == "ok" else str(number)
        out.setdefault(key, []).append(row)
    return list(out.values())


def summary(rows: Sequence[Result], one: ColumnPlan, options: TableOptions) -> tuple[Cell, ...]:
    """Mean and sample standard deviation over rows; a single row has no deviation."""
    if len(rows) == 1:
        return cells(rows[0], one, options)
    columns = zip(*(one.fill(row) for row in rows), strict=True)
    return tuple(_summary([number.value for number in column], options, share=one.share) for column in columns)


def _summary(values: Sequence[float | None], options: TableOptions, *, share: bool) -> Cell:
    known = [v for v in values if v is not None]
    if len(known) < len(values):
        return Cell(None, DASH)
    deviation = statistics.stdev(known)
    extra = f"± {written(deviation, options) if share else f'{deviation:.2f}'}"
    return cell(Number(statistics.fmean(known)), options, share=share, extra=extra)


def _key(row: Result) -> str:
    weights: dict[str, Any] = {"recipe": _seedless(row.weights.get("recipe") or {})} if row.weights else {}
    if row.weights and not row.weights.get("recipe"):  # a release: which training it came from is not known
        weights = {"digest": row.weights.get("digest")}
    settings = {k: v for k, v in row.run.items() if k not in ("seed", "extracted")}
    if settings.get("calibration"):  # drawn from the training images by the seed
        settings["calibration"] = {k: v for k, v in settings["calibration"].items() if k != "digest"}
    known = [row.label, row.parameters, row.templates, row.files, row.source, weights, settings]
    return json.dumps(known, sort_keys=True, default=str)


def _seedless(recipe: dict[str, Any]) -> dict[str, Any]:
    return {k: _seedless(v) if isinstance(v, dict) else v for k, v in recipe.items() if k != "seed"}


_VARIATIONS = ("seed", "device", "batch_size")  # parts of `Result.run` that may differ within a table


def names(rows: Sequence[Result], unsaid: str = "") -> list[str]:
    """`Energy (scale=1)` from title and label, or `Energy (seed 2)` where rows of one name differ in the seed.

    `unsaid` is a hyper-parameter that the table's title tells.
    """
    out = [_name(row, unsaid) for row in rows]
    places: dict[str, list[int]] = {}
    for i, name in enumerate(out):
        places.setdefault(name, []).append(i)
    for name, twins in places.items():
        if len(twins) > 1:
            for i, remark in zip(twins, _remarks([rows[i] for i in twins]), strict=True):
                out[i] = f"{name[:-1]}, {remark})" if name.endswith(")") else f"{name} ({remark})"
    return out


def _name(row: Result, unsaid: str) -> str:
    title, bracket = row.title or row.method, row.label.removeprefix(row.method)
    settings = re.split(r",(?=[A-Za-z_]\w*=)", bracket.removeprefix("[").removesuffix("]"))
    said = ", ".join(s for s in settings if s and not (unsaid and s.startswith(f"{unsaid}=")))
    return f"{title} ({said})" if said else title


def _remarks(rows: Sequence[Result]) -> list[str]:
    """What differs between rows of one name, and their digests where that does not tell all of them apart."""
    known = [
        {k: str(row.run.get(k)) for k in _VARIATIONS}
        | {"weights": row.weights.get("digest", "none")[:8], "source": row.source[:8]}
        | {"commit": (row.commit or "none")[:8]}
        for row in rows
    ]
    differing: list[str] = []
    for k in known[0]:  # as few as tell all of them apart
        if len({tuple(facts[d] for d in differing) for facts in known}) < len(rows):
            differing += [k] if len({facts[k] for facts in known}) > 1 else []
    remarks = [", ".join(f"{k.replace('_', ' ')} {facts[k]}" for k in differing) for facts in known]
    counts = Counter(remarks)
    return [
        remark if counts[remark] == 1 else ", ".join(filter(None, (remark, f"row {row.digest[:8]}")))
        for remark, row in zip(remarks, rows, strict=True)
    ]


FREE, TRAINED = "Training-free", "Trained"


def by_training(lines: Sequence[Line]) -> list[Line]:
    """The lines in two sections, in their order; a row without weights counts as its method says it should."""
    from oodbench.method import registry

    known = registry.methods()
    trained = {name for name, info in known.items() if "WEIGHTS" in info.needs}
    divided = [
        replace(line, section=TRAINED if line.result.weights or line.result.method in trained else FREE)
        for line in lines
        if line.result
    ]
    return [line for section in (FREE, TRAINED) for line in divided if line.section == section]
