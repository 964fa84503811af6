"""Access of methods in tables: the card of each line, groups of lines that may be ranked together, and the note."""

from __future__ import annotations

import functools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from oodbench.errors import printable
from oodbench.method import registry
from oodbench.method.access import GROUPS, TEST_TIME, UNKNOWN, Access, both, from_mapping
from oodbench.method.introspection import MethodInfo
from oodbench.method.parameters import parse_choices
from oodbench.report.tables.table import TableLine
from oodbench.results import Result

log = logging.getLogger(__name__)

UNRANKED = "Best and second are not marked among methods that see different data."
QUOTED = "Quoted, not run here"
_FREE, _TRAINED = "Training-free", "Trained"


def card(row: Result) -> Access | None:
    """Return the card of a result; for an older result, that of the installed method, else None."""
    if row.access:
        try:
            return from_mapping(row.access)
        except ValueError as error:
            log.warning("the access of %s cannot be read: %s", printable(row.label), printable(str(error)))
            return None
    return _declared(row) or (Access(other_data=True) if row.weights else None)


def access_problem(row: Result) -> str:
    """Return how the card of a result differs from that of its method, or "".

    Another version of a built-in method may have seen more than the installed one, but not less.
    """
    declared, found, info = _declared(row), card(row), _installed().get(row.method)
    if not row.access or found is None or declared is None or info is None or found == declared:
        return ""
    if info.source != row.source and (info.origin != "built-in" or both(found, declared) == found):
        return ""
    return f"its access is {found}, that of {row.method} is {declared}"


def _declared(row: Result) -> Access | None:
    """Return the card of the installed method with the settings of a result, None if it is not installed."""
    info = _installed().get(row.method)
    if info is None or info.problem or row.imported:  # an imported method may be another one of the same name
        return None
    labels = (row.run.get("calibration") or {}).get("labels")
    drawn = labels if isinstance(labels, int) else None
    own = _card(info, row.parameters, row, drawn)
    if not (base := row.stream.get("base")):
        return own
    (choice,) = parse_choices(base)
    of_base = _installed().get(choice.name)
    return both(own, _card(of_base, choice.overrides, row, drawn)) if of_base else None


def _card(info: MethodInfo, parameters: Mapping[str, Any], row: Result, drawn: int | None) -> Access:
    """Return the card of a method; the number of labelled images is that drawn, or that in its weights' recipe."""
    if "SHOTS" in info.needs:
        drawn = (row.weights.get("recipe") or {}).get("id", {}).get("shots")
    return info.card({**info.defaults(), **parameters}, drawn)


def part(row: Result, name: str) -> Mapping[str, Any]:
    """Return a part of a result, such as `parameters`; an older result gets the access card of its method."""
    if name == "access":
        known = card(row)
        return known.plain() if known else {}
    found: Mapping[str, Any] = getattr(row, name)
    return found


@functools.cache
def _installed() -> dict[str, MethodInfo]:
    return registry.methods()


def title_of(method: str) -> str:
    """Return the title of a method, or its name if it is not installed."""
    info = _installed().get(method)
    return info.title if info and info.title else method


def group_of(line: TableLine) -> str:
    """Return the group of a line, one of GROUPS."""
    if line.result and line.result.stream:
        return TEST_TIME
    return line.access.group if line.access else UNKNOWN


def arranged(lines: Iterable[TableLine], how: str) -> tuple[TableLine, ...]:
    """Divide lines into sections by group or training; published lines follow the measured ones.

    Within a section, lines are sorted by rank, if they have one. A single group of measured lines has no heading. The
    lines of `--ours` are last in their section, and their section is last.
    """
    sections = [(_section(line, how), line) for line in lines]
    alone = len({section for section, _ in sections}) == 1
    last = {section for section, line in sections if line.ours}

    def place(pair: tuple[tuple[int, int, str], TableLine]) -> tuple[object, ...]:
        section, line = pair
        # Lines without a heading come before those with one.
        return section in last and bool(section[2]), section, line.ours, line.rank is None, -(line.rank or 0)

    ordered = sorted(sections, key=place)
    return tuple(replace(line, section="" if alone and line.result else title) for (_, _, title), line in ordered)


def first_of_each_group(lines: Sequence[TableLine], count: int | None) -> tuple[tuple[TableLine, ...], bool]:
    """Return the first lines of each section with those of `--ours`, and whether some equal the last one.

    Those whose number equals that of the last of `count` lines are kept, too; None: all lines are kept.
    """
    kept: list[TableLine] = []
    tied = False
    for _, found in groupby(lines, key=lambda line: line.section):
        members = list(found)
        others = [line for line in members if not line.ours]
        first, rest = others[:count], others[count:] if count else []
        last = first[-1].rank if first else None
        equal = [line for line in rest if line.rank == last is not None and math.isfinite(last)]
        kept += [*first, *equal, *(line for line in members if line.ours)]
        tied = tied or bool(equal)
    return tuple(kept), tied


def _section(line: TableLine, how: str) -> tuple[int, bool, str]:
    """Return the place of a line's section, and its heading."""
    quoted = line.result is None
    if how == "access":
        group = group_of(line)
        title = group[0].upper() + group[1:]
        return GROUPS.index(group), quoted, f"{title}. {QUOTED}" if quoted else title
    if how == "trained" and not quoted:
        seen = line.access
        trained = bool(line.result and line.result.weights) or bool(seen and (seen.other_data or seen.generated))
        return int(trained), quoted, _TRAINED if trained else _FREE
    return len(GROUPS), quoted, QUOTED if quoted else ""


def blocks(lines: Sequence[TableLine]) -> list[tuple[list[TableLine], bool]]:
    """Return the lines of each section, and whether they may be ranked: all measured lines have the same group."""
    members = [list(found) for _, found in groupby(lines, key=lambda line: line.section)]

    def sees(line: TableLine) -> tuple[str, str]:  # methods without a card may see different data
        unknown = not line.access or (line.access.stream and not (line.result and line.result.stream))
        return group_of(line), line.result.label if line.result and unknown else ""

    return [(found, len({sees(line) for line in found if line.result}) <= 1) for found in members]


def access_footnotes(lines: Iterable[TableLine]) -> tuple[str, ...]:
    """Return one note on the access of a table's methods, () if none sees more than class names and the image."""
    names: dict[str, list[str]] = {}
    for line in lines:
        for fact in line.access.facts if line.access else ():
            stream = line.result is not None and bool(line.result.stream)  # a method has several rows
            names.setdefault(fact, []).append(line.result.title if line.result and stream else line.name)
    facts = "; ".join(f"{fact}: {', '.join(dict.fromkeys(found))}" for fact, found in names.items())
    return (f"Access in addition to class names and the image: {facts}.",) if facts else ()
