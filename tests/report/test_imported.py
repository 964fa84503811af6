"""Imported results in tables with others: unknown facts are not assumed."""

from __future__ import annotations

import dataclasses
from typing import Any

import oodbench.report as report
from oodbench.method import Access
from oodbench.report.options import TableOptions
from oodbench.report.tables import grouping
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


def test_partial_sets_of_two_imports_are_not_compared_if_the_images_are_unknown() -> None:
    def part(one: Result, digest: str) -> Result:
        sets = tuple(dataclasses.replace(x, n=40, expected=100, list_digest=digest) for x in one.ood)
        return dataclasses.replace(one, ood=sets)

    pair = [imported(name, value, value, access=Access()) for name, value in (("a", 0.8), ("b", 0.9))]
    assert len(report.tables([part(one, "") for one in pair])) == 2
    assert len(report.tables([part(one, "known") for one in pair])) == 1
    whole = [
        dataclasses.replace(one, ood=tuple(dataclasses.replace(x, list_digest="") for x in one.ood)) for one in pair
    ]
    assert len(report.tables(whole)) == 1


def test_seeds_of_two_labs_are_not_averaged() -> None:
    found = [
        imported("mine", value, value, access=Access(), run={"seed": seed, "imported": {"by": by}})
        for by, seed, value in (("Doe", 0, 0.8), ("Doe", 1, 0.9), ("Roe", 0, 0.5), ("Roe", 1, 0.5))
    ]
    (table,) = report.tables(found, TableOptions(seeds=True))
    assert [(line.name, line.cells[0][0].text) for line in table.lines] == [
        ("MINE (by Doe), 2 seeds", "85.00"),
        ("MINE (by Roe), 2 seeds", "50.00"),
    ]


def test_headings_state_no_facts_that_only_imports_lack() -> None:
    measured = row("mcm", ood("sun", 0.8, 0.2), ood("dtd", 0.8, 0.2))
    other = imported("mine", 0.9, 0.9, access=Access(), conventions={"at95": "nearest"}, classes={})
    other = dataclasses.replace(other, encoder={k: v for k, v in other.encoder.items() if k != "weights"})
    assert [group.differences for group in grouping.group([measured, other])] == [("at95 first",), ("at95 nearest",)]
    bf16 = dataclasses.replace(measured, run={**measured.run, "precision": "bf16"})
    found = [group.differences for group in grouping.group([measured, bf16, other])]
    assert found[:2] == [("precision fp32", "at95 first"), ("precision bf16", "at95 first")]


def test_an_import_does_not_hide_that_a_method_failed() -> None:
    failed = dataclasses.replace(row("knn", status="failed", error="out of memory", ood=()), created="2026-01-01")
    later = imported("knn", 0.9, 0.9, access=Access(id_images=True), created="2026-01-02")
    other = row("mcm", ood("sun", 0.8, 0.2), ood("dtd", 0.8, 0.2))
    lines = [line.name for table in report.tables([other, failed, later]) for line in table.lines]
    assert len([name for name in lines if name.lower().startswith("knn")]) == 2
