"""The result of one method on one benchmark: its schema, its JSON file, and where its numbers come from.

This module imports no heavy library, because reports read thousands of results.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import logging
import math
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from oodbench.errors import UserError, printable

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

Interval = tuple[float, float]

SCHEMA = 1
PART = 1000  # images in each part of a stream that a result has metrics for
DIGITS = 9  # of intervals, whose bootstrap varies in the fourth digit, and of the metrics of parts of streams
HIGHER = ("id", "ood")  # images with the higher scores in the files of an imported result
METRICS = ("auroc", "fpr95", "fpr95_ood", "aupr_in", "aupr_out")
_STREAM = ("order", "seed", "batch", "ratio", "base")  # of a stream's protocol, as columns of a DataFrame
# Not part of the digest, because two runs that computed the same numbers differ in them; the access follows from the
# method, and older results lack it.
_VOLATILE = ("created", "seconds", "digest", "access")
_LARGEST = 2.0**1000  # of an integer in a result, so that it can be converted to a float
# Of values inside mappings that every report reads; they may also be missing.
_NESTED = {"run.calibration": dict, "run.imported": dict, "run.seed": int, "stream.seed": int, "weights.recipe": dict}
# Missing in older results, and not part of the digest if empty.
_LATER = ("weights", "mean_intervals", "uncertainty", "warnings", "stream")


@dataclass(frozen=True)
class SetRow:
    """The metrics of one OOD set against the ID set, as fractions; ID is positive in `fpr95`, OOD in `fpr95_ood`."""

    dataset: str
    title: str
    group: str  # "near", "far", or "" if the benchmark has no groups
    n: int  # images scored
    expected: int | None  # images that the catalogue counts; None if it does not say
    skipped: int  # images that could not be read (--on-error skip)
    list_digest: str
    auroc: float
    fpr95: float
    fpr95_ood: float
    aupr_in: float
    aupr_out: float
    tied: float  # fraction of all ID and OOD scores that are equal to another score
    intervals: dict[str, Interval] = field(default_factory=dict)  # metric -> (low, high); older results have none
    # For a stream: its number of ID images (n_id), ID accuracy, and metrics of the parts of the stream by position.
    stream: dict[str, Any] = field(default_factory=dict)

    @property
    def partial(self) -> str:
        """Return `partial n/N`; "" if the set is complete or its size is not known."""
        return partial_stamp(self.n, self.expected)


@dataclass(frozen=True)
class IdRow:
    """The ID set of a result. `accuracy` is a fraction, None for a method without class prompts."""

    dataset: str
    title: str
    n: int
    expected: int | None
    skipped: int
    list_digest: str
    accuracy: float | None

    @property
    def partial(self) -> str:
        """Return `partial n/N`; "" if the set is complete or its size is not known."""
        return partial_stamp(self.n, self.expected)


def partial_stamp(n: int, expected: int | None) -> str:
    """Return `partial n/expected` if fewer or more images were scored than expected, else ""."""
    return f"partial {n}/{expected}" if expected is not None and n != expected else ""


@dataclass(frozen=True)
class Result:
    """The result of one method: one JSON file, one row of a table. Every field is plain data."""

    method: str  # registry name, e.g. "energy"
    label: str  # name of the variant in tables, e.g. "energy[scale=1]"
    title: str  # name in tables and papers, e.g. "Energy"
    parameters: dict[str, Any]  # all of them, with the defaults
    benchmark: str
    benchmark_title: str
    encoder: dict[str, Any]  # the encoder's card: name, slug, weights digest, mean, std, size, resize, scale, ...
    id: IdRow
    ood: tuple[SetRow, ...]
    conventions: dict[str, str]  # at95, aupr, headline
    classes: dict[str, Any]  # name, count, digest
    templates: dict[str, Any]  # name, count, digest; empty for a method without prompts
    files: dict[str, str]  # hyper-parameter -> digest of the file or folder that it names
    run: dict[str, Any]  # seed, device, precision, batch_size, limit, ...
    source: str  # digest of the method's source
    versions: dict[str, str]
    commit: str | None
    scores: dict[str, str]  # dataset -> store key of its scores
    seconds: dict[str, float] = field(default_factory=dict)  # extract (shared by all methods), fit, score
    status: str = "ok"  # or "failed"
    error: str | None = None
    weights: dict[str, Any] = field(default_factory=dict)  # of a trained method or base: file name, digest, recipe
    mean_intervals: dict[str, dict[str, Interval]] = field(
        default_factory=dict
    )  # group ("" is all sets) -> metric -> (low, high)
    uncertainty: dict[str, Any] = field(default_factory=dict)  # level, replicates, seed, method per metric
    warnings: tuple[str, ...] = ()  # why numbers of this result may mislead; printed below its tables
    # For a method that learns from a stream: order, seed, batch, ratio, reset, sees_itself; base names a method.
    stream: dict[str, Any] = field(default_factory=dict)
    access: dict[str, Any] = field(default_factory=dict)  # the access card (oodbench/method/access.py)
    created: str = ""  # ISO 8601, UTC
    schema: int = SCHEMA

    @functools.cached_property
    def digest(self) -> str:
        """Return the sha256 of all fields except times and access: equal for runs that computed the same numbers."""
        return _digest(dataclasses.asdict(self))

    def mean(self, metric: str, group: str | None = None) -> float:
        """Return the mean of a metric over the OOD sets (of one group), a fraction; NaN if there is none."""
        values = [getattr(s, metric) for s in self.ood if group is None or s.group == group]
        return sum(values) / len(values) if values else math.nan

    @property
    def imported(self) -> dict[str, Any]:
        """Return where the scores of `oodbench import` come from; {} for a result that a run computed."""
        return dict(self.run.get("imported") or {})

    @property
    def groups(self) -> tuple[str, ...]:
        """Return the names of the groups (near, far) in order of appearance."""
        return tuple(dict.fromkeys(s.group for s in self.ood if s.group))

    def to_json(self) -> str:
        """Return the result as JSON text, with its digest."""
        return json.dumps({**dataclasses.asdict(self), "digest": self.digest}, indent=1, sort_keys=True) + "\n"


def seedless_label(row: Result) -> str:
    """Return a label without the seed that its weights were trained with: `coop[K=4,seed=2]` is `coop[K=4]`."""
    recipe = row.weights.get("recipe") or {}
    return row.label.replace(f",seed={recipe.get('seed')}]", "]") if recipe.get("id") else row.label


def _digest(plain: Mapping[str, Any]) -> str:
    """Return the digest of a result in its JSON form."""
    fields = {k: v for k, v in plain.items() if k not in _VOLATILE and (k not in _LATER or v)}
    later = ("intervals", "stream")
    fields["ood"] = [{k: v for k, v in ood.items() if k not in later or v} for ood in plain["ood"]]
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()


def from_json(text: str, where: str = "row") -> Result:
    """Parse the JSON text of a result. Raise UserError if it is not one, is of another schema, or was changed."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or an integer with thousands of digits
        raise UserError(f"{where} is not JSON: {error}") from error
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA:
        found = raw.get("schema") if isinstance(raw, dict) else type(raw).__name__
        raise UserError(f"{where} has schema {str(found)[:40]!r}; this oodbench reads schema {SCHEMA}")
    digest = raw.pop("digest", None)
    try:
        stated = _digest(raw)
        raw["id"] = IdRow(**_typed(IdRow, raw["id"]))
        raw["ood"] = tuple(
            SetRow(**_typed(SetRow, {**s, "intervals": _intervals(s.get("intervals", {}))})) for s in raw["ood"]
        )
        means = raw.get("mean_intervals", {})
        raw["mean_intervals"] = {group: _intervals(found) for group, found in means.items()}
        raw["warnings"] = tuple(raw.get("warnings", ()))
        result = Result(**_typed(Result, raw))
        for name, kind in _NESTED.items():
            part, _, key = name.partition(".")
            if not isinstance(getattr(result, part).get(key), kind | None):
                raise TypeError(f"{name} is of another type than {kind.__name__}")
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where} is not a complete row: {error}") from error
    if digest != stated:
        raise UserError(f"{where} was changed after it was written: its digest does not match its content")
    vars(result)["digest"] = stated  # computed once: reports read thousands of rows
    return result


