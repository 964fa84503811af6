"""Result: one method's row of one benchmark, as it lies on disk. Imports nothing heavy: reports read many rows."""

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
METRICS = ("auroc", "fpr95", "fpr95_ood", "aupr_in", "aupr_out")
# Left out of the digest: they differ between two runs that computed the same thing.
_VOLATILE = ("created", "seconds", "digest")
_LARGEST = 2.0**1000  # of a number in a row: every one is a float, too
# Absent from older rows, and left out of the digest when empty.
_LATER = ("weights", "mean_intervals", "uncertainty", "warnings")


@dataclass(frozen=True)
class SetRow:
    """One OOD set against the ID set. Metrics are fractions; `fpr95` has ID positive, `fpr95_ood` OOD positive."""

    dataset: str
    title: str
    group: str  # "near", "far" or "" when the benchmark does not tell
    n: int  # images scored
    expected: int | None  # images the catalogue counts; None: it does not say
    skipped: int  # images that could not be read (--on-error skip)
    list_digest: str
    auroc: float
    fpr95: float
    fpr95_ood: float
    aupr_in: float
    aupr_out: float
    tied: float  # share of all ID and OOD scores that share their value with another score
    intervals: dict[str, Interval] = field(default_factory=dict)  # metric -> low and high; rows of old have none

    @property
    def partial(self) -> str:
        """`partial n/N`, or "" when the set is whole or its size is not known."""
        return partial_stamp(self.n, self.expected)


@dataclass(frozen=True)
class IdRow:
    """The ID side of a row. `accuracy` is a fraction, None for a method without class prompts."""

    dataset: str
    title: str
    n: int
    expected: int | None
    skipped: int
    list_digest: str
    accuracy: float | None

    @property
    def partial(self) -> str:
        """`partial n/N`, or "" when the set is whole or its size is not known."""
        return partial_stamp(self.n, self.expected)


def partial_stamp(n: int, expected: int | None) -> str:
    return f"partial {n}/{expected}" if expected is not None and n != expected else ""


@dataclass(frozen=True)
class Result:
    """One JSON file = one row of a table. Every field is plain data; `digest` covers all but times."""

    method: str  # registry name, e.g. "energy"
    label: str  # name of the variant in tables, e.g. "energy[scale=1]"
    title: str  # name in print, e.g. "Energy"
    parameters: dict[str, Any]  # in full, defaults included
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
    seconds: dict[str, float] = field(default_factory=dict)  # extract (of the sets, shared by all methods), fit, score
    status: str = "ok"  # or "failed"
    error: str | None = None
    weights: dict[str, Any] = field(default_factory=dict)  # of a trained method: file name, digest, recipe
    mean_intervals: dict[str, dict[str, Interval]] = field(default_factory=dict)  # group ("": all sets) -> metric -> it
    uncertainty: dict[str, Any] = field(default_factory=dict)  # level, replicates, seed, method per metric
    warnings: tuple[str, ...] = ()  # why numbers of this row may mislead; printed below its tables
    created: str = ""  # ISO 8601, UTC
    schema: int = SCHEMA

    @functools.cached_property
    def digest(self) -> str:
        """sha256 over everything but times: two runs that computed the same thing share it."""
        return _digest(dataclasses.asdict(self))

    def mean(self, metric: str, group: str | None = None) -> float:
        """Plain mean of a metric over the OOD sets (of one group); NaN when there is none."""
        values = [getattr(s, metric) for s in self.ood if group is None or s.group == group]
        return sum(values) / len(values) if values else math.nan

    @property
    def groups(self) -> tuple[str, ...]:
        """Named groups (near, far) in order of appearance."""
        return tuple(dict.fromkeys(s.group for s in self.ood if s.group))

    def to_json(self) -> str:
        return json.dumps({**dataclasses.asdict(self), "digest": self.digest}, indent=1, sort_keys=True) + "\n"


def _digest(plain: Mapping[str, Any]) -> str:
    kept = {k: v for k, v in plain.items() if k not in _VOLATILE and (k not in _LATER or v)}
    kept["ood"] = [{k: v for k, v in one.items() if k != "intervals" or v} for one in plain["ood"]]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def from_json(text: str, where: str = "row") -> Result:
    """Parse a row. Raises UserError when it is not one, or is of another schema."""
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: no JSON, or an integer of thousands of digits
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
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise UserError(f"{where} is not a complete row: {error}") from error
    if digest != stated:
        raise UserError(f"{where} was changed after it was written: its digest does not match its content")
    vars(result)["digest"] = stated  # computed once: reports read thousands of rows
    return result


def read(path: Path) -> Result:
    """The row in a file. UserError when it is none, or the file cannot be read; only a regular one is opened."""
    try:
        if not path.is_file():
            what = "leads nowhere" if path.is_symlink() and not path.exists() else "is no regular file"
            raise UserError(f"{path} {what if path.exists() or path.is_symlink() else 'is not there'}")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    return from_json(text, str(path))


