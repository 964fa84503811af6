"""Published numbers: results/published/*.toml -> quotes, each cell with its source and how sure it is."""

from __future__ import annotations

import dataclasses
import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oodbench.data.paths import published
from oodbench.errors import UserError, did_you_mean
from oodbench.results import METRICS


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
