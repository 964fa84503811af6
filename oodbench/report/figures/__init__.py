"""Pictures of a table's rows: ROC curves, histograms, an overview, rank correlations, what a method gets most wrong."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oodbench.errors import UserError, did_you_mean
from oodbench.report.figures.figure import Heading, Picture, unique
from oodbench.results import Result

KINDS = ("overview", "roc", "histogram", "ranks", "mistakes")

__all__ = ["KINDS", "Heading", "Picture", "pictures"]


def pictures(
    rows: Sequence[Result],
    paths: Mapping[str, Path],
    *,
    data: Path | None = None,
    kinds: Sequence[str] = KINDS,
    sets: Sequence[str] = (),
    heading: Heading | None = None,
) -> Iterator[Picture]:
    """The pictures of the rows of one table, each made when it is asked for; none of rows that all failed.

    paths    the rows' JSON files by digest, beside which their scores per image lie; rows without scores are left out
             of the pictures that need them, whose captions say so
    data     folder of the datasets, as in `oodbench run --data`; images that are not there are left out and logged
    kinds    some of KINDS, in the order wanted
    sets     OOD sets to show, by name; all when empty
    heading  of the table; by default from its benchmark and encoder
    """
    from oodbench.report.figures.figure import subject

    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"no pictures '{kind}'{did_you_mean(kind, KINDS)}")
    found = subject(rows, paths, sets, heading)
    taken: set[str] = set()
    for kind in kinds if found else ():
        painter = importlib.import_module(f"oodbench.report.figures.{kind}")
        for picture in painter.draw(found, data):
            yield replace(picture, name=unique(picture.name, taken))
