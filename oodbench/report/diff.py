"""Differences in numbers and facts between results of the same method, from two machines or versions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from oodbench.errors import UserError, raise_all
from oodbench.report.tables.access import part
from oodbench.results import METRICS, Result, SetRow, flatten, read, rows

# Parts of a result that are facts, the most frequent causes of a difference first; image lists follow the classes.
_BEFORE = ("weights", "encoder", "parameters", "templates", "classes")
_AFTER = ("files", "conventions", "run", "stream", "uncertainty", "access", "versions")
_ORDER = ("status", "error", "method", "benchmark", *_BEFORE, "images", "method's source", *_AFTER, "commit")
_SHORT = 12  # digits of a digest
_MANY = 3  # up to this many facts of one part that one side lacks are listed one by one
ID = "ID"


@dataclass(frozen=True)
class Cell:
    """A number in which two results differ; None for the result that lacks it.

    place  the OOD set, or `ID` for the ID side
    name   `auroc`, `auroc low` (end of the interval), `n`, `accuracy`, ...
    """

    place: str
    name: str
    a: float | None
    b: float | None

    @property
    def difference(self) -> float:
        """Return b - a, NaN if one of the two is missing."""
        return self.b - self.a if self.a is not None and self.b is not None else math.nan

    @property
    def is_bound(self) -> bool:
        """Return whether this is an end of an interval, which follows the other numbers."""
        return self.name.endswith((" low", " high"))

    @property
    def rank(self) -> float:
        """Return the size of the difference; numbers that one side lacks come first."""
        return math.inf if math.isnan(self.difference) else abs(self.difference)


@dataclass(frozen=True)
class Fact:
    """A fact in which two results differ; "" for the result that does not state it."""

    name: str
    a: str
    b: str


@dataclass(frozen=True)
class Pair:
    """Two results and their differences; `cells` counts the numbers that at least one of them has."""

    paths: tuple[Path, Path]
    a: Result
    b: Result
    cells: int
    differing: tuple[Cell, ...]
    facts: tuple[Fact, ...]

    @property
    def name(self) -> str:
        """Return `mcm, glyphs, ViT-B-16/openai`, or both names if they differ."""
        names = [_name(self.a), _name(self.b)]
        return names[0] if names[0] == names[1] else " against ".join(names)

    @property
    def worst(self) -> float:
        """Return the largest difference in a metric, as a fraction; infinity if one result lacks a metric."""
        return max((cell.rank for cell in self.differing if cell.name in (*METRICS, "accuracy")), default=0.0)


def _name(row: Result) -> str:
    seed = f", seed {row.run['seed']}" if row.run.get("seed") else ""
    return f"{row.label}, {row.benchmark}, {row.encoder.get('name', 'unknown')}{seed}"


@dataclass(frozen=True)
class Diff:
    """Pairs of results, the worst first, and the results that only one side has."""

    pairs: tuple[Pair, ...]
    only_a: tuple[Path, ...] = ()
    only_b: tuple[Path, ...] = ()

    @property
    def equal(self) -> bool:
        """Return whether both sides have the same results, equal in all digits."""
        return not (self.only_a or self.only_b or any(pair.differing for pair in self.pairs))


def diff(a: Path, b: Path) -> Diff:
    """Compare two result files, or the results of two folders that have the same benchmark, label and encoder.

    Raises UserError for other files, for a folder without results, and for a file compared with a folder.
    """
    raise_all([f"{place} does not exist" for place in (a, b) if not place.exists()])
    if a.is_dir() != b.is_dir():
        folder, file = (a, b) if a.is_dir() else (b, a)
        raise UserError(f"{folder} is a folder, {file} is not; compare two results, or two folders of results")
    if not a.is_dir():
        return Diff((compare((a, read(a)), (b, read(b))),))
    found = [list(rows(folder)) for folder in (a, b)]
    if empty := next((folder for folder, own in zip((a, b), found, strict=True) if not own), None):
        raise UserError(f"{empty} has no results; create some with: oodbench run --results {empty}")
    keyed = [_by_kind(own) for own in found]
    pairs: list[Pair] = []
    alone: tuple[list[Path], list[Path]] = [], []
    for key in dict.fromkeys((*keyed[0], *keyed[1])):
        left, right = (side.get(key, []) for side in keyed)
        for one, other in _paired(left, right):
            if one and other:
                pairs.append(compare(one, other))
            elif one:
                alone[0].append(one[0])
            elif other:
                alone[1].append(other[0])
    pairs.sort(key=lambda pair: (-pair.worst, -len(pair.differing), pair.name))
    return Diff(tuple(pairs), tuple(alone[0]), tuple(alone[1]))


Located = tuple[Path, Result]


def _by_kind(found: Sequence[Located]) -> dict[tuple[str, ...], list[Located]]:
    """Return results by benchmark, label, encoder, and the seeds of the method and of its stream."""
    out: dict[tuple[str, ...], list[Located]] = {}
    for path, row in found:
        seeds = [row.run.get("seed"), *(row.stream.get(name) for name in ("order", "seed"))]
        key = (row.benchmark, row.label, str(row.encoder.get("name")), *map(str, seeds))
        out.setdefault(key, []).append((path, row))
    return out


def _paired(a: Sequence[Located], b: Sequence[Located]) -> Iterator[tuple[Located | None, Located | None]]:
    """Pair results of one kind, those with the fewest differing facts first; None for a result without a partner."""
    left, right = list(a), list(b)
    while left and right:
        choices = (
            (len(_facts_that_differ(x, y)), i, j) for i, (_, x) in enumerate(left) for j, (_, y) in enumerate(right)
        )
        _, i, j = min(choices)
        yield left.pop(i), right.pop(j)
    yield from ((one, None) for one in left)
    yield from ((None, one) for one in right)


def compare(a: Located, b: Located) -> Pair:
    """Compare two results: every number, and every fact that may explain a difference."""
    ours, theirs = _numbers(a[1]), _numbers(b[1])
    names = dict.fromkeys((*ours, *theirs))
    differing = [
        Cell(*name, ours.get(name), theirs.get(name)) for name in names if not _equal(ours.get(name), theirs.get(name))
    ]
    differing.sort(key=lambda cell: (cell.is_bound, -cell.rank))
    facts = _facts_that_differ(a[1], b[1])
    return Pair((a[0], b[0]), a[1], b[1], len(names), tuple(differing), tuple(facts))


def _equal(a: float | None, b: float | None) -> bool:
    return a == b or (a is not None and b is not None and math.isnan(a) and math.isnan(b))


def _numbers(row: Result) -> dict[tuple[str, str], float]:
    """Return every number of a result by place and name. A failed result has none."""
    if row.status != "ok":
        return {}
    out: dict[tuple[str, str], float] = {(ID, "n"): row.id.n}
    if row.id.accuracy is not None:
        out[ID, "accuracy"] = row.id.accuracy
    for one in row.ood:
        out |= {(one.dataset, name): value for name, value in _of_set(one).items()}
    for group in ("", *row.groups) if row.ood else ():
        means = {metric: row.mean(metric, group or None) for metric in METRICS} | _ends(
            row.mean_intervals.get(group, {})
        )
        out |= {(f"{group} mean".strip(), name): value for name, value in means.items()}
    return out


def _of_set(one: SetRow) -> dict[str, float]:
    stream = {k: v for k, v in flatten(one.stream, "stream ").items() if isinstance(v, int | float)}
    metrics = {name: getattr(one, name) for name in (*METRICS, "tied", "n", "skipped")}
    return metrics | _ends(one.intervals) | stream


def _ends(intervals: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    return {
        f"{m} {end}": value for m, ends in intervals.items() for end, value in zip(("low", "high"), ends, strict=True)
    }


def _facts_that_differ(a: Result, b: Result) -> list[Fact]:
    ours, theirs = _facts(a), _facts(b)
    names = sorted(dict.fromkeys((*ours, *theirs)), key=lambda name: _ORDER.index(name.partition(".")[0]))  # stable
    return [Fact(n, ours.get(n, ""), theirs.get(n, "")) for n in names if ours.get(n) != theirs.get(n)]


def _facts(row: Result) -> dict[str, str]:
    """Return the facts that the numbers of a result depend on, and the commit, by name."""
    lists = {row.id.dataset: row.id.list_digest, **{s.dataset: s.list_digest for s in row.ood}}
    head = {"status": row.status, "error": row.error or "", "method": row.label, "benchmark": row.benchmark}
    parts: dict[str, Any] = {name: part(row, name) for name in _BEFORE}
    parts |= {"images": lists, "method's source": row.source}
    parts |= {name: part(row, name) for name in _AFTER}
    found = {**head, **flatten(parts), "commit": row.commit or ""}
    return {name: _text(value) for name, value in found.items() if value not in ("", None, {}, [])}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def summary(facts: Sequence[Fact]) -> Iterator[Fact]:
    """Yield shortened facts: the first digits of digests, and a count if one side lacks many facts of a part."""
    for part_name, members in groupby(facts, key=lambda fact: fact.name.rpartition(".")[0].partition(".")[0]):
        found = list(members)
        for side, other in (("a", "b"), ("b", "a")):
            lacking = [fact for fact in found if not getattr(fact, side)]
            if part_name and len(lacking) > _MANY:
                counted = f"{len(lacking)} facts"
                yield Fact(f"{part_name}.*", *(("", counted) if other == "b" else (counted, "")))
                found = [fact for fact in found if fact not in lacking]
        yield from (Fact(fact.name, _short(fact.a), _short(fact.b)) for fact in found)


def _short(text: str) -> str:
    if re.fullmatch(r"[0-9a-f]{40}([0-9a-f]{24})?(-dirty)?", text):
        return f"{text[:_SHORT]}{'-dirty' if text.endswith('-dirty') else ''}"
    return text if len(text) <= 60 else f"{text[:57]}..."
