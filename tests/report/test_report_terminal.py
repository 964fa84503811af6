"""The table in a terminal: digits stand under digits, whatever follows them."""

from __future__ import annotations

import io
import itertools
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from oodbench.report import console
from oodbench.report.tables.table import DASH, Cell, Column, ColumnGroup, Table, TableLine

PAIR = (Column("AUROC", 1, "auroc"), Column("FPR95", -1, "fpr95"))


def cell(text: str, extra: str = "", *, not_significantly_different: bool = False, mark: str = "") -> Cell:
    return Cell(None if text == DASH else float(text), text, mark, extra, not_significantly_different)


def printed(table: Table, width: int = 160) -> list[str]:
    out = io.StringIO()
    Console(width=width, file=out, color_system=None).print(console(table))
    return out.getvalue().splitlines()


def ends(line: TableLine, lines: list[str]) -> list[int]:
    """Terminal column at which each number of a line ends."""
    (found,) = [text for text in lines if text.startswith(f"{line.name} ")]
    numbers = re.finditer(r"(?<= )([+-]?\d+\.\d+|-)(?=[†! ]|$)", found)
    return [cell_len(found[: number.end()]) for number in numbers]


@pytest.mark.parametrize("daggers", list(itertools.product((False, True), repeat=4)))
def test_digits_stand_under_digits_where_some_have_a_dagger(daggers: tuple[bool, ...]) -> None:
    column_groups = (
        ColumnGroup("SUN", PAIR),
        ColumnGroup("Far away", PAIR, partial="partial 3/4"),
        ColumnGroup("ID", (Column("Acc.", 1),)),
    )
    a, b, c, d = daggers
    lines = (
        TableLine(
            "ours",
            (
                (cell("93.10", not_significantly_different=a), cell("5.20", not_significantly_different=b)),
                (cell("9.99", not_significantly_different=c), cell("100.00")),
                (cell("1.00"),),
            ),
            None,
        ),
        TableLine(
            "theirs",
            (
                (cell("100.00"), cell("15.20", not_significantly_different=d)),
                (cell("99.10", mark="best"), cell("0.00", not_significantly_different=a)),
                (cell("66.67"),),
            ),
            None,
        ),
        TableLine("failed", ((cell(DASH), cell(DASH)), (cell(DASH), cell(DASH)), (cell(DASH),)), None),
        TableLine(
            "quoted",
            ((cell("93.10"), cell(DASH)), (cell(DASH), cell("3.00")), (cell(DASH),)),
            None,
            "Quoted, not run here",
        ),
        TableLine(
            "difference",
            ((cell("-0.10"), cell("+6.11", mark="exceeds")), (cell(DASH), cell("+0.00")), (cell("-3.00"),)),
            None,
        ),
        TableLine(
            "雪豹",
            (
                (cell("93.10", not_significantly_different=b), cell("5.20")),
                (cell("9.99"), cell("7.00", not_significantly_different=d)),
                (cell("1.00"),),
            ),
            None,
        ),
    )
    table = Table("title", (), column_groups, lines, ())
    text = printed(table)
    places = [ends(line, text) for line in lines]
    assert all(len(found) == 5 for found in places), text
    assert len({tuple(found) for found in places}) == 1, "\n".join(text)


@pytest.mark.parametrize("kind", ["± {:.2f}", "[{:.2f}, 99.99]"])
def test_digits_stand_under_digits_where_intervals_follow(kind: str) -> None:
    values = [("93.10", 0.5, True), ("100.00", 12.5, False), ("9.99", 3.0, False)]
    lines = tuple(
        TableLine(f"m{i}", ((cell(text, kind.format(half), not_significantly_different=alike), cell("1.00")),), None)
        for i, (text, half, alike) in enumerate(values)
    )
    lines += (TableLine("none", ((cell("5.00"), cell("2.00")),), None),)
    text = printed(Table("title", (), (ColumnGroup("SUN", PAIR),), lines, ()))
    rows = [next(t for t in text if t.startswith(f"{line.name} ")) for line in lines]
    first = {
        row.index(line.cells[0][0].text) + len(line.cells[0][0].text) for row, line in zip(rows, lines, strict=True)
    }
    last = {len(row.rstrip()) for row in rows}
    assert len(first) == len(last) == 1, "\n".join(text)
    if kind.startswith("±"):
        ends_of_halves = {
            row.index(f" {half:.2f}") + len(f" {half:.2f}") for row, (_, half, _) in zip(rows, values, strict=False)
        }
        assert len({row.index("±") for row in rows[:3]}) == len(ends_of_halves) == 1


def test_headings_end_where_their_widest_number_may() -> None:
    lines = (
        TableLine("ours", ((cell("93.10", not_significantly_different=True), cell("5.20")),), None),
        TableLine("b", ((cell("9.10"), cell("5.20")),), None),
    )
    text = printed(Table("title", (), (ColumnGroup("SUN", PAIR),), lines, ()))
    head = next(t for t in text if "AUROC" in t)
    ours = next(t for t in text if t.startswith("ours"))
    assert head.index("↑") == ours.index("†") and head.index("↓") == ours.rindex("0")
