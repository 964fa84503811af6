"""Overview: average AUROC against average FPR95 of every method, over all OOD sets and over each group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from oodbench.report.figures.figure import FigureData, Plot, PlottedResult
from oodbench.report.figures.style import (
    COLOURS,
    GREY,
    SIZE,
    FigureLayout,
    add_text,
    line_style,
    marker,
    new_figure,
    plot_style,
    shortened,
    width,
)
from oodbench.results import Interval, SetRow

Box = tuple[float, float, float, float]  # left, bottom, right, top
Point = tuple[float, float]

LEADER = 7.5  # a line joins label and point when they are at least so far apart
_RADII = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 48.0, 60.0, 75.0, 95.0, 120.0, 150.0, 190.0, 240.0)
_ANGLES = (0, 180, 45, 135, -45, -135, 90, -90, 20, 160, -20, -160, 70, 110, -70, -110)
# Costs, as distances, of covering an interval's bar, crossing another label's line, and being nearer to another point.
_BAR, _LINE, _NEARER = 4.0, 90.0, 30.0
_COVERED, _OUTSIDE = 1e4, 1e6


@dataclass(frozen=True)
class LabelArea:
    """Points to be labelled inside a frame; all in typographic points (1/72 inch).

    bars  intervals, which labels avoid where it costs little
    keep  smallest distance between a label and a point
    """

    points: Sequence[Point]
    frame: Box
    bars: Sequence[Box] = ()
    keep: float = 4.0

    def mark(self, i: int) -> Box:
        """Return the box around a point that no label covers."""
        x, y = self.points[i]
        return x - self.keep, y - self.keep, x + self.keep, y + self.keep


def place_labels(plane: LabelArea, sizes: Sequence[Point]) -> list[Box]:
    """Return a box of each size near its point; none covers another or a point while the frame has space."""
    done: dict[int, Box] = {}
    order = sorted(range(len(sizes)), key=lambda i: -_crowd(plane.points, i))
    for i in (*order, *order):  # in the second pass all others are placed
        done.pop(i, None)
        best, least = None, math.inf
        for radius, box in _around(plane.points[i], sizes[i]):
            if radius >= least:
                break
            cost = radius + _cost(plane, i, box, done)
            if cost < least:
                best, least = box, cost
        assert best
        done[i] = best
    return [done[i] for i in range(len(sizes))]


def leader(point: Point, box: Box) -> Point:
    """Return the position in a box that is nearest to a point, where its line ends."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _around(point: Point, size: Point) -> Iterator[tuple[float, Box]]:
    """Yield boxes around a point with the distances of their nearest sides or corners, the nearest first."""
    for radius in _RADII:
        for angle in _ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x, y = point[0] + radius * dx, point[1] + radius * dy
            left = x if dx > 0.3 else x - size[0] if dx < -0.3 else x - size[0] / 2
            bottom = y if dy > 0.3 else y - size[1] if dy < -0.3 else y - size[1] / 2
            yield radius, (left, bottom, left + size[0], bottom + size[1])


def _cost(plane: LabelArea, i: int, box: Box, done: Mapping[int, Box]) -> float:
    """Return the cost of a box for point i, given the boxes `done`."""
    own = _distance(plane.points[i], box)
    marks = [plane.mark(j) for j in range(len(plane.points))]
    others = [*done.values(), *marks[:i], *marks[i + 1 :]]
    lines = sum(_crosses(plane.points[i], box, other) for other in others)
    lines += sum(_crosses(plane.points[j], other, box) for j, other in done.items())
    clashes = sum(_overlap(box, other) for other in (*done.values(), *marks))
    nearer = sum(_distance(point, box) < own for point in plane.points)
    cost = _BAR * sum(_overlap(box, bar) for bar in plane.bars) + _LINE * lines + _NEARER * nearer
    return cost + _COVERED * clashes + (0 if _inside(box, plane.frame) else _OUTSIDE)


def _distance(point: Point, box: Box) -> float:
    return math.dist(point, leader(point, box))


