"""Repeats: rows that differ in the seed alone become one line."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from typing import Any

from oodbench.report.options import Options
from oodbench.report.tables.columns import Number, Plan, cell, cells, written
from oodbench.report.tables.table import DASH, Cell
from oodbench.results import Result


def repeats(rows: Sequence[Result]) -> list[list[Result]]:
    """Rows in order, those together that differ in the seed (and in what was trained from it) alone."""
    out: dict[str, list[Result]] = {}
    for number, row in enumerate(rows):
        key = _key(row) if row.status == "ok" else str(number)
        out.setdefault(key, []).append(row)
    return list(out.values())


def summary(rows: Sequence[Result], one: Plan, options: Options) -> tuple[Cell, ...]:
    """Mean and sample standard deviation over rows; a single row has no deviation."""
    if len(rows) == 1:
        return cells(rows[0], one, options)
    columns = zip(*(one.fill(row) for row in rows), strict=True)
    return tuple(_summary([number.value for number in column], options, share=one.share) for column in columns)


def _summary(values: Sequence[float | None], options: Options, *, share: bool) -> Cell:
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
