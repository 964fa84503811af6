"""Overview: mean AUROC against mean FPR95 of every method, over all OOD sets and over each group."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from oodbench.report.figures.figure import Entrant, Picture, Subject
from oodbench.report.figures.style import (
    COLOURS,
    GREY,
    SIZE,
    FigureLayout,
    fitted,
    house,
    marker,
    put,
    sheet,
    style,
    width,
)
from oodbench.results import Interval, SetRow

Box = tuple[float, float, float, float]  # left, bottom, right, top
Point = tuple[float, float]

LEADER = 7.5  # from this distance on, a line joins label and point
_RADII = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 48.0, 60.0, 75.0, 95.0, 120.0, 150.0, 190.0, 240.0)
_ANGLES = (0, 180, 45, 135, -45, -135, 90, -90, 20, 160, -20, -160, 70, 110, -70, -110)
# What covering an interval's bar, crossing another label's line, or lying nearer to another point costs in distance.
_BAR, _LINE, _NEARER = 4.0, 90.0, 30.0
_COVERED, _OUTSIDE = 1e4, 1e6


@dataclass(frozen=True)
class Plane:
    """Points and what is drawn around them, inside a frame; all in points (1/72 inch).

    bars  intervals, which labels avoid where it costs little
    keep  how near no label comes to a point
    """

    points: Sequence[Point]
    frame: Box
    bars: Sequence[Box] = ()
    keep: float = 4.0

    def mark(self, i: int) -> Box:
        """The room that a point takes."""
        x, y = self.points[i]
        return x - self.keep, y - self.keep, x + self.keep, y + self.keep


def placed(plane: Plane, sizes: Sequence[Point]) -> list[Box]:
    """A box of each size near its point; none covers another, or a point, as long as the frame has room."""
    done: dict[int, Box] = {}
    order = sorted(range(len(sizes)), key=lambda i: -_crowd(plane.points, i))
    for i in (*order, *order):  # the second time all others are known
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
    """The place of a box nearest to a point, where its line ends."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _around(point: Point, size: Point) -> Iterator[tuple[float, Box]]:
    """Boxes whose nearest side or corner is at some distance from a point, with it; the nearest first."""
    for radius in _RADII:
        for angle in _ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x, y = point[0] + radius * dx, point[1] + radius * dy
            left = x if dx > 0.3 else x - size[0] if dx < -0.3 else x - size[0] / 2
            bottom = y if dy > 0.3 else y - size[1] if dy < -0.3 else y - size[1] / 2
            yield radius, (left, bottom, left + size[0], bottom + size[1])


def _cost(plane: Plane, i: int, box: Box, done: Mapping[int, Box]) -> float:
    """What is wrong with a box for the point i beside those that are placed."""
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
    """Whether the line from a point to its box, if one is drawn, runs through another box."""
    end = leader(point, box)
    length = math.dist(point, end)
    if length < LEADER:
        return False
    count = int(length / 2) + 1
    steps = (k / count for k in range(1, count))
    path = ((point[0] + t * (end[0] - point[0]), point[1] + t * (end[1] - point[1])) for t in steps)
    return any(other[0] < x < other[2] and other[1] < y < other[3] for x, y in path)


def _crowd(points: Sequence[Point], i: int) -> float:
    """How near a point's neighbours are: the crowded ones choose first."""
    x, y = points[i]
    return sum(1 / (10 + math.hypot(x - u, y - v)) for u, v in points)


NAMED = 40  # methods with a name in the picture; of more, these are the best
FEW = 12  # methods whose names find room in a small panel


def draw(subject: Subject, _: Path | None = None) -> Iterator[Picture]:
    """One picture; where the sets are in groups, these have panels of their own."""
    groups = tuple(dict.fromkeys(s.group for s in subject.sets if s.group))
    shown = {"all": subject.sets}
    if len(groups) > 1:
        shown |= {name: tuple(s for s in subject.sets if s.group == name) for name in groups}
    best = sorted(subject.entrants, key=lambda one: -_mean(subject, one, subject.sets, "auroc"))[:NAMED]
    with house():
        panel_size, columns = ((3.6, 3.1), 3) if len(best) <= FEW else ((5.2, 4.4), 2)
        layout = FigureLayout(panel_size, columns, gap=(0.65, 0.75), head=0.3)
        figure, axes = sheet(["AUROC and FPR95", subject.heading.title], len(shown), layout)
        bars = [_panel(panel, subject, sets, best) for panel, sets in zip(axes, shown.values(), strict=True)]
        for panel, (name, sets) in zip(axes, shown.items(), strict=True):
            what = "All OOD sets" if len(shown) > 1 and name == "all" else f"{name.capitalize()} OOD"
            over = fitted(sets[0].title, 2.5, SIZE) if len(sets) == 1 else f"mean of {len(sets)} sets"
            head = over if len(shown) == 1 else f"{what}: {over}"
            put(panel, (0, 1.03), head, transform=panel.transAxes, fontsize=SIZE + 0.5, weight="bold")
    level = 100 * float(subject.entrants[0].row.uncertainty.get("level", 0.95))
    titles = ", ".join(s.title for s in subject.sets)
    said = [
        f"AUROC against FPR95 in %, plain means over OOD sets ({titles}); down and right is better.",
        f"Bars: {level:g} % intervals over images, where the row has them." if any(bars) else "No intervals are known.",
        f"Grey, without a name: all but the {NAMED} methods of highest mean AUROC."
        if len(best) < len(subject.entrants)
        else "",
        f"Failed, so not shown: {', '.join(subject.left_out)}." if subject.left_out else "",
    ]
    title = f"AUROC and FPR95: {subject.heading.title}"
    yield Picture(f"{subject.heading.stem}-overview", "overview", title, " ".join(filter(None, said)), figure)


