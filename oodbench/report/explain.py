"""Explanation of one cell of a table: every fact that its number depends on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from oodbench.errors import UserError, did_you_mean, printable
from oodbench.report.tables.access import part
from oodbench.results import METRICS, Result, SetRow, flatten

_PARTS = (
    "access",
    "parameters",
    "stream",
    "weights",
    "files",
    "templates",
    "classes",
    "encoder",
    "conventions",
    "uncertainty",
    "run",
    "versions",
)


def explanation(results: Iterable[tuple[Path | None, Result]], method: str, dataset: str) -> str:
    """Describe all results of a method (name or label) on an OOD set (name or title). Raise UserError for none."""
    known = list(results)
    of_method = [(path, row) for path, row in known if method in (row.method, row.label)]
    if not of_method:
        labels = {name for _, row in known for name in (row.method, row.label)}
        raise UserError(f"no results of method '{method}'{did_you_mean(method, labels)}")
    found = [(path, row, s) for path, row in of_method for s in row.ood if dataset in (s.dataset, s.title)]
    if not found:
        errors = [f"{row.label} failed: {row.error}" for _, row in of_method if row.status != "ok"]
        sets = {s.dataset for _, row in of_method for s in row.ood}
        reason = f"; {errors[0]}" if errors and not sets else did_you_mean(dataset, sets)
        raise UserError(f"no result of {method} has an OOD set '{dataset}'{reason}")
    return "\n".join(_explained(path, row, one) for path, row, one in found)


def _explained(path: Path | None, row: Result, one: SetRow) -> str:
    scores = path.with_suffix(".parquet") if path else None
    stream = f", {row.stream.get('order')}, stream seed {row.stream.get('seed')}" if row.stream else ""
    lines = [
        f"{row.title} ({row.label}) on {one.title}, {row.benchmark_title or row.benchmark}{stream}",
        *_aligned(
            {
                "result": path or "only in MLflow",
                "digest": row.digest,
                "scores per image": scores if scores and scores.is_file() else "not next to the result",
                "stored scores": f"{row.scores.get(one.dataset, 'unknown')} (key in the cache)",
                "created": row.created,
                "commit": row.commit or "unknown",
                "method's source": row.source,
                "status": row.status,
                **({"warnings": "; ".join(row.warnings)} if row.warnings else {}),
            }
        ),
        "",
        f"The cell: {one.dataset}",
        *_aligned({name: _number(getattr(one, name)) for name in METRICS}),
        *_aligned({k: v for k, v in dataclasses.asdict(one).items() if k not in (*METRICS, "stream")}),
        *_aligned(flatten({"stream": one.stream})),
        "",
        f"The ID side: {row.id.dataset}",
        *_aligned(dataclasses.asdict(row.id)),
        "",
        "Seconds",
        *_aligned(row.seconds),
    ]
    for name in _PARTS:
        known = part(row, name)
        if known:
            lines += ["", name.capitalize(), *_aligned(flatten(known))]
    rest = {s.dataset: s.list_digest for s in row.ood}
    lines += ["", "Image lists", *_aligned({row.id.dataset: row.id.list_digest, **rest}), ""]
    return "\n".join(map(printable, lines))


def _aligned(facts: Mapping[str, object]) -> Sequence[str]:
    width = max((len(name) for name in facts), default=0)
    return [f"  {name:<{width}}  {_text(value)}" for name, value in facts.items()]


def _text(value: object) -> str:
    return value if isinstance(value, str) else str(value) if isinstance(value, Path) else json.dumps(value)


def _number(value: float) -> str:
    return f"{value!r} ({100 * value:.2f} %)"
