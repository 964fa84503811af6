"""The table in a terminal: digits are aligned, with or without signs after them."""

from __future__ import annotations

import io
import itertools
import random
import re
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from oodbench.report import console
from oodbench.report.tables.table import DASH, Cell, Column, ColumnGroup, Table, TableLine

PAIR = (Column("AUROC", 1, "auroc"), Column("FPR95", -1, "fpr95"))


def cell(text: str, extra: str = "", *, not_significantly_different: bool = False, mark: str = "") -> Cell:
    return Cell(None if text == DASH else float(text), text, mark, extra, not_significantly_different)


def printed(table: Table, width: int = 160, **terminal: Any) -> list[str]:
    """The lines of a table as a file has them, or as a terminal shows them, without the codes of its styles."""
    out = io.StringIO()
    Console(width=width, file=out, **terminal).print(console(table))
    return re.sub(r"\x1b\[[\d;]*m", "", out.getvalue()).splitlines()


TERMINAL = {"force_terminal": True, "color_system": "standard", "no_color": False}


def ends(line: TableLine, lines: list[str]) -> list[int]:
    """Terminal column at which each number of a line ends."""
    (found,) = [text for text in lines if text.startswith(f"{line.name} ")]
    numbers = re.finditer(r"(?<= )([+-]?\d+\.\d+|-)(?=[†!*+ ]|$)", found)
    return [cell_len(found[: number.end()]) for number in numbers]


@pytest.mark.parametrize("daggers", list(itertools.product((False, True), repeat=4)))
def test_digits_are_aligned_with_daggers(daggers: tuple[bool, ...]) -> None:
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
    assert any("99.10*" in one for one in text) and any("6.11!" in one for one in text)
    places = [ends(line, text) for line in lines]
    assert all(len(found) == 5 for found in places), text
    assert len({tuple(found) for found in places}) == 1, "\n".join(text)


@pytest.mark.parametrize("kind", ["± {:.2f}", "[{:.2f}, 99.99]"])
def test_digits_are_aligned_with_intervals(kind: str) -> None:
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


def test_headings_are_aligned_with_the_widest_number() -> None:
    lines = (
        TableLine("ours", ((cell("93.10", not_significantly_different=True), cell("5.20")),), None),
        TableLine("b", ((cell("9.10"), cell("5.20")),), None),
    )
    text = printed(Table("title", (), (ColumnGroup("SUN", PAIR),), lines, ()))
    head = next(t for t in text if "AUROC" in t)
    ours = next(t for t in text if t.startswith("ours"))
    assert head.index("↑") == ours.index("†") and head.index("↓") == ours.rindex("0")


def drawn(seed: int) -> Table:
    """A table with near and far sets whose cells have any marks, daggers and deviations."""
    numbers = random.Random(seed)

    def any_cell() -> Cell:
        mark = numbers.choice(["", "", "best", "second"])
        extra = numbers.choice(["", f"± {numbers.uniform(0, 20):.2f}"])
        text = numbers.choice([DASH, *(f"{numbers.uniform(0, 100):.2f}" for _ in range(5))])
        return cell(text, extra, not_significantly_different=numbers.random() < 0.3, mark=mark)

    groups = tuple(ColumnGroup(f"S{i}", PAIR, "near" if i < 2 else "far") for i in range(4))
    groups += (
        ColumnGroup("Average", PAIR),
        ColumnGroup("ID", (Column("Acc.", 1),)),
        ColumnGroup("", (Column("Seconds"),)),
    )
    lines = (tuple(tuple(any_cell() for _ in group.columns) for group in groups) for _ in range(6))
    return Table("title", (), groups, tuple(TableLine(f"m{i}", found, None) for i, found in enumerate(lines)), ())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("width", [70, 120, 200])
