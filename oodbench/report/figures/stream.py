"""Streams: the metrics of every thousand images by position in the stream, a panel per OOD set."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from oodbench.report.figures.figure import FigureData, Plot, PlottedResult, coincidence
from oodbench.report.figures.layout import Entry, FigureLayout, add_key, add_title, new_figure
from oodbench.report.figures.style import line_style, marker, pages, plot_style
from oodbench.report.tables.columns import TYPED
from oodbench.report.tables.streams import MEASURED, protocol_caption
from oodbench.results import SetRow

log = logging.getLogger(__name__)

LINES, PANELS = 14, 8  # in one figure
_WIDE, _HIGH, _KEY = 3.1, 1.75, 2.3  # inches: a panel, and the width of the key
_TITLES = {"auroc": "AUROC", **TYPED}


@dataclass(frozen=True)
class StreamCurve:
    """A metric of each thousand images [k] in percent; NaN if all of them are ID or all are OOD.

    position   the middle of the thousand, in images
    deviation  sample standard deviation over seeds; NaN with fewer than two
    """

    position: NDArray[np.float64]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield figures of each metric with at most LINES lines in at most PANELS panels."""
    for metric in MEASURED:
        curves = {
            (one.position, s.dataset): curve(one, s.dataset, metric)
            for one in figure_data.plotted
            for s in figure_data.sets
        }
        if all(np.isnan(found.mean).all() for found in curves.values()):
            log.info("no %s by position in the stream: no thousand images have both ID and OOD", _TITLES[metric])
            continue
        most = PANELS
        if figure_data.width:
            layout = _layout(figure_data, min(PANELS, len(figure_data.sets)))
            most = layout.most(PANELS, _entries(figure_data.plotted[:LINES]))
        split = [(m, s) for m in pages(figure_data.plotted, LINES) for s in pages(figure_data.sets, most)]
        for number, (methods, sets) in enumerate(split, start=1):
            drawn = {s.dataset: [(one, curves[one.position, s.dataset]) for one in methods] for s in sets}
            yield _page(figure_data, metric, sets, drawn, number if len(split) > 1 else 0)


def curve(one: PlottedResult, dataset: str, metric: str) -> StreamCurve:
    """Return the curve of a method on an OOD set, over the seeds whose thousand has both ID and OOD images."""
    rows = [s for row in (one.result, *one.others) for s in row.ood if s.dataset == dataset]
    parts: list[tuple[dict[str, Any], ...]] = list(
        zip(*(row.stream.get("thousands", ()) for row in rows), strict=False)
    )
    known = [[100 * part[metric] for part in several if part.get(metric) is not None] for several in parts]
    sizes = np.array([several[0]["n"] for several in parts], dtype=np.float64)
    return StreamCurve(
        position=np.cumsum(sizes) - sizes / 2,
        mean=np.array([statistics.fmean(values) if values else np.nan for values in known]),
        deviation=np.array([statistics.stdev(values) if len(values) > 1 else np.nan for values in known]),
    )


def _page(
    figure_data: FigureData,
    metric: str,
    sets: Sequence[SetRow],
    drawn: dict[str, list[tuple[PlottedResult, StreamCurve]]],
    number: int,
) -> Plot:
    title = f"{_TITLES[metric]} by position in the stream" + (f" ({number})" if number else "")
    layout, wide = _layout(figure_data, len(sets)), figure_data.width
    methods = [method for method, _ in drawn[sets[0].dataset]]
    entries = _entries(methods)
    with plot_style():
        figure, axes = new_figure(figure_data.above(title), len(sets), layout, entries if wide else ())
        columns = layout.columns_of(len(sets))
        for place, (panel, one) in enumerate(zip(axes, sets, strict=True)):
            for method, found in reversed(drawn[one.dataset]):
                _curve(panel, method, found)
            _frame(panel, one.title, layout.panel[0])
            panel.set_xlabel("Images of the stream" if place >= len(sets) - columns else "")
            panel.set_ylabel(f"{_TITLES[metric]}, %" if place % columns == 0 else "")
        if not wide:
            add_key(axes[columns - 1], entries, layout.panel, _KEY)
    seeds = any(one.others for one in figure_data.plotted)
    streams = [(one.result, *one.others) for one in figure_data.plotted]
    sentences = [
        f"{_TITLES[metric]} in % of each 1,000 images of the stream, ID against OOD, drawn at their middle.",
        "Mean over stream seeds; band: ± sample standard deviation." if seeds else "",
        max(coincidence([found.mean.tobytes() for _, found in drawn[one.dataset]], "lines") for one in sets),
        "Gaps: only ID or only OOD images. Dotted: after the first 1,000 images.",
        protocol_caption(streams)[0],
        f"Failed, so not shown: {', '.join(figure_data.failed)}." if figure_data.failed else "",
    ]
    name = f"{figure_data.heading.stem}-stream-{metric}" + (f"-{number}" if number else "")
    return Plot(name, "stream", f"{title}: {figure_data.heading.title}", " ".join(filter(None, sentences)), figure)


def _layout(figure_data: FigureData, panels: int) -> FigureLayout:
    layout, wide = FigureLayout((_WIDE, _HIGH), gap=(0.45, 0.5), right=_KEY + 0.25, head=0.3), figure_data.width
    return layout.fitted(panels, wide, 1.05, gap=(0.4, 0.42), right=0.1, head=0.2) if wide else layout


def _entries(methods: Sequence[PlottedResult]) -> list[Entry]:
    return [(one.short, line_style(one.position) | {"marker": marker(one.position)}) for one in methods]


def _curve(panel: Axes, one: PlottedResult, found: StreamCurve) -> None:
    looks = line_style(one.position)
    panel.plot(found.position, found.mean, **looks, marker=marker(one.position), markersize=2.4, gid=one.name)
    low, high = found.mean - found.deviation, found.mean + found.deviation
    panel.fill_between(found.position, low, high, color=looks["color"], alpha=0.15, linewidth=0, gid=f"{one.name} band")


def _frame(panel: Axes, title: str, wide: float) -> None:
    panel.axvline(1000, color="#999999", linewidth=0.6, linestyle=(0, (1, 2)), gid="first 1,000")
    low, high = panel.get_ylim()
    panel.set(xlim=(0, panel.get_xlim()[1]), ylim=(max(low, -1), min(high, 101)))
    panel.xaxis.set_major_locator(MaxNLocator(max(1, int(wide / 0.42)), integer=True))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    add_title(panel, title, wide)
