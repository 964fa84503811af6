"""The note on an encoder at chance: when it stands below a table, in every format, and when it does not."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import binom

import oodbench.report as report
from oodbench.report.html.figures import FigureSource
from oodbench.report.html.page import render
from oodbench.report.tables.chance import at_chance, chance_limit
from oodbench.results import IdRow, Result, SetRow, rows
from tests.report.test_report import result as report_result

ROOT = Path(__file__).parents[2]


def result(
    accuracy: float | None, *, classes: int = 10, n: int = 1000, title: str = "MCM", upper: float = 0.9
) -> Result:
    ood = SetRow("sun", "SUN", "", 200, 200, 0, "list", upper - 0.1, 0.4, 0.5, 0.6, 0.7, 0.0)
    ood = dataclasses.replace(ood, intervals={"auroc": (upper - 0.2, upper)})
    names = {"name": "cats", "count": classes, "digest": "c" * 64}
    return report_result(title, ood, id=IdRow("cats", "Cats", n, n, 0, "list", accuracy), classes=names)


def notes(*found: Result) -> str:
    (table,) = report.tables(found)
    return " ".join(table.notes)


@pytest.mark.parametrize(
    ("classes", "n"), [(2, 50), (2, 4000), (3, 300), (10, 30), (10, 1000), (1000, 50), (1000, 50_000)]
)
def test_the_limit_is_twice_chance_or_three_standard_errors_above_it(classes: int, n: int) -> None:
    guessed = binom(n, 1 / classes)  # correct guesses
    errors = (guessed.mean() + 3 * guessed.std()) / n
    twice = 2 / classes if classes >= 4 else 0.5
    assert chance_limit(classes, n) == pytest.approx(max(twice, errors), rel=1e-12)


def test_only_guessing_encoders_are_at_chance() -> None:
    """Guesses of a uniform encoder, drawn, are at chance; 70 % right of few and of many classes are not."""
    random = np.random.default_rng(0)
    for classes, n in ((2, 100), (5, 500), (50, 1500), (1000, 1000)):
        accuracies = random.binomial(n, 1 / classes, 200) / n
        assert np.mean([at_chance(result(float(one), classes=classes, n=n)) for one in accuracies]) > 0.95
        assert not at_chance(result(0.7, classes=classes, n=n))
    assert (
        not at_chance(result(None))
        and not at_chance(result(1.0, classes=1))
        and not at_chance(result(1.0, classes=2, n=3))
    )


def test_every_format_has_the_note_on_chance() -> None:
    (table,) = report.tables([result(0.12), result(0.15, title="Energy")])
    console = Console(width=500, file=io.StringIO(), color_system=None)
    with console.capture() as terminal:
        console.print(report.console(table))
    for text in (
        terminal.get(),
        report.markdown(table),
        report.latex(table),
        render([table], FigureSource({}), report.TableOptions()),
    ):
        assert "the encoder does not seem to know these classes" in text
    (note,) = table.notes
    assert note.startswith("ID accuracy is at most 15.00 %, and guessing among 10 classes gives 10.00 %")
    assert "(limit for 1,000 images: 20.00 %)" in note and "too few" not in note


def test_the_note_names_the_methods_that_guess() -> None:
    assert notes(result(0.9), result(None, title="ODIN")) == ""
    assert notes(result(0.9), result(0.1, title="CLIPN")).startswith("ID accuracy of CLIPN is at most 10.00 %")
    assert "or there are too few images to tell" in notes(result(0.6, classes=2, n=10))


def test_an_auroc_below_one_half_is_noted() -> None:
    assert notes(result(0.9, upper=0.51)) == ""
    said = notes(result(0.9, upper=0.49))
    assert said.startswith("AUROC below 50 % with its whole interval") and "(MCM on SUN)" in said
    assert "although the ID accuracy is above chance" in said
    assert said.count("does not seem to know") == 0
    both = notes(result(0.1, upper=0.3))
    assert both.count("the encoder does not seem to know these classes") == 2
    assert "may not know these classes (there is no ID accuracy to tell)" in notes(result(None, upper=0.3))
    imported = notes(dataclasses.replace(result(None, upper=0.3), run={"imported": {"by": "Doe"}}))
    assert "(MCM on SUN): the scores of these sets may have the other sign in their files, or the encoder" in imported


def test_the_projects_own_rows_are_not_at_chance() -> None:
    found = [row for _, row in rows(ROOT / "results/reference/glyphs")]
    assert found and not any(at_chance(row) for row in found)
    assert not any("chance" in note or "know" in note for table in report.tables(found) for note in table.notes)
