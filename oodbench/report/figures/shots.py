"""Shots: metrics by the number of labelled images per class, a panel for the average and for each OOD set."""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator

from oodbench.method.access import ZERO_SHOT
from oodbench.report.figures.figure import FigureData, Plot, told_apart
from oodbench.report.figures.layout import Entry, FigureLayout, add_key, add_title, new_figure
from oodbench.report.figures.style import line_style, marker, pages, plot_style, spaced
from oodbench.report.tables.access import card
from oodbench.report.tables.rows import by_shots, line_names, without_shots
from oodbench.results import Result, SetRow

log = logging.getLogger(__name__)

CURVES, LINES, PANELS = 7, 7, 9  # in one figure: methods by number of images, zero-shot methods, panels
_WIDE, _HIGH, _KEY = 2.6, 1.75, 2.3  # inches: a panel, and the width of the key
_TITLES = {"auroc": "AUROC", "fpr95": "FPR95"}


@dataclass(frozen=True)
class ShotCurve:
    """The results of a method with all numbers of labelled images per class and all seeds."""

    name: str
    results: tuple[Result, ...]

    @cached_property
    def shots(self) -> list[int]:
        """Return the numbers of labelled images per class, in ascending order."""
        return sorted({_shots(row) for row in self.results})

    def values(self, shots: int, sets: Sequence[SetRow], metric: str) -> list[float]:
        """Return the average of a metric over OOD sets in percent, for each seed."""
        return [_average(row, sets, metric) for row in self.results if _shots(row) == shots]


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield figures of AUROC and FPR95; none if no method was run with two numbers of labelled images."""
    found = curves(figure_data)
    if len({shots for one in found for shots in one.shots}) < 2:
        log.info("no figure by labelled images per class: no results with two numbers of them")
        return
    known = [(one.name, one.result) for one in figure_data.plotted if _group(one.result) == ZERO_SHOT]
    known.sort(key=lambda one: -_average(one[1], figure_data.sets, "auroc"))
    names, numbers = told_apart([*(one.name for one in found), *(name for name, _ in known[:LINES])], figure_data.width)
    found = [replace(one, name=name) for one, name in zip(found, names, strict=False)]
    shown = [(name, row) for name, (_, row) in zip(names[len(found) :], known, strict=False)]
    several = len(figure_data.sets) > 1
    panels = [("Average", figure_data.sets)] if several else []
    panels += [(one.title, (one,)) for one in figure_data.sets]
    most = PANELS
    if figure_data.width:
        layout = _layout(figure_data, min(PANELS, len(panels)))
        most = layout.most(PANELS, _entries([one.name for one in found[:CURVES]], [name for name, _ in shown]))
    for metric in _TITLES:
        split = [(m, p) for m in pages(found, CURVES) for p in pages(panels, most)]
        for number, (methods, part) in enumerate(split, start=1):
            page = _Page(metric, number if len(split) > 1 else 0, methods, shown, dict(part))
            choice = f" (the {LINES} best of {len(known)})" if len(known) > LINES else ""
            yield page.draw(figure_data, choice).explained(numbers)


def curves(figure_data: FigureData) -> list[ShotCurve]:
    """Return the methods with a known number of labelled images per class, in the table's order."""
    found = by_shots([one.result for one in figure_data.plotted if _shots(one.result)])
    names = map(figure_data.rename, line_names([[without_shots(rows[0])] for rows in found]))
    return [ShotCurve(name, tuple(rows)) for name, rows in zip(names, found, strict=True)]


def _layout(figure_data: FigureData, panels: int) -> FigureLayout:
    layout = FigureLayout((_WIDE, _HIGH), columns=3, gap=(0.45, 0.5), right=_KEY + 0.25, head=0.3)
    wide = figure_data.width
    return layout.fitted(panels, wide, 1.05, gap=(0.4, 0.42), right=0.1, head=0.2) if wide else layout


def _entries(curves: Sequence[str], lines: Sequence[str]) -> list[Entry]:
    looks = [{"marker": marker(i)} for i in range(len(curves))] + [{}] * len(lines)
    return [(name, line_style(i) | looks[i]) for i, name in enumerate([*curves, *lines])]


