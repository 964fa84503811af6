"""Densities: the scores of several methods side by side, on a common scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import NDArray

from oodbench.metrics import detection as metrics
from oodbench.report.figures.figure import FigureData, Plot, PlottedResult
from oodbench.report.figures.layout import Entry, FigureLayout, add_note, add_title, new_figure
from oodbench.report.figures.style import (
    COLOURS,
    DASHES,
    GREY,
    ID_COLOUR,
    SIZE,
    SMALLEST,
    pages,
    plot_style,
    width,
)

Floats = NDArray[np.float64]

BINS, PANELS = 60, 12
LOWEST, HIGHEST = -4.0, 4.0  # widest ends of the axis, on which the threshold is 0 and the ID median is 1
_TAIL = 0.002  # fraction of a set's scores that may be outside either end of a narrower axis


@dataclass(frozen=True)
class ScaledScores:
    """Scores by dataset after a linear map: 0 is the threshold of FPR95, 1 the median of the ID scores."""

    one: PlottedResult
    scores: Mapping[str, Floats]


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield figures with a panel for each method, at most PANELS of them, all with the same axis."""
    found = [_read(figure_data, one) for one in figure_data.scored]
    if not found:
        return
    edges = np.linspace(*_range([scores for one in found for scores in one.scores.values()]), BINS + 1)
    most = _layout(figure_data, min(PANELS, len(found))).most(PANELS, _legend(figure_data))
    split = pages(found, most if figure_data.width else PANELS)
    for number, part in enumerate(split, start=1):
        yield _page(figure_data, part, edges, number if len(split) > 1 else 0)


def scaled(scores: Mapping[str, Floats], dataset: str) -> dict[str, Floats]:
    """Return (scores - threshold) / (ID median - threshold) by dataset, with the threshold that accepts 95 % of ID.

    If median and threshold are equal, the unit is the standard deviation of the finite ID scores, or 1 if that is 0.
    """
    threshold = metrics.threshold_at_tpr(metrics.score_set(scores[dataset], dataset))
    finite = scores[dataset][np.isfinite(scores[dataset])]
    middle = float(np.median(scores[dataset]))
    with np.errstate(all="ignore"):
        unit = middle - threshold
        if not np.isfinite(unit) or unit <= 0:
            unit = float(np.std(finite)) if len(finite) else 0.0
        unit = unit if np.isfinite(unit) and unit > 0 else 1.0
        return {name: (values - threshold) / unit for name, values in scores.items()}


def _read(figure_data: FigureData, one: PlottedResult) -> ScaledScores:
    images, on_id = figure_data.read(one), one.result.id.dataset
    names = [on_id, *(s.dataset for s in figure_data.sets)]
    return ScaledScores(one, scaled({name: images[name].scores for name in names}, on_id))


def _range(sets: Sequence[Floats]) -> tuple[float, float]:
    """Return the ends of the axis, which contain all but the tails of every set, within LOWEST to HIGHEST."""
    finite = [scores[np.isfinite(scores)] for scores in sets]
    known = [scores for scores in finite if len(scores)]
    low = min((float(np.quantile(scores, _TAIL)) for scores in known), default=0.0)
    high = max((float(np.quantile(scores, 1 - _TAIL)) for scores in known), default=1.0)
    return max(LOWEST, min(low, -0.5)), min(HIGHEST, max(high, 1.5))


