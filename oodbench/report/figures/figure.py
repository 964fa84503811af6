"""A plot with title and caption, written as PNG and PDF, and the results of one table for its plots."""

from __future__ import annotations

import io
import itertools
import logging
import math
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError
from oodbench.report.figures.options import FigureOptions
from oodbench.report.tables.grouping import by_prompts
from oodbench.report.tables.rename import renaming, retitled
from oodbench.report.tables.rows import line_names, repeated
from oodbench.report.tables.streams import TITLE
from oodbench.results import Interval, Result, SetRow, slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from oodbench.report.verify import ImageScores

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Heading:
    """Heading of a table's plots: `stem` is the start of their file names, `title` is the table's title."""

    stem: str
    title: str


@dataclass(frozen=True)
class Plot:
    """One plot of a table's results. `title` and `caption` are plain text without escapes."""

    name: str  # file name without suffix, safe on every system, unique within one call: "glyphs-histogram-mcm"
    kind: str  # one of KINDS
    title: str
    caption: str  # contents, how to read them, and what is missing and why
    figure: Figure  # of matplotlib's object API: freed with the plot

    def png(self, dpi: int = 150) -> bytes:
        """Return the plot as PNG with `dpi` pixels per inch."""
        from oodbench.report.figures.style import plot_style

        out = io.BytesIO()
        with plot_style():
            metadata = {
                "Software": "oodbench",
                "Title": _encodable(self.title),
                "Description": _encodable(self.caption),
            }
            self.figure.savefig(out, format="png", dpi=dpi, metadata=metadata)
        return out.getvalue()

    def pdf(self) -> bytes:
        """Return the plot as PDF with embedded TrueType fonts and no date: equal results give equal bytes."""
        from oodbench.report.figures.style import plot_style

        metadata = {"Title": _encodable(self.title), "Subject": _encodable(self.caption), "Creator": "oodbench"}
        out = io.BytesIO()
        with plot_style():
            self.figure.savefig(out, format="pdf", metadata={**metadata, "Producer": "oodbench", "CreationDate": None})
        return out.getvalue()

    def explained(self, names: str) -> Plot:
        """Return the plot with a sentence on its names at the end of its caption."""
        return replace(self, caption=f"{self.caption} {names}".strip())


def coincidence(curves: Sequence[Any], what: str = "curves") -> str:
    """Return a sentence on equal curves of a panel, which are drawn in reverse; "" if all differ."""
    equal = len(set(curves)) < len(curves)
    return f"Equal {what} coincide; the one higher in the table is on top." if equal else ""


def told_apart(names: Sequence[str], wide: float | None) -> tuple[list[str], str]:
    """Return the names, those that the figures would cut to equal text with a number, and a sentence on the numbers.

    `wide` is the width of the figures in inches, None for screens.
    """
    from oodbench.report.figures.style import SIZE, shortened

    narrowest = min(0.9, 0.27 * wide) if wide else 1.4  # inches for a name, in any figure
    cut = {name: shortened(name, narrowest, SIZE) for name in names}
    counts, numbers = Counter(cut.values()), itertools.count(1)
    short = {name: f"{name.partition(' (')[0]} [{next(numbers)}]" for name, text in cut.items() if counts[text] > 1}
    explained = "; ".join(f"{new}: {name}" for name, new in short.items())
    return [short.get(name, name) for name in names], f"{explained}." if explained else ""


def stem(*words: str) -> str:
    """Join words to the start of a file name that is valid on every system."""
    return "-".join(slug(word)[:60] for word in words if word)


def unique(name: str, taken: set[str]) -> str:
    """Return the name, numbered if `taken` contains it in any letter case, and add it to `taken`."""
    number, found = 1, name
    while found.casefold() in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found.casefold())
    return found


def _encodable(text: str) -> str:
    """Return text that UTF-8 can encode, with escapes for the rest."""
    return text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class PlottedResult:
    """A finished result with its position in the table, which determines its colour, and its name there.

    For a stream, `result` is the first seed and `others` are the other seeds. `short` is the name in figures of all
    results, where a long one is cut.
    """

    position: int
    name: str
    short: str
    result: Result
    others: tuple[Result, ...] = ()

    def values(self, dataset: str, metric: str) -> list[float]:
        """Return a metric on an OOD set, for each seed of a stream."""
        return [getattr(s, metric) for row in (self.result, *self.others) for s in row.ood if s.dataset == dataset]


