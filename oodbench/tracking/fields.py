"""Names, parameters, metrics, tags and data sets of a result in MLflow, under keys that MLflow allows."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from oodbench.errors import printable
from oodbench.results import METRICS, Result, flatten, seedless_label, slug

RUNS = "oodbench/"  # prefix of the names of experiments
DIGEST, ENCODER, SENDER = "oodbench.digest", "oodbench.encoder", "oodbench.sender"
_CUT_MARK = " ... (cut; in full in row.json)"
_ENCODER = ("name", "weights", "size", "interpolation", "scale", "embed_dim")  # the other fields are in row.json
_CHARTED: Mapping[str, Callable[[list[float]], float]] = {
    "auroc": max,
    "fpr95": min,
    "id_accuracy": max,
}  # metrics in charts -> which value is the best
_SHORT = 40  # longest list of methods, in characters, that a run's name shows in full
_MAX_NAME = 250  # characters that every database of MLflow allows for the name of an experiment or a run
_PARTS = (
    "run",
    "encoder",
    "classes",
    "sets",
    "versions",
    "templates",
    "weights",
    "stream",
)  # prefixes of parameters
Strings = dict[str, str]


def truncated(values: Mapping[str, str], limit: int) -> Strings:
    """Return printable values of at most `limit` characters, with a mark at the end of those that were cut."""
    shown = {key: printable(text) for key, text in values.items()}
    return {
        key: text if len(text) <= limit else text[: limit - len(_CUT_MARK)] + _CUT_MARK for key, text in shown.items()
    }


def shortened(name: str, limit: int = _MAX_NAME) -> str:
    """Return a printable name of at most `limit` characters; a name that was cut ends in a digest, to be unique."""
    name = printable(name)
    return name if len(name) <= limit else f"{name[: limit - 17]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def experiment(benchmark: str) -> str:
    """Return the name of the experiment of a benchmark: `oodbench/mos`."""
    return shortened(f"{RUNS}{benchmark}")


def encoder_slug(row: Result) -> str:
    """Return the name of the encoder in the form of a file name; a tag to search results by."""
    return shortened(slug(str(row.encoder.get("slug") or row.encoder.get("name", ""))))


def encoder_name(row: Result) -> str:
    """Return the encoder as on the command line, `ViT-B-16/openai`, if the result has it."""
    return str(row.encoder.get("name") or encoder_slug(row))


def milliseconds(created: str) -> int:
    """Return an ISO 8601 time in milliseconds since 1970, in UTC if it has no zone; the current time for other text."""
    try:
        parsed = datetime.fromisoformat(created)
    except ValueError:
        return int(1000 * time.time())
    return int(1000 * (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp())


def start_and_end(rows: Sequence[Result]) -> tuple[int, int]:
    """Return (start, end) in milliseconds: the creation of the last result, less fitting and scoring for the start."""
    end = max(milliseconds(row.created) for row in rows)
    seconds = sum(row.seconds.get(stage, 0) for row in rows for stage in ("fit", "score"))
    return end - int(1000 * seconds), end


def run_name(rows: Sequence[Result]) -> str:
    """Return `ViT-B-16/openai on imagenet1k: 9 methods`, or the methods themselves if their names are short."""
    labels = list(dict.fromkeys(row.label for row in rows))
    methods = ", ".join(labels)
    methods = methods if len(labels) == 1 or len(methods) <= _SHORT else f"{len(labels)} methods"
    orders = ", ".join(dict.fromkeys(str(row.stream["order"]) for row in rows if "order" in row.stream))
    methods = f"{methods}; {orders}" if orders else methods
    return shortened(f"{encoder_name(rows[0])} on {rows[0].benchmark}: {methods}{_seed_and_limit(rows[0])}")


def row_name(row: Result) -> str:
    """Return `energy[scale=1] · ViT-B-16/openai`, since charts show results of several encoders together.

    For a stream it is `tanl · ViT-B-16/openai, shuffled, batch 256, stream seed 0`.
    """
    stream, ratio = row.stream, row.stream.get("ratio", "all")
    parts = [stream.get("order"), f"batch {stream.get('batch')}", f"stream seed {stream.get('seed')}"] if stream else []
    parts += [f"ID:OOD {ratio}"] if ratio != "all" else []
    suffix = "".join(f", {part}" for part in parts)
    return shortened(f"{row.label} · {encoder_name(row)}{suffix}{_seed_and_limit(row)}")


def _seed_and_limit(row: Result) -> str:
    """Return the seed and the limit of a run if they are set, as runs often differ in them."""
    return "".join(f", {name} {row.run[name]}" for name in ("seed", "limit") if row.run.get(name))


def run_params(row: Result) -> Strings:
    """Return the parameters that all results of a run have in common."""
    return _params(_common_params(row))


def params(row: Result) -> Strings:
    """Return the hyper-parameters (`mcm.temperature`) and the other settings of a result (`run.seed`)."""
    trained = {name: row.weights[name] for name in ("name", "digest") if name in row.weights}
    base = dict(row.run.get("base") or {})  # the method that a stream method takes scores from
    of_base = {str(base["label"]).partition("[")[0]: base.pop("parameters")} if "parameters" in base else {}
    own = {f"method-{m}" if m in _PARTS else m: values for m, values in {**of_base, row.method: row.parameters}.items()}
    parts = {
        "templates": row.templates,
        "weights": trained,
        "stream": row.stream,
        "run": {"base": base} if base else {},
    }
    return _params({**_common_params(row), **flatten({**parts, **own})})


def _common_params(row: Result) -> dict[str, Any]:
    run = {name: value for name, value in row.run.items() if name not in ("extracted", "base")}
    encoder = {name: row.encoder[name] for name in _ENCODER if name in row.encoder}
    sets = {"id": row.id.dataset, "ood": ", ".join(one.dataset for one in row.ood)}
    parts = {"run": run | row.conventions, "encoder": encoder, "classes": row.classes, "sets": sets}
    return flatten({**parts, "versions": row.versions})


def _params(mapping: Mapping[str, Any]) -> Strings:
    flat = flatten(mapping)
    return {key: str(flat[name]) for name, key in _keys(flat).items()}


def metrics(row: Result) -> dict[str, float]:
    """Return `auroc/mean`, `auroc/near`, `auroc/textures`, `fpr95/...`, `id_accuracy`, `seconds/score`, as fractions.

    A stream also has those of its first 1,000 images and of the rest, `first/auroc/textures`, where they are defined.
    MLflow sorts charts by name, so less important metrics begin with `more/`, as in `more/aupr_in/mean`.
    """
    values: dict[str, float] = {}
    groups = _keys(row.groups, taken=["mean"])
    sets = _keys((part.dataset for part in row.ood), taken=["mean", *groups.values()])
    for metric in METRICS if row.ood else ():
        stem = metric if metric in _CHARTED else f"more/{metric}"
        values[f"{stem}/mean"] = row.mean(metric)
        values |= {f"{stem}/{key}": row.mean(metric, group) for group, key in groups.items()}
        values |= {f"{stem}/{sets[part.dataset]}": float(getattr(part, metric)) for part in row.ood}
    values |= {f"more/tied/{sets[part.dataset]}": float(part.tied) for part in row.ood}
    for one in row.ood:
        for name in ("first", "rest"):
            for metric, value in (one.stream.get(name) or {}).items():
                if metric in METRICS and value is not None:
                    values[f"{name}/{metric}/{sets[one.dataset]}"] = float(value)
    values |= {f"seconds/{key}": float(row.seconds[stage]) for stage, key in _keys(row.seconds).items()}
    return values if row.id.accuracy is None else {**values, "id_accuracy": row.id.accuracy}


def best_and_median(rows: Sequence[Result]) -> dict[str, float]:
    """Return `best/auroc/mean`, `median/auroc/mean`, `best/fpr95/near`, ... over the methods that have the metric.

    The seeds of a method are averaged first. Results of several settings, which `sync` sends together, have none.
    """
    if len({_setting(row) for row in rows if row.ood}) > 1:
        return {}
    found: dict[str, dict[str, list[float]]] = {}  # metric -> method -> its values
    for row in rows:
        groups = _keys(row.groups, taken=["mean"]).values()
        shown = {"id_accuracy", *(f"{metric}/{part}" for metric in _CHARTED for part in ("mean", *groups))}
        for key, value in metrics(row).items():
            if key in shown and not math.isnan(value):
                found.setdefault(key, {}).setdefault(_without_seeds(row), []).append(value)
    means = {key: [statistics.fmean(values) for values in known.values()] for key, known in found.items()}
    best = {f"best/{key}": _CHARTED[key.partition("/")[0]](values) for key, values in means.items()}
    return best | {f"median/{key}": statistics.median(values) for key, values in means.items()}


def _setting(row: Result) -> str:
    """Return what averages are not comparable without: the images, how they were encoded, and the conventions."""
    images = [(name, digest) for name, digest, _, _ in data_sets(row)]
    run = [row.run.get(name) for name in ("precision", "resize", "limit", "lists")]
    return json.dumps([images, run, row.conventions, row.classes], sort_keys=True, default=str)


def _without_seeds(row: Result) -> str:
    """Return what results agree in that differ in seeds alone: of the run, of its labelled images, of the stream."""
    calibration = row.run.get("calibration") or {}
    labelled = {name: calibration.get(name) for name in ("dataset", "labels", "n")}
    stream = {name: value for name, value in row.stream.items() if name != "seed"}
    known = [seedless_label(row), row.parameters, labelled, stream, row.source, bool(row.imported)]
    return json.dumps(known, sort_keys=True, default=str)


def data_sets(row: Result) -> list[tuple[str, str, int, str]]:
    """Return name, digest of the image list, number of images and role (`id`, `near`, `far`, `ood`) of every set."""
    sets = [(row.id.dataset, row.id.list_digest, row.id.n, "id")]
    sets += [(ood.dataset, ood.list_digest, ood.n, ood.group or "ood") for ood in row.ood]
    return [(shortened(name), digest, n, shortened(role)) for name, digest, n, role in sets]


def run_tags(rows: Sequence[Result]) -> Strings:
    """Return the tags of a run; those for filtering have no prefix, the others begin with `oodbench.`."""
    methods = ", ".join(dict.fromkeys(row.method for row in rows))
    status = next((row.status for row in rows if row.status != "ok"), "ok")
    return _tags({**_common_tags(rows[0]), "methods": methods, "status": status})


def row_tags(row: Result) -> Strings:
    """Return all tags of a result except its digest, which is set once the result was sent completely."""
    about = {"method": row.method, "label": row.label, "status": row.status, "error": row.error}
    partial = "yes" if row.id.partial or any(one.partial for one in row.ood) else ""
    facts = flatten({"access": row.access, "stream": row.stream})
    return {
        **_tags({**_common_tags(row), **about, "partial": partial, "oodbench.source": row.source}),
        **{name: "none" if v is None else v if isinstance(v, str) else str(v).lower() for name, v in facts.items()},
    }


def _common_tags(row: Result) -> dict[str, Any]:
    return {
        "mlflow.source.name": "oodbench",
        "benchmark": row.benchmark,
        "encoder": encoder_name(row),
        "commit": row.commit,
        ENCODER: encoder_slug(row),
    }


def _tags(values: Mapping[str, Any]) -> Strings:
    return {key: str(value) for key, value in values.items() if value}


def _keys(names: Iterable[str], taken: Iterable[str] = ()) -> Strings:
    """Return a unique key for each name, which MLflow allows on every system (no `+`, no `:`)."""
    keys: Strings = {}
    used = set(taken)
    for name in names:
        key = stem = slug(name).replace("+", "-")[:200]
        number = 2
        while key in used:
            key, number = f"{stem}-{number}", number + 1
        used.add(key)
        keys[name] = key
    return keys
