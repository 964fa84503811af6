"""Grouping of comparable results, which are shown in one table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from oodbench.errors import UserError
from oodbench.report.tables.streams import order_key
from oodbench.results import IdRow, Result, SetRow, flatten, rows

# Parts of `Result.run` that change the numbers of every method. Results that differ in seed or device are in one table,
# under different names.
_SETTINGS = ("precision", "resize", "limit", "lists")
_DERIVED = ("identity", "notes")  # parts of the encoder's card that follow from others


@dataclass
class TableGroup:
    """Comparable results, each with its position in the input, and the `facts` in which they agree.

    `differences` are the settings that differ from other groups of this benchmark and encoder, for the caption;
    `sizes` are differing numbers of images and groups of sets, which the caption of a table states anyway. `missing`
    are the titles of the OOD sets that only other groups have.
    """

    facts: dict[str, str]
    numbered: list[tuple[int, Result]] = field(default_factory=list)
    differences: tuple[str, ...] = ()
    sizes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()

    @property
    def results(self) -> list[Result]:
        """The results in the order of the input, without failed ones whose later run succeeded."""
        succeeded: dict[tuple[str, str], str] = {}
        for _, row in self.numbered:
            if row.status == "ok" and not row.imported:
                succeeded[_run(row)] = max(succeeded.get(_run(row), ""), row.created)
        ordered = [row for _, row in sorted(self.numbered, key=lambda pair: pair[0])]
        return [row for row in ordered if row.status == "ok" or succeeded.get(_run(row), "") <= row.created]


def group(results: Iterable[Result]) -> list[TableGroup]:
    """Group results that agree in all facts, in order of first appearance; a repeated result counts once.

    Streams have separate groups, which follow the others of their benchmark and encoder. Failed and imported results
    lack some facts: they join the first group of their benchmark and encoder that agrees with the facts they have.
    """
    families: dict[tuple[str, str, bool], list[TableGroup]] = {}
    agreeing: dict[tuple[tuple[str, str], ...], TableGroup] = {}
    numbered = list(enumerate(_newest(results)))
    for number, row in numbered:
        if row.status == "ok" and not row.imported:
            known = facts(row)
            key = (("streams", str(bool(row.stream))), *sorted(known.items()))
            if key not in agreeing:
                agreeing[key] = TableGroup(known)
                families.setdefault(_family(row), []).append(agreeing[key])
            agreeing[key].numbered.append((number, row))
    for number, row in numbered:
        if row.status != "ok" or row.imported:
            known = facts(row)
            family = families.setdefault(_family(row), [])
            fitting = next((g for g in family if _agree(known, g.facts, scored=row.status == "ok")), None)
            if fitting is None:
                fitting = TableGroup(known)
                family.append(fitting)
            fitting.numbered.append((number, row))
            if row.imported:  # the next one must agree with it, too
                fitting.facts = {**known, **fitting.facts}
    for family in families.values():
        _find_differences(family)
    last = {name: max(map(_first, found)) for name, found in families.items()}

    def place(name: tuple[str, str, bool], one: TableGroup) -> tuple[int, bool, int]:
        benchmark, encoder, streams = name
        own = _first(one)
        return (last.get((benchmark, encoder, False), own) if streams else own), streams, own

    found = [(place(name, one), one) for name, family in families.items() for one in family]
    return [one for _, one in sorted(found, key=lambda pair: pair[0])]


def _first(one: TableGroup) -> int:
    """Return the position in the input of a group's first result."""
    return min(number for number, _ in one.numbered)


def _agree(some: Mapping[str, str], others: Mapping[str, str], *, scored: bool) -> bool:
    """Return whether the common facts agree, and for scored results also the OOD sets."""
    known = (some, others) if scored else ()
    sets = [{name for name in facts if name.startswith("OOD ") and name.endswith(" n")} for facts in known]
    if scored and not all(others.get(f"{name} images") == some.get(f"{name} images") for name in _partial(some)):
        return False  # partial sets of equal size may have different images
    return all(others.get(k, v) == v for k, v in some.items()) and all(one == sets[0] for one in sets)