def _typed(kind: type, raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """A mapping as it is. TypeError for a value that is not of the type of its field in a dataclass."""
    for name, wanted in _types(kind).items():
        if name in raw and not _fits(raw[name], wanted):
            raise TypeError(f"{name} is of another type than {getattr(wanted, '__name__', wanted)}")
    return raw


@functools.cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _fits(value: object, kind: Any) -> bool:
    """Whether a value is of a type as this module's dataclasses have them."""
    inner = get_args(kind)
    if kind is Any:
        return True
    if get_origin(kind) is UnionType:
        return any(_fits(value, one) for one in inner)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(v, inner[1]) for v in value.values())
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_fits(v, inner[0]) for v in value)
    if kind in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) < _LARGEST
        return whole or (kind is float and isinstance(value, float))  # NaN, too: a dash in a table
    return isinstance(value, kind)


def _intervals(raw: Mapping[str, Any]) -> dict[str, Interval]:
    """Pairs are lists in JSON."""
    return {metric: (float(low), float(high)) for metric, (low, high) in raw.items()}


def slug(name: str) -> str:
    """A name that is safe as a file name on every system: `ViT-B-16/openai` -> `ViT-B-16-openai`."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", name).strip("-.") or "x"


def rows(results: Path) -> Iterator[tuple[Path, Result]]:
    """Every row below a results folder (its `runs/` if it has one), in path order; unreadable ones are logged."""
    for path in row_files(results):
        try:
            yield path, read(path)
        except UserError as error:
            log.warning("left out: %s", printable(str(error)))


def row_files(results: Path) -> list[Path]:
    """Whatever may be a row below a results folder, sorted."""
    root = results / "runs" if (results / "runs").is_dir() else results
    return sorted(path for path in root.rglob("*.json") if not path.name.startswith("."))


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`: for trackers and CSV, which know no nesting."""
    out: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            out.update(flatten(value, f"{name}."))
        else:
            out[name] = value
    return out


_LIBRARIES = ("oodbench", "torch", "torchvision", "open_clip_torch", "numpy", "pillow")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that scores depend on; nothing is imported."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def stamp(device: str) -> dict[str, object]:
    """Versions, commit and device, as stored with what was computed."""
    return {"versions": versions(), "commit": commit(), "device": device}


def elsewhere(asked: str, results: Iterable[Result]) -> str:
    """A note on rows that came from the store and were made on another device than was asked for; "" without such."""
    made: dict[str, list[str]] = {}
    for result in results:
        if result.status == "ok" and asked != "auto":
            devices = [*result.run["device"].split(", "), *(one["device"] for one in result.run["extracted"])]
            others = sorted({one for one in devices if not _is(one, asked)})
            if others:
                made.setdefault(" and ".join(others), []).append(result.label)
    parts = [f"{', '.join(dict.fromkeys(labels))}: from the store, made on {device}" for device, labels in made.items()]
    return f"{'; '.join(parts)}; --device {asked} was asked for" if parts else ""


def _is(device: str, asked: str) -> bool:
    """Whether a device is the one asked for: `cuda` is any GPU, and of its own is `cuda:0`."""
    kind, _, number = asked.partition(":")
    its_kind, _, its_number = device.partition(":")
    return kind == its_kind and (not number or number == (its_number or "0"))


def distinct(stamps: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stamps in order, each once."""
    found: list[dict[str, Any]] = []
    for one in stamps:
        if one not in found:
            found.append(one)
    return found


@functools.cache
def commit() -> str | None:
    """Commit of the checkout that this code runs from, with `-dirty` when it differs; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        call = ["git", "-C", str(here), "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
        done = subprocess.run(call, capture_output=True, text=True, timeout=5, check=True)
        inside = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", "results.py"],
            capture_output=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if inside.returncode == 0 else None  # a venv inside some other checkout does not count


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """One line per method, OOD set and metric; ID accuracy with `ood` empty."""
    pass
    import pandas as pd

    lines = []
    for result in results:
        head = {
            "method": result.method,
            "label": result.label,
            "benchmark": result.benchmark,
            "encoder": result.encoder["name"],
            "id": result.id.dataset,
        }
        tail = {"n_id": result.id.n, "digest": result.digest}
        for one in result.ood:
            where = {
                "ood": one.dataset,
                "group": one.group,
                "n_ood": one.n,
                "partial": one.partial or result.id.partial,
            }
            lines += [{**head, **where, "metric": m, "value": getattr(one, m), **tail} for m in METRICS]
        alone = {"ood": "", "group": "", "n_ood": 0, "partial": result.id.partial}
        if result.status == "failed":
            lines.append({**head, **alone, "metric": "failed", "value": math.nan, **tail})
        elif result.id.accuracy is not None:
            lines.append({**head, **alone, "metric": "id_accuracy", "value": result.id.accuracy, **tail})
    columns = ["method", "label", "benchmark", "encoder", "id", "ood", "group", "metric", "value"]
    return pd.DataFrame(lines, columns=[*columns, "n_id", "n_ood", "partial", "digest"])
