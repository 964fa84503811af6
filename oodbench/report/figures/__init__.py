"""Figures of a table's results: overview, ROC curves, histograms, rank correlation, mistakes, shots, streams."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oodbench.errors import UserError, did_you_mean
from oodbench.report.figures.figure import Heading, Plot, unique
from oodbench.results import Result

KINDS = ("overview", "shots", "stream", "roc", "histogram", "ranks", "mistakes")
_OF_STREAMS = (
    "overview",
    "stream",
)  # the others show scores, of which an ID image has one for each OOD set of a stream

__all__ = ["KINDS", "Heading", "Plot", "plots"]


def plots(
    results: Sequence[Result],
    paths: Mapping[str, Path],
    *,
    data: Path | None = None,
    kinds: Sequence[str] = KINDS,
    sets: Sequence[str] = (),
    heading: Heading | None = None,
) -> Iterator[Plot]:
    """Yield the figures of the results of one table, each drawn when it is requested; none if all results failed.

    Results of test-time adaptation have an overview and figures of metrics by position in the stream, others all but
    the latter.

    Arguments:

    results  results of one table
    paths    their JSON files by digest, which have the scores per image next to them; results without scores are
             missing from the figures that need them, whose captions say so
    data     folder of the datasets, as in `oodbench run --data`; sets without images are missing, which is logged
    kinds    some of KINDS, in this order
    sets     names of the OOD sets to show; all when empty
    heading  title of the table and beginning of file names; the benchmark and the encoder when None

    Returns: an iterator over the figures.

    Raises: UserError for an unknown kind, and for results with different OOD sets.
    """
    from oodbench.report.figures.figure import figure_data

    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"no figure '{kind}'{did_you_mean(kind, KINDS)}")
    found = figure_data(results, paths, sets, heading)
    taken: set[str] = set()
    streams = any(row.stream for row in results)
    for kind in kinds if found else ():
        if kind not in _OF_STREAMS if streams else kind == "stream":
            continue
        module = importlib.import_module(f"oodbench.report.figures.{kind}")
        for plot in module.draw(found, data):
            yield replace(plot, name=unique(plot.name, taken))
