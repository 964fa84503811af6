"""Text of the listing commands: methods, datasets, the store."""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Iterator
from decimal import Decimal
from itertools import groupby
from pathlib import Path

from oodbench.cli import help
from oodbench.data import catalog as catalogue
from oodbench.data.catalog import Dataset, Protocol
from oodbench.data.places import bindings, find_list, find_place
from oodbench.errors import UserError, is_url, printable, redact
from oodbench.method import registry
from oodbench.method.access import GROUPS, UNKNOWN
from oodbench.method.introspection import MethodInfo
from oodbench.method.parameters import written
from oodbench.storage.store import Store

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def methods(known: Iterable[MethodInfo], width: int | None = None, *, as_json: bool = False) -> str:
    """List methods, grouped by the data that they see.

    With a width, the columns are name, title and data; without one, also groups of --methods, needs, paper and status.
    """
    head = ("method", "groups", "title", "also sees", "needs", "paper", "status")
    found = sorted(known, key=lambda info: GROUPS.index(_group(info)))  # a stable sort
    rows = [_listed(info) for info in found]
    if as_json:
        return help.as_json(
            {**dict(zip(head, row, strict=True)), "access": _group(one)} for one, row in zip(found, rows, strict=True)
        )
    some = range(len(head)) if width is None else (0, 2, 3)
    lines = [tuple(row[i] for i in some) for row in (head, *rows)]
    first, *lines_ = _table(lines, width).split("\n")
    out = [first]
    for group, members in groupby(zip(found, lines_, strict=True), key=lambda pair: _group(pair[0])):
        out += ["", f"{group[0].upper()}{group[1:]}", *(line for _, line in members)]
    unread = [f"{info.name} cannot run: {info.problem}" for info in found if info.problem and width is not None]
    ends = [
        *textwrap.wrap(f"`oodbench run` runs core: {', '.join(registry.CORE)}.", width or 110),
        "`oodbench methods NAME` shows what a method computes, and its hyper-parameters;",
        "--wide shows needs and papers.",
    ]
    return "\n".join([*out, "", *unread, *ends])


def _group(info: MethodInfo) -> str:
    return UNKNOWN if info.problem else info.card().group


def _listed(info: MethodInfo) -> tuple[str, ...]:
    """Return the cells of a method in the list."""
    status = info.problem or ("ready" if info.origin == "built-in" else f"ready ({info.origin})")
    groups = " ".join(group for group in registry.groups_of(info) if group != "all")
    seen, needs = "; ".join(info.card().facts) or "-", " ".join(n.lower() for n in info.needs)
    return info.name, groups, info.title, seen, needs, info.citation, status


def method(info: MethodInfo) -> str:
    """Describe one method."""
    if info.problem:
        raise UserError(f"method '{info.name}' ({info.path}): {info.problem}")
    lines = [
        f"{info.name}: {info.title}" + (f" ({info.citation})" if info.citation else ""),
        "",
        _wrapped(info.summary),
        *(["", "formula (LaTeX)", *_formula(info)][:-1] if info.formula else []),
        *(["", _wrapped(info.details)] if info.details else []),
        "",
        f"needs     {', '.join(n.lower() for n in info.needs)}",
        f"access    {'; '.join(info.card().facts) or 'class names and the image alone'}",
        f"groups    {', '.join(registry.groups_of(info))}",
        f"origin    {info.origin}, {info.path.name}",
        f"source    {info.source}",
        "",
        "hyper-parameters (--set " + info.name + ".NAME=VALUE)",
    ]
    for p in info.parameters:
        default = written(p.default) or '""'
        for text, indent in ((f"{p.name}: {p.kind} = {default}", 2), (p.meaning, 6)):
            lines += textwrap.wrap(text, 80, initial_indent=" " * indent, subsequent_indent=" " * 6)
    return "\n".join(lines if info.parameters else [*lines, "  none"])


def _formula(info: MethodInfo) -> Iterator[str]:
    """Yield the lines of its formulas and symbols within 80 columns; LaTeX may break at any blank."""
    width = 2 + max(map(len, info.symbols), default=0)
    entries = [(f"{symbol:{width}}{meaning}", width) for symbol, meaning in info.symbols.items()]
    for block in (*(((line, 2) for line in formula.split("\n")) for formula in info.formulas), entries):
        for text, indent in block:
            yield textwrap.fill(
                text,
                80,
                initial_indent="  ",
                subsequent_indent=" " * (2 + indent),
                break_long_words=False,
                break_on_hyphens=False,
            )
        yield ""


