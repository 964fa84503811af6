"""Picture: a figure with its name and its words, and its bytes as PNG and PDF."""

from __future__ import annotations

import io
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.errors import UserError
from oodbench.report.tables.grouping import by_prompts
from oodbench.report.tables.rows import names
from oodbench.report.verify import ImageScores, of_row
from oodbench.results import Result, SetRow, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    """How a table's pictures are headed: `stem` begins their file names, `title` is the table's."""

    stem: str
    title: str


@dataclass(frozen=True)
class Picture:
    """One picture of a table. `title` and `caption` are plain text, whatever the names in them hold."""

    name: str  # file name without suffix, safe on every system, unique within one call: "glyphs-histogram-mcm"
    kind: str  # one of KINDS
    title: str
    caption: str  # what it shows, how to read it, what was left out and why
    figure: Figure  # of matplotlib's object API: dropped when the picture is

    def png(self, dpi: int = 150) -> bytes:
        """The picture as PNG, `dpi` pixels per inch."""
        from oodbench.report.figures.style import house

        out = io.BytesIO()
        with house():
            said = {"Software": "oodbench", "Title": _sound(self.title), "Description": _sound(self.caption)}
            self.figure.savefig(out, format="png", dpi=dpi, metadata=said)
        return out.getvalue()

    def pdf(self) -> bytes:
        """The picture as PDF: no date, so that the same rows give the same bytes; fonts embedded as TrueType."""
        from oodbench.report.figures.style import house

        said = {"Title": _sound(self.title), "Subject": _sound(self.caption), "Creator": "oodbench"}
        out = io.BytesIO()
        with house():
            self.figure.savefig(out, format="pdf", metadata={**said, "Producer": "oodbench", "CreationDate": None})
        return out.getvalue()


def stem(*words: str) -> str:
    """Words as the beginning of a file name that every system takes."""
    return "-".join(slug(word)[:60] for word in words if word)


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number where one that differs in case alone is taken; it is taken from now on."""
    number, found = 1, name
    while found.casefold() in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found.casefold())
    return found


def _sound(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "backslashreplace").decode()


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entrant:
    """A finished row: its place in the table, which gives its colour, and its name there."""

    place: int
    name: str
    row: Result


@dataclass(frozen=True)
class Subject:
    """The rows of one table, of which there is at least one that is finished.

    entrants  the finished rows in the table's order
    sets      the OOD sets that are shown; all rows have them
    left_out  names of rows that failed
    """

    heading: Heading
    entrants: tuple[Entrant, ...]
    sets: tuple[SetRow, ...]
    paths: Mapping[str, Path]
    left_out: tuple[str, ...]

    @cached_property
    def scored(self) -> tuple[Entrant, ...]:
        """Rows whose scores per image are there and give their AUROC; others are logged."""
        out = []
        for one in self.entrants:
            try:
                self.read(one)
            except UserError as error:
                log.warning("%s is left out of pictures of scores: %s", one.name, error)
            else:
                out.append(one)
        return tuple(out)

    def read(self, one: Entrant) -> dict[str, ImageScores]:
        """The scores of a row by dataset, read anew. UserError when they are not there, or are not the row's."""
        path = self.paths.get(one.row.digest)
        if path is None:
            raise UserError("its row lies in no results folder, so it has no scores per image")
        return of_row(one.row, path.with_suffix(".parquet"))

    def image_names(self, one: Entrant) -> dict[str, list[str]]:
        """The names of a row's images by dataset, in the order of its scores."""
        from pyarrow import parquet

        table = parquet.read_table(self.paths[one.row.digest].with_suffix(".parquet"), columns=["dataset", "name"])
        out: dict[str, list[str]] = {}
        for dataset, name in zip(table["dataset"].to_pylist(), table["name"].to_pylist(), strict=True):
            out.setdefault(dataset, []).append(name)
        return out

    def missing(self, drawn: Sequence[Entrant] | None = None) -> str:
        """A sentence on the rows that a picture of scores leaves out, "" when there is none."""
        kept = {one.place for one in (self.scored if drawn is None else drawn)}
        gone = [one.name for one in self.entrants if one.place not in kept]
        failed = f"Failed, so not shown: {', '.join(self.left_out)}." if self.left_out else ""
        said = f"Without scores per image that fit, so not shown: {', '.join(gone)}." if gone else ""
        return " ".join(filter(None, (said, failed)))

    def of(self, one: Entrant, dataset: str) -> SetRow:
        """A row's numbers on a set."""
        return next(s for s in one.row.ood if s.dataset == dataset)


def subject(
    rows: Sequence[Result], paths: Mapping[str, Path], sets: Sequence[str], heading: Heading | None
) -> Subject | None:
    """What is drawn of a table's rows: `sets` in that order, all when there are none named; None: nothing to draw."""
    said = next((one.prompts for one in by_prompts(rows) if len(one.rows) == len(rows)), "")  # in the table's title
    named = list(zip(names(rows, "templates" if said else ""), rows, strict=True))
    entrants = tuple(
        Entrant(place, name, row) for place, (name, row) in enumerate(pair for pair in named if pair[1].status == "ok")
    )
    if not entrants:
        return None
    model = entrants[0].row
    if any([s.dataset for s in one.row.ood] != [s.dataset for s in model.ood] for one in entrants):
        raise UserError("pictures are of the rows of one table; these have different OOD sets")
    known = {s.dataset: s for s in model.ood}
    chosen = tuple(known[name] for name in sets if name in known) or model.ood
    title = f"{model.benchmark_title or model.benchmark}, encoder {model.encoder.get('name', 'unknown')}"
    failed = tuple(name for name, row in named if row.status != "ok")
    return Subject(heading or Heading(stem(model.benchmark), title), entrants, chosen, paths, failed)
