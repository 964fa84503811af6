"""Result files: <out>/runs/<benchmark>/<encoder>/<method>.json, and the scores per image in a Parquet file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from oodbench.errors import UserError
from oodbench.pipeline.plan import Plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.stream_results import columns as stream_columns
from oodbench.results import Result, read, slug
from oodbench.storage.files import atomic_write, write_text
from oodbench.storage.store import Entry, digest

TEXTS = ("dataset", "name", "pair")  # columns


def write_row(plan: Plan, result: Result, entries: Mapping[str, Entry]) -> Path:
    """Write a result and its scores per image, and return the path of the result.

    A result that exists already is kept with its time of creation; its scores are written again if they are damaged. A
    failed result never replaces a finished one. Raises UserError if a folder has the path of a file.
    """
    path = row_path(plan, result)
    scores = path.with_suffix(".parquet")
    for file in (path, scores):
        if file.is_dir():
            raise UserError(f"{file} is a folder, but a result is to be written there: move it away")
    old = _read_if_valid(path)
    if old and old.status == "ok" and result.status == "failed":
        return path
    if old and old.digest == result.digest:
        if old.status == "failed":
            return path
        result = old if old.access else replace(old, access=result.access)
    if result.status == "ok":
        if (result.run["calibration"] or {}).get("shot_seed") is not None and plan.labelled:
            write_text(path.with_suffix(".shots.txt"), plan.labelled.list_text)
        columns = stream_columns(plan, entries) if result.stream else _scores(plan, entries)
        columns |= {name: [_printable_name(text) for text in columns[name]] for name in TEXTS if name in columns}
        if not (old and old.digest == result.digest and _holds(scores, columns)):
            with atomic_write(scores) as partial:
                _write(columns, partial)
    if old is not result:
        write_text(path, result.to_json())
    return path


def remove_row(plan: Plan, result: Result) -> None:
    """Remove the files of a result."""
    path = row_path(plan, result)
    for file in (path, path.with_suffix(".parquet")):
        file.unlink(missing_ok=True)


def _read_if_valid(path: Path) -> Result | None:
    """Return the result in a file; None if there is no file, or it is damaged or of another schema."""
    try:
        return read(path)
    except UserError:
        return None


def row_path(plan: Plan, result: Result) -> Path:
    """Return the path of a result: `<method>.json` if everything is the default, else with a digest of the settings."""
    request = plan.request
    identity = {
        "parameters": result.parameters,
        "files": result.files,
        **({"weights": result.weights["digest"]} if result.weights else {}),
        "templates": result.templates,
        "classes": plan.classes.digest,
        "encoder": plan.card.identity,
        "seed": request.seed,
        "precision": request.precision,
        "batch_size": request.batch_size,
        "lists": [listing.digest for listing in plan.listings],
        "calibration": result.run["calibration"],
        **({"patches": result.run["patches"]} if "patches" in result.run else {}),
        "conventions": result.conventions,
        "source": result.source,
        **({"stream": result.stream, "base": result.run.get("base")} if result.stream else {}),
    }
    usual = RunRequest()
    default = (
        result.label == result.method
        and not plan.card.local
        and not request.resize
        and "patches" not in result.run
        and not (request.classes or request.clean_names)
        and not request.calibration
        and "shot_seed" not in (result.run["calibration"] or {})
        and not any(name.partition("=")[0] == result.method for name in request.weights)
        and (request.seed, request.precision, request.batch_size) == (usual.seed, usual.precision, usual.batch_size)
        and (request.at95, request.aupr) == (usual.at95, usual.aupr)
        and all(x.dataset.declared and len(x) == x.total == (x.dataset.count or x.total) for x in plan.listings)
    )
    folder = request.out / "runs" / slug(plan.benchmark.name)[:120] / plan.card.slug
    if result.stream:
        order, seed = result.stream["order"], result.stream["seed"]
        return folder / f"{slug(result.method)}-{slug(order)}-{seed}-{digest(identity)[:8]}.json"
    named = folder / f"{slug(result.method)}-{digest(identity)[:8]}.json"
    if not default or named.exists():
        return named
    plain = folder / f"{slug(result.method)}.json"
    old = _read_if_valid(plain)
    if old:  # the result of other images or of another version of the method is not overwritten
        lists = [old.id.list_digest, *(s.list_digest for s in old.ood)]
        same = old.source == result.source and old.encoder["identity"] == plan.card.identity
        same = same and old.weights == result.weights
        same = same and old.run["calibration"] == result.run["calibration"]
        if old.status == "ok" and not (same and lists == [listing.digest for listing in plan.listings]):
            return named
    return plain


def _scores(plan: Plan, entries: Mapping[str, Entry]) -> dict[str, list[Any]]:
    """Return the columns dataset, name, label, score and prediction (a class index; -1 if there is none)."""
    columns: dict[str, list[Any]] = {"dataset": [], "name": [], "label": [], "score": [], "prediction": []}
    for listing in plan.listings:
        entry = entries[listing.dataset.name]
        positions = np.array(entry.array("positions"))
        columns["dataset"] += [listing.dataset.name] * len(positions)
        columns["name"] += [listing.names[i] for i in positions]
        columns["label"] += listing.labels[positions].tolist()
        columns["score"] += entry.array("scores").tolist()
        predicted = entry.array("predictions").tolist() if "predictions" in entry.names else [-1] * len(positions)
        columns["prediction"] += predicted
    return columns


def _write(columns: Mapping[str, list[Any]], path: Path) -> None:
    """Write columns to a Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    sets = {name: pa.array(columns[name]).dictionary_encode() for name in ("dataset", "pair") if name in columns}
    parquet.write_table(pa.table({**columns, **sets}), path)


def _holds(path: Path, columns: Mapping[str, list[Any]]) -> bool:
    """Return whether a file holds these scores and nothing else. ParquetFile.read does not import pandas."""
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return path.is_file() and bool(parquet.ParquetFile(path).read().to_pydict() == columns)
    except (OSError, pa.ArrowException, ValueError, MemoryError):
        return False


def _printable_name(name: str) -> str:
    """Return a file name with escapes for bytes that are not UTF-8, which Parquet refuses."""
    return name.encode("utf-8", "backslashreplace").decode()