@dataclass(frozen=True)
class FigureData:
    """The results of one table, at least one of which is finished.

    plotted  the finished results in the table's order
    sets     the OOD sets that are shown; all results have them
    paths    the results' files by digest
    failed   names of results that failed
    rename   returns the new name of a line
    numbers  a sentence on the numbers in short names, or ""
    width    of every figure in inches; None: as wide as needed
    """

    heading: Heading
    plotted: tuple[PlottedResult, ...]
    sets: tuple[SetRow, ...]
    paths: Mapping[str, Path]
    failed: tuple[str, ...]
    rename: Callable[[str], str]
    numbers: str = ""
    width: float | None = None

    def above(self, title: str) -> list[str]:
        """Return the lines above a figure; none for a figure of a given width, which has its caption in a paper."""
        return [] if self.width else [title, self.heading.title]

    @cached_property
    def scored(self) -> tuple[PlottedResult, ...]:
        """Results whose scores per image exist and match their AUROC; others are logged."""
        out = []
        for one in self.plotted:
            try:
                self.read(one)
            except UserError as error:
                log.warning("%s is missing from figures of scores: %s", one.name, error)
            else:
                out.append(one)
        return tuple(out)

    def read(self, one: PlottedResult) -> dict[str, ImageScores]:
        """Read the scores of a result by dataset. Raise UserError if they do not exist or are not the result's."""
        from oodbench.report.verify import checked_scores

        path = self.paths.get(one.result.digest)
        if path is None:
            raise UserError("its result is not in a results folder, so it has no scores per image")
        return checked_scores(one.result, path.with_suffix(".parquet"))

    def image_names(self, one: PlottedResult) -> dict[str, list[str]]:
        """Read the names of a result's images by dataset, in the order of its scores."""
        from pyarrow import parquet

        table = parquet.read_table(self.paths[one.result.digest].with_suffix(".parquet"), columns=["dataset", "name"])
        out: dict[str, list[str]] = {}
        for dataset, name in zip(table["dataset"].to_pylist(), table["name"].to_pylist(), strict=True):
            out.setdefault(dataset, []).append(name)
        return out

    def missing(self, drawn: Sequence[PlottedResult] | None = None) -> str:
        """Return a sentence on the results that a figure of scores does not show, or ""."""
        kept = {one.position for one in (self.scored if drawn is None else drawn)}
        unscored = [one.name for one in self.plotted if one.position not in kept]
        sentences = [f"Without matching scores per image, so not shown: {', '.join(unscored)}." if unscored else ""]
        sentences += [f"Failed, so not shown: {', '.join(self.failed)}." if self.failed else ""]
        return " ".join(filter(None, sentences))

    def average(self, one: PlottedResult, sets: Sequence[SetRow], metric: str) -> float:
        """Return the average of a metric over OOD sets, and over the seeds of a stream."""
        return math.fsum(statistics.fmean(one.values(s.dataset, metric)) for s in sets) / len(sets)

    def interval(self, one: PlottedResult, sets: Sequence[SetRow], metric: str) -> Interval | None:
        """Return the interval of an average, which is known for single sets, groups and all sets."""
        if len(sets) == 1:
            return self.of(one, sets[0].dataset).intervals.get(metric)
        names = {s.dataset for s in sets}
        for group, found in one.result.mean_intervals.items():
            if names == {s.dataset for s in one.result.ood if group in ("", s.group)}:
                return found.get(metric)
        return None

    def of(self, one: PlottedResult, dataset: str) -> SetRow:
        """Return the metrics of a result on an OOD set."""
        return next(s for s in one.result.ood if s.dataset == dataset)


def figure_data(
    results: Sequence[Result], paths: Mapping[str, Path], options: FigureOptions, heading: Heading | None
) -> FigureData | None:
    """Return the data of a table's figures, or None if all results failed."""
    rename = renaming(options.rename, results)
    results = [retitled(row, rename) for row in results] if options.rename else results
    groups = by_prompts(results)
    prompts = next((group.prompts for group in groups if len(group.results) == len(results)), "")  # in the title
    lines = repeated(results, seeds=False)
    named = list(zip(map(rename, line_names(lines, "templates" if prompts else "")), lines, strict=True))
    finished = [(name, rows) for name, rows in named if rows[0].status == "ok"]
    short, numbers = told_apart([name for name, _ in finished], options.width)
    plotted = tuple(
        PlottedResult(i, name, short[i], rows[0], tuple(rows[1:])) for i, (name, rows) in enumerate(finished)
    )
    if not plotted:
        return None
    model = plotted[0].result
    if any([s.dataset for s in one.result.ood] != [s.dataset for s in model.ood] for one in plotted):
        raise UserError("figures show the results of one table; these have different OOD sets")
    if len({bool(row.stream) for row in results}) > 1:
        raise UserError("figures show the results of one table; some of these are streams, the others are not")
    known = {s.dataset: s for s in model.ood}
    chosen = tuple(known[name] for name in options.sets if name in known) or model.ood
    title = f"{model.benchmark_title or model.benchmark}, encoder {model.encoder.get('name', 'unknown')}"
    failed = tuple(name for name, rows in named if rows[0].status != "ok")
    if model.stream:
        title = f"{title}, {TITLE}"
    heading = heading or Heading(stem(*stem_words(model)), title)
    return FigureData(heading, plotted, chosen, paths, failed, rename, numbers, options.width)


def stem_words(row: Result) -> list[str]:
    """Return the first words of the figure names of a result's table."""
    return [row.benchmark, *(["test-time"] if row.stream else [])]
