"""Imported results in tables: with which results they stand, what they are called, and how they are averaged."""

from __future__ import annotations

import csv
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest

from oodbench import report
from oodbench.report.options import TableOptions
from oodbench.report.tables.grouping import group
from oodbench.report.tables.published import compare_with_published
from oodbench.results import Result, read

REFERENCE = Path(__file__).resolve().parents[2] / "results" / "reference" / "glyphs" / "glyphs"
MCM, MSP = (read(REFERENCE / f"{name}.json") for name in ("mcm", "msp"))
UNKNOWN: dict[str, Any] = {
    "run": {"seed": 0, "imported": {"by": "Doe"}},
    "encoder": {"name": "glyphs", "slug": "glyphs", "architecture": "glyphs"},
    "classes": {},
    "templates": {"name": "unknown"},
    "source": "",
    "access": {},
    "warnings": ("imported scores, computed by Doe",),
}


def imported(**changes: Any) -> Result:
    return dataclasses.replace(MCM, **{**UNKNOWN, **changes})


def with_set(**changes: Any) -> dict[str, Any]:
    return {"ood": (dataclasses.replace(MCM.ood[0], **changes), *MCM.ood[1:])}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, 1),
        (with_set(list_digest=""), 1),
        (with_set(list_digest="0" * 64), 2),
        (with_set(n=1499), 2),
        ({"ood": MCM.ood[1:]}, 2),
        ({"conventions": {**MCM.conventions, "at95": "nearest"}}, 2),
        ({"encoder": {**UNKNOWN["encoder"], "weights": "0" * 64}}, 2),
        ({"benchmark": "other"}, 2),
    ],
    ids=["same", "unnamed images", "other images", "fewer images", "fewer sets", "rule", "weights", "benchmark"],
)
def test_an_imported_result_joins_those_that_agree_with_what_it_knows(
    changes: dict[str, Any], groups: int, first: bool
) -> None:
    row = imported(**changes)
    assert len(group([row, MCM, MSP] if first else [MCM, MSP, row])) == groups


def test_two_that_contradict_each_other_do_not_stand_together() -> None:
    rows = [imported(**with_set(list_digest=digit * 64), label=f"mcm[k={digit}]") for digit in "012"]
    assert len(group([imported(**with_set(list_digest="")), *rows])) == 3


def test_names_captions_and_formats() -> None:
    (table,) = report.tables([imported(), MCM])
    assert [line.name for line in table.lines] == ["MCM (scores measured)", "MCM (scores imported)"]
    assert "Encoder weights" in " ".join(table.caption) and table.lines[1].section == "Access not known"
    said = "MCM (scores imported): imported scores, computed by Doe."
    assert said in table.notes and said in report.latex(table).replace("\n", " ") and said in report.markdown(table)
    found = list(csv.DictReader(io.StringIO(report.csv([table]))))
    assert [line["status"] for line in found] == ["ok", "imported"]
    assert found[1]["access.group"] == "access not known" and found[1]["prompts"] == "unknown"


def test_prompts_of_an_imported_result_are_not_those_of_the_others() -> None:
    given = [dataclasses.replace(row, label=f"{row.method}[templates=x]") for row in (MCM, MSP)]
    own, equal = report.tables([*given, imported(label="mine")])
    assert [len(own.lines), len(equal.lines)] == [1, 2]


def test_seeds_of_imported_results_are_averaged() -> None:
    rows = [imported(run={"seed": seed, "imported": {"files": seed}}) for seed in range(3)]
    (table,) = report.tables([*rows, MCM], TableOptions(seeds=True))
    assert sorted(line.name for line in table.lines) == ["MCM (scores imported), 3 seeds", "MCM (scores measured)"]


def test_a_comparison_with_published_numbers_says_imported() -> None:
    clip = {"name": "ViT-B-16/openai", "slug": "ViT-B-16-openai", "architecture": "ViT-B-16", "tag": "openai"}
    sets = [
        dataclasses.replace(MCM.ood[0], dataset=name, title=name, group="")
        for name in ("inaturalist", "sun", "places", "textures")
    ]
    row = imported(benchmark="mos", encoder=clip, ood=tuple(sets), access=MCM.access)
    (table,) = compare_with_published(report.tables([row]), TableOptions())
    text = report.markdown(table)
    assert "MCM, imported and published" in table.title and "imported minus published" in text
    assert "measured" not in text
