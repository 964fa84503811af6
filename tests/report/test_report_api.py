"""oodbench.report() in Python: the same tables as the command's, and HTML for notebooks."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest

import oodbench
from oodbench.cli import main
from oodbench.errors import UserError
from oodbench.report.api import ReportOptions
from oodbench.report.formats.notebook import html
from oodbench.report.tables.build import tables
from oodbench.report.tables.table import transposed
from oodbench.results import Result
from tests.report.test_report_options import EVERY, call, folder, row

__all__ = ["folder"]  # a fixture

HOSTILE = "<script>alert(1)</script> & \"q\" 'x'"


def test_the_package_can_be_called_however_it_was_imported() -> None:
    """Also before and after its modules are imported, which makes the package an attribute of oodbench."""
    code = """
import sys, oodbench
assert not {"oodbench.report", "numpy"} & set(sys.modules)
assert callable(oodbench.report) and "report" in dir(oodbench)
from oodbench.report import tables
from oodbench import report
import oodbench.report as package
assert report is package is oodbench.report is sys.modules["oodbench.report"] and report.tables is tables
assert not {"torch", "pandas", "numpy", "rich", "mlflow"} & set(sys.modules)
try:
    report("no such folder")
except oodbench.UserError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.startswith("no results folder no such folder; make one with: "), done.stderr


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, []),
        ({"id": "toy", "sort": "auroc", "top": 2}, ["--id", "toy", "--sort", "auroc", "--top", "2"]),
        (
            {"methods": ["m3", "m1"], "encoder": ["RN50", "ViT-B-16"]},
            ["--methods", "m3,m1", "--encoder", "RN50,ViT-B-16"],
        ),
        ({"ood": "b", "metrics": ("fpr95",), "decimals": 1}, ["--ood", "b", "--metrics", "fpr95", "--decimals", "1"]),
        ({"intervals": "half", "percent": False}, ["--intervals", "half", "--fraction"]),
    ],
)
def test_texts_equal_those_of_the_command(folder: Path, options: dict[str, Any], arguments: list[str]) -> None:
    found = oodbench.report(folder, **options)
    made = {"latex": found.to_latex(), "markdown": found.to_markdown(), "csv": found.to_csv()}
    for form, text in {"terminal": f"{found}\n", **made}.items():
        done = call(folder, *arguments, *(("--format", form) if form != "terminal" else ()))
        assert done.output == text, form


def test_options_of_a_format_replace_those_of_the_report(folder: Path) -> None:
    found = oodbench.report(str(folder), sort="auroc", transpose=True, standalone=True, long=True)
    first = found.to_frame(id="toy", encoder="ViT-B-16", sort="seconds", long=False)
    assert list(first.label[:2]) == ["m5", "m1"]
    assert found.to_markdown(id="other").count("M4") == 1
    assert found.to_csv().startswith("table,benchmark,encoder,method,label,name,access.group,status,seed,part,set")
    with pytest.raises(UserError, match="--cite requires --format latex"):
        found.to_markdown(cite=True)