def _partial(known: Mapping[str, str]) -> list[str]:
    """Return the sets of which only some images have scores."""
    sizes = {k.removesuffix(" n"): v for k, v in known.items() if k.endswith(" n")}
    return [name for name, n in sizes.items() if known.get(f"{name} expected") not in (n, "null", None)]


def facts(row: Result) -> dict[str, str]:
    """Return everything that must be equal for two results to be comparable, under names for captions."""
    out = {"benchmark": row.benchmark}
    out |= {f"encoder {k}": _text(v) for k, v in flatten(row.encoder).items() if k not in _DERIVED}
    out |= {k: _text(row.run[k]) for k in _SETTINGS if row.run.get(k) is not None}
    out |= dict(row.conventions)
    out |= {f"classes {k}": _text(v) for k, v in flatten(row.classes).items()}
    sets: dict[str, IdRow | SetRow] = {f"OOD {s.dataset}": s for s in row.ood}
    for name, images in {f"ID {row.id.dataset}": row.id, **sets}.items():
        out |= _set_facts(name, images, scored=row.status == "ok")
        if row.imported and images.partial and not images.list_digest:  # other scores may be of other images
            out[f"{name} images"] = f"not known, result {row.digest[:8]}"
        if row.stream:  # streams of another ratio have fewer images of the same lists, and are in the same table
            out = {fact: value for fact, value in out.items() if fact not in (f"{name} n", f"{name} expected")}
    return out


def _set_facts(name: str, images: IdRow | SetRow, *, scored: bool) -> dict[str, str]:
    out = {f"{name} images": images.list_digest} if images.list_digest else {}
    if scored:
        shown = {"n": images.n, "expected": images.expected, "skipped": images.skipped, "title": images.title}
        if isinstance(images, SetRow):
            shown["group"] = images.group
        out |= {f"{name} {k}": _text(v) for k, v in shown.items()}
    return out


def _newest(rows: Iterable[Result]) -> list[Result]:
    newest: dict[str, Result] = {}
    for row in rows:
        digest = row.digest
        if digest not in newest or row.created > newest[digest].created:
            newest[digest] = row
    return list(newest.values())


def _find_differences(family: Sequence[TableGroup]) -> None:
    """Set `missing` and `differences` of the groups, except facts that captions state (the sets and their sizes)."""
    complete = [g for g in family if not all(row.imported for _, row in g.numbered)]  # imported results lack facts

    def values(name: str) -> set[str | None]:
        return {g.facts[name] for g in family if name in g.facts} | {g.facts.get(name) for g in complete}

    differing = [name for name in dict.fromkeys(k for g in family for k in g.facts) if len(values(name)) > 1]
    stated = {name for name in differing if name.startswith(("ID ", "OOD ")) and not name.endswith(" images")}
    for name in differing:
        if name.removesuffix("images") + "n" in stated:
            stated.add(name)
    whole = [g.facts for g in family if "limit" not in g.facts and not _partial(g.facts)]
    whole = [
        known for known in whole if any(name.endswith(" group") for name in known)
    ]  # of a failed result none is known
    sizes = [n for n in sorted(stated) if n.endswith((" n", " group")) and len({known.get(n) for known in whole}) > 1]
    titles = {k: v for g in family for k, v in g.facts.items() if k.startswith("OOD ") and k.endswith(" title")}
    for member in family:
        if titles.keys() & member.facts.keys():  # else all failed, and no set is known
            member.missing = tuple(title for name, title in titles.items() if name not in member.facts)
        member.sizes = tuple(_size(name, member.facts[name]) for name in sizes if name in member.facts)
        shown = (name for name in differing if name not in stated and name in member.facts)
        member.differences = tuple(f"{name} {_short(member.facts[name])}" for name in shown)


def _size(name: str, value: str) -> str:
    """Return `OOD sun: 200 images`, or `OOD sun: group near`."""
    place, _, what = name.rpartition(" ")
    return f"{place}: {value} images" if what == "n" else f"{place}: group {value or 'none'}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)


