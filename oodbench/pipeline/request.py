"""RunRequest: what a user asked for, and the checks that need nothing but the request itself."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.encoder.card import RESIZE_FILTERS
from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.method.parameters import conform, parse_names, written
from oodbench.metrics import detection as metrics
from oodbench.storage.files import expand, real_path
from oodbench.storage.store import default_root

PRECISIONS = ("fp32", "bf16", "fp16")
MOST = 2**63 - 1  # what PyTorch and NumPy take for an integer
WORKERS = 4096  # threads or processes


@dataclass(frozen=True)
class RunRequest:
    """What the user asked; every field is a flag of `oodbench run` (see its help)."""

    methods: str = "all"
    id: str = "glyphs"
    ood: tuple[str, ...] = ()
    classes: str = ""
    encoder: str = ""
    data: Path | None = None
    settings: tuple[str, ...] = ()
    templates: str = ""
    resize: str | None = None
    seed: int = 0
    device: str = "auto"
    precision: str = "fp32"
    batch_size: int = 128
    workers: int = 0
    limit: int | None = None
    allow_partial: bool = False
    skip_missing: bool = False
    strict: bool = False
    on_error: str = "stop"
    at95: str = "first"
    aupr: str = "average_precision"
    bootstrap: int = 1000
    weights: tuple[str, ...] = ()
    plugins: tuple[Path, ...] = ()
    out: Path = Path("results")
    store: Path | None = None
    shared: str = ""  # URL of a store that all machines reach
    ray: str = ""  # "" chooses by itself, "no" stays in this process, local, auto or an address
    actors: int = 0
    gpus_per_actor: float = 1.0
    sweeps: tuple[str, ...] = ()


def request_from(**options: Any) -> RunRequest:
    """Return a RunRequest made of keyword options. Raise UserError with every unknown option and wrong type.

    A path may be a string, a list of one element that element, `ood` a comma-separated string, and `settings` a
    dictionary such as {"mcm.temperature": 0.01}.
    """
    fields = {f.name: str(f.type) for f in dataclasses.fields(RunRequest)}
    values: dict[str, Any] = {}
    problems = []
    for name, value in options.items():
        if name not in fields:
            problems.append(f"no option '{name}'{did_you_mean(name, fields)}")
            continue
        try:
            values[name] = _option(name, fields[name], value)
        except (ValueError, TypeError):
            problems.append(f"option '{name}' takes {fields[name]}, not {value!r}")
    raise_all(problems)
    return RunRequest(**values)


def _option(name: str, kind: str, value: Any) -> Any:
    if name == "ood" and isinstance(value, str):
        value = parse_names(value)
    if name == "methods" and isinstance(value, list | tuple):
        value = ",".join(value)
    if name == "settings" and isinstance(value, dict):
        value = [f"{key}={written(one)}" for key, one in value.items()]
    if kind.startswith("tuple"):
        one_kind = kind.removeprefix("tuple[").partition(",")[0]
        several = [value] if isinstance(value, str | Path) else value or ()
        return tuple(_option("", one_kind, one) for one in several)
    if kind.startswith("Path") and value is not None:
        return Path(value)
    return None if value is None and kind.endswith("| None") else conform(value, kind)


def check_options(request: RunRequest) -> None:
    """Raise UserError for values that no run could use: unknown choices, numbers out of range, folders not writable."""
    problems = []
    for name, value, options in (
        ("--precision", request.precision, PRECISIONS),
        ("--on-error", request.on_error, ("stop", "skip")),
        ("--resize", request.resize or "bicubic", RESIZE_FILTERS),
        ("--at95", request.at95, metrics.AT95),
        ("--aupr", request.aupr, metrics.AUPR),
    ):
        if value not in options:
            problems.append(f"{name} {value}{did_you_mean(value, options)}")
    for name, number, least, most in (
        ("--batch-size", request.batch_size, 1, MOST),
        ("--workers", request.workers, 0, WORKERS),
        ("--limit", request.limit, 1, MOST),
        ("--seed", request.seed, 0, MOST),
        ("--actors", request.actors, 0, WORKERS),
        ("--bootstrap", request.bootstrap, 0, 10**7),
    ):
        problems += beyond(name, number, least, most)
    if not 0 < request.gpus_per_actor < math.inf:
        problems.append(f"--gpus-per-actor must be a number above 0, not {request.gpus_per_actor}")
    if not writable(expand(request.out)):
        problems.append(f"the results folder {request.out} cannot be written; name another with --results")
    store = expand(request.store or default_root())
    if not store.is_dir() and not writable(store):  # one that may only be read does where all is stored: see the runner
        problems.append(_unwritable(store))
    raise_all(problems)


def check_store(store: Path) -> None:
    """UserError when a store cannot be written: to be known before hours of work, not after."""
    if not writable(store):
        raise UserError(_unwritable(store))


def _unwritable(store: Path) -> str:
    return f"the store {store} cannot be written; name another with --store or $OODBENCH_STORE"


def beyond(name: str, number: float | None, least: float, most: float) -> list[str]:
    """What is wrong with a number that must be from `least` to `most`; nothing for None, which leaves a choice."""
    if number is None or least <= number <= most:  # a NaN is neither
        return []
    asked = f"at least {least}" if number < least else f"a number of at most {most}"
    return [f"{name} must be {asked}, not {number}"]


def writable(folder: Path) -> bool:
    """Whether a folder, or the nearest one above that exists, takes a file."""
    import tempfile

    nearest = next((p for p in (folder, *real_path(folder).parents) if p.exists()), Path("/"))
    try:
        with tempfile.TemporaryFile(dir=nearest):
            return True
    except OSError:
        return False
