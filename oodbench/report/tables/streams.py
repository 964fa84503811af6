"""Streams in tables: the protocol of each line, the caption that states it, and parts of streams by position."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from oodbench.report.options import TableOptions
from oodbench.results import METRICS, Result

TITLE = "test-time adaptation"
WITHIN = " among rows of the same protocol"
PARTS = {"first": "first 1,000 images of each stream", "rest": "images after the first 1,000 of each stream"}
MEASURED = ("auroc", "fpr95", "fpr95_ood")  # metrics of parts
_ORDERS = ("shuffled", "id-first", "ood-first")
_ALL = "ID:OOD all"
_STATED = ("batch", "ratio", "reset", "seeds")  # in names if they differ within a table
UNTESTED = (
    "Not tested for significance: numbers are averages over streams, and ID images have other scores with each OOD set."
)


def stream_options(options: TableOptions, part: str = "") -> TableOptions:
    """Return the options of a table of streams: by default both kinds of FPR95; intervals as ranges, next to ±."""
    metrics = options.metrics
    if options.default_metrics:
        metrics = tuple(m for name in metrics for m in ((name, "fpr95_ood") if name == "fpr95" else (name,)))
    if part:
        metrics = tuple(m for m in metrics if m in MEASURED)
    sort = options.sort_metric  # the parts have the same lines in the same order
    return replace(options, metrics=metrics, sort=sort, intervals="range" if options.intervals and not part else "")


def part_of(row: Result, part: str) -> Result:
    """Return a result with the metrics of a part of each stream, NaN if the part has only ID or only OOD images."""
    sets = []
    for one in row.ood:
        known = one.stream.get(part) or {}
        found: dict[str, Any] = {m: math.nan if known.get(m) is None else known[m] for m in METRICS}
        sets.append(replace(one, **found, intervals={}))
    return replace(row, ood=tuple(sets), mean_intervals={})


def order_key(row: Result) -> tuple[int, str, str, str, str]:
    """Return the sort key of a stream within a method: shuffled first, blocks last, seeds ascending."""
    order, batch, ratio, seed = (str(row.stream.get(name, "")) for name in ("order", "batch", "ratio", "seed"))
    rank = _ORDERS.index(order) if order in _ORDERS else len(_ORDERS)
    return rank, f"{order:>20}", f"{batch:>12}", ratio, f"{seed:>12}"


def protocol(rows: Sequence[Result]) -> dict[str, str]:
    """Return the printed protocol of the streams of one line, by name."""
    stream = rows[0].stream
    seeds = list(dict.fromkeys(str(row.stream.get("seed")) for row in rows))
    return {
        "order": str(stream.get("order")),
        "batch": f"batch {stream.get('batch')}",
        "ratio": f"ID:OOD {stream.get('ratio')}",
        "reset": f"reset for each {stream.get('reset')}",
        "seeds": f"stream seeds {', '.join(seeds[:-1])} and {seeds[-1]}"
        if len(seeds) > 1
        else f"stream seed {seeds[0]}",
    }


def differing(lines: Sequence[Sequence[Result]]) -> list[str]:
    """Return, for each line, the parts of its protocol that differ within the table, except the order: `, batch 64`."""
    protocols = [protocol(rows) for rows in lines]
    names = [name for name in _STATED if len({one[name] for one in protocols}) > 1]
    return ["".join(f", {one[name]}" for name in names) for one in protocols]


def protocol_caption(lines: Sequence[Sequence[Result]]) -> list[str]:
    """Return sentences on the protocol of a table's streams, and on ± if a line has several seeds."""
    protocols = [protocol(rows) for rows in lines]
    first = protocols[0]
    values = {name: {one[name] for one in protocols} for name in first}
    varying = [name for name, found in values.items() if len(found) > 1]
    parts = [f"order {first['order']}"] if "order" not in varying else []
    parts += [first[name] for name in _STATED if name not in varying and first[name] != _ALL]
    *most, last = varying or [""]
    named = f"; {', '.join(most)}{' and ' if most else ''}{last} as in the names" if varying else ""
    images = f"{'all ' if values['ratio'] == {_ALL} else ''}images of the ID set and of one OOD set"
    precision = lines[0][0].run.get("precision", "unknown")
    out = [f"Streams: {', '.join([images, *parts, f'precision {precision}'])}{named}."]
    several = any(len(rows) > 1 for rows in lines)
    return [*out, "Averages over seeds, ±: sample standard deviation, if it does not round to 0."] if several else out


def sizes_note(rows: Iterable[Result]) -> list[str]:
    """Return notes on the numbers of images in streams with a given ID:OOD ratio."""
    found: dict[str, dict[str, str]] = {}
    for row in rows:
        ratio = str(row.stream.get("ratio", "all"))
        for one in row.ood if ratio != "all" else ():
            found.setdefault(ratio, {})[one.title] = f"{one.stream.get('n_id', 0):,} + {one.n:,}"
    return [
        f"ID + OOD images with ID:OOD {ratio}: {', '.join(f'{title} {n}' for title, n in sizes.items())}."
        for ratio, sizes in found.items()
    ]


def itself_note(rows: Iterable[Result]) -> list[str]:
    """Return a footnote on methods that may learn from an image before they score it."""
    names = dict.fromkeys(row.title or row.method for row in rows if row.stream.get("sees_itself"))
    return [f"May learn from an image before scoring it: {', '.join(names)}."] if names else []