def _short(value: str) -> str:
    return value[:12] if re.fullmatch(r"[0-9a-f]{32,}", value) else value


def _family(row: Result) -> tuple[str, str, bool]:
    return row.benchmark, str(row.encoder.get("slug", row.encoder.get("name"))), bool(row.stream)


def _run(row: Result) -> tuple[str, str]:
    return row.label, json.dumps([row.run.get("seed"), row.stream], sort_keys=True)


_GIVEN_TEMPLATES = re.compile(r"[\[,]templates=")


@dataclass(frozen=True)
class PromptGroup:
    """Results of one table, and the name of the prompts given to all of them, "" for each method's own prompts.

    title    the part of the table's title on prompts, "" if there is only one group
    missing  titles of methods that are in the table of own prompts but not in this one
    """

    results: tuple[Result, ...]
    prompts: str = ""
    title: str = ""
    missing: tuple[str, ...] = ()


def by_prompts(results: Sequence[Result]) -> list[PromptGroup]:
    """Divide comparable results by their prompts.

    Prompts from `oodbench run --templates` that two methods have get a table: it has the results with these prompts,
    other methods whose own prompts are equal to them, and results without prompts. The other results stay together,
    with variants whose prompts no other method has; their names state the prompts.
    """
    given: dict[str, list[Result]] = {}
    for row in results:
        if _GIVEN_TEMPLATES.search(row.label) and row.templates:
            given.setdefault(str(row.templates.get("digest")), []).append(row)
    shared = {
        digest: members
        for digest, members in given.items()
        if len({row.method for row in results if row.templates.get("digest") == digest}) > 1
    }
    if not shared:
        return [PromptGroup(tuple(results))]
    moved = {id(row) for members in shared.values() for row in members}
    own = [row for row in results if id(row) not in moved]
    out = []
    for digest, members in shared.items():
        methods = {row.method for row in members}
        equal = [row for row in own if row.method not in methods and _has_prompts(row, digest)]
        kept = {id(row) for row in (*members, *equal)}
        have = {row.method for row in (*members, *equal)}
        missing = dict.fromkeys(row.title or row.method for row in own if row.method not in have)
        ordered = tuple(row for row in results if id(row) in kept)
        name = str(members[0].templates.get("name"))
        out.append(PromptGroup(ordered, name, f"equal prompts for all methods: {name}", tuple(missing)))
    if any({id(row) for row in own} <= {id(row) for row in group.results} for group in out):
        return out  # all results were run with --templates: no method's own prompts differ from the given ones
    return [PromptGroup(tuple(own), title="each method's own prompts"), *out]


def _has_prompts(row: Result, digest: str) -> bool:
    """Return whether a result has these prompts, or none at all."""
    return not row.templates or row.templates.get("digest") == digest


@dataclass(frozen=True)
class LoadedResults:
    """Results in order; `paths` are the files of those that are on disk, by digest."""

    results: tuple[Result, ...]
    paths: dict[str, Path]


def check_folder(results: Path) -> None:
    """Raise UserError if the results folder does not exist."""
    if not results.is_dir():
        raise UserError(f"no results folder {results}; make one with: oodbench run --results {results}")


def from_folder(results: Path) -> LoadedResults:
    """Load the results of a folder. Raise UserError if it does not exist or has no results."""
    check_folder(results)
    found = list(rows(results))
    if not found:
        raise UserError(f"{results} has no results; create some with: oodbench run --results {results}")
    return LoadedResults(ordered([row for _, row in found]), {row.digest: path for path, row in found})


def ordered(found: Sequence[Result]) -> tuple[Result, ...]:
    """Sort results by benchmark, encoder, method, variant and seed, so that tables do not depend on their source."""
    return tuple(sorted(found, key=_sort_key))


def _sort_key(row: Result) -> tuple[Any, ...]:
    encoder = str(row.encoder.get("slug") or row.encoder.get("name", ""))
    seed = f"{row.run.get('seed')!s:>12}"
    variant = row.method, row.label != row.method, row.label
    return row.benchmark, encoder, *variant, order_key(row), seed, row.digest
