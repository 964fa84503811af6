"""What MLflow shows of a row: parameters, metrics and tags, under keys that it allows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from oodbench.result import METRICS, Result, flatten, slug

DIGEST = "oodbench.digest"
_NOTE = " ... (cut; in full in row.json)"


def cut(plain: Mapping[str, str], limit: int) -> dict[str, str]:
    """Values of at most `limit` characters, with a note where one was cut."""
    return {key: text if len(text) <= limit else text[: limit - len(_NOTE)] + _NOTE for key, text in plain.items()}


def encoder_slug(row: Result) -> str:
    return slug(str(row.encoder.get("slug") or row.encoder.get("name", "")))


def milliseconds(created: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time, UTC when it names no zone; now when there is none."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return int(1000 * time.time())
    return int(1000 * (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def params(row: Result) -> dict[str, str]:
    """Hyper-parameters under their own names, the rest of what a row depends on under a prefix (`run.seed`)."""
    parts = {"run": row.run, "encoder": row.encoder, "classes": row.classes, "templates": row.templates}
    plain = {**flatten(parts), **flatten(row.parameters)}
    return {key: str(plain[name]) for name, key in _keys(plain).items()}


def metrics(row: Result) -> dict[str, float]:
    """`auroc/mean`, `auroc/near`, `auroc/textures`, ..., `id_accuracy`, `seconds/score`: all that a row has."""
    found = {f"seconds/{key}": float(row.seconds[stage]) for stage, key in _keys(row.seconds).items()}
    groups = _keys(row.groups, taken=["mean"])
    sets = _keys((part.dataset for part in row.ood), taken=["mean", *groups.values()])
    for metric in METRICS if row.ood else ():
        found[f"{metric}/mean"] = row.mean(metric)
        found |= {f"{metric}/{key}": row.mean(metric, group) for group, key in groups.items()}
    for part in row.ood:
        for metric in (*METRICS, "tied", "n", "skipped"):
            found[f"{metric}/{sets[part.dataset]}"] = float(getattr(part, metric))
    found |= {"id_n": float(row.id.n), "id_skipped": float(row.id.skipped)}
    return found if row.id.accuracy is None else {**found, "id_accuracy": row.id.accuracy}


def run_tags(row: Result) -> dict[str, str]:
    """Tags that all rows of one benchmark run share."""
    plain = {
        "benchmark": row.benchmark,
        "encoder": encoder_slug(row),
        "weights": row.encoder.get("weights"),
        "protocol": ", ".join(f"{name}={value}" for name, value in sorted(row.conventions.items())),
        "commit": row.commit,
        **{f"versions.{key}": row.versions[name] for name, key in _keys(row.versions).items()},
    }
    return {"mlflow.source.name": "oodbench", **_tags(plain)}


def row_tags(row: Result) -> dict[str, str]:
    """All tags of a row but its digest, which is set once the row has arrived."""
    plain = {"method": row.method, "label": row.label, "status": row.status, "error": row.error, "source": row.source}
    return {**run_tags(row), **_tags(plain)}


def _tags(plain: Mapping[str, Any]) -> dict[str, str]:
    return {f"oodbench.{key}": str(value) for key, value in plain.items() if value}


def _keys(names: Iterable[str], taken: Iterable[str] = ()) -> dict[str, str]:
    """For each name a key that MLflow allows on every system (no `+`, no `:`), no two alike."""
    keys: dict[str, str] = {}
    used = set(taken)
    for name in names:
        key = stem = slug(name).replace("+", "-")[:200]
        number = 2
        while key in used:
            key, number = f"{stem}-{number}", number + 1
        used.add(key)
        keys[name] = key
    return keys
