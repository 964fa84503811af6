"""Alike: which rows cannot be told from the best, by paired tests on the stored scores per image."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.errors import UserError
from oodbench.printable import printable
from oodbench.report.options import Options
from oodbench.report.tables.build import Alike, Test
from oodbench.results import Result

if TYPE_CHECKING:
    from oodbench.metrics import Scores

log = logging.getLogger(__name__)

MOST = 40  # rows; of more, a column's best is one of many, and the bootstrap takes minutes
QUICK = 500_000  # scores, which take about two seconds


def tester(paths: Mapping[str, Path], options: Options, *, quick: bool = False) -> Test:
    """A test for `tables`; `paths` are the rows' files by digest. Rows without scores per image are not compared.

    `quick` leaves out tables whose tests would take more than some seconds.
    """

    def test(rows: Sequence[Result], sets: Sequence[str]) -> Alike:
        metrics = [m for m in ("auroc", "fpr95") if m in options.shown]
        found = {row.digest: paths[row.digest].with_suffix(".parquet") for row in rows if row.digest in paths}
        there = {digest: path for digest, path in found.items() if path.exists() or path.is_symlink()}
        images = sum(row.id.n + sum(s.n for s in row.ood) for row in rows if row.digest in there)
        if not metrics or not 2 <= len(there) <= MOST or (quick and images > QUICK):
            return Alike()
        from oodbench.metrics import Settings, indistinguishable

        scores = {}
        for row in rows:
            if row.digest in there:
                try:
                    scores[row.digest] = _scores(row, there[row.digest], sets)
                except UserError as error:
                    log.warning("%s is not compared: %s", printable(row.label), printable(str(error)))
        if len(scores) < 2:
            return Alike()
        rules = rows[0].conventions
        settings = Settings(at95=rules.get("at95", "first"), aupr=rules.get("aupr", "average_precision"))
        marks = indistinguishable(scores, settings, metrics)
        return Alike(marks.sets, marks.means)

    return test


def _scores(row: Result, path: Path, sets: Sequence[str]) -> Scores:
    from oodbench.image_scores import of_row
    from oodbench.metrics import Scores

    found = of_row(row, path)
    kept = [s for s in row.ood if not sets or s.dataset in sets]
    ood = {s.dataset: found[s.dataset].scores for s in kept}
    return Scores(found[row.id.dataset].scores, ood, {s.dataset: s.group for s in kept})
