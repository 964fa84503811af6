"""Which rows may stand in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from oodbench.errors import UserError
from oodbench.results import IdRow, Result, SetRow, flatten, rows

# Parts of `Result.run` that change the numbers of every method. Seed and device split no table: rows that differ in
# them are named apart instead.
_SETTINGS = ("precision", "resize", "limit", "lists")
_DERIVED = ("identity", "notes")  # parts of the encoder's card that say nothing that others do not


@dataclass
class TableGroup:
    """Rows that may be compared, each with its place in the input; `facts` is all they agree in."""

    facts: dict[str, str]
    rows: list[tuple[int, Result]] = field(default_factory=list)
    apart: tuple[str, ...] = ()  # where other groups of this benchmark and encoder differ, for the caption

    @property
    def results(self) -> list[Result]:
        """The rows in the order of the input, without failures that a later run of the same job has mended."""
        mended: dict[tuple[str, str], str] = {}
        for _, row in self.rows:
            if row.status == "ok":
                mended[_job(row)] = max(mended.get(_job(row), ""), row.created)
        ordered = [row for _, row in sorted(self.rows, key=lambda pair: pair[0])]
        return [row for row in ordered if row.status == "ok" or mended.get(_job(row), "") <= row.created]


def group(rows: Iterable[Result]) -> list[TableGroup]:
    """Put rows together that agree in all facts, ordered by first appearance; a row repeated counts once.

    A failed row does not know all facts: it joins the first group of its benchmark and encoder that it does not
    contradict.
    """
    families: dict[tuple[str, str], list[TableGroup]] = {}
    agreeing: dict[tuple[tuple[str, str], ...], TableGroup] = {}
    numbered = list(enumerate(_newest(rows)))
    for number, row in numbered:
        if row.status == "ok":
            known = facts(row)
            key = tuple(sorted(known.items()))
            if key not in agreeing:
                agreeing[key] = TableGroup(known)
                families.setdefault(_family(row), []).append(agreeing[key])
            agreeing[key].rows.append((number, row))
    for number, row in numbered:
        if row.status != "ok":
            known = facts(row)
            family = families.setdefault(_family(row), [])
            home = next((g for g in family if all(g.facts.get(k, v) == v for k, v in known.items())), None)
            if home is None:
                home = TableGroup(known)
                family.append(home)
            home.rows.append((number, row))
    for family in families.values():
        _tell_apart(family)
    return sorted((g for family in families.values() for g in family), key=lambda g: min(n for n, _ in g.rows))


def facts(row: Result) -> dict[str, str]:
    """All that must be equal for two rows to be comparable, under names fit for print."""
    out = {"benchmark": row.benchmark}
    out |= {f"encoder {k}": _plain(v) for k, v in flatten(row.encoder).items() if k not in _DERIVED}
    out |= {k: _plain(row.run[k]) for k in _SETTINGS if row.run.get(k) is not None}
    out |= dict(row.conventions)
    out |= {f"classes {k}": _plain(v) for k, v in flatten(row.classes).items()}
    out |= _set_facts(f"ID {row.id.dataset}", row.id, scored=row.status == "ok")
    for ood in row.ood:
        out |= _set_facts(f"OOD {ood.dataset}", ood, scored=row.status == "ok")
    return out


def _set_facts(name: str, images: IdRow | SetRow, *, scored: bool) -> dict[str, str]:
    out = {f"{name} images": images.list_digest} if images.list_digest else {}
    if scored:
        shown = {"n": images.n, "expected": images.expected, "skipped": images.skipped, "title": images.title}
        if isinstance(images, SetRow):
            shown["group"] = images.group
        out |= {f"{name} {k}": _plain(v) for k, v in shown.items()}
    return out


def _newest(rows: Iterable[Result]) -> list[Result]:
    newest: dict[str, Result] = {}
    for row in rows:
        digest = row.digest
        if digest not in newest or row.created > newest[digest].created:
            newest[digest] = row
    return list(newest.values())


def _tell_apart(family: Sequence[TableGroup]) -> None:
    """Note where the groups differ, less what a caption says anyway (the sets and their sizes)."""
    differing = [
        name
        for name in dict.fromkeys(k for g in family for k in g.facts)
        if len({g.facts.get(name) for g in family}) > 1
    ]
    said = {name for name in differing if name.startswith(("ID ", "OOD ")) and not name.endswith(" images")}
    for name in differing:
        if name.removesuffix("images") + "n" in said:
            said.add(name)
    for one in family:
        one.apart = tuple(f"{k} {_short(one.facts[k])}" for k in differing if k not in said and k in one.facts)


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _short(value: str) -> str:
    return value[:12] if re.fullmatch(r"[0-9a-f]{32,}", value) else value


def _family(row: Result) -> tuple[str, str]:
    return row.benchmark, str(row.encoder.get("slug", row.encoder.get("name")))


def _job(row: Result) -> tuple[str, str]:
    return row.label, str(row.run.get("seed"))


_GIVEN = re.compile(r"[\[,]templates=")


@dataclass(frozen=True)
class PromptGroup:
    """Rows of one table, and the prompts that were given to all of them: a name, or "" for each method's own.

    `title` is what the table's title says of it, "" while there is nothing to tell apart.
    """

    rows: tuple[Result, ...]
    prompts: str = ""
    title: str = ""
    missing: tuple[str, ...] = ()  # titles of methods that stand in the table of own prompts but not in this one


def by_prompts(rows: Sequence[Result]) -> list[PromptGroup]:
    """Comparable rows, divided by whose prompts they have.

    Prompts that some rows were given (`oodbench run --templates`) and that two methods have make a table: the rows that
    were given them, rows of other methods whose own they are, and rows without prompts. The others stay together; a
    variant with prompts that no other method has stays there, too, told by its name.
    """
    given: dict[str, list[Result]] = {}
    for row in rows:
        if _GIVEN.search(row.label) and row.templates:
            given.setdefault(str(row.templates.get("digest")), []).append(row)
    shared = {
        digest: those
        for digest, those in given.items()
        if len({row.method for row in rows if row.templates.get("digest") == digest}) > 1
    }
    if not shared:
        return [PromptGroup(tuple(rows))]
    moved = {id(row) for those in shared.values() for row in those}
    own = [row for row in rows if id(row) not in moved]
    out = []
    for digest, those in shared.items():
        methods = {row.method for row in those}
        equal = [row for row in own if row.method not in methods and _same(row, digest)]
        kept = {id(row) for row in (*those, *equal)}
        have = {row.method for row in (*those, *equal)}
        missing = dict.fromkeys(row.title or row.method for row in own if row.method not in have)
        ordered = tuple(row for row in rows if id(row) in kept)
        name = str(those[0].templates.get("name"))
        out.append(PromptGroup(ordered, name, f"equal prompts for all methods: {name}", tuple(missing)))
    if any({id(row) for row in own} <= {id(row) for row in one.rows} for one in out):
        return out  # a run with --templates alone: no method's own prompts differ from the equal ones
    return [PromptGroup(tuple(own), title="each method's own prompts"), *out]


def _same(row: Result, digest: str) -> bool:
    """Whether a row has these prompts, or none at all; a failed row is taken at its word."""
    return not row.templates or row.templates.get("digest") == digest


@dataclass(frozen=True)
class Gathered:
    """Rows in order; `paths` are the files of those that lie on disk, by digest."""

    rows: tuple[Result, ...]
    paths: dict[str, Path]


def from_folder(results: Path) -> Gathered:
    """The rows of a results folder. UserError when it is not there or holds none."""
    if not results.is_dir():
        raise UserError(f"no results folder {results}; make one with: oodbench run --results {results}")
    found = list(rows(results))
    if not found:
        raise UserError(f"{results} holds no rows; make some with: oodbench run --results {results}")
    return Gathered(ordered([row for _, row in found]), {row.digest: path for path, row in found})


def ordered(found: Sequence[Result]) -> tuple[Result, ...]:
    """Rows by benchmark, encoder, method, variant, seed: the same tables from wherever they come."""
    return tuple(sorted(found, key=_place))


def _place(row: Result) -> tuple[str, str, str, bool, str, str, str]:
    encoder = str(row.encoder.get("slug") or row.encoder.get("name", ""))
    seed = f"{row.run.get('seed')!s:>12}"
    return row.benchmark, encoder, row.method, row.label != row.method, row.label, seed, row.digest