def _wrapped(text: str) -> str:
    """Return text within 80 columns; paragraphs with indented lines, such as formulas, stay as they are."""
    paragraphs = re.split(r"\n{2,}", text)
    return "\n\n".join(one if re.search(r"^ ", one, re.MULTILINE) else textwrap.fill(one, 80) for one in paragraphs)


def releases(kind: str, data: Path, width: int | None = None) -> str:
    """List released weights or word lists, with their path in the data folder or the command to get them.

    With a width, the path is on a second line, after the method and the encoder.
    """
    from oodbench.data import released

    def status(one: released.Release) -> str:
        try:
            path = one.path(data)
        except UserError as error:
            return str(error)
        return str(path) if path else one.command(data)

    rows = [
        (one.name, one.title, one.method, one.encoder or "any", "no" if one.unread else "yes", status(one))
        for one in released.releases(kind).values()
    ]
    head = (kind, "title", "method", "encoder", "read by runs", "where, or how to get it")
    if width is None:
        return _table([head, *rows])
    first, *lines = _table([row[:2] for row in (head, *rows)], width).split("\n")
    ends = [
        printable(f"  {method}, {encoder} encoder{'' if read == 'yes' else ', not read by runs'}: {where}")
        for _, _, method, encoder, read, where in rows
    ]
    return "\n".join([first, *(line for pair in zip(lines, ends, strict=True) for line in pair)])


def datasets(data: Path, width: int | None = None, *, found: bool = False, as_json: bool = False) -> str:
    """List datasets, and which are in the data folder, and benchmarks.

    `found` leaves out missing datasets and the benchmarks. Without a width, aliases and papers are listed, too.
    """
    head = ("dataset", "alias", "title", "images", "paper", "status")
    rows = [
        (d.name, ", ".join(d.aliases), d.title, f"{d.count:,}" if d.count else "", d.cite, _status(d, data))
        for d in catalogue.datasets().values()
    ]
    if found:
        rows = [row for row in rows if row[-1] not in ("not found", "no list")]
    if as_json:
        return help.as_json(dict(zip(head, row, strict=True)) for row in rows)
    some = range(len(head)) if width is None else (0, 2, 3, 5)
    sets = _table([tuple(row[i] for i in some) for row in (head, *rows)], width)
    return "\n\n".join([sets, *([] if found else [benchmarks(width)]), f"data folder: {data}"])


def benchmarks(width: int | None = None, *, as_json: bool = False) -> str:
    """List benchmarks with their ID and OOD sets; without a width, also with title and paper."""
    head = ("benchmark", "title", "ID", "OOD", "paper")
    rows = [(b.name, b.title, b.id, ", ".join(n for n, _ in b.sets()), b.cite) for b in catalogue.benchmarks().values()]
    if as_json:
        return help.as_json(dict(zip(head, row, strict=True)) for row in rows)
    some = range(len(head)) if width is None else (0, 2, 3)
    return _table([tuple(row[i] for i in some) for row in (head, *rows)], width)


def dataset(one: Dataset, data: Path) -> str:
    """Describe one dataset, and how to get it."""
    fields = {
        "title": one.title,
        "aliases": ", ".join(one.aliases),
        "loader": one.loader,
        "of": f"{one.within or ' + '.join(one.parts)} {' '.join(one.keep)}{one.keep_file}".strip(),
        "path": _path(one),
        "classes": one.classes,
        "list": f"{one.list} (sha256 {one.digest})" if one.list else "",
        "digest": "" if one.list or one.loader == "glyphs" else one.digest,
        "source": f"{one.source} {one.split}".strip(),
        "images": f"{one.count:,}" if one.count else catalogue.UNKNOWN,
        "size": one.resolution,
        "train": one.train,
        "benchmark": one.benchmark,
        "paper": one.cite,
        "licence": one.licence,
        "page": one.url,
        "archives": ", ".join(
            f"{archive.file_name} ({'digest declared' if archive.has_digest else 'no digest declared'})"
            for archive in one.archives
        ),
        "to get it": one.obtain,
        "status": _status(one, data),
    }
    shown = {name: value if name == "to get it" else printable(value) for name, value in fields.items()}
    return redact("\n".join([printable(one.name), *(f"  {name:10}{value}" for name, value in shown.items() if value)]))


