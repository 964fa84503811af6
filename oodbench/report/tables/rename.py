"""Renaming in tables (`--rename NAME=TEXT`), the same in every format."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from oodbench.errors import did_you_mean, raise_all
from oodbench.method.access import GROUPS
from oodbench.report.tables.columns import COLUMNS
from oodbench.report.tables.rows import line_names
from oodbench.report.tables.table import ColumnGroup, Table
from oodbench.results import Result, seedless_label

_HEADINGS = ("Average", "ID", "Method")  # common words, which stay in sentences


def names(rows: Iterable[Result], quoted: Iterable[str] = ()) -> dict[str, tuple[str, ...]]:
    """Return the printed texts of everything that can be renamed, by name and by text; `quoted` are names of lines."""
    found: dict[str, set[str]] = {}

    def add(text: str, *keys: str) -> None:
        for key in (text, *keys):
            found.setdefault(key, set()).add(text)

    for metric, column in COLUMNS.items():
        add(column.title, metric)
    for text in (*_HEADINGS, *quoted):
        add(text, *(("mean",) if text == "Average" else ()))
    for group in GROUPS:
        add(_capital(group), group)
    for row in rows:
        add(row.title or row.method, row.method)
        for label in {row.label, seedless_label(row)}:
            add(line_names([[replace(row, label=label)]])[0], label)
        add(row.benchmark_title or row.benchmark, row.benchmark)
        add(str(row.encoder.get("name", "unknown")), str(row.encoder.get("slug") or ""))
        add(row.id.title, row.id.dataset)
        for one in row.ood:
            add(one.title, one.dataset)
        for group in {one.group for one in row.ood} - {""}:
            add(f"{_capital(group)} OOD", group)
            add(f"{group.capitalize()} average", f"{group} mean")
    found.pop("", None)
    return {name: tuple(sorted(texts)) for name, texts in found.items()}


def check(pairs: Sequence[tuple[str, str]], known: Iterable[str]) -> None:
    """Raise UserError with all names that are unknown, have no text, or have two texts."""
    known = sorted(known)
    given = [name for name, _ in pairs]
    problems = [f"--rename: nothing is named '{n}'{did_you_mean(n, known)}" for n in given if n not in known]
    problems += [f"--rename {name}= has no text: write --rename {name}=TEXT" for name, text in pairs if not text]
    twice = dict.fromkeys(name for name, text in pairs if len({t for n, t in pairs if n == name}) > 1)
    problems += [f"--rename {name}= is given twice" for name in twice]
    raise_all(problems)


def renamed(table: Table, pairs: Sequence[tuple[str, str]], known: Mapping[str, tuple[str, ...]]) -> Table:
    """Return a table with renamed texts in headings, lines, caption and notes."""
    texts = {old: new for name, new in pairs for old in known.get(name, ())}
    if not texts:
        return table
    for group in {group.group for group in table.column_groups} - {""}:
        if text := texts.get(heading := f"{_capital(group)} OOD"):  # the heading, the caption and the average agree
            short = text.removesuffix(" OOD")
            texts[heading] = short if "OOD" in short else f"{short} OOD"
            texts.setdefault(f"{group.capitalize()} average", f"{short} average")
    change = _replacing(texts)
    reword = _replacing({old: new for old, new in texts.items() if old not in _HEADINGS})

    def each(sentences: Iterable[str]) -> tuple[str, ...]:
        return tuple(map(reword, sentences))

    return replace(
        table,
        title=reword(table.title),
        encoder=reword(table.encoder),
        compared=reword(table.compared),
        missing=reword(table.missing),
        caption=each(table.caption),
        brief=each(table.brief),
        notes=each(table.notes),
        footnotes=each(table.footnotes),
        cites=tuple((change(title), keys) for title, keys in table.cites),
        first=change(table.first),
        column_groups=tuple(_group(group, change, texts.get("Average", "")) for group in table.column_groups),
        lines=tuple(
            replace(x, name=change(x.name), names=tuple(map(change, x.names)), section=change(x.section))
            for x in table.lines
        ),
    )


def renaming(pairs: Sequence[tuple[str, str]], rows: Iterable[Result]) -> Callable[[str], str]:
    """Return a function that renames the names and titles of results, for figures."""
    known = names(rows) if pairs else {}
    return _replacing({old: new for name, new in pairs for old in known.get(name, ())})


def retitled(row: Result, change: Callable[[str], str]) -> Result:
    """Return a result with renamed titles of its benchmark, encoder and sets, and the digest that names its files."""
    out = replace(
        row,
        benchmark_title=change(row.benchmark_title or row.benchmark),
        encoder={**row.encoder, "name": change(str(row.encoder.get("name", "unknown")))},
        id=replace(row.id, title=change(row.id.title)),
        ood=tuple(replace(one, title=change(one.title)) for one in row.ood),
    )
    out.__dict__["digest"] = row.digest  # a cached property
    return out


def _replacing(texts: Mapping[str, str]) -> Callable[[str], str]:
    """Return a function that replaces whole words, all at once; of overlapping ones, the longest.

    Of `Energy (scale=1)`, the start of `Energy (scale=1, seed 0)` is also replaced, but not of `Energy (scale=1, t=2)`.
    """
    longest = sorted(texts, key=len, reverse=True)

    def of(old: str) -> str:
        inside = rf"|{re.escape(old[:-1])}, (?![\w.]+=)" if old.endswith(")") and "=" in old else ""
        return rf"{re.escape(old)}(?![\w-]){inside}"

    pattern = re.compile(rf"(?<![\w-])(?:{'|'.join(map(of, longest)) or '(?!)'})")

    def new(found: re.Match[str]) -> str:
        text = found[0]
        return texts[text] if text in texts else f"{texts[f'{text[:-2]})']} ("

    return lambda text: pattern.sub(new, text)


def _group(group: ColumnGroup, change: Callable[[str], str], average: str) -> ColumnGroup:
    title = change(group.title)
    if average and group.mean:  # "Near average" where the average of all sets is renamed
        title = title.replace("average", average)
    columns = tuple(replace(column, title=change(column.title)) for column in group.columns)
    shown = change(f"{_capital(group.group)} OOD").removesuffix(" OOD") if group.group else ""
    return replace(group, title=title, columns=columns, group=shown)


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
