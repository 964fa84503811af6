"""Figures of the results in tables: metrics, curves, scores, mistakes, and metrics by encoder, parameter or shots."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oodbench.report.figures.figure import Heading, Plot, figure_data, unique
from oodbench.report.figures.options import KINDS, FigureOptions
from oodbench.results import Result

# The other kinds show scores, and in streams an ID image has a score for each OOD set.
_OF_STREAMS = ("overview", "stream", "sweep")
_OF_ALL = ("overview", "roc", "densities", "ranks", "stream")  # kinds with the short names of all results

__all__ = ["KINDS", "FigureOptions", "Heading", "Plot", "encoder_plots", "plots", "table_plots"]


def plots(
    results: Sequence[Result],
    paths: Mapping[str, Path],
    *,
    data: Path | None = None,
    kinds: Sequence[str] = KINDS,
    sets: Sequence[str] = (),
    width: float | None = None,
) -> Iterator[Plot]:
    """Yield the figures of the results of one table, each drawn when it is requested; none if all results failed.

    Arguments:

    results  results of one table
    paths    their JSON files by digest, which have the scores per image next to them; results without scores are
             missing from the figures that need them, whose captions say so
    data     folder of the datasets, as in `oodbench run --data`; sets without images are missing, which is logged
    kinds    some of KINDS, in this order; "encoders" is ignored, because it compares several tables
    sets     names of the OOD sets to show; all when empty
    width    of every figure in inches (3.25 for one column of two), without heading and with text of at least 6 points;
             None: as wide as needed

    Returns: an iterator over the figures.

    Raises: UserError for an unknown kind or width, and for results with different OOD sets.
    """
    yield from table_plots(results, paths, FigureOptions(data, tuple(kinds), tuple(sets), width))


def table_plots(
    results: Sequence[Result], paths: Mapping[str, Path], options: FigureOptions, heading: Heading | None = None
) -> Iterator[Plot]:
    """Yield the figures of one table; `heading` None stands for the benchmark and the encoder."""
    found = figure_data(results, paths, options, heading)
    if found is None:
        return
    taken: set[str] = set()
    streams = any(row.stream for row in results)
    for kind in options.kinds:
        if kind == "encoders" or (kind not in _OF_STREAMS if streams else kind == "stream"):
            continue
        module = importlib.import_module(f"oodbench.report.figures.{kind}")
        for plot in module.draw(found, options.data):
            plot = plot.explained(found.numbers) if kind in _OF_ALL else plot
            yield replace(plot, name=unique(plot.name, taken))


def encoder_plots(tables: Sequence[Sequence[Result]], options: FigureOptions) -> Iterator[Plot]:
    """Yield the figures of metrics by encoder, for tables that differ only in the encoder."""
    found = [figure_data(results, {}, options, None) for results in tables]
    from oodbench.report.figures.encoders import draw

    taken: set[str] = set()
    for plot in draw([one for one in found if one]):
        yield replace(plot, name=unique(plot.name, taken))
