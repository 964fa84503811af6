"""Placement of labels at points without overlaps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Box = tuple[float, float, float, float]  # left, bottom, right, top
Point = tuple[float, float]

LEADER = 7.5  # a line joins label and point if they are at least this far apart
_RADII = (5.0, 8.0, 12.0, 17.0, 23.0, 30.0, 38.0, 48.0, 60.0, 75.0, 95.0, 120.0, 150.0, 190.0, 240.0)
_ANGLES = (0, 180, 45, 135, -45, -135, 90, -90, 20, 160, -20, -160, 70, 110, -70, -110)
# Costs, as distances, of covering an interval's bar, crossing another label's line, and being nearer to another point.
_BAR, _LINE, _NEARER = 4.0, 90.0, 30.0
_COVERED, _OUTSIDE = 1e4, 1e6


@dataclass(frozen=True)
class LabelArea:
    """Points to be labelled inside a frame; all in typographic points (1/72 inch).

    bars  intervals, which labels avoid at low cost
    keep  minimum distance between a label and a point
    """

    points: Sequence[Point]
    frame: Box
    bars: Sequence[Box] = ()
    keep: float = 4.0

    @cached_property
    def marks(self) -> list[Box]:
        """Return the boxes around the points, which labels must not cover."""
        keep = self.keep
        return [(x - keep, y - keep, x + keep, y + keep) for x, y in self.points]


def place_labels(plane: LabelArea, sizes: Sequence[Point]) -> list[Box]:
    """Return a box of each size near its point, without overlaps as long as the frame has space."""
    done: dict[int, Box] = {}
    order = sorted(range(len(sizes)), key=lambda i: -_crowd(plane.points, i))
    for i in (*order, *order):  # in the second pass, all other boxes are placed
        done.pop(i, None)
        best, least = None, math.inf
        for radius, box in _around(plane.points[i], sizes[i]):
            if radius >= least:
                break
            cost = radius + _cost(plane, i, box, done, least - radius)
            if cost < least:
                best, least = box, cost
        assert best
        done[i] = best
    return [done[i] for i in range(len(sizes))]


def leader(point: Point, box: Box) -> Point:
    """Return the position in a box nearest to a point, where the line to the point ends."""
    return min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3])


def _around(point: Point, size: Point) -> Iterator[tuple[float, Box]]:
    """Yield boxes around a point with their distances, the nearest first."""
    for radius in _RADII:
        for angle in _ANGLES:
            dx, dy = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            x, y = point[0] + radius * dx, point[1] + radius * dy
            left = x if dx > 0.3 else x - size[0] if dx < -0.3 else x - size[0] / 2
            bottom = y if dy > 0.3 else y - size[1] if dy < -0.3 else y - size[1] / 2
            yield radius, (left, bottom, left + size[0], bottom + size[1])


def _cost(plane: LabelArea, i: int, box: Box, done: Mapping[int, Box], limit: float) -> float:
    """Return the cost of a box for point i, given the boxes `done`; stop when it reaches the limit."""
    own = _distance(plane.points[i], box)
    marks = plane.marks
    clashes = sum(_overlap(box, other) for other in (*done.values(), *marks))
    cost = _COVERED * clashes + (0 if _inside(box, plane.frame) else _OUTSIDE)
    if cost >= limit:
        return cost
    cost += _NEARER * sum(_distance(point, box) < own for point in plane.points)
    cost += _BAR * sum(_overlap(box, bar) for bar in plane.bars)
    if cost >= limit:
        return cost
    others = [*done.values(), *marks[:i], *marks[i + 1 :]]
    lines = sum(_crosses(plane.points[i], box, other) for other in others)
    lines += sum(_crosses(plane.points[j], other, box) for j, other in done.items())
    return cost + _LINE * lines


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
    """Return the density of points around a point; labels of crowded points are placed first."""
    x, y = points[i]
    return sum(1 / (10 + math.hypot(x - u, y - v)) for u, v in points)


def are_legible(area: LabelArea, boxes: Sequence[Box], farthest: float) -> bool:
    """Return whether all boxes are inside the frame, without overlaps, and near their points."""
    for i, (point, box) in enumerate(zip(area.points, boxes, strict=True)):
        covered = [*boxes[:i], *area.marks]
        if not _inside(box, area.frame) or _distance(point, box) > farthest:
            return False
        if any(_overlap(box, other) for other in covered):
            return False
    return True
