"""Histograms: a figure for each method with a panel for each OOD set, its scores over those of the ID set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from oodbench.metrics import detection as metrics
from oodbench.report.figures.figure import FigureData, Plot, PlottedResult, stem
from oodbench.report.figures.style import (
    GREY,
    ID_COLOUR,
    OOD_COLOUR,
    SIZE,
    FigureLayout,
    add_text,
    new_figure,
    pages,
    plot_style,
    shortened,
    width,
)
from oodbench.report.verify import ImageScores
from oodbench.results import SetRow

Floats = NDArray[np.float64]

BINS, PANELS = 60, 12
TAIL = 0.001  # fraction of a set's scores that may be outside either end of the axis
_LAYOUT = FigureLayout((3.0, 1.35), gap=(0.25, 0.5), left=0.5, head=0.4)


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield a figure for each method, with at most PANELS panels."""
    for one in figure_data.scored:
        images = figure_data.read(one)
        scores = {s.dataset: images[s.dataset].scores for s in figure_data.sets}
        edges = bins([images[one.result.id.dataset].scores, *scores.values()])
        split = pages(figure_data.sets, PANELS)
        for number, sets in enumerate(split, start=1):
            yield _page(figure_data, one, (images, edges), sets, number if len(split) > 1 else 0)


def bins(sets: Sequence[Floats]) -> Floats:
    """Return bin edges [BINS + 1] that contain all but the TAIL of each set's finite scores."""
    finite = [scores[np.isfinite(scores)] for scores in sets]
    known = [scores for scores in finite if len(scores)]
    low = min((float(np.quantile(scores, TAIL, method="lower")) for scores in known), default=0.0)
    high = max((float(np.quantile(scores, 1 - TAIL, method="higher")) for scores in known), default=1.0)
    if high - low <= 1e-12 * max(abs(low), abs(high)):  # all scores are equal
        low, high = low - 0.5 * max(abs(low), 1.0), high + 0.5 * max(abs(high), 1.0)
    return np.linspace(low, high, BINS + 1)


def _page(
    figure_data: FigureData,
    one: PlottedResult,
    found: tuple[Mapping[str, ImageScores], Floats],
    sets: Sequence[SetRow],
    number: int,
) -> Plot:
    images, edges = found
    on_id = images[one.result.id.dataset].scores
    threshold = metrics.threshold_at_tpr(metrics.score_set(on_id, one.result.id.dataset))
    title = f"Scores of {one.name}" + (f" ({number})" if number else "")
    with plot_style():
        figure, axes = new_figure([title, figure_data.heading.title], len(sets), _LAYOUT)
        columns = min(len(sets), _LAYOUT.columns)
        tops = []
        for panel, ood in zip(axes, sets, strict=True):
            scores = images[ood.dataset].scores
            tops.append(max(_bars(panel, on_id, edges, ID_COLOUR), _bars(panel, scores, edges, OOD_COLOUR)))
            if edges[0] <= threshold <= edges[-1]:
                panel.axvline(threshold, color="black", linewidth=0.7, linestyle=(0, (3, 2)), gid="threshold")
            _words(
                panel, figure_data.of(one, ood.dataset), (_outside_count(on_id, edges), _outside_count(scores, edges))
            )
        for place, panel in enumerate(axes):
            panel.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.08 * max(tops)))
            panel.set_ylabel("Images, %" if place % columns == 0 else "")
            panel.tick_params(labelleft=place % columns == 0)
            panel.set_xlabel("Score, higher: more in-distribution" if place >= len(sets) - columns else "")
        _legend(axes[0], one)
    caption = (
        f"Scores of {one.name} on ID images ({one.result.id.title}, n = {one.result.id.n:,}) and on OOD images, in "
        "percent of either per bin, in shared bins; scores of softmax methods are logarithms. Dashed: the highest "
        f"score that at least 95 % of ID images reach ({threshold:.6g}). {_outside_sentence(one, images, edges)} "
        f"{figure_data.missing()}"
    )
    name = f"{figure_data.heading.stem}-{stem('histogram', one.result.label)}" + (f"-{number}" if number else "")
    return Plot(name, "histogram", f"{title}: {figure_data.heading.title}", caption.strip(), figure)


def _bars(panel: Axes, scores: Floats, edges: Floats, colour: str) -> float:
    """Draw one set and return the height of its highest bar."""
    percent = 100 * np.histogram(scores[np.isfinite(scores)], edges)[0] / len(scores)
    gid = "ID" if colour == ID_COLOUR else "OOD"
    panel.stairs(percent, edges, fill=True, color=colour, alpha=0.35, linewidth=0, gid=f"{gid} fill")
    panel.stairs(percent, edges, color=colour, linewidth=1.0, gid=gid)
    return float(percent.max()) or 1.0


def _outside_count(scores: Floats, edges: Floats) -> int:
    return int((~((scores >= edges[0]) & (scores <= edges[-1]))).sum())


def _words(panel: Axes, one: SetRow, outside: tuple[int, int]) -> None:
    size = SIZE + 0.5
    numbers = f"AUROC {100 * one.auroc:.2f}, FPR95 {100 * one.fpr95:.2f}"
    name = shortened(f"{one.title}, n = {one.n:,}", 1.55, size)
    add_text(panel, (0, 1.04), name, transform=panel.transAxes, fontsize=size, weight="bold")
    add_text(panel, (1, 1.04), numbers, transform=panel.transAxes, fontsize=SIZE - 0.5, color=GREY, ha="right")
    if any(outside):
        text = f"outside: {outside[0]:,} ID, {outside[1]:,} OOD"
        add_text(
            panel, (0.99, 0.97), text, transform=panel.transAxes, fontsize=SIZE - 1.5, color=GREY, ha="right", va="top"
        )


def _legend(panel: Axes, one: PlottedResult) -> None:
    """Draw the legend above the first panel, where no bar can reach."""
    x, y = 0.0, 1 + 0.29 / _LAYOUT.panel[1]
    wide = _LAYOUT.panel[0]
    for colour, text in ((ID_COLOUR, f"ID: {shortened(one.result.id.title, 1.6, SIZE)}"), (OOD_COLOUR, "OOD")):
        looks = {"transform": panel.transAxes, "clip_on": False, "marker": "s", "markersize": 5, "linestyle": "none"}
        panel.plot([x + 0.05 / wide], [y + 0.02], color=colour, **looks, scalex=False, scaley=False)
        add_text(panel, (x + 0.13 / wide, y), text, transform=panel.transAxes, fontsize=SIZE)
        x += (width(text, SIZE) + 0.35) / wide


def _outside_sentence(one: PlottedResult, images: Mapping[str, ImageScores], edges: Floats) -> str:
    """Return a sentence on the scores that the axis does not show."""
    found = {one.result.id.title: _outside_count(images[one.result.id.dataset].scores, edges)}
    found |= {s.title: _outside_count(images[s.dataset].scores, edges) for s in one.result.ood if s.dataset in images}
    listed = [f"{n:,} of {title}" for title, n in found.items() if n]
    span = f"{edges[0]:.6g} to {edges[-1]:.6g}"
    return f"Scores outside the axis ({span}): {', '.join(listed)}." if listed else f"No score is outside {span}."
