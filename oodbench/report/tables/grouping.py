"""Which rows may stand in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from oodbench.results import IdRow, Result, SetRow, flatten

# Parts of `Result.run` that change the numbers of every method. Seed and device split no table: rows that differ in
# them are named apart instead.
_SETTINGS = ("precision", "resize", "limit", "lists")
_DERIVED = ("identity", "notes")  # parts of the encoder's card that say nothing that others do not


@dataclass
class Group:
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


def group(rows: Iterable[Result]) -> list[Group]:
    """Put rows together that agree in all facts, ordered by first appearance; a row repeated counts once.

    A failed row does not know all facts: it joins the first group of its benchmark and encoder that it does not
    contradict.
    """
    families: dict[tuple[str, str], list[Group]] = {}
    agreeing: dict[tuple[tuple[str, str], ...], Group] = {}
    numbered = list(enumerate(_newest(rows)))
    for number, row in numbered:
        if row.status == "ok":
            known = facts(row)
            key = tuple(sorted(known.items()))
            if key not in agreeing:
                agreeing[key] = Group(known)
                families.setdefault(_family(row), []).append(agreeing[key])
            agreeing[key].rows.append((number, row))
    for number, row in numbered:
        if row.status != "ok":
            known = facts(row)
            family = families.setdefault(_family(row), [])
            home = next((g for g in family if all(g.facts.get(k, v) == v for k, v in known.items())), None)
            if home is None:
                home = Group(known)
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


def _tell_apart(family: Sequence[Group]) -> None:
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