@pytest.mark.parametrize("terminal", [{}, TERMINAL], ids=["file", "terminal"])
def test_digits_are_aligned_in_every_panel(seed: int, width: int, terminal: dict[str, Any]) -> None:
    table = drawn(seed)
    text = printed(table, width, **terminal)
    assert max(map(cell_len, text)) <= width
    places: dict[str, list[list[int]]] = {line.name: [] for line in table.lines}
    for one in text:
        if (name := one.partition(" ")[0]) in places:
            alone = re.sub(r"± +[\d.]+", lambda extra: " " * len(extra[0]), one)
            places[name].append([number.end() for number in re.finditer(r"(?<= )(\d+\.\d+|-)(?=[†!*+ ]|$)", alone)])
    assert all(one == places["m0"] for one in places.values()), "\n".join(text)
    assert sum(map(len, places["m0"])) == 12


MARKED = Table(
    "title",
    (),
    (ColumnGroup("SUN", PAIR),),
    (
        TableLine(
            "a", ((cell("93.10", mark="best"), cell("5.20", mark="second", not_significantly_different=True)),), None
        ),
        TableLine("b", ((cell("9.10", mark="second"), cell("3.00", mark="best")),), None),
    ),
    (),
)


@pytest.mark.parametrize(
    ("terminal", "environment", "signs"),
    [
        ({}, {}, True),  # a file or a pipe
        ({"force_terminal": True}, {"TERM": "xterm-256color"}, False),
        ({"force_terminal": True}, {"TERM": "xterm", "NO_COLOR": "1"}, True),
        ({"force_terminal": True}, {"TERM": "dumb"}, True),
        ({}, {"TERM": "xterm", "FORCE_COLOR": "1"}, False),
    ],
)
def test_the_best_has_a_sign_without_bold(
    terminal: dict[str, Any], environment: dict[str, str], signs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TERM", "COLORTERM", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    text = "\n".join(printed(MARKED, **terminal))
    assert ("Best: *, second: +." in text) == signs == ("93.10*" in text) == ("5.20+†" in text)
    assert ("Best in bold, second underlined." in text) != signs


@pytest.mark.parametrize(
    ("groups", "columns", "heads"),
    [
        (["near", "near", ""], PAIR, "Near OOD ────  ─────────────"),
        (["near", "far", ""], PAIR, "Near OOD ────  Far OOD ─────"),
        (["far"], PAIR[:1], "Far OOD"),
        (["near", "far"], PAIR[:1], "Near OOD  Far OOD"),
        (["", ""], PAIR, ""),
    ],
)
def test_near_and_far_are_named_above_their_sets(groups: list[str], columns: tuple[Column, ...], heads: str) -> None:
    column_groups = tuple(ColumnGroup(f"S{i}", columns, group) for i, group in enumerate(groups))
    cells = tuple(tuple(cell("90.00") for _ in columns) for _ in groups)
    text = printed(Table("title", (), column_groups, (TableLine("ours", cells, None),), ()))
    above = text[text.index(next(one for one in text if "S0" in one)) - 1].strip()
    assert above == heads


def test_every_panel_names_near_and_far() -> None:
    text = printed(drawn(1), 62)
    heads = [i for i, one in enumerate(text) if re.search(r"\bS\d\b", one)]
    assert len(heads) > 1
    for i in heads:
        named = {"Near" if number in "01" else "Far" for number in re.findall(r"\bS(\d)", text[i])}
        assert set(re.findall("Near|Far", text[i - 1])) == named


def test_ascii_suffices() -> None:
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="replace")
    Console(width=200, file=out).print(console(drawn(2)))
    out.flush()
    head, *lines = out.buffer.getvalue().decode("ascii").partition("Best: *, second: +")
    assert "Near OOD --" in head and "+- " in head and lines
    assert head.count("?") == sum(c.not_significantly_different for c in drawn(2).cells)  # the daggers alone


def test_headings_are_text_and_as_wide_as_they_are_shown() -> None:
    groups = tuple(ColumnGroup("集", (Column("識別率の平均", 1),), "近い") for _ in range(2))
    lines = printed(Table("t", (), groups, (TableLine("ours", ((cell("93.10"),),) * 2, None),), (), first="[/b]"))
    assert any(line.startswith("[/b]") for line in lines)
    rule = next(line for line in lines if set(line) == {"─"})
    assert max(map(cell_len, lines)) == len(rule) and "近い OOD ─" in "\n".join(lines)
    assert sum(line.count("識別率の平均↑") for line in lines) == 2  # none is folded