def _mean(subject: Subject, one: Entrant, sets: Sequence[SetRow], metric: str) -> float:
    return math.fsum(getattr(subject.of(one, s.dataset), metric) for s in sets) / len(sets)


def _interval(subject: Subject, one: Entrant, sets: Sequence[SetRow], metric: str) -> Interval | None:
    """The row's interval of a mean: it has those of single sets, of groups and of all sets."""
    if len(sets) == 1:
        return subject.of(one, sets[0].dataset).intervals.get(metric)
    names = {s.dataset for s in sets}
    for group, found in one.row.mean_intervals.items():
        if names == {s.dataset for s in one.row.ood if group in ("", s.group)}:
            return found.get(metric)
    return None


def _panel(panel: Axes, subject: Subject, sets: Sequence[SetRow], best: Sequence[Entrant]) -> bool:
    """Draw one mean; whether it has intervals."""
    at = {one.place: tuple(100 * _mean(subject, one, sets, m) for m in ("auroc", "fpr95")) for one in subject.entrants}
    spans = {
        one.place: [_interval(subject, one, sets, m) or (math.nan, math.nan) for m in ("auroc", "fpr95")]
        for one in best
    }
    lines = []
    for one in reversed(best):
        (x, y), ((left, right), (low, high)) = at[one.place], spans[one.place]
        colour = style(one.place)["color"]
        if not math.isnan(left + low):
            panel.plot([100 * left, 100 * right], [y, y], color=colour, linewidth=0.8, alpha=0.6, gid="auroc interval")
            panel.plot([x, x], [100 * low, 100 * high], color=colour, linewidth=0.8, alpha=0.6, gid="fpr95 interval")
            lines += [((100 * left, y), (100 * right, y)), ((x, 100 * low), (x, 100 * high))]
        looks = {"color": colour, "marker": marker(one.place), "markersize": 5, "markeredgewidth": 0.5}
        panel.plot([x], [y], **looks, markeredgecolor="white", zorder=3, gid=one.name)
    rest = [at[one.place] for one in subject.entrants if one not in best]
    if rest:
        panel.plot(*zip(*rest, strict=True), color="#c4c4c4", marker=".", linestyle="none", zorder=1, gid="others")
    panel.set_xlabel("AUROC, %  →")
    panel.set_ylabel("←  FPR95, %")
    panel.margins(0.14)  # room for names
    for axis, (low, high) in ((panel.xaxis, panel.get_xlim()), (panel.yaxis, panel.get_ylim())):
        ticks = MaxNLocator(7).tick_values(low, high)
        axis.set_ticks([tick for tick in ticks if max(0, low) <= tick <= min(100, high)])
    _labels(panel, best, at, lines)
    return bool(lines)


def _labels(
    panel: Axes,
    best: Sequence[Entrant],
    at: dict[int, tuple[float, ...]],
    lines: Sequence[tuple[tuple[float, float], tuple[float, float]]],
) -> None:
    extent = panel.get_window_extent()  # in pixels
    wide, high = (72 * float(side) / panel.figure.dpi for side in (extent.width, extent.height))
    (x0, x1), (y0, y1) = panel.get_xlim(), panel.get_ylim()

    def points(x: float, y: float) -> tuple[float, float]:
        return (x - x0) / (x1 - x0) * wide, (y - y0) / (y1 - y0) * high

    size = SIZE - 0.5 if len(best) <= 20 else SIZE - 2
    names = [fitted(one.name, 1.5, size) for one in best]
    sizes = [(72 * width(name, size) + 2, size * 1.25) for name in names]
    places = [points(*at[one.place][:2]) for one in best]
    bars: list[Box] = []
    for start, end in lines:
        (a, b), (c, d) = points(*start), points(*end)
        bars.append((a - 0.5, b - 0.5, c + 0.5, d + 0.5))
    boxes = placed(Plane(places, (0, 0, wide, high), bars), sizes)
    for one, name, point, box in zip(best, names, places, boxes, strict=True):
        end = leader(point, box)
        if math.dist(point, end) >= LEADER:
            xs, ys = zip(point, end, strict=True)
            line = Line2D([x / wide for x in xs], [y / high for y in ys], color=GREY, linewidth=0.4, zorder=1.5)
            line.set_transform(panel.transAxes)
            panel.add_artist(line)
        middle = ((box[0] + box[2]) / 2 / wide, (box[1] + box[3]) / 2 / high)
        colour = _dark(style(one.place)["color"])
        put(panel, middle, name, transform=panel.transAxes, fontsize=size, color=colour, ha="center", va="center")


def _dark(colour: str) -> str:
    """A colour in which small text can be read: the pale ones of the palette are written in black."""
    return colour if colour in (COLOURS[0], COLOURS[1], COLOURS[2]) else "black"