def read(path: Path) -> Result:
    """Return the result in a file. Raise UserError if it is not one, or the file is not regular or cannot be read."""
    try:
        if not path.is_file():
            what = "is a broken link" if path.is_symlink() and not path.exists() else "is not a regular file"
            raise UserError(f"{path} {what if path.exists() or path.is_symlink() else 'does not exist'}")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return from_json(text, str(path))


def _typed(kind: type, raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping unchanged. Raise TypeError if a value has another type than its field in a dataclass."""
    for name, expected in _types(kind).items():
        if name in raw and not _has_type(raw[name], expected):
            raise TypeError(f"{name} is of another type than {getattr(expected, '__name__', expected)}")
    return raw


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _has_type(value: object, kind: Any) -> bool:
    """Return whether a value has the type of a field of this module's dataclasses."""
    inner = get_args(kind)
    if kind is Any:
        return True
    if get_origin(kind) is UnionType:
        return any(_has_type(value, option) for option in inner)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_has_type(v, inner[1]) for v in value.values())
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_has_type(v, inner[0]) for v in value)
    if kind in (int, float):
        is_integer = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
        return is_integer or (kind is float and isinstance(value, float))  # NaN is allowed: a dash in a table
    return isinstance(value, kind)


def _intervals(raw: Mapping[str, Any]) -> dict[str, Interval]:
    """Return intervals as tuples; they are lists in JSON."""
    return {metric: (float(low), float(high)) for metric, (low, high) in raw.items()}


