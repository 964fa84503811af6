"""The table in a terminal: digits stand under digits, whatever follows them."""

from __future__ import annotations

import io
import itertools
import re

import pytest
from rich.cells import cell_len
from rich.console import Console

from oodbench.report import console
from oodbench.report.tables.table import DASH, Block, Cell, Column, Line, Table

PAIR = (Column("AUROC", 1, "auroc"), Column("FPR95", -1, "fpr95"))


def cell(text: str, extra: str = "", *, alike: bool = False, mark: str = "") -> Cell:
    return Cell(None if text == DASH else float(text), text, mark, extra, alike)


def printed(table: Table, width: int = 160) -> list[str]:
    out = io.StringIO()
    Console(width=width, file=out, color_system=None).print(console(table))
    return out.getvalue().splitlines()


def ends(line: Line, lines: list[str]) -> list[int]:
    """Terminal column at which each number of a line ends."""
    (found,) = [text for text in lines if text.startswith(f"{line.name} ")]
    numbers = re.finditer(r"(?<= )([+-]?\d+\.\d+|-)(?=[†! ]|$)", found)
    return [cell_len(found[: number.end()]) for number in numbers]


@pytest.mark.parametrize("alike", list(itertools.product((False, True), repeat=4)))
def test_digits_stand_under_digits_where_some_have_a_dagger(alike: tuple[bool, ...]) -> None:
    blocks = (Block("SUN", PAIR), Block("Far away", PAIR, stamp="partial 3/4"), Block("ID", (Column("Acc.", 1),)))
    a, b, c, d = alike
    lines = (
        Line(
            "ours",
            ((cell("93.10", alike=a), cell("5.20", alike=b)), (cell("9.99", alike=c), cell("100.00")), (cell("1.00"),)),
            None,
        ),
        Line(
            "theirs",
            (
                (cell("100.00"), cell("15.20", alike=d)),
                (cell("99.10", mark="best"), cell("0.00", alike=a)),
                (cell("66.67"),),
            ),
            None,
        ),
        Line("failed", ((cell(DASH), cell(DASH)), (cell(DASH), cell(DASH)), (cell(DASH),)), None),
        Line(
            "quoted",
            ((cell("93.10"), cell(DASH)), (cell(DASH), cell("3.00")), (cell(DASH),)),
            None,
            "Quoted, not run here",
        ),
        Line(
            "difference",
            ((cell("-0.10"), cell("+6.11", mark="beyond")), (cell(DASH), cell("+0.00")), (cell("-3.00"),)),
            None,
        ),
        Line(
            "雪豹",
            ((cell("93.10", alike=b), cell("5.20")), (cell("9.99"), cell("7.00", alike=d)), (cell("1.00"),)),
            None,
        ),
    )
    table = Table("title", (), blocks, lines, ())
    text = printed(table)
    places = [ends(line, text) for line in lines]
    assert all(len(found) == 5 for found in places), text
    assert len({tuple(found) for found in places}) == 1, "\n".join(text)


@pytest.mark.parametrize("kind", ["± {:.2f}", "[{:.2f}, 99.99]"])
def test_digits_stand_under_digits_where_intervals_follow(kind: str) -> None:
    values = [("93.10", 0.5, True), ("100.00", 12.5, False), ("9.99", 3.0, False)]
    lines = tuple(
        Line(f"m{i}", ((cell(text, kind.format(half), alike=alike), cell("1.00")),), None)
        for i, (text, half, alike) in enumerate(values)
    )
    lines += (Line("none", ((cell("5.00"), cell("2.00")),), None),)
    text = printed(Table("title", (), (Block("SUN", PAIR),), lines, ()))
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
        Line("ours", ((cell("93.10", alike=True), cell("5.20")),), None),
        Line("b", ((cell("9.10"), cell("5.20")),), None),
    )
    text = printed(Table("title", (), (Block("SUN", PAIR),), lines, ()))
    head = next(t for t in text if "AUROC" in t)
    ours = next(t for t in text if t.startswith("ours"))
    assert head.index("↑") == ours.index("†") and head.index("↓") == ours.rindex("0")