def test_all_wrong_options_are_reported_at_once(folder: Path) -> None:
    with pytest.raises(UserError, match="no option 'sorted'; did you mean 'sort'") as error:
        oodbench.report(folder, sorted="auroc", topp=3)  # type: ignore[call-arg]
    assert "'topp'; did you mean 'top'" in str(error.value)
    with pytest.raises(UserError, match="no metric 'aroc'") as error:
        oodbench.report(folder, sort="aroc", encoder="x", top="3")  # type: ignore[arg-type]
    assert len(error.value.problems) == 3
    with pytest.raises(UserError, match="--compare 'x' does not exist"):
        oodbench.report(folder, compare="x")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"cannot save page\.pdf: its suffix must be one of \.tex"):
        oodbench.report(folder).save("page.pdf")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"caption": "shrot"}, "no caption 'shrot'; did you mean 'short'?"),
        ({"label": "a b"}, "--label 'a b' is not a valid LaTeX label"),
        ({"decimals": True}, "decimals must be a whole number, not True"),
        ({"decimals": 2.0}, "decimals must be a whole number, not 2.0"),
        ({"decimals": 11}, "--decimals must be 0 to 10, not 11"),
        ({"top": True}, "top must be a whole number, not True"),
        ({"methods": 5}, "methods must be a text, or a list of texts, not 5"),
        ({"methods": [1]}, r"methods must be a text, or a list of texts, not \[1\]"),
        ({"quote": None}, "quote must be a text, or a list of texts, not None"),
        ({"sort": None}, "sort must be a text, not None"),
        ({"rename": {"m1": 1}}, "rename must be texts by name, not {'m1': 1}"),
        ({"rename": ["=x"]}, "--rename '=x' is not NAME=TEXT"),
        ({"tests": "no"}, "tests must be True or False, not 'no'"),
        ({"percent": "x"}, "percent must be True or False, not 'x'"),
        ({"cite": True, "transpose": True}, "--cite cannot be combined with --transpose"),
    ],
)
def test_values_that_the_command_refuses_are_refused_at_once(folder: Path, options: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        oodbench.report(folder, **options)


def test_values_of_other_types_that_mean_the_same_are_taken(folder: Path) -> None:
    found = oodbench.report(folder, methods=("m1",), rename="m1=X", decimals=None, top=None, tests=None)
    assert found.to_markdown() == oodbench.report(folder, methods="m1", rename={"m1": "X"}).to_markdown()
    assert "| X |" in found.to_markdown()


def test_frames_equal_csv(folder: Path) -> None:
    found = oodbench.report(folder, id="toy", encoder="ViT-B-16")
    for frame, text in ((found.to_frame(), found.to_csv()), (found.to_frame(long=True), found.to_csv(long=True))):
        read = pd.read_csv(io.StringIO(text))
        assert list(frame.columns) == list(read.columns) and len(frame) == len(read) > 5
        numbers = read.select_dtypes("number").dropna(axis="columns", how="all")
        pd.testing.assert_frame_equal(frame[numbers.columns].astype(float), numbers.astype(float))
    long = found.to_frame(long=True)
    means = long[(long.set == "mean") & (long.metric == "auroc")].set_index("method").value
    assert {name: round(value, 9) for name, value in means.items()} == {
        "m1": 0.8,
        "m3": 0.85,
        "m4": 0.745,
        "m5": 0.85,
        "m6": 0.6,
    }


def test_files_are_saved_by_their_suffix(folder: Path, tmp_path: Path) -> None:
    found = oodbench.report(folder, id="toy")
    assert found.save(tmp_path / "table.tex").read_text() == found.to_latex()
    assert found.save(str(tmp_path / "table.md")).read_text() == found.to_markdown()
    assert len(pd.read_parquet(found.save(tmp_path / "t.parquet", long=True))) == len(found.to_frame(long=True))
    page = found.save(tmp_path / "page.html", encoder="RN50").read_text()
    assert page.startswith("<!doctype html>") or page.startswith("<!DOCTYPE html>")
    assert "RN50/openai" in page and "ViT-B-16" not in page
    with pytest.raises(UserError, match="cannot write --output"):
        found.save(folder / "runs" / "0.json" / "table.md")


def notebook(*results: Result) -> ElementTree.Element:
    """The tables as a notebook shows them, parsed; it is XML, so that nothing is left open."""
    return ElementTree.fromstring(f"<all>{html(tables(results))}</all>".replace("<details>", "<details open='x'>"))


def text(element: ElementTree.Element) -> str:
    return "".join(element.itertext())


def test_a_notebook_shows_every_cell_and_its_mark() -> None:
    (table,) = tables(EVERY)
    found = notebook(*EVERY)
    lines = [tr for tr in found.iter("tr") if tr.find("th[@scope='row']") is not None]
    assert [text(tr[0]) for tr in lines] == [line.name for line in table.lines]
    cells = [td for tr in lines for td in tr.iter("td")]
    assert [text(td) for td in cells] == [cell.plain for cell in table.cells]
    marks = {"best": "b", "second": "u", "": None}
    for td, cell in zip(cells, table.cells, strict=True):
        assert [one.tag for one in td if one.tag != "span"] == list(filter(None, [marks[cell.mark]]))
    assert [text(th) for th in found.iter("th") if th.get("scope") == "rowgroup"] == ["Zero-shot", "Trained"]
    spans = [sum(int(th.get("colspan", "1")) for th in tr) for tr in found.iter("tr")]
    assert len(set(spans)) == 1
    assert "M2 failed: no weights" in [text(p) for p in found.iter("p")]
    assert "Best in bold, second underlined within each group." in text(found)


def test_a_notebook_escapes_names_and_runs_nothing() -> None:
    hostile = row("m1", 0.5, 0.6, title=HOSTILE, benchmark_title=HOSTILE)
    found = notebook(hostile)
    assert HOSTILE in text(found) and not list(found.iter("script"))
    rules = next(found.iter("style")).text or ""
    selectors = [one.strip() for rule in rules.split("}") if "{" in rule for one in rule.partition("{")[0].split(",")]
    assert selectors and all(one.startswith(".oodbench-report") for one in selectors)


def test_a_notebook_shows_groups_intervals_and_transposed_tables() -> None:
    near = [row(name, 0.8, 0.9) for name in ("m1", "m3")]
    near = [dataclasses.replace(one, ood=tuple(_grouped(one))) for one in near]
    heads = [text(th) for th in notebook(*near).iter("th") if th.get("scope") == "colgroup"]
    assert heads[:3] == ["Near OOD", "Far OOD", ""] and "A" in heads
    (table,) = tables(EVERY)
    turned = ElementTree.fromstring(f"<all>{html([transposed(table)])}</all>")
    assert [text(th) for th in turned.iter("th") if th.get("scope") == "rowgroup"] == ["A", "B", "Average", "ID", ""][
        :4
    ]


def _grouped(one: Result) -> list[Any]:
    return [dataclasses.replace(s, group=group) for s, group in zip(one.ood, ("near", "far"), strict=True)]


def test_figures_are_drawn_one_by_one(folder: Path) -> None:
    found = oodbench.report(folder, id="toy", encoder="ViT-B-16", methods="m1,m3")
    assert next(found.figures("overview")).kind == "overview"
    with pytest.raises(UserError, match="no figure 'rock'; did you mean 'roc'"):
        next(found.figures("rock"))
    with pytest.raises(UserError, match="--width 'colunm' is not a width"):
        next(found.figures("roc", width="colunm"))
    with pytest.raises(UserError, match="only draws figures; use decimals, transpose in a separate call"):
        found.figures("overview", transpose=True, decimals=1)  # refused before anything is drawn
    several = oodbench.report(folder, id="toy", methods="m3", transpose=True).figures(["encoders"], width=3.25)
    assert [plot.kind for plot in several] == ["encoders"]


def test_the_options_are_those_of_the_command() -> None:
    """But for options of files, MLflow and single cells, which are arguments or methods."""
    apart = {
        "results",
        "form",
        "output",
        "with_figures",
        "bib",
        "explain",
        "data",
        "check",
        "uri",
        "experiment",
        "width",
        "kinds",
    }
    spelled = {"sets": "ood", "encoders": "encoder", "ids": "id", "quotes": "quote"}
    known = {str(option.name) for option in main.commands["report"].params}
    assert {spelled.get(name, name) for name in known - apart} == set(ReportOptions.__annotations__)