def slug(name: str) -> str:
    """Return a name that is a valid file name on every system: `ViT-B-16/openai` -> `ViT-B-16-openai`."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "x"


def rows(results: Path) -> Iterator[tuple[Path, Result]]:
    """Yield (path, result) for every result below a results folder, in path order; log those that cannot be read."""
    for path in row_files(results):
        try:
            yield path, read(path)
        except UserError as error:
            log.warning("skipped: %s", printable(str(error)))


def row_files(results: Path) -> list[Path]:
    """Return the sorted JSON files below a results folder, or below its `runs/` if it has one."""
    root = results / "runs" if (results / "runs").is_dir() else results
    return sorted(path for path in root.rglob("*.json") if not path.name.startswith("."))


def may_be_result(path: Path) -> bool:
    """Return whether a file is a result, perhaps a damaged one; JSON of another kind is logged, to be left out."""
    if not path.is_file():  # reading a pipe would never end
        return True
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return True
    known = isinstance(found, dict) and "digest" in found
    if not known:
        log.warning("%s is JSON, but not a result: skipped", printable(str(path)))
    return known


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a mapping without nesting, for CSV and MLflow: `{"a": {"b": 1}}` -> `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{name}."))
        else:
            flat[name] = value
    return flat


_LIBRARIES = ("oodbench", "torch", "torchvision", "open_clip_torch", "numpy", "pillow")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that scores depend on, without importing them."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def stamp(device: str) -> dict[str, object]:
    """Return the versions, the commit and the device, which are stored with embeddings and scores."""
    return {"versions": versions(), "commit": commit(), "device": device}


def elsewhere(asked: str, results: Iterable[Result]) -> str:
    """Return a note on stored results that were computed on another device than the one asked for, or ""."""
    labels_by_device: dict[str, list[str]] = {}
    for result in results:
        if result.status == "ok" and asked != "auto":
            devices = [*result.run["device"].split(", "), *(stamp["device"] for stamp in result.run["extracted"])]
            others = sorted({device for device in devices if not _matches(device, asked)})
            if others:
                labels_by_device.setdefault(" and ".join(others), []).append(result.label)
    parts = [
        f"{', '.join(dict.fromkeys(labels))}: from the store, computed on {device}"
        for device, labels in labels_by_device.items()
    ]
    return f"{'; '.join(parts)}; --device {asked} was asked for" if parts else ""


def _matches(device: str, asked: str) -> bool:
    """Return whether a device is the one asked for. `cuda` matches any GPU, and is `cuda:0` as a device."""
    kind, _, number = asked.partition(":")
    device_kind, _, device_number = device.partition(":")
    return kind == device_kind and (not number or number == (device_number or "0"))


def distinct(stamps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the stamps in order, each once."""
    found: list[dict[str, Any]] = []
    for stamp in stamps:
        if stamp not in found:
            found.append(stamp)
    return found


@functools.cache
def commit() -> str | None:
    """Return the commit of the checkout that this code runs from, with `-dirty` if it differs; None outside one."""
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        inside = subprocess.run(
            ["git", "-C", str(folder), "ls-files", "--error-unmatch", "results.py"],
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if inside.returncode == 0 else None  # not the commit of a checkout that holds the venv


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """Return a DataFrame with one row per method, OOD set and metric; ID accuracy has an empty `ood`.

    Streams have such rows for every seed, and also for the metrics `first.auroc`, `rest.auroc`, ... of their parts.
    Columns such as `stream.order` hold their protocol; they exist if any result is a stream.
    """
    import pandas as pd

    lines = []
    streams = [f"stream.{name}" for name in _STREAM] if any(result.stream for result in results) else []
    for result in results:
        head = {
            "method": result.method,
            "label": result.label,
            "benchmark": result.benchmark,
            "encoder": result.encoder["name"],
            "id": result.id.dataset,
            **{name: result.stream.get(name.removeprefix("stream.")) for name in streams},
        }
        tail = {"n_id": result.id.n, "digest": result.digest}
        for ood in result.ood:
            place = {
                "ood": ood.dataset,
                "group": ood.group,
                "n_ood": ood.n,
                "partial": ood.partial or result.id.partial,
            }
            values = {m: getattr(ood, m) for m in METRICS}
            for part in ("first", "rest") if ood.stream else ():
                values |= {f"{part}.{m}": v for m, v in (ood.stream.get(part) or {}).items() if m in METRICS}
            lines += [{**head, **place, "metric": m, "value": value, **tail} for m, value in values.items()]
        id_only = {"ood": "", "group": "", "n_ood": 0, "partial": result.id.partial}
        if result.status == "failed":
            lines.append({**head, **id_only, "metric": "failed", "value": math.nan, **tail})
        elif result.id.accuracy is not None:
            lines.append({**head, **id_only, "metric": "id_accuracy", "value": result.id.accuracy, **tail})
    columns = ["method", "label", "benchmark", "encoder", *streams, "id", "ood", "group", "metric", "value"]
    return pd.DataFrame(lines, columns=[*columns, "n_id", "n_ood", "partial", "digest"])
