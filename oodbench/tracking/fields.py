"""What MLflow shows of a row: names, parameters, metrics, tags and data sets, under keys that it allows."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from oodbench.errors import printable
from oodbench.results import METRICS, Result, flatten, slug

RUNS = "oodbench/"  # before the names of experiments
DIGEST, ENCODER, SENDER = "oodbench.digest", "oodbench.encoder", "oodbench.sender"
_NOTE = " ... (cut; in full in row.json)"
_ENCODER = ("name", "weights", "size", "interpolation", "scale", "embed_dim")  # the rest is in row.json
_CHARTED = ("auroc", "fpr95")
_FEW = 40  # characters of method names that are read at a glance
_NAME = 250  # characters that every database of MLflow takes for the name of an experiment or a run
Plain = dict[str, str]


def cut(plain: Mapping[str, str], limit: int) -> Plain:
    """Printable values of at most `limit` characters, with a note where one was cut."""
    seen = {key: printable(text) for key, text in plain.items()}
    return {key: text if len(text) <= limit else text[: limit - len(_NOTE)] + _NOTE for key, text in seen.items()}


def shortened(name: str, limit: int = _NAME) -> str:
    """A printable name of at most `limit` characters: what is too long ends in a digest, which tells two apart."""
    name = printable(name)
    return name if len(name) <= limit else f"{name[: limit - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def experiment(benchmark: str) -> str:
    """The experiment of a benchmark: `oodbench/mos`."""
    return shortened(f"{RUNS}{benchmark}")


def encoder_slug(row: Result) -> str:
    return shortened(slug(str(row.encoder.get("slug") or row.encoder.get("name", ""))))


def encoder_name(row: Result) -> str:
    """As on the command line where the row tells it: `ViT-B-16/openai`."""
    return str(row.encoder.get("name") or encoder_slug(row))


def milliseconds(created: str) -> int:
    """Milliseconds since 1970 of an ISO 8601 time, UTC when it names no zone; now when there is none."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return int(1000 * time.time())
    return int(1000 * (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp())


def span(rows: Sequence[Result]) -> tuple[int, int]:
    """Start and end in milliseconds: when the last row was made, less the seconds that all were worked on."""
    end = max(milliseconds(row.created) for row in rows)
    worked = sum(row.seconds.get(stage, 0) for row in rows for stage in ("fit", "score"))
    return end - int(1000 * worked), end


def run_name(rows: Sequence[Result]) -> str:
    """`ViT-B-16/openai on imagenet1k: 9 methods`, or the methods themselves when they are few."""
    labels = list(dict.fromkeys(row.label for row in rows))
    what = ", ".join(labels)
    what = what if len(labels) == 1 or len(what) <= _FEW else f"{len(labels)} methods"
    return shortened(f"{encoder_name(rows[0])} on {rows[0].benchmark}: {what}{_unusual(rows[0])}")


def row_name(row: Result) -> str:
    """`energy[scale=1] · ViT-B-16/openai`: in charts, rows of several encoders stand side by side."""
    return shortened(f"{row.label} · {encoder_name(row)}{_unusual(row)}")


def _unusual(row: Result) -> str:
    """What of a run people vary besides method and encoder."""
    return "".join(f", {name} {row.run[name]}" for name in ("seed", "limit") if row.run.get(name))


def run_params(row: Result) -> Plain:
    """What all rows of one benchmark run share and what explains why two runs differ."""
    return _params(_shared(row))


def params(row: Result) -> Plain:
    """Hyper-parameters under their own names, the rest of what a row depends on under a prefix (`run.seed`)."""
    trained = {name: row.weights[name] for name in ("name", "digest") if name in row.weights}
    return _params({**_shared(row), **flatten({"templates": row.templates, "weights": trained}), **row.parameters})


def _shared(row: Result) -> dict[str, Any]:
    run = {name: value for name, value in row.run.items() if name != "extracted"}
    encoder = {name: row.encoder[name] for name in _ENCODER if name in row.encoder}
    sets = {"id": row.id.dataset, "ood": ", ".join(one.dataset for one in row.ood)}
    parts = {"run": run | row.conventions, "encoder": encoder, "classes": row.classes, "sets": sets}
    return flatten({**parts, "versions": row.versions})


def _params(mapping: Mapping[str, Any]) -> Plain:
    plain = flatten(mapping)
    return {key: str(plain[name]) for name, key in _keys(plain).items()}


def metrics(row: Result) -> dict[str, float]:
    """`auroc/mean`, `auroc/near`, `auroc/textures`, `fpr95/...`, `id_accuracy`, `seconds/score`, ..., as fractions.

    What is charted less is under `more/`, as in `more/aupr_in/mean`: MLflow puts charts in the order of the alphabet.
    """
    found: dict[str, float] = {}
    groups = _keys(row.groups, taken=["mean"])
    sets = _keys((part.dataset for part in row.ood), taken=["mean", *groups.values()])
    for metric in METRICS if row.ood else ():
        stem = metric if metric in _CHARTED else f"more/{metric}"
        found[f"{stem}/mean"] = row.mean(metric)
        found |= {f"{stem}/{key}": row.mean(metric, group) for group, key in groups.items()}
        found |= {f"{stem}/{sets[part.dataset]}": float(getattr(part, metric)) for part in row.ood}
    found |= {f"more/tied/{sets[part.dataset]}": float(part.tied) for part in row.ood}
    found |= {f"seconds/{key}": float(row.seconds[stage]) for stage, key in _keys(row.seconds).items()}
    return found if row.id.accuracy is None else {**found, "id_accuracy": row.id.accuracy}


def data_sets(row: Result) -> list[tuple[str, str, int, str]]:
    """Name, digest of the list, images scored, and what for (`id`, `near`, `far`, `ood`) of every set."""
    known = [(row.id.dataset, row.id.list_digest, row.id.n, "id")]
    known += [(one.dataset, one.list_digest, one.n, one.group or "ood") for one in row.ood]
    return [(shortened(name), digest, n, shortened(what)) for name, digest, n, what in known]


def run_tags(rows: Sequence[Result]) -> Plain:
    """Tags of a benchmark run: what people filter by under a name of its own, the rest under `oodbench.`."""
    methods = ", ".join(dict.fromkeys(row.method for row in rows))
    status = next((row.status for row in rows if row.status != "ok"), "ok")
    return _tags({**_common(rows[0]), "methods": methods, "status": status})


def row_tags(row: Result) -> Plain:
    """All tags of a row but its digest, which is set once the row has arrived."""
    plain = {"method": row.method, "label": row.label, "status": row.status, "error": row.error}
    partial = "yes" if row.id.partial or any(one.partial for one in row.ood) else ""
    return _tags({**_common(row), **plain, "partial": partial, "oodbench.source": row.source})


def _common(row: Result) -> dict[str, Any]:
    return {
        "mlflow.source.name": "oodbench",
        "benchmark": row.benchmark,
        "encoder": encoder_name(row),
        "commit": row.commit,
        ENCODER: encoder_slug(row),
    }


def _tags(plain: Mapping[str, Any]) -> Plain:
    return {key: str(value) for key, value in plain.items() if value}


def _keys(names: Iterable[str], taken: Iterable[str] = ()) -> Plain:
    """For each name a key that MLflow allows on every system (no `+`, no `:`), no two alike."""
    keys: Plain = {}
    used = set(taken)
    for name in names:
        key = stem = slug(name).replace("+", "-")[:200]
        number = 2
        while key in used:
            key, number = f"{stem}-{number}", number + 1
        used.add(key)
        keys[name] = key
    return keys