def _overlap(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _inside(one: Box, frame: Box) -> bool:
    return one[0] >= frame[0] and one[1] >= frame[1] and one[2] <= frame[2] and one[3] <= frame[3]


def _crosses(point: Point, box: Box, other: Box) -> bool:
    """Return whether the line from a point to its box, if it is drawn, crosses another box."""
    end = leader(point, box)
    length = math.dist(point, end)
    if length < LEADER:
        return False
    count = int(length / 2) + 1
    steps = (k / count for k in range(1, count))
    path = ((point[0] + t * (end[0] - point[0]), point[1] + t * (end[1] - point[1])) for t in steps)
    return any(other[0] < x < other[2] and other[1] < y < other[3] for x, y in path)


def _crowd(points: Sequence[Point], i: int) -> float:
    """Return how near a point's neighbours are: labels of crowded points are placed first."""
    x, y = points[i]
    return sum(1 / (10 + math.hypot(x - u, y - v)) for u, v in points)


NAMED = 40  # methods with a name in the figure; of more, the best ones
FEW = 12  # methods whose names fit into a small panel


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield one figure, with a panel for all OOD sets and for each group."""
    groups = tuple(dict.fromkeys(s.group for s in figure_data.sets if s.group))
    shown = {"all": figure_data.sets}
    if len(groups) > 1:
        shown |= {name: tuple(s for s in figure_data.sets if s.group == name) for name in groups}
    best = sorted(figure_data.plotted, key=lambda one: -_mean(one, figure_data.sets, "auroc"))[:NAMED]
    with plot_style():
        panel_size, columns = ((3.6, 3.1), 3) if len(best) <= FEW else ((5.2, 4.4), 2)
        layout = FigureLayout(panel_size, columns, gap=(0.65, 0.75), head=0.3)
        figure, axes = new_figure(["AUROC and FPR95", figure_data.heading.title], len(shown), layout)
        bars = [_panel(panel, figure_data, sets, best) for panel, sets in zip(axes, shown.values(), strict=True)]
        for panel, (name, sets) in zip(axes, shown.items(), strict=True):
            what = "All OOD sets" if len(shown) > 1 and name == "all" else f"{name.capitalize()} OOD"
            over = shortened(sets[0].title, 2.5, SIZE) if len(sets) == 1 else f"average of {len(sets)} sets"
            head = over if len(shown) == 1 else f"{what}: {over}"
            add_text(panel, (0, 1.03), head, transform=panel.transAxes, fontsize=SIZE + 0.5, weight="bold")
    level = 100 * float(figure_data.plotted[0].result.uncertainty.get("level", 0.95))
    of_first = " of the first stream seed" if any(one.others for one in figure_data.plotted) else ""
    titles = ", ".join(s.title for s in figure_data.sets)
    sentences = [
        f"AUROC against FPR95 in %, plain averages over OOD sets ({titles}); down and right is better.",
        f"Bars: {level:g} % intervals over images{of_first}, where the result has them."
        if any(bars)
        else "No intervals are known.",
        f"Grey, without a name: all but the {NAMED} methods with the highest average AUROC."
        if len(best) < len(figure_data.plotted)
        else "",
        f"Failed, so not shown: {', '.join(figure_data.failed)}." if figure_data.failed else "",
    ]
    title = f"AUROC and FPR95: {figure_data.heading.title}"
    yield Plot(f"{figure_data.heading.stem}-overview", "overview", title, " ".join(filter(None, sentences)), figure)


def _mean(one: PlottedResult, sets: Sequence[SetRow], metric: str) -> float:
    return math.fsum(fmean(one.values(s.dataset, metric)) for s in sets) / len(sets)


def _interval(figure_data: FigureData, one: PlottedResult, sets: Sequence[SetRow], metric: str) -> Interval | None:
    """Return the interval of an average: results have those of single sets, of groups and of all sets."""
    if len(sets) == 1:
        return figure_data.of(one, sets[0].dataset).intervals.get(metric)
    names = {s.dataset for s in sets}
    for group, found in one.result.mean_intervals.items():
        if names == {s.dataset for s in one.result.ood if group in ("", s.group)}:
            return found.get(metric)
    return None


def _panel(panel: Axes, figure_data: FigureData, sets: Sequence[SetRow], best: Sequence[PlottedResult]) -> bool:
    """Draw one panel and return whether it has intervals."""
    at = {one.position: tuple(100 * _mean(one, sets, m) for m in ("auroc", "fpr95")) for one in figure_data.plotted}
    spans = {
        one.position: [_interval(figure_data, one, sets, m) or (math.nan, math.nan) for m in ("auroc", "fpr95")]
        for one in best
    }
    lines = []
    for one in reversed(best):
        (x, y), ((left, right), (low, high)) = at[one.position], spans[one.position]
        colour = line_style(one.position)["color"]
        if not math.isnan(left + low):
            panel.plot([100 * left, 100 * right], [y, y], color=colour, linewidth=0.8, alpha=0.6, gid="auroc interval")
            panel.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=0.8, alpha=0.6, gid="fpr95 interval")
            lines += [((100 * left, y), (100 * right, y)), ((x, 100 * low), (x, 100 * high))]
        looks = {"color": colour, "marker": marker(one.position), "markersize": 5, "markeredgewidth": 0.5}
        panel.plot([x], [y], **looks, markeredgecolor="white", zorder=3, gid=one.name)
    rest = [at[one.position] for one in figure_data.plotted if one not in best]
    if rest:
        panel.plot(*zip(*rest, strict=True), color="#c4c4c4", marker=".", linestyle="none", zorder=1, gid="others")
    panel.set_xlabel("AUROC, %  →")
    panel.set_ylabel("←  FPR95, %")
    panel.margins(0.14)  # space for names
    for axis, (low, high) in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
        ticks = MaxNLocator(7).tick_values(low, high)
        axis.set_ticks([tick for tick in ticks if max(0, low) <= tick <= min(100, high)])
    _labels(panel, best, at, lines)
    return bool(lines)


def _labels(
    panel: Axes,
    best: Sequence[PlottedResult],
    at: dict[int, tuple[float, ...]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> None:
    extent = panel.get_window_extent()  # in pixels
    wide, high = (72 * float(side) / panel.figure.dpi for side in (extent.width, extent.height))
    (x0, x1), (y0, y1) = panel.get_xlim(), panel.get_ylim()

    def points(x: float, y: float) -> tuple[float, float]:
        return (x - x0) / (x1 - x0) * wide, (y - y0) / (y1 - y0) * high

    size = SIZE - 0.5 if len(best) <= 20 else SIZE - 2
    names = [shortened(one.name, 1.5, size) for one in best]
    sizes = [(72 * width(name, size) + 2, size * 1.25) for name in names]
    places = [points(*at[one.position][:2]) for one in best]
    bars: list[Box] = []
    for start, end in lines:
        (a, b), (c, d) = points(*start), points(*end)
        bars.append((a - 0.5, b - 0.5, c + 0.5, d + 0.5))
    boxes = place_labels(LabelArea(places, (0, 0, wide, high), bars), sizes)
    for one, name, point, box in zip(best, names, places, boxes, strict=True):
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
    """Return a colour in which small text is legible: black for the pale ones of the palette."""
    return colour if colour in (COLOURS[0], COLOURS[1], COLOURS[2]) else "black"
