"""Provenance of the numbers in the page: one record for each result; parts that several results share appear once."""

from __future__ import annotations

import json
import math
import shlex
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from oodbench.errors import printable
from oodbench.report.tables.access import part
from oodbench.report.tables.published import Quote, quotes
from oodbench.report.tables.table import TableLine
from oodbench.results import METRICS, IdRow, Result, SetRow, flatten, slug

PARTS = tuple(
    "access stream parameters templates weights files classes encoder conventions uncertainty run versions".split()
)
Facts = dict[str, str]


class Records:
    """Records of results and published results by address, collected before they are formatted.

    paths    the results' files by digest
    results  the folder that paths are relative to, None for results from MLflow
    sets     the OOD sets that are shown, () for all
    folders  this folder by digest, for results from several folders
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        results: Path | None,
        sets: tuple[str, ...] = (),
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        self.paths, self.results, self.sets, self._folders = paths, results, sets, folders or {}
        self.titles: dict[str, str] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._uses: Counter[str] = Counter()

    @property
    def count(self) -> int:
        """The number of results, without published ones."""
        return sum(address.startswith("row-") for address in self._known)

    @property
    def verify(self) -> str:
        """The command that recomputes every number, or "" for results from MLflow."""
        return f"oodbench report {_flags(self.results)} --verify" if self.results else ""

    @property
    def texts(self) -> dict[str, str]:
        """JSON by address, one line per key; shared parts are replaced by their address."""
        numbers = self._numbers()
        out = {}
        for address, known in self._known.items():
            parts = {n: numbers.get(text) or json.loads(text) for n, text in known.get("parts", {}).items()}
            out[address] = _lines({**known, **({"parts": parts} if parts else {})})
        return out

    @property
    def shared(self) -> dict[str, str]:
        """JSON by address of the parts that several results share."""
        return {address: text for text, address in self._numbers().items()}

    def add(self, line: TableLine) -> str:
        """Add the provenance of a line and return its address, or "" for a difference, which has none."""
        if line.result is None:
            return self.add_quote(quotes()[str(line.facts["quote"])]) if "quote" in line.facts else ""
        addresses = [self._row(row) for row in line.results]
        if len(addresses) == 1:
            return addresses[0]
        address = f"seeds-{line.result.digest[:12]}"
        known = {"title": line.name, "rows": addresses}
        self._keep(address, line.name, known)
        return address

    def add_quote(self, one: Quote) -> str:
        """Add a published result and return its address."""
        address = f"quote-{slug(one.key)}"
        self._keep(address, one.name, _quoted(one))
        return address

    def _keep(self, address: str, title: str, known: dict[str, Any]) -> None:
        if address not in self._known:
            self._known[address], self.titles[address] = printable_json(known), title
            self._uses.update(self._known[address].get("parts", {}).values())

    def _numbers(self) -> dict[str, str]:
        shared = [text for text, uses in self._uses.items() if uses > 1]
        return {text: f"part-{number}" for number, text in enumerate(shared, 1)}

    def _row(self, row: Result) -> str:
        address = f"row-{row.digest[:12]}"
        if address not in self._known:
            seed = f", seed {row.run.get('seed')}" if row.run.get("seed") else ""
            if row.stream:
                seed += f", {row.stream.get('order')}, stream seed {row.stream.get('seed')}"
            where = f"{row.benchmark_title or row.benchmark}, {row.encoder.get('name', 'unknown')}"
            self._keep(address, f"{row.title} ({row.label}{seed}) on {where}", self._facts(row))
        return address

    def _facts(self, row: Result) -> dict[str, Any]:
        known: dict[str, Any] = {name: _texts(flatten(found)) for name in PARTS if (found := part(row, name))}
        images = {row.id.dataset: _images(row.id), **{s.dataset: _images(s) for s in row.ood}}
        parts = {**known, "images": images}
        return {
            "title": row.title,
            "label": row.label,
            "benchmark": row.benchmark_title or row.benchmark,
            "row": _texts(
                {
                    "path": self._path(row),
                    "digest": row.digest,
                    "status": row.status,
                    **({"error": row.error} if row.error else {}),
                    **({"warnings": "; ".join(row.warnings)} if row.warnings else {}),
                    "created": row.created,
                    "commit": row.commit or "unknown",
                    "method's source": row.source,
                }
            ),
            "id": {"dataset": row.id.dataset, "title": row.id.title, "accuracy": _text(row.id.accuracy)},
            "sets": {s.dataset: _numbers(row, s) for s in row.ood},
            "shown": [s for s in self.sets if any(s == o.dataset for o in row.ood)],
            "means": {group: _bounds(found) for group, found in row.mean_intervals.items()},
            "stored scores": dict(row.scores),
            "seconds": _texts(row.seconds),
            "explain": f"oodbench report {_flags(self._folder(row))} --explain {shlex.quote(row.label)}",
            "quoted": {s.dataset: shlex.quote(s.dataset) for s in row.ood if shlex.quote(s.dataset) != s.dataset},
            "parts": {name: json.dumps(printable_json(part), ensure_ascii=False) for name, part in parts.items()},
        }

    def _folder(self, row: Result) -> Path | None:
        return self._folders.get(row.digest, self.results)

    def _path(self, row: Result) -> str:
        path, folder = self.paths.get(row.digest), self._folder(row)
        if path is None:
            return "only in MLflow"
        return path.relative_to(folder).as_posix() if folder else path.name


def _flags(folder: Path | None) -> str:
    """Return the options of a command that reads the results; absolute paths would fail on other machines."""
    if folder is None:
        return "--mlflow URI"
    return f"--results {shlex.quote(folder.as_posix() if not folder.is_absolute() else folder.name)}"


def printable_json(value: Any) -> Any:
    """Return nested JSON values with printable names and texts."""
    if isinstance(value, dict):
        return {printable(str(name)): printable_json(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [printable_json(inner) for inner in value]
    return printable(value) if isinstance(value, str) else value


def _quoted(one: Quote) -> dict[str, Any]:
    cells = {
        name: {m: {"value": repr(v.value), "source": v.source, "confidence": v.confidence} for m, v in found.items()}
        for name, found in one.cells.items()
    }
    stated = {n: getattr(one, n) for n in ("architecture", "weights", "prompts", "words", "resize", "at95")}
    return {
        "title": one.name,
        "quote": one.key,
        "about": one.about,
        "stated": {name: value for name, value in stated.items() if value},
        "access": _texts(one.card.plain()),
        "settings": _texts(one.settings),
        "cells": cells,
    }


def _numbers(row: Result, one: SetRow) -> dict[str, Any]:
    values = {m: _text(getattr(one, m)) for m in METRICS} if row.status == "ok" else {}
    stream = {"stream": _texts(flatten(one.stream))} if one.stream else {}
    return {"metrics": values, "intervals": _bounds(one.intervals), "tied": _text(one.tied), **stream}


def _images(one: IdRow | SetRow) -> Facts:
    group = {"group": one.group} if isinstance(one, SetRow) and one.group else {}
    expected = one.expected if one.expected is not None else "unknown"
    counts = {"n": one.n, "expected": expected, "skipped": one.skipped, "list digest": one.list_digest}
    return _texts({"title": one.title, **group, **counts})


def _bounds(found: Mapping[str, tuple[float, float]]) -> dict[str, list[str]]:
    return {metric: [_text(low), _text(high)] for metric, (low, high) in found.items()}


def _texts(facts: Mapping[str, Any]) -> Facts:
    return {str(name): _text(value) for name, value in facts.items()}


def _text(value: object) -> str:
    """Format a value as `--explain` does, with all digits; numbers that JSON lacks become text."""
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else str(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lines(known: Mapping[str, Any]) -> str:
    """Return readable JSON: one line per part, and one per entry of nested parts."""
    return "{" + ",\n".join(f"{json.dumps(n)}: {_block(v)}" for n, v in known.items() if v not in ({}, [])) + "}"


def _block(value: Any) -> str:
    if not isinstance(value, dict) or not any(isinstance(v, dict) for v in value.values()):
        return _dense(value)
    lines = (f"  {json.dumps(n, ensure_ascii=False)}: {_dense(v)}" for n, v in value.items())
    return "{\n" + ",\n".join(lines) + "}"


def _dense(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