@dataclass(frozen=True)
class _Page:
    """One figure; `sets` maps the title of each panel to its OOD sets."""

    metric: str
    number: int
    methods: Sequence[ShotCurve]
    zero_shot: Sequence[tuple[str, Result]]
    sets: Mapping[str, Sequence[SetRow]]

    def draw(self, figure_data: FigureData, choice: str) -> Plot:
        title = f"{_TITLES[self.metric]} by labelled images per class" + (f" ({self.number})" if self.number else "")
        wide, count = figure_data.width, len(self.sets)
        layout = _layout(figure_data, count)
        entries = _entries([curve.name for curve in self.methods], [name for name, _ in self.zero_shot])
        with plot_style():
            figure, axes = new_figure(figure_data.above(title), count, layout, entries if wide else ())
            columns = layout.columns_of(count)
            for place, (panel, (name, sets)) in enumerate(zip(axes, self.sets.items(), strict=True)):
                for position, curve in enumerate(self.methods):
                    self._curve(panel, position, curve, sets)
                for position, (method, row) in enumerate(self.zero_shot, start=len(self.methods)):
                    value = _average(row, sets, self.metric)
                    panel.axhline(value, **line_style(position), alpha=0.7, linewidth=0.8, gid=method)
                self._frame(panel, layout.panel[0])
                add_title(panel, name, layout.panel[0])
                panel.set_xlabel("Labelled images per class" if place >= count - columns else "")
                panel.set_ylabel(f"{_TITLES[self.metric]}, %" if place % columns == 0 else "")
            if not wide:
                add_key(axes[columns - 1], entries, layout.panel, _KEY)
        counts = sorted({len(curve.values(k, (), self.metric)) for curve in self.methods for k in curve.shots})
        draws = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        sentences = [
            f"{_TITLES[self.metric]} in % by the number of labelled ID images per class that a method reads.",
            f"Mean over {draws} seeds (draws of images) per point; bars: ± sample standard deviation."
            if counts[-1] > 1
            else "One draw of images per point.",
            f"Horizontal: zero-shot methods{choice}." if self.zero_shot else "",
            f"Failed, so not shown: {', '.join(figure_data.failed)}." if figure_data.failed else "",
        ]
        name = f"{figure_data.heading.stem}-shots-{self.metric}" + (f"-{self.number}" if self.number else "")
        return Plot(name, "shots", f"{title}: {figure_data.heading.title}", " ".join(filter(None, sentences)), figure)

    def _curve(self, panel: Axes, position: int, curve: ShotCurve, sets: Sequence[SetRow]) -> None:
        known = [curve.values(shots, sets, self.metric) for shots in curve.shots]
        means = [statistics.fmean(values) for values in known]
        deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in known]
        looks: dict[str, Any] = line_style(position) | {"marker": marker(position), "markersize": 2.6}
        drawn = panel.errorbar(curve.shots, means, deviations, **looks, capsize=1.6, elinewidth=0.7, capthick=0.7)
        drawn.lines[0].set_gid(curve.name)

    def _frame(self, panel: Axes, wide: float) -> None:
        shots = sorted({number for curve in self.methods for number in curve.shots})
        panel.set_xscale("log", base=2)
        panel.set(xlim=(shots[0] / 1.25, shots[-1] * 1.25))
        kept = spaced([math.log2(number) for number in shots], [f"{number:,}" for number in shots], 0.85 * wide)
        panel.set_xticks([shots[i] for i in kept], [f"{shots[i]:,}" for i in kept])
        panel.xaxis.set_minor_locator(NullLocator())


def _shots(row: Result) -> int:
    """Return the number of labelled images per class, 0 if it is unknown or all."""
    known = card(row)
    return known.id_labels if known and isinstance(known.id_labels, int) else 0


def _group(row: Result) -> str:
    known = card(row)
    return known.group if known else ""


def _average(row: Result, sets: Sequence[SetRow], metric: str) -> float:
    """Return the average of a metric over OOD sets in percent; 0 without sets."""
    names = {one.dataset for one in sets}
    return 100 * statistics.fmean([getattr(one, metric) for one in row.ood if one.dataset in names] or [0.0])
