"""Overview: average AUROC against average FPR95 of every method, over all OOD sets and over each group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from oodbench.report.figures.figure import FigureData, Plot, PlottedResult, coincidence
from oodbench.report.figures.labels import LEADER, Box, LabelArea, Point, are_legible, leader, place_labels
from oodbench.report.figures.layout import Entry, FigureLayout, add_title, new_figure
from oodbench.report.figures.style import (
    COLOURS,
    GREY,
    SIZE,
    SMALLEST,
    add_text,
    line_style,
    marker,
    plot_style,
    shortened,
    width,
)
from oodbench.results import Interval, SetRow

NAMED = 40  # maximum number of methods with a name in the figure, the best ones
FEW = 12  # methods whose names fit into a small panel
# In figures of a given width, names are replaced by numbers and a legend beyond these limits:
_FARTHEST = 22.0  # typographic points from a point to its name
_FULL = 0.15  # fraction of a panel that names cover


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield one figure, with a panel for all OOD sets and for each group."""
    groups = tuple(dict.fromkeys(s.group for s in figure_data.sets if s.group))
    shown = {"all": figure_data.sets}
    if len(groups) > 1:
        shown |= {name: tuple(s for s in figure_data.sets if s.group == name) for name in groups}
    best = sorted(figure_data.plotted, key=lambda one: -figure_data.average(one, figure_data.sets, "auroc"))[:NAMED]
    panels = [
        _Panel.of(figure_data, _title(name, sets, len(shown), figure_data.width), sets, best)
        for name, sets in shown.items()
    ]
    figure = _figure(figure_data, panels, [one.short for one in best], strict=bool(figure_data.width))
    if figure is None:
        order = sorted(one.position for one in best)
        numbers = [str(order.index(one.position) + 1) for one in best]
        entries = sorted(zip(numbers, best, strict=True), key=lambda pair: int(pair[0]))
        legend = [(f"{number}  {one.short}", _looks(one) | {"linestyle": "none"}) for number, one in entries]
        figure = _figure(figure_data, panels, numbers, legend)
        assert figure
    level = 100 * float(figure_data.plotted[0].result.uncertainty.get("level", 0.95))
    of_first = " of the first stream seed" if any(one.others for one in figure_data.plotted) else ""
    titles = ", ".join(s.title for s in figure_data.sets)
    sentences = [
        f"AUROC against FPR95 in %, plain averages over OOD sets ({titles}); down and right is better.",
        f"Bars: {level:g} % intervals over images{of_first}, where the result has them."
        if any(panel.bars for panel in panels)
        else "No intervals are known.",
        next(filter(None, (coincidence([panel.at[one.position] for one in best], "points") for panel in panels)), ""),
        f"Grey, without a name: all but the {NAMED} methods with the highest average AUROC."
        if len(best) < len(figure_data.plotted)
        else "",
        f"Failed, so not shown: {', '.join(figure_data.failed)}." if figure_data.failed else "",
    ]
    title = f"AUROC and FPR95: {figure_data.heading.title}"
    yield Plot(f"{figure_data.heading.stem}-overview", "overview", title, " ".join(filter(None, sentences)), figure)


def _title(name: str, sets: Sequence[SetRow], panels: int, wide: float | None) -> str:
    """Return the title of a panel, shortened in a figure of a given width."""
    over = sets[0].title if len(sets) == 1 else f"{len(sets)} sets" if wide else f"average of {len(sets)} sets"
    what = "All OOD" if name == "all" and wide else "All OOD sets" if name == "all" else f"{name.capitalize()} OOD"
    return over if panels == 1 and not (wide and len(sets) > 1) else f"{what}: {over}"


def _looks(one: PlottedResult) -> dict[str, Any]:
    return {"color": line_style(one.position)["color"], "marker": marker(one.position), "markersize": 5}