def _page(figure_data: FigureData, found: Sequence[ScaledScores], edges: Floats, number: int) -> Plot:
    model = found[0].one.result
    title = "Scores of ID and OOD images" + (f" ({number})" if number else "")
    layout = _layout(figure_data, len(found))
    sets = {s.dataset: _looks(i) for i, s in enumerate(figure_data.sets)}
    columns = layout.columns_of(len(found))
    with plot_style():
        figure, axes = new_figure(figure_data.above(title), len(found), layout, _legend(figure_data))
        for place, (panel, one) in enumerate(zip(axes, found, strict=True)):
            top = _density(panel, one.scores[model.id.dataset], edges, {"color": ID_COLOUR}, "ID")
            for name, looks in sets.items():
                top = max(top, _density(panel, one.scores[name], edges, looks, name))
            panel.axvline(0, color="black", linewidth=0.7, linestyle=(0, (3, 2)), gid="threshold")
            panel.set(xlim=(edges[0], edges[-1]), ylim=(0, 1.06 * top))
            panel.yaxis.set_major_locator(NullLocator())
            panel.xaxis.set_major_locator(MaxNLocator(max(1, int(layout.panel[0] / 0.3)), integer=True, prune="upper"))
            panel.set_ylabel("Images" if place % columns == 0 else "")
            panel.set_xlabel(_axis_title(layout.panel[0]) if place >= len(found) - columns else "")
            _words(panel, figure_data, one.one, layout.panel[0])
    outside = _outside(figure_data, found, edges)
    rule = model.conventions.get("at95", "first")
    caption = (
        f"Scores of ID images ({model.id.title}, filled) and of OOD images, each set in fractions of its images per "
        "bin. Each method's scores are shifted and divided so that 0 (dashed) is the highest score that at least 95 % "
        "of ID images reach and 1 is the median of the ID images: the part of an OOD set right of the dashed line is "
        f"its FPR95{'' if rule == 'first' else f' (rule: first; that above a panel has the rule {rule})'}. The numbers "
        f"above a panel are averages over the OOD sets. Heights are comparable within a panel. {outside} "
        f"{figure_data.missing()}"
    )
    name = f"{figure_data.heading.stem}-densities" + (f"-{number}" if number else "")
    return Plot(name, "densities", f"{title}: {figure_data.heading.title}", caption.strip(), figure)


def _layout(figure_data: FigureData, panels: int) -> FigureLayout:
    even = -(-panels // -(-panels // 4))  # rows of nearly equal length
    layout = FigureLayout((2.2, 1.2), columns=even, gap=(0.2, 0.5), left=0.35, head=0.45)
    if not figure_data.width:
        return layout
    return layout.fitted(panels, figure_data.width, 1.2, gap=(0.12, 0.48), right=0.08, left=0.25, head=0.32)


def _legend(figure_data: FigureData) -> list[Entry]:
    on_id = {"color": ID_COLOUR, "linewidth": 5, "alpha": 0.4, "solid_capstyle": "butt"}
    sets = [(s.title, _looks(i)) for i, s in enumerate(figure_data.sets)]
    return [(f"ID: {figure_data.plotted[0].result.id.title}", on_id), *sets]


def _looks(position: int) -> dict[str, Any]:
    """Return the look of an OOD set; the first colour is that of ID."""
    others = COLOURS[1:]
    return {"color": others[position % len(others)], "linestyle": DASHES[position // len(others) % len(DASHES)]}


def _density(panel: Axes, scores: Floats, edges: Floats, looks: Mapping[str, Any], gid: str) -> float:
    """Draw the fractions of a set's scores per bin and return the highest."""
    fractions = np.histogram(scores[np.isfinite(scores)], edges)[0] / len(scores)
    if gid == "ID":
        panel.stairs(fractions, edges, fill=True, **looks, alpha=0.3, linewidth=0, gid="ID fill")
    panel.stairs(fractions, edges, **looks, linewidth=0.9, gid=gid)
    return float(fractions.max()) or 0.01


def _axis_title(wide: float) -> str:
    long = "Score (0: threshold, 1: ID median)"
    return long if width(long, SIZE) < wide + 0.1 else "Score, scaled"


def _words(panel: Axes, figure_data: FigureData, one: PlottedResult, wide: float) -> None:
    add_title(panel, one.short, wide, raised=8)
    auroc, fpr95 = (100 * figure_data.average(one, figure_data.sets, metric) for metric in ("auroc", "fpr95"))
    add_note(panel, (0, 1), f"AUROC {auroc:.2f}, FPR95 {fpr95:.2f}", fontsize=SMALLEST, color=GREY)


def _outside(figure_data: FigureData, found: Sequence[ScaledScores], edges: Floats) -> str:
    """Return a sentence on the scores that the axis does not show."""
    out = []
    for one in found:
        fractions = [float(((s < edges[0]) | (s > edges[-1]) | ~np.isfinite(s)).mean()) for s in one.scores.values()]
        if max(fractions) >= 0.001:
            out.append(f"{one.one.name} {100 * max(fractions):.1f} %")
    return f"Outside the axis, for the set with the most such scores: {', '.join(out)}." if out else ""
