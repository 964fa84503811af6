"""Subject: the rows of one table as pictures want them, with the scores per image of those that have them."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from oodbench.errors import UserError
from oodbench.report.figures.figure import Heading, stem
from oodbench.report.image_scores import ImageScores, of_row
from oodbench.report.tables.grouping import by_prompts
from oodbench.report.tables.lines import names
from oodbench.results import Result, SetRow

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