@dataclass(frozen=True)
class _Panel:
    """A panel's averages in percent and their intervals, by the position of the method; the `best` have names.

    at    (AUROC, FPR95) of every method
    bars  intervals of AUROC and of FPR95 of the best methods
    """

    title: str
    best: Sequence[PlottedResult]
    at: Mapping[int, Point]
    bars: Mapping[int, tuple[Interval, Interval]]

    @classmethod
    def of(cls, figure_data: FigureData, title: str, sets: Sequence[SetRow], best: Sequence[PlottedResult]) -> _Panel:
        at = {
            one.position: (100 * figure_data.average(one, sets, "auroc"), 100 * figure_data.average(one, sets, "fpr95"))
            for one in figure_data.plotted
        }
        bars = {}
        for one in best:
            spans = [figure_data.interval(one, sets, metric) for metric in ("auroc", "fpr95")]
            if spans[0] and spans[1]:
                bars[one.position] = tuple((100 * low, 100 * high) for low, high in filter(None, spans))
        return cls(title, best, at, bars)  # type: ignore[arg-type]

    def draw(self, panel: Axes) -> None:
        for one in sorted(self.best, key=lambda one: -one.position):
            x, y = self.at[one.position]
            bar: dict[str, Any] = {"color": line_style(one.position)["color"], "linewidth": 0.8, "alpha": 0.6}
            if one.position in self.bars:
                across, down = self.bars[one.position]
                panel.plot(across, [y, y], **bar, gid="auroc interval")
                panel.plot([x, x], down, **bar, gid="fpr95 interval")
            panel.plot([x], [y], **_looks(one), markeredgewidth=0.5, markeredgecolor="white", zorder=3, gid=one.name)
        named = {one.position for one in self.best}
        rest = [point for position, point in self.at.items() if position not in named]
        if rest:
            panel.plot(*zip(*rest, strict=True), color="#c4c4c4", marker=".", linestyle="none", zorder=1, gid="others")
        panel.margins(0.14)  # space for names
        extent = panel.get_window_extent()
        for axis, (low, high), pixels in (
            (panel.xaxis, panel.get_xlim(), extent.width),
            (panel.yaxis, panel.get_ylim(), extent.height),
        ):
            ticks = MaxNLocator(min(7, max(2, int(pixels / panel.figure.dpi / 0.36)))).tick_values(low, high)
            axis.set_ticks([tick for tick in ticks if max(0, low) <= tick <= min(100, high)])

    def area(self, panel: Axes) -> LabelArea:
        """Return the points and the intervals of a drawn panel in typographic points."""
        extent = panel.get_window_extent()  # in pixels
        wide, high = (72 * float(side) / panel.figure.dpi for side in (extent.width, extent.height))
        (x0, x1), (y0, y1) = panel.get_xlim(), panel.get_ylim()

        def points(x: float, y: float) -> Point:
            return (x - x0) / (x1 - x0) * wide, (y - y0) / (y1 - y0) * high

        bars: list[Box] = []
        for one in reversed(self.best):
            if one.position in self.bars:
                (x, y), ((left, right), (low, top)) = self.at[one.position], self.bars[one.position]
                for start, end in (((left, y), (right, y)), ((x, low), (x, top))):
                    (a, b), (c, d) = points(*start), points(*end)
                    bars.append((a - 0.5, b - 0.5, c + 0.5, d + 0.5))
        return LabelArea([points(*self.at[one.position]) for one in self.best], (0, 0, wide, high), bars)


def _figure(
    figure_data: FigureData,
    panels: Sequence[_Panel],
    names: Sequence[str],
    legend: Sequence[Entry] = (),
    strict: bool = False,
) -> Figure | None:
    """Return the figure with names or numbers at its points; if `strict`, None unless all of them are legible."""
    layout, wide = _layout(figure_data, len(panels), len(names), legend), figure_data.width
    size = SIZE - 0.5 if len(names) <= 20 and not wide else SMALLEST
    shown = [shortened(name, 1.5, size) for name in names]
    sizes = [(72 * width(name, size) + 2, size * 1.25) for name in shown]
    if strict and any(width(name, size) > 1.5 for name in names):
        return None  # shortened names may be ambiguous
    if strict and sum(x * y for x, y in sizes) > _FULL * 72**2 * math.prod(layout.panel):
        return None
    columns = layout.columns_of(len(panels))
    with plot_style():
        figure, axes = new_figure(figure_data.above("AUROC and FPR95"), len(panels), layout, legend)
        for place, (axis, panel) in enumerate(zip(axes, panels, strict=True)):
            panel.draw(axis)
            axis.set_xlabel("AUROC, %  →" if not wide or place >= len(panels) - columns else "")
            axis.set_ylabel("←  FPR95, %" if not wide or place % columns == 0 else "")
            add_title(axis, panel.title, layout.panel[0])
            area = panel.area(axis)
            boxes = place_labels(area, sizes)
            if strict and not are_legible(area, boxes, _FARTHEST):
                return None
            _labels(axis, list(zip(panel.best, shown, area.points, boxes, strict=True)), area.frame, size)
    return figure


def _layout(figure_data: FigureData, panels: int, names: int, legend: Sequence[Entry]) -> FigureLayout:
    layout = FigureLayout(*(((3.6, 3.1), 3) if names <= FEW else ((5.2, 4.4), 2)), gap=(0.65, 0.75), head=0.3)
    if not (wide := figure_data.width):
        return layout
    layout = replace(layout, panel=(3.6, 2.8 if wide > 5 else 1.7))
    layout = layout.fitted(panels, wide, 1.6, gap=(0.45, 0.45), left=0.5, right=0.1, head=0.2)
    return layout.lowered(panels, legend, 1.2)


def _labels(panel: Axes, labels: Sequence[tuple[PlottedResult, str, Point, Box]], frame: Box, size: float) -> None:
    """Write names at their positions, with lines to distant points."""
    _, _, wide, high = frame
    for one, name, point, box in labels:
        end = leader(point, box)
        if math.dist(point, end) >= LEADER:
            xs, ys = zip(point, end, strict=True)
            line = Line2D([x / wide for x in xs], [y / high for y in ys], color=GREY, linewidth=0.4, zorder=1.5)
            line.set_transform(panel.transAxes)
            panel.add_artist(line)
        middle = ((box[0] + box[2]) / 2 / wide, (box[1] + box[3]) / 2 / high)
        colour = _dark(line_style(one.position)["color"])
        add_text(panel, middle, name, transform=panel.transAxes, fontsize=size, color=colour, ha="center", va="center")


def _dark(colour: str) -> str:
    """Return a colour in which small text is legible: black instead of the palette's pale colours."""
    return colour if colour in (COLOURS[0], COLOURS[1], COLOURS[2]) else "black"
