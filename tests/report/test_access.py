"""Access of methods in tables: groups, marks within them, notes, and the columns of CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest

import oodbench.report as report
from oodbench.method import Access, registry
from oodbench.report.options import TableOptions
from oodbench.report.tables.access import access_problem, card
from oodbench.report.tables.published import quote, with_quotes
from oodbench.results import Result, from_json, read
from tests.report.test_report_published import row

HEADINGS = ["Zero-shot", "Uses ID images", "Trained", "Few-shot", "Test-time adaptation", "Access not known"]
CARDS = (
    Access(stream=True, id_labels=4),
    Access(id_images=True, id_labels=16, other_data=True),
    Access(generated=True, id_images=True),
    Access(other_data=True),
    Access(id_images=True),
    Access(id_labels="all"),
    Access(lm_words=True, test_gradient=True, ood_validation=True, knows_ood_kind=True),
    Access(),
)


def result(name: str, value: float, seen: Access | None = None, **changes: Any) -> Result:
    return row(name, (value,) * 4, access=seen.plain() if seen else {}, **changes)


def marks(table: report.Table, metric: int = 0) -> dict[str, str]:
    return {line.name: line.cells[4][metric].mark for line in table.lines}


def test_lines_are_in_the_first_matching_group() -> None:
    rows = [result(f"m{place}", 0.9, seen) for place, seen in enumerate(CARDS)]
    (table,) = report.tables([result("gone", 0.9), *rows])
    assert [(line.section, line.name) for line in table.lines] == [
        *(("Zero-shot", "M6"), ("Zero-shot", "M7"), ("Uses ID images", "M4"), ("Uses ID images", "M5")),
        *(("Trained", "M2"), ("Trained", "M3"), ("Few-shot", "M1"), ("Test-time adaptation", "M0")),
        ("Access not known", "GONE"),
    ]


def test_best_and_second_are_marked_within_a_group_only() -> None:
    few = Access(id_images=True, id_labels=16)
    zero = [result("a", 0.8), result("b", 0.7), result("c", 0.6)]
    zero = [dataclasses.replace(one, access=Access().plain()) for one in zero]
    rows = [result("p", 0.99, few), *zero, result("q", 0.98, few), result("t", 0.995, Access(stream=True))]
    (table,) = report.tables(rows)
    expected = {"A": "best", "B": "second", "C": "", "P": "best", "Q": "second", "T": ""}  # T is alone
    assert marks(table) == expected == marks(table, 1)
    for text in (report.markdown(table), report.latex(table)):
        assert "within each group" in text and all(heading in text for heading in ("Zero-shot", "Few-shot"))
    (one,) = report.tables(zero)
    assert [line.section for line in one.lines] == [""] * 3 and "within each group" not in report.markdown(one)
    (flat,) = report.tables(rows, TableOptions(group="none"))
    assert [line.name for line in flat.lines] == ["P", "A", "B", "C", "Q", "T"]
    assert set(marks(flat).values()) == {""} and "not marked among methods that see different data" in flat.caption[-1]
    assert marks(report.tables(zero, TableOptions(group="none"))[0]) == {"A": "best", "B": "second", "C": ""}
    trained = [*zero, result("w", 0.9, Access(other_data=True)), result("v", 0.95, Access(other_data=True))]
    (two,) = report.tables(trained, TableOptions(group="trained"))
    assert marks(two) == {"A": "best", "B": "second", "C": "", "W": "second", "V": "best"}
    mixed = report.tables([*trained, result("i", 0.97, Access(id_images=True))], TableOptions(group="trained"))[0]
    assert {
        line.name: line.cells[4][0].mark for line in mixed.lines if line.section == "Training-free"
    } == dict.fromkeys("ABCI", "")


def test_significance_is_tested_within_a_group() -> None:
    few = Access(id_images=True, id_labels=16).plain()
    rows = [result("a", 0.8, Access()), result("b", 0.7, Access())]
    rows += [dataclasses.replace(result(name, 0.9), access=few) for name in ("p", "q")]
    asked = []

    def test(found: Any, sets: Any) -> report.NotSignificantlyDifferent:
        asked.append([one.method for one in found])
        return report.NotSignificantlyDifferent()

    report.tables(rows, test=test)
    assert asked == [["a", "b"], ["p", "q"]]


def test_the_note_names_what_methods_see() -> None:
    rows = [result(f"m{place}", 0.9, seen) for place, seen in enumerate(CARDS)]
    (note,) = report.tables(rows)[0].footnotes
    assert note.startswith("Access in addition to class names and the image: ") and "M7" not in note
    for part in (
        "4 labelled ID images a class: M0",
        "16 labelled ID images a class: M1",
        "ID images: M4, M2",
        "ID labels: M5",
        "raining on captions or other data: M3, M1",
        "ords from a language model: M6",
        "gradient at test time: M6",
        "OOD validation images: M6",
        "nows the kind of OOD: M6",
        "generated images: M2",
        "est stream: M0",
    ):
        assert part in note, note
    for text in (report.markdown(report.tables(rows)[0]), report.latex(report.tables(rows)[0])):
        assert note in text
    assert not report.tables([rows[-1]])[0].footnotes


def test_an_older_row_takes_the_card_of_its_method() -> None:
    assert card(row("react", parameters={"threshold": None})) == Access(id_images=True)
    assert card(row("react", parameters={"threshold": 1.0})) == Access()
    assert card(row("clipn")) == card(row("gone", weights={"digest": "d"})) == Access(other_data=True)
    assert card(row("gone")) is None
    drawn = {"seed": 0, "calibration": {"labels": 4, "dataset": "x"}}
    assert card(row("mahalanobis", run=drawn)) == Access(id_images=True, id_labels=4)
    assert card(row("mahalanobis")) == Access(id_images=True, id_labels="all")
    old = json.loads(row("mcm").to_json())
    del old["access"]
    assert from_json(json.dumps(old)).access == {}


def test_the_digest_does_not_include_the_card() -> None:
    assert row("mcm").digest == row("mcm", access=Access(stream=True).plain()).digest


def test_an_edited_card_is_detected() -> None:
    react = registry.methods()["react"]
    changed = row("react", source=react.source, access=Access().plain())
    assert access_problem(changed).startswith("its access is Access(id_images=False")
    assert not access_problem(row("react", source=react.source, access=Access(id_images=True).plain()))
    assert access_problem(row("react", source="another version", access=Access().plain())), "it may not see less"
    assert not access_problem(
        row("react", source="another version", access=Access(id_labels="all", id_images=True).plain())
    )
    assert not access_problem(row("react", source=react.source)) and not access_problem(row("gone"))


def test_an_unreadable_card_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    (table,) = report.tables([row("mcm", access={"stream": "no"}), result("msp", 0.9, Access())])
    assert [line.section for line in table.lines] == ["Zero-shot", "Access not known"]
    assert "the access of mcm cannot be read: stream is True or False, not 'no'" in caplog.text


def test_csv_has_the_group_and_every_field() -> None:
    (table,) = report.tables([result("few", 0.9, Access(id_images=True, id_labels=16)), row("gone")])
    (table,) = with_quotes([table], [quote("tanl:paper")], TableOptions())
    lines = {line["name"]: line for line in csv.DictReader(io.StringIO(report.csv([table])))}
    few, gone, tanl = lines["FEW"], lines["GONE"], lines["TANL (quoted: paper; test-time adaptation)"]
    assert (few["access.group"], few["access.id_labels"], few["access.stream"]) == ("few-shot", "16", "False")
    assert (gone["access.group"], gone["access.id_labels"]) == ("access not known", "")
    assert (tanl["access.group"], tanl["access.stream"], tanl["mean.fpr95_ood"]) == (
        "test-time adaptation",
        "True",
        "0.0981",
    )
    assert {f"access.{name}" for name in dataclasses.asdict(Access())} <= set(few)


def test_the_projects_own_results_are_in_three_groups() -> None:
    files = sorted((Path(__file__).parents[2] / "results/reference/glyphs").rglob("*.json"))
    (table,) = report.tables([read(file) for file in files])
    groups: dict[str, set[str]] = {}
    for line in table.lines:
        groups.setdefault(line.section, set()).add(line.result.method if line.result else "")
    assert groups == {
        "Zero-shot": {"energy", "maxlogit", "mcm", "msp", "neglabel", "odin"},
        "Uses ID images": {"react"},
        "Trained": {"clipn", "zoc"},
    }
    turned = report.transposed(table)
    assert [group.group for group in turned.column_groups] == [line.section for line in table.lines]
