"""oodbench diff."""

from __future__ import annotations

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from oodbench.cli.help import Command, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import say
from oodbench.errors import UserError
from oodbench.results import METRICS
from oodbench.storage.files import expand

if TYPE_CHECKING:
    from oodbench.report.diff import Cell, Diff, Pair

_POINTS = (*METRICS, "accuracy", "tied")  # printed in percent


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench diff results/runs/mos/ViT-B-16-openai/mcm.json theirs/mcm.json",
        "oodbench diff results theirs",
    ),
)
@click.argument("a", type=FOLDER)
@click.argument("b", type=FOLDER)
@click.option(
    "--cells", default=10, help="Numbers shown per pair of results, the largest difference first.", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="JSON, with all numbers and facts in full.")
def diff(a: Path, b: Path, cells: int, as_json: bool) -> None:
    """Compare two results of one method.

    Print which numbers of A and B differ and by how much, and which facts, such as versions, differ.

    If A and B are folders, results with the same benchmark, method (with its hyper-parameters), encoder and seed are
    compared, the largest difference first; results that only one folder has are listed. Exit code 0 if all numbers are
    equal in all digits, else 1.
    """
    from oodbench.report import diff as comparison

    if cells < 0:
        raise UserError(f"--cells must be at least 0, not {cells}")
    found = comparison.diff(expand(a), expand(b))
    say(json.dumps(_plain(found), indent=1) if as_json else "\n".join(_lines(found, cells)))
    sys.exit(0 if found.equal else 1)


def _lines(found: Diff, cells: int) -> Iterator[str]:
    names = Counter(pair.name for pair in found.pairs)
    for pair in found.pairs:
        yield from _pair(pair, cells, with_paths=names[pair.name] > 1)
    for side, paths in (("A", found.only_a), ("B", found.only_b)):
        if paths:
            yield f"only in {side}:"
            yield from (f"  {path}" for path in paths)
    differing = sum(bool(pair.differing) for pair in found.pairs)
    alone = len(found.only_a) + len(found.only_b)
    if len(found.pairs) != 1 or alone:
        more = f"; {alone} more in only one of A and B" if alone else ""
        yield f"{len(found.pairs) - differing} of {len(found.pairs)} pairs of results are equal in all digits{more}"


def _pair(pair: Pair, cells: int, *, with_paths: bool) -> Iterator[str]:
    """Yield the lines on a pair: its numbers, then its facts; `with_paths`, its name is followed by its files."""
    from oodbench.report.diff import summary

    by = f", by up to {100 * pair.worst:.2g} points" if 0 < pair.worst < math.inf else ""
    differ = f"{len(pair.differing)} of {pair.cells} numbers differ{by}"
    files = f" ({pair.paths[0]} and {pair.paths[1]})" if with_paths else ""
    yield f"{pair.name}{files}: {differ if pair.differing else f'{pair.cells} numbers, equal in all digits'}"
    kept = pair.differing[:cells]
    if kept:
        yield from _columns([("", "number", "A", "B", "B - A"), *(("", *_cell(cell)) for cell in kept)])
    if len(pair.differing) > len(kept):
        yield f"  and {len(pair.differing) - len(kept)} more; --cells {len(pair.differing)} shows all"
    if pair.facts:
        yield f"  facts that differ{'' if pair.differing else ', without effect'}:"
        yield from _columns([("", "fact", "A", "B"), *(("", f.name, f.a, f.b) for f in summary(pair.facts))])
    elif pair.differing:
        yield "  no fact differs"


def _cell(cell: Cell) -> tuple[str, ...]:
    percent = any(word in _POINTS for word in re.split(r"[ .]", cell.name))
    scale, form = (100, ".6f") if percent else (1, "g")

    def text(value: float | None, form: str = form) -> str:
        return "-" if value is None or math.isnan(value) else f"{scale * value:{form}}"

    tiny = abs(cell.difference) < 1e-7  # which six decimals of a percentage do not show
    return (
        f"{cell.place} {cell.name}",
        text(cell.a),
        text(cell.b),
        text(cell.difference, "+.1e" if tiny else f"+{form}"),
    )


def _columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield lines with aligned columns; the first column is the indent."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _plain(found: Diff) -> dict[str, Any]:
    """Return what --json prints; a number that one side lacks is null."""
    pairs = [
        {
            "name": pair.name,
            "a": str(pair.paths[0]),
            "b": str(pair.paths[1]),
            "numbers": pair.cells,
            "differing": [
                {**asdict(cell), "difference": None if math.isnan(cell.difference) else cell.difference}
                for cell in pair.differing
            ],
            "facts": [asdict(fact) for fact in pair.facts],
        }
        for pair in found.pairs
    ]
    only = {"only_a": list(map(str, found.only_a)), "only_b": list(map(str, found.only_b))}
    return {"equal": found.equal, "pairs": pairs, **only}
