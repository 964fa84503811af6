"""Footing: rows with each method's own prompts, and rows that all have the same ones, in tables of their own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from oodbench.results import Result

_GIVEN = re.compile(r"[\[,]templates=")


@dataclass(frozen=True)
class Footing:
    """Rows of one table, and the prompts that were given to all of them: a name, or "" for each method's own.

    `title` is what the table's title says of it, "" while there is nothing to tell apart.
    """

    rows: tuple[Result, ...]
    prompts: str = ""
    title: str = ""
    missing: tuple[str, ...] = ()  # titles of methods that stand in the table of own prompts but not in this one


def footings(rows: Sequence[Result]) -> list[Footing]:
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
        return [Footing(tuple(rows))]
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
        out.append(Footing(ordered, name, f"equal prompts for all methods: {name}", tuple(missing)))
    if any({id(row) for row in own} <= {id(row) for row in one.rows} for one in out):
        return out  # a run with --templates alone: no method's own prompts differ from the equal ones
    return [Footing(tuple(own), title="each method's own prompts"), *out]


def _same(row: Result, digest: str) -> bool:
    """Whether a row has these prompts, or none at all; a failed row is taken at its word."""
    return not row.templates or row.templates.get("digest") == digest
