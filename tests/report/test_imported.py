"""Imported results in tables with others: unknown facts are not assumed."""

from __future__ import annotations

import dataclasses
from typing import Any

import oodbench.report as report
from oodbench.method import Access
from oodbench.report.options import TableOptions
from oodbench.results import Result
from tests.report.test_report_shapes import ood, row


def imported(method: str, *values: float, access: Access | None = None, **changes: Any) -> Result:
    """An imported row with some AUROCs."""
    made = row(method, *(ood(name, value, 0.2) for name, value in zip(("sun", "dtd"), values, strict=True)))
    run = {**made.run, "imported": {"files": {}, "by": ""}, **changes.pop("run", {})}
    found = dataclasses.replace(made, run=run, access=access.plain() if access else {})
    return dataclasses.replace(found, **changes)


def test_imports_that_saw_different_data_are_not_averaged() -> None:
    seen = Access(id_images=True, id_labels=16)
    pair = [
        imported("mine", 0.8, 0.8, access=Access(), run={"seed": 0}),
        imported("mine", 0.9, 0.9, access=seen, run={"seed": 1}),
    ]
    (table,) = report.tables(pair, TableOptions(seeds=True))
    assert [line.section for line in table.lines] == ["Zero-shot", "Few-shot"]
    same = [dataclasses.replace(one, access=Access().plain()) for one in pair]
    (table,) = report.tables(same, TableOptions(seeds=True))
    assert len(table.lines) == 1 and table.lines[0].cells[0][0].text == "85.00"


def test_imports_of_streams_are_not_ranked() -> None:
    pair = [imported(name, value, value, access=Access(stream=True)) for name, value in (("a", 0.8), ("b", 0.9))]
    (table,) = report.tables(pair)
    assert not any(cell.mark for line in table.lines for group in line.cells for cell in group)
    (ranked,) = report.tables([dataclasses.replace(one, access=Access().plain()) for one in pair])
    assert any(cell.mark for line in ranked.lines for group in line.cells for cell in group)


def test_partial_sets_of_equal_size_may_differ() -> None:
    def part(one: Result, digest: str) -> Result:
        sets = tuple(dataclasses.replace(x, n=40, expected=100, list_digest=digest) for x in one.ood)
        id = dataclasses.replace(one.id, n=40, expected=100, list_digest=digest)
        return dataclasses.replace(one, ood=sets, id=id)

    measured = part(row("mcm", ood("sun", 0.8, 0.2), ood("dtd", 0.8, 0.2)), "a")
    assert len(report.tables([measured, part(imported("mine", 0.9, 0.9, access=Access()), "")])) == 2  # without names
    assert len(report.tables([measured, part(imported("mine", 0.9, 0.9, access=Access()), "a")])) == 1


def test_an_import_does_not_hide_that_a_method_failed() -> None:
    failed = dataclasses.replace(row("knn", status="failed", error="out of memory", ood=()), created="2026-01-01")
    later = imported("knn", 0.9, 0.9, access=Access(id_images=True), created="2026-01-02")
    other = row("mcm", ood("sun", 0.8, 0.2), ood("dtd", 0.8, 0.2))
    lines = [line.name for table in report.tables([other, failed, later]) for line in table.lines]
    assert len([name for name in lines if name.lower().startswith("knn")]) == 2
