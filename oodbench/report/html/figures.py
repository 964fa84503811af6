"""The figures below the tables of the page, embedded as data: URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.report.tables.table import Table
from oodbench.results import Result

if TYPE_CHECKING:
    from oodbench.report.figures import FigureOptions, Heading, Plot
    from oodbench.report.options import TableOptions

MOST = 12  # maximum number of tables with figures by default: more take minutes and many megabytes
PAGE_DPI, DRAWING_DPI = 110, 165  # drawings stay sharp on screens of high resolution
KINDS = {
    "overview": "Overview",
    "encoders": "Encoders",
    "shots": "Labelled images per class",
    "sweep": "Hyper-parameters",
    "stream": "Position in the stream",
    "roc": "ROC curves",
    "densities": "Scores of the methods side by side",
    "histogram": "Histograms of the scores",
    "ranks": "Rank correlation",
    "mistakes": "What each method gets most wrong",
}


@dataclass(frozen=True)
class FigureSource:
    """Locations of the data of figures.

    paths    the results' files by digest
    results  the results folder; None for results from MLflow
    data     folder of the datasets, for figures with images; None: the default of `oodbench run`
    """

    paths: Mapping[str, Path]
    results: Path | None = None
    data: Path | None = None


@dataclass(frozen=True)
class EmbeddedFigure:
    """A figure as a data: URI, with its size on the page in pixels."""

    title: str
    caption: str
    kind: str
    source: str
    width: int
    height: int


@dataclass(frozen=True)
class FigureSection:
    """The figures of one kind below one table."""

    title: str
    figures: tuple[EmbeddedFigure, ...]

    @property
    def small(self) -> bool:
        """Whether two figures are legible side by side."""
        return len(self.figures) > 1 and all(one.width < 800 for one in self.figures)

    @property
    def bytes(self) -> int:
        """The number of bytes of the figures in the page."""
        return sum(len(one.source) for one in self.figures)


@dataclass(frozen=True)
class FigureGallery:
    """Figure sections by number of the table; `reason` states why there are none."""

    sections: Mapping[int, tuple[FigureSection, ...]] = field(default_factory=dict)
    reason: str = ""

    @property
    def count(self) -> int:
        """The number of figures."""
        return sum(len(section.figures) for sections in self.sections.values() for section in sections)

    @property
    def bytes(self) -> int:
        """The number of bytes of the figures in the page."""
        return sum(section.bytes for sections in self.sections.values() for section in sections)


def gallery(tables: Sequence[Table], source: FigureSource, options: TableOptions, wanted: bool | None) -> FigureGallery:
    """Draw the figures of every table that has scores per image, for the OOD sets and with the names of the tables."""
    if wanted is False:
        return FigureGallery(reason="figures were left out")
    if wanted is None and len(tables) > MOST:
        return FigureGallery(reason=f"pages with more than {MOST} tables have none unless --with-figures is given")
    if not any(_drawable(table, source.paths) for table in tables):
        return FigureGallery(reason="no result has scores per image")
    from oodbench.report.figures import FigureOptions
    from oodbench.report.figures.write import headings

    figures = FigureOptions(source.data, sets=options.sets, rename=options.rename)
    sections = {
        number: _sections(table, heading, source, figures)
        for number, (table, heading) in enumerate(zip(tables, headings(tables), strict=True), 1)
        if _drawable(table, source.paths)
    }
    for number, found in _by_encoder(tables, figures).items():
        sections[number] = (*found, *sections.get(number, ()))
    return FigureGallery({number: found for number, found in sections.items() if found})


def _by_encoder(tables: Sequence[Table], options: FigureOptions) -> dict[int, tuple[FigureSection, ...]]:
    """Return the figures that compare the encoders of a benchmark, by the number of its first table."""
    from oodbench.report.figures import encoder_plots

    benchmarks: dict[str, list[tuple[int, list[Result]]]] = {}
    for number, table in enumerate(tables, 1):
        if results := table.results:
            benchmarks.setdefault(results[0].benchmark, []).append((number, results))
    return {
        numbered[0][0]: _divided(encoder_plots([results for _, results in numbered], options))
        for numbered in benchmarks.values()
    }


def _drawable(table: Table, paths: Mapping[str, Path]) -> bool:
    """Return whether a table's results have scores per image; figures of streams need none."""
    if any(row.stream for row in table.results):
        return True
    return any(paths[row.digest].with_suffix(".parquet").is_file() for row in table.results if row.digest in paths)


def _sections(
    table: Table, heading: Heading, source: FigureSource, options: FigureOptions
) -> tuple[FigureSection, ...]:
    from oodbench.report.figures import table_plots

    return _divided(table_plots(table.results, source.paths, options, heading))


def _divided(plots: Iterable[Plot]) -> tuple[FigureSection, ...]:
    """Return a section for each kind of figure."""
    embedded = [_embedded(plot) for plot in plots]
    return tuple(
        FigureSection(KINDS.get(kind, kind), tuple(figures))
        for kind, figures in groupby(embedded, key=lambda figure: figure.kind)
    )


def _embedded(plot: Plot) -> EmbeddedFigure:
    """Encode drawings as PNG with a palette and photographs as WebP, without visible loss at a third of the size."""
    from PIL import Image

    photographs = plot.kind == "mistakes"
    dpi = PAGE_DPI if photographs else DRAWING_DPI
    out = io.BytesIO()
    with Image.open(io.BytesIO(plot.png(dpi))) as image:
        plain = image.convert("RGB")
    if photographs:
        plain.save(out, "WEBP", quality=88)
    else:
        plain.quantize(256, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    source = f"data:image/{'webp' if photographs else 'png'};base64,{base64.b64encode(out.getvalue()).decode()}"
    width, height = (round(pixels * PAGE_DPI / dpi) for pixels in plain.size)
    return EmbeddedFigure(plot.title, plot.caption, plot.kind, source, width, height)
