"""Sweeps: metrics by the value of one numeric hyper-parameter, a panel per method and hyper-parameter."""

from __future__ import annotations

import logging
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter

from oodbench.method.parameters import split
from oodbench.report.figures.figure import FigureData, Plot, told_apart
from oodbench.report.figures.layout import FigureLayout, add_key, add_title, new_figure
from oodbench.report.figures.style import line_style, marker, pages, plot_style, spaced
from oodbench.report.tables.rows import by_parameter, line_names, without_parameter
from oodbench.results import Result, SetRow

log = logging.getLogger(__name__)

PANELS = 12  # in one figure
WIDE_RANGE = 20  # the axis is logarithmic if all values are positive and differ by at least this factor
_WIDE, _HIGH, _KEY = 2.6, 1.75, 2.0  # inches: a panel, and the width of the key
_TITLES = {"auroc": "AUROC", "fpr95": "FPR95"}


@dataclass(frozen=True)
class Sweep:
    """The results of a method that differ in one hyper-parameter, and in seeds."""

    name: str
    parameter: str
    results: tuple[Result, ...]

    @property
    def values(self) -> list[float]:
        """Return the finite numbers among the values of the hyper-parameter, in ascending order."""
        return sorted({value for row in self.results if (value := _number(row, self.parameter)) is not None})

    def at(self, value: float, sets: Sequence[SetRow], metric: str) -> list[float]:
        """Return the average of a metric over OOD sets in percent, for each result with a value."""
        chosen = [row for row in self.results if _number(row, self.parameter) == value]
        return [average(row, sets, metric) for row in chosen]

    @property
    def defaults(self) -> list[Result]:
        """Return the results with the default value, which their labels do not state."""
        return [row for row in self.results if self.parameter not in _stated(row)]

    @property
    def level(self) -> list[Result]:
        """Return the results with a default that is not a number and so has no place on the axis."""
        return [row for row in self.defaults if _number(row, self.parameter) is None]


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield figures of AUROC and FPR95; none if no hyper-parameter has two values."""
    found = sweeps([row for one in figure_data.plotted for row in (one.result, *one.others)])
    if not found:
        log.info("no figure by hyper-parameter: no results differ only in the value of one")
        return
    names, numbers = told_apart([figure_data.rename(sweep.name) for sweep in found], figure_data.width)
    found = [replace(sweep, name=name) for sweep, name in zip(found, names, strict=True)]
    for metric in _TITLES:
        split = pages(found, _most(figure_data, len(found)))
        for number, part in enumerate(split, start=1):
            yield _page(figure_data, metric, part, number if len(split) > 1 else 0).explained(numbers)


def sweeps(results: Sequence[Result]) -> list[Sweep]:
    """Return, method by method, the hyper-parameters with at least two numeric values in otherwise equal results."""
    out = []
    for method in dict.fromkeys(row.method for row in results):
        rows = [row for row in results if row.method == method]
        for parameter in dict.fromkeys(name for row in rows for name in row.parameters):
            same = [
                found
                for found in by_parameter(rows, parameter)
                if len({value for row in found if (value := _number(row, parameter)) is not None}) > 1
            ]
            names = line_names([[without_parameter(found[0], parameter)] for found in same])
            out += [Sweep(name, parameter, tuple(found)) for name, found in zip(names, same, strict=True)]
    return out


def average(row: Result, sets: Sequence[SetRow], metric: str) -> float:
    """Return the average of a metric over OOD sets in percent."""
    names = {one.dataset for one in sets}
    return 100 * statistics.fmean(getattr(one, metric) for one in row.ood if one.dataset in names)


def _number(row: Result, parameter: str) -> float | None:
    value = row.parameters.get(parameter)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if abs(value) <= sys.float_info.max else None  # no infinity, no NaN


def _stated(row: Result) -> set[str]:
    settings = split(row.label.removeprefix(row.method).removeprefix("[").removesuffix("]"), ",")
    return {setting.partition("=")[0] for setting in settings}


def _page(figure_data: FigureData, metric: str, found: Sequence[Sweep], number: int) -> Plot:
    title = f"{_TITLES[metric]} by hyper-parameter" + (f" ({number})" if number else "")
    layout, wide = _layout(figure_data, len(found)), figure_data.width
    lines = _lines(figure_data)
    looks = {name: look for name, (_, look) in lines.items()}
    entries = [*looks.items()]
    with plot_style():
        figure, axes = new_figure(figure_data.above(title), len(found), layout, entries if wide else ())
        columns = layout.columns_of(len(found))
        for place, (panel, sweep) in enumerate(zip(axes, found, strict=True)):
            for name, (sets, _) in lines.items():
                _curve(panel, (sweep, name), sets, metric, looks[name])
            _frame(panel, sweep, layout.panel[0])
            panel.set_ylabel(f"{_TITLES[metric]}, %" if place % columns == 0 else "")
        if not wide:
            add_key(axes[columns - 1], entries, layout.panel, _KEY)
    several = any(len(sweep.at(value, figure_data.sets, metric)) > 1 for sweep in found for value in sweep.values)
    several = several or any(len(sweep.level) > 1 for sweep in found)
    logarithmic = [f"{sweep.name}: {sweep.parameter}" for sweep in found if _is_logarithmic(sweep.values)]
    sentences = [
        f"{_TITLES[metric]} in % by the value of one hyper-parameter, the others as named.",
        "Mean over seeds; bars: ± sample standard deviation." if several else "",
        "Dotted, vertical: the default; a default that is not a number is a horizontal line. Other values that are "
        "not numbers are not shown.",
        f"Logarithmic axis: {', '.join(logarithmic)}." if logarithmic else "",
        f"Failed, so not shown: {', '.join(figure_data.failed)}." if figure_data.failed else "",
    ]
    name = f"{figure_data.heading.stem}-sweep-{metric}" + (f"-{number}" if number else "")
    return Plot(name, "sweep", f"{title}: {figure_data.heading.title}", " ".join(filter(None, sentences)), figure)


def _lines(figure_data: FigureData) -> dict[str, tuple[Sequence[SetRow], dict[str, Any]]]:
    """Return the OOD sets and the look of each line by its name."""
    lines: dict[str, tuple[Sequence[SetRow], dict[str, Any]]] = {
        one.title: ((one,), line_style(i) | {"linewidth": 0.9}) for i, one in enumerate(figure_data.sets)
    }
    if len(lines) > 1:
        lines["Average"] = (figure_data.sets, {"color": "black", "linewidth": 1.6, "zorder": 3})
    return {name: (sets, look | {"marker": marker(i)}) for i, (name, (sets, look)) in enumerate(lines.items())}


def _layout(figure_data: FigureData, panels: int) -> FigureLayout:
    layout = FigureLayout((_WIDE, _HIGH), columns=3, gap=(0.45, 0.62), right=_KEY + 0.25, head=0.3)
    wide = figure_data.width
    return layout.fitted(panels, wide, 1.0, gap=(0.4, 0.55), right=0.2, head=0.2) if wide else layout


def _most(figure_data: FigureData, panels: int) -> int:
    """Return the number of panels of a figure at most."""
    if not figure_data.width:
        return PANELS
    legend = [(name, look) for name, (_, look) in _lines(figure_data).items()]
    return _layout(figure_data, min(PANELS, panels)).most(PANELS, legend)


def _curve(panel: Axes, of: tuple[Sweep, str], sets: Sequence[SetRow], metric: str, looks: dict[str, Any]) -> None:
    sweep, name = of
    known = [sweep.at(value, sets, metric) for value in sweep.values]
    means = [statistics.fmean(values) for values in known]
    deviations = [statistics.stdev(values) if len(values) > 1 else 0.0 for values in known]
    drawn = panel.errorbar(sweep.values, means, deviations, **looks, markersize=2.6, capsize=1.6, elinewidth=0.7)
    drawn.lines[0].set_gid(name)
    if sweep.level:
        level = statistics.fmean(average(row, sets, metric) for row in sweep.level)
        panel.axhline(level, color=looks["color"], linewidth=0.7, linestyle=(0, (1, 2)), gid=f"default of {name}")


def _is_logarithmic(values: Sequence[float]) -> bool:
    return values[0] > 0 and values[-1] / values[0] >= WIDE_RANGE


def _frame(panel: Axes, sweep: Sweep, wide: float) -> None:
    """Draw the axes and mark the default."""
    values = sweep.values
    default = _number(sweep.defaults[0], sweep.parameter) if sweep.defaults else None
    if default is not None:
        panel.axvline(default, color="#999999", linewidth=0.7, linestyle=(0, (1, 2)), gid="default")
    if _is_logarithmic(values):
        panel.set_xscale("log")
        panel.xaxis.set_minor_formatter(NullFormatter())
    places = [math.log(value) for value in values] if _is_logarithmic(values) else values
    texts = [f"{value:.4g}" for value in values]
    kept = spaced(places, texts, 0.85 * wide)
    panel.xaxis.set_major_locator(FixedLocator([values[i] for i in kept]))
    panel.set_xticks([values[i] for i in kept], [texts[i] for i in kept])
    panel.minorticks_off()
    panel.set_xlabel(sweep.parameter)
    add_title(panel, sweep.name, wide)