def benchmark(protocol: Protocol, data: Path) -> str:
    """Describe one benchmark: its sets, and which are in the data folder."""
    one = protocol.benchmark
    lines = [
        f"{one.name}: {one.title}" + (f" ({one.cite})" if one.cite else ""),
        f"  ID   {one.id}: {_status(protocol.id, data)}",
    ]
    lines += [f"  {group or 'OOD':4} {ood.name}: {_status(ood, data)}" for ood, group in protocol.ood]
    if one.calibration:
        lines.append(f"  calibration  {one.calibration}: {_status(catalogue.dataset(one.calibration), data)}")
    if one.encoder:
        lines.append(f"  encoder      {one.encoder}, unless --encoder or the methods' weights select another")
    return "\n".join(lines)


def store(folder: Store) -> str:
    """List the entries of a store by kind, with their number and size, and the total size."""
    totals: dict[str, tuple[int, int]] = {}
    for entry in folder.entries():
        n, size = totals.get(entry.kind, (0, 0))
        totals[entry.kind] = (n + 1, size + entry.bytes)
    rows = [(kind, f"{n:,}", bytes_text(size)) for kind, (n, size) in sorted(totals.items())]
    total = bytes_text(sum(size for _, size in totals.values()))
    return f"{_table([('kind', 'entries', 'size'), *rows])}\n\n{folder.root}: {total}"


def bytes_text(n: int) -> str:
    """Return a number of bytes as text: 12.3 MB."""
    for unit, size in reversed(_UNITS.items()):
        if n >= size:
            return f"{n / size:.1f} {unit}" if unit != "B" else f"{n} B"
    return "0 B"


def parse_bytes(text: str) -> int:
    """Parse a size: `20GB` is 20,000,000,000. Raise UserError for any other text."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?B?)\s*", text, re.IGNORECASE)
    if not match or len(match[1]) > 300:  # longer than any float
        raise UserError(f"cannot read the size '{text[:40]}'; write 500MB or 20GB")
    unit = match[2].upper()
    return int(Decimal(match[1]) * _UNITS[unit if unit.endswith("B") else f"{unit}B"])


def _path(one: Dataset) -> str:
    """Return the path in the declaration of a dataset; "" if it is embedded or a part of other datasets."""
    if one.within or one.parts or one.loader == "glyphs":
        return ""
    own = not one.declared or one.path.startswith("/") or is_url(one.path) or one.loader == "hf"
    return one.path if own else f"$OODBENCH_DATA/{one.path}"


def _status(one: Dataset, data: Path) -> str:
    """Return "found", "not found" or another state of a dataset in the data folder."""
    if one.loader == "glyphs":
        return "embedded"
    if one.within:
        return (
            _status(catalogue.dataset(one.within), data)
            if not one.list or find_list(one, data).is_file()
            else "no list"
        )
    if one.parts:
        states = [_status(catalogue.dataset(name), data) for name in one.parts]
        return next((state for state in states if state != "found"), "found")
    place = find_place(one, data).dataset
    if one.loader not in ("tar", "hf") and not (place and os.path.exists(place.folder(data))):
        return "not found"
    if one.loader == "tar":
        from oodbench.data.loaders.tar import expand_pattern

        try:
            shards = expand_pattern(str(one.folder(data)))
            return "found" if all(os.path.isfile(path) for path in shards) else "not found"
        except UserError:
            return "not found"
    bound = " (bound)" if one.name in bindings() else ""
    return f"found{bound}" if not one.list or find_list(one, data).is_file() else "no list"


def _table(rows: Iterable[tuple[str, ...]], width: int | None = None) -> str:
    """Format columns as plain text, shortened to the width if one is given."""
    lines = [tuple(map(printable, row)) for row in rows]
    lines = lines if width is None else help.cut(lines, width)
    head = lines[0]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines)
