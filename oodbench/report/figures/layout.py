"""Layout of panels, heading and legend of a figure, in inches."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from oodbench.report.figures.style import GREY, SIZE, add_text, printable_text, shortened, width, wrapped

Entry = tuple[str, Mapping[str, Any]]  # of a legend: a name, and the style of its line or marker

TALLEST = 8.0  # inches of a figure of a given width: the text of a page of a paper is 9 inches high
_SMALL = SIZE - 0.5
_SAMPLE, _PITCH = 0.36, 0.125  # of a legend: width of a line's sample with its gaps, and height of an entry


@dataclass(frozen=True)
class FigureLayout:
    """Panels of equal size in a grid."""

    panel: tuple[float, float]
    columns: int = 2
    gap: tuple[float, float] = (0.5, 0.55)
    left: float = 0.55
    right: float = 0.15
    bottom: float = 0.45
    head: float = 0.25  # between the heading and the first panels

    def fitted(self, panels: int, wide: float, narrowest: float, **changes: Any) -> FigureLayout:
        """Return a layout that is `wide` inches across.

        It has as many columns as panels of the `narrowest` width fit, and rows of nearly equal length. Panels become no
        taller, and at most 1.5 times as wide; a single panel is centred.
        """
        out = replace(self, **changes)
        room = wide - out.left - out.right
        most = max(1, min(panels, int((room + out.gap[0]) / (narrowest + out.gap[0]))))
        columns = -(-panels // -(-panels // most))
        across = (room - (columns - 1) * out.gap[0]) / columns
        w = min(across, 1.5 * self.panel[0])
        h = min(self.panel[1], w * max(0.8, self.panel[1] / self.panel[0]))
        spare = columns * (across - w) / 2
        return replace(out, panel=(w, h), columns=columns, left=out.left + spare, right=out.right + spare)

    def columns_of(self, panels: int) -> int:
        """Return the number of columns for a number of panels."""
        return min(self.columns, panels)

    def across(self, panels: int) -> float:
        """Return the width of a figure of some panels in inches."""
        columns = self.columns_of(panels)
        return self.left + columns * self.panel[0] + (columns - 1) * self.gap[0] + self.right

    def height(self, panels: int, legend: Sequence[Entry] = ()) -> float:
        """Return the height of a figure of some panels and a legend in inches, without its heading."""
        rows = -(-panels // self.columns_of(panels))
        below = _Legend(legend, self.across(panels)).height
        return self.head + rows * self.panel[1] + (rows - 1) * self.gap[1] + self.bottom + below

    def most(self, panels: int, legend: Sequence[Entry] = ()) -> int:
        """Return the number of panels, of so many at most, in the rows that fit into TALLEST inches with a legend."""
        columns, pitch = self.columns_of(panels), self.panel[1] + self.gap[1]
        spare = TALLEST - self.height(panels, legend)
        return min(panels, columns * max(1, -(-panels // columns) + math.floor(spare / pitch)))

    def lowered(self, panels: int, legend: Sequence[Entry], lowest: float) -> FigureLayout:
        """Return a layout whose panels are low enough for TALLEST inches with a legend, but not below `lowest`."""
        spare = TALLEST - self.height(panels, legend)
        high = self.panel[1] + min(0.0, spare / -(-panels // self.columns_of(panels)))
        return replace(self, panel=(self.panel[0], max(lowest, high)))


def new_figure(
    heading: Sequence[str], panels: int, layout: FigureLayout, legend: Sequence[Entry] = ()
) -> tuple[Figure, list[Axes]]:
    """Return a figure with a heading (first line in bold) and a legend below, and its panels, row by row."""
    columns = layout.columns_of(panels)
    (w, h), (dx, dy) = layout.panel, layout.gap
    across = layout.across(panels)
    lines = _heading_lines(heading, across)
    pitch = [size * 1.45 / 72 for _, size in lines]
    below = _Legend(legend, across)
    margin = 0.12 if lines else 0.02
    down = margin + sum(pitch) + layout.height(panels, legend)
    figure = Figure(figsize=(across, down))
    y = down - margin + 0.02
    for (line, size), step in zip(lines, pitch, strict=True):
        weight, colour = ("bold", "black") if size > SIZE else ("normal", GREY)
        add_text(figure, (0.15 / across, y / down), line, fontsize=size, weight=weight, color=colour, va="top")
        y -= step
    top = y - layout.head
    axes = []
    for number in range(panels):
        row, column = divmod(number, columns)
        x0, y0 = layout.left + column * (w + dx), top - row * (h + dy) - h
        axes.append(figure.add_axes((x0 / across, y0 / down, w / across, h / down)))
    below.draw(figure)
    return figure, axes


def _heading_lines(heading: Sequence[str], across: float) -> list[tuple[str, float]]:
    """Return the lines of a heading with their font sizes."""
    if not heading:
        return []
    first, *others = heading
    lines = [(line, SIZE + 2) for line in wrapped(first, (across - 0.3) * 0.9, SIZE + 2)]  # bold is a tenth wider
    return lines + [(line, SIZE) for text in others for line in wrapped(text, across - 0.3, SIZE)]


@dataclass(frozen=True)
class _Legend:
    """A legend below the panels, in columns as wide as the longest name.

    A long one has two columns at least, unless they are too narrow for names.
    """

    entries: Sequence[Entry]
    across: float

    @property
    def columns(self) -> int:
        longest = max((width(name, _SMALL) for name, _ in self.entries), default=0.0) + _SAMPLE + 0.12
        fitting = int((self.across - 0.1) / longest) if self.entries else 1
        return max(1, min(len(self.entries), max(fitting, 2 if len(self.entries) > 8 and self.across > 3 else 1)))

    @property
    def height(self) -> float:
        return -(-len(self.entries) // self.columns) * _PITCH + 0.05 if self.entries else 0.0

    def draw(self, figure: Figure) -> None:
        if not self.entries:
            return
        rows = -(-len(self.entries) // self.columns)
        columns = -(-len(self.entries) // rows)
        wide = min(
            (self.across - 0.1) / columns,
            max(width(name, _SMALL) for name, _ in self.entries) + _SAMPLE + 0.2,
        )
        start = (self.across - columns * wide) / 2
        below = figure.add_axes((0, 0, 1, self.height / figure.get_figheight()), label="legend")
        below.set(xlim=(0, self.across), ylim=(0, self.height))
        below.axis("off")
        for i, (name, looks) in enumerate(self.entries):
            x, y = start + i // rows * wide, self.height - _PITCH * (i % rows + 0.5)
            draw_entry(below, (x + 0.04, y), (name, looks), wide)


def add_title(panel: Axes, text: str, wide: float, raised: float = 0.0) -> None:
    """Write the title of a panel that is `wide` inches across above it, `raised` by some points."""
    shown = shortened(text, 0.9 * wide, SIZE + 0.5)  # bold is a tenth wider
    add_note(panel, (0, 1), shown, raised=raised, fontsize=SIZE + 0.5, weight="bold")


def add_note(panel: Axes, at: tuple[float, float], text: str, raised: float = 0.0, **looks: Any) -> None:
    """Write text above a panel, `raised` by some points."""
    looks |= {"xycoords": "axes fraction", "textcoords": "offset points", "parse_math": False}
    panel.annotate(printable_text(text), at, (0, 5 + raised), **looks)


def draw_entry(where: Axes, at: tuple[float, float], entry: Entry, wide: float) -> None:
    """Draw a line or a marker with its name, `wide` inches across; the axes' data are in inches, too."""
    (x, y), (name, looks) = at, entry
    middle = looks.get("linestyle") == "none"
    where.plot([x + 0.12] if middle else [x, x + 0.24], [y] if middle else [y, y], **{"markersize": 2.4, **looks})
    add_text(
        where, (x + 0.29, y), shortened(name, 0.97 * (wide - _SAMPLE), _SMALL), fontsize=_SMALL, va="center_baseline"
    )


def add_key(panel: Axes, entries: Sequence[Entry], size: tuple[float, float], key: float) -> None:
    """List the lines of a panel in a key to the right of it, `key` inches wide."""
    wide, high = size
    inset = panel.inset_axes((1 + 0.15 / wide, 0, key / wide, 1))
    inset.set(xlim=(0, key), ylim=(-high, 0))
    inset.axis("off")
    for line, entry in enumerate(entries):
        draw_entry(inset, (0.0, -0.06 - 0.122 * line), entry, key)
