"""Gathering: rows in an order that does not depend on where they came from, a folder or MLflow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from oodbench.errors import UserError
from oodbench.results import Result, rows


@dataclass(frozen=True)
class Gathered:
    """Rows in order; `paths` are the files of those that lie on disk, by digest."""

    rows: tuple[Result, ...]
    paths: dict[str, Path]


def from_folder(results: Path) -> Gathered:
    """The rows of a results folder. UserError when it is not there or holds none."""
    if not results.is_dir():
        raise UserError(f"no results folder {results}; make one with: oodbench run --out {results}")
    found = list(rows(results))
    if not found:
        raise UserError(f"{results} holds no rows; make some with: oodbench run --out {results}")
    return Gathered(ordered([row for _, row in found]), {row.digest: path for path, row in found})


def ordered(found: Sequence[Result]) -> tuple[Result, ...]:
    """Rows by benchmark, encoder, method, variant, seed: the same tables from wherever they come."""
    return tuple(sorted(found, key=_place))


def _place(row: Result) -> tuple[str, str, str, bool, str, str, str]:
    encoder = str(row.encoder.get("slug") or row.encoder.get("name", ""))
    seed = f"{row.run.get('seed')!s:>12}"
    return row.benchmark, encoder, row.method, row.label != row.method, row.label, seed, row.digest
