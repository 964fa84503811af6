"""Histograms: a figure per method with a panel per OOD set, which shows its scores and those of the ID set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from oodbench.metrics import detection as metrics
from oodbench.report.figures.figure import FigureData, Plot, PlottedResult, stem
from oodbench.report.figures.layout import Entry, FigureLayout, add_note, add_title, new_figure
from oodbench.report.figures.style import (
    GREY,
    ID_COLOUR,
    OOD_COLOUR,
    SIZE,
    SMALLEST,
    add_text,
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
_LAYOUT = FigureLayout((3.0, 1.35), gap=(0.25, 0.5), left=0.5, right=0.25, head=0.4)


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield a figure for each method, with at most PANELS panels."""
    for one in figure_data.scored:
        images = figure_data.read(one)
        scores = {s.dataset: images[s.dataset].scores for s in figure_data.sets}
        edges = bins([images[one.result.id.dataset].scores, *scores.values()])
        layout = _layout(figure_data, min(PANELS, len(figure_data.sets)))
        split = pages(figure_data.sets, layout.most(PANELS, _entries(one)) if figure_data.width else PANELS)
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
    layout, wide, entries = _layout(figure_data, len(sets)), figure_data.width, _entries(one)
    columns = layout.columns_of(len(sets))
    with plot_style():
        figure, axes = new_figure(figure_data.above(title), len(sets), layout, entries if wide else ())
        tops = []
        for panel, ood in zip(axes, sets, strict=True):
            scores = images[ood.dataset].scores
            tops.append(max(_bars(panel, on_id, edges, ID_COLOUR), _bars(panel, scores, edges, OOD_COLOUR)))
            if edges[0] <= threshold <= edges[-1]:
                panel.axvline(threshold, color="black", linewidth=0.7, linestyle=(0, (3, 2)), gid="threshold")
            outside = "" if wide else _outside_text(_outside_count(on_id, edges), _outside_count(scores, edges))
            _words(panel, figure_data.of(one, ood.dataset), layout.panel[0], outside)
        above = 1.08 if wide else 1.16  # leaves room for the text on scores outside the axis
        for place, panel in enumerate(axes):
            panel.set(xlim=(edges[0], edges[-1]), ylim=(0, above * max(tops)))
            panel.set_ylabel("Images, %" if place % columns == 0 else "")
            panel.tick_params(labelleft=place % columns == 0)
            if wide:
                panel.xaxis.set_major_locator(MaxNLocator(max(1, int(layout.panel[0] / 0.4))))
            _label(panel, layout.panel[0], last=place >= len(sets) - columns)
        if not wide:
            _legend(axes[0], entries)
    caption = (
        f"Scores of {one.name} on ID images ({one.result.id.title}, n = {one.result.id.n:,}) and on OOD images, in "
        "percent of either per bin, in shared bins; scores of softmax methods are logarithms. Dashed: the highest "
        f"score that at least 95 % of ID images reach ({threshold:.6g}). {_outside_sentence(one, images, edges)} "
        f"{figure_data.missing()}"
    )
    name = f"{figure_data.heading.stem}-{stem('histogram', one.result.label)}" + (f"-{number}" if number else "")
    return Plot(name, "histogram", f"{title}: {figure_data.heading.title}", caption.strip(), figure)


def _layout(figure_data: FigureData, panels: int) -> FigureLayout:
    if not figure_data.width:
        return _LAYOUT
    return _LAYOUT.fitted(panels, figure_data.width, 1.25, gap=(0.12, 0.52), right=0.2, left=0.45, head=0.32)


def _entries(one: PlottedResult) -> list[Entry]:
    return [(f"ID: {one.result.id.title}", _marker(ID_COLOUR)), ("OOD", _marker(OOD_COLOUR))]


def _bars(panel: Axes, scores: Floats, edges: Floats, colour: str) -> float:
    """Draw one set and return the height of its highest bar."""
    percent = 100 * np.histogram(scores[np.isfinite(scores)], edges)[0] / len(scores)
    gid = "ID" if colour == ID_COLOUR else "OOD"
    panel.stairs(percent, edges, fill=True, color=colour, alpha=0.35, linewidth=0, gid=f"{gid} fill")
    panel.stairs(percent, edges, color=colour, linewidth=1.0, gid=gid)
    return float(percent.max()) or 1.0


def _outside_count(scores: Floats, edges: Floats) -> int:
    return int((~((scores >= edges[0]) & (scores <= edges[-1]))).sum())


def _outside_text(on_id: int, ood: int) -> str:
    return f"outside: {on_id:,} ID, {ood:,} OOD" if on_id or ood else ""


def _words(panel: Axes, one: SetRow, wide: float, outside: str) -> None:
    """Write the name of a set and its metrics above its panel, in two lines if the panel is narrow."""
    numbers = f"AUROC {100 * one.auroc:.2f}, FPR95 {100 * one.fpr95:.2f}"
    narrow = wide < 2.9
    name = one.title if narrow else f"{one.title}, n = {one.n:,}"
    size = SMALLEST if narrow else SIZE - 0.5
    add_title(panel, name, wide if narrow else wide - width(numbers, size) - 0.1, raised=9 if narrow else 0)
    add_note(panel, (0 if narrow else 1, 1), numbers, fontsize=size, color=GREY, ha="left" if narrow else "right")
    if outside:
        add_text(
            panel, (0.99, 0.97), outside, transform=panel.transAxes, fontsize=SMALLEST, color=GREY, ha="right", va="top"
        )


def _label(panel: Axes, wide: float, *, last: bool) -> None:
    """Label the axis of scores; digits that all ticks share are written once, at its right end in the last row."""
    panel.ticklabel_format(axis="x", useOffset=True)
    ticks = panel.xaxis.get_major_formatter()
    ticks.format_ticks(list(panel.get_xticks()))
    shared = ticks.get_offset()
    panel.xaxis.offsetText.set_visible(last)
    titles = ("Score, higher: more in-distribution", "Score", "") if last else ("",)
    title = next(text for text in titles if not text or width(f"{text} {shared}", SIZE) < wide)
    panel.set_xlabel(title, loc="left" if shared else "center")


def _marker(colour: str) -> dict[str, Any]:
    return {"color": colour, "marker": "s", "markersize": 5, "linestyle": "none"}


def _legend(panel: Axes, entries: Sequence[Entry]) -> None:
    """Draw the legend above the first panel, where no bar is."""
    (wide, high), x = _LAYOUT.panel, 0.0
    for name, looks in entries:
        text, y = shortened(name, 1.75, SIZE), 1 + 0.29 / high
        panel.plot(
            [x + 0.05 / wide], [y + 0.02], **looks, transform=panel.transAxes, clip_on=False, scalex=False, scaley=False
        )
        add_text(panel, (x + 0.13 / wide, y), text, transform=panel.transAxes, fontsize=SIZE)
        x += (width(text, SIZE) + 0.35) / wide


def _outside_sentence(one: PlottedResult, images: Mapping[str, ImageScores], edges: Floats) -> str:
    """Return a sentence on the scores that the axis does not show."""
    found = {one.result.id.title: _outside_count(images[one.result.id.dataset].scores, edges)}
    found |= {s.title: _outside_count(images[s.dataset].scores, edges) for s in one.result.ood if s.dataset in images}
    listed = [f"{n:,} of {title}" for title, n in found.items() if n]
    span = f"{edges[0]:.6g} to {edges[-1]:.6g}"
    return f"Scores outside the axis ({span}): {', '.join(listed)}." if listed else f"No score is outside {span}."
