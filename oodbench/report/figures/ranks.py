"""Spearman's rank correlation between the scores of every two methods over all images of the table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray

from oodbench.report.figures.figure import FigureData, Plot, PlottedResult
from oodbench.report.figures.layout import FigureLayout, new_figure
from oodbench.report.figures.style import GREY, SIZE, SMALLEST, add_text, plot_style, shortened, width

Floats = NDArray[np.float64]
log = logging.getLogger(__name__)

METHODS = 40  # maximum number in one figure, those with the highest average AUROC
_LINE = 0.105  # inches: minimum distance between names
_BAR = 0.1  # inches: width of the colour bar


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield one figure if two or more methods have scores."""
    if len(figure_data.scored) < 2:
        log.info("no rank correlations of %s: two methods with scores are needed", figure_data.heading.title)
        return
    wide = figure_data.width
    longest = min(1.6, 0.27 * wide) if wide else 1.6
    most = min(METHODS, int((wide - longest - 0.65) / _LINE)) if wide else METHODS
    best = sorted(figure_data.scored, key=lambda one: -one.result.mean("auroc"))[:most]
    shown = [one for one in figure_data.scored if one in best]
    grid = spearman([_all(figure_data, one) for one in shown])
    size = SMALLEST if wide else SIZE
    names = [shortened(one.short, longest, size) for one in shown]
    name_width = max(width(name, size) for name in names) + 0.1
    margins = name_width + 0.12 + 0.5
    cell = 0.42 if len(shown) <= 12 else 0.34
    if wide:
        cell = min(cell, (wide - margins) / len(shown))
    side = cell * len(shown)
    across = side if wide else max(side, 1.2)
    spare = (wide - margins - across) / 2 if wide else 0.0
    with plot_style():
        layout = FigureLayout(
            (across, side),
            columns=1,
            left=name_width + (0.08 + spare if wide else 0.15),
            right=0.54 + spare if wide else 0.75,
            bottom=name_width + (0.02 if wide else 0.1),
            head=0.08 if wide else 0.1,
        )
        figure, (panel,) = new_figure(figure_data.above("Rank correlation"), 1, layout)
        panel.set_xlim(-0.5, across / cell - 0.5)
        _map(panel, grid, names, (across, side), size)
    n = shown[0].result.id.n + sum(s.n for s in figure_data.sets)
    sentences = [
        f"Spearman's rank correlation between the methods' scores over all {n:,} ID and OOD images "
        f"({', '.join([shown[0].result.id.title, *(s.title for s in figure_data.sets)])}), equal scores at their "
        "average rank; 1: the same order of images. Methods in the order of the table.",
        "–: all scores of a method are equal, so it has no ranks." if np.isnan(grid).any() else "",
        f"Shown: the {len(best)} methods with the highest average AUROC."
        if len(figure_data.scored) > len(best)
        else "",
        "Colours show the numbers." if not _numbered(cell) else "",
        figure_data.missing(),
    ]
    title = f"Rank correlation: {figure_data.heading.title}"
    yield Plot(f"{figure_data.heading.stem}-ranks", "ranks", title, " ".join(filter(None, sentences)), figure)


def spearman(scores: list[Floats]) -> Floats:
    """Return correlations [m, m] of the ranks of m score lists; NaN where all scores of a list are equal."""
    ranks = np.stack([_centred(one) for one in scores])
    norms = np.sqrt((ranks * ranks).sum(axis=1))
    with np.errstate(invalid="ignore"):
        grid = (ranks @ ranks.T) / np.outer(norms, norms)
    constant = norms == 0
    grid[constant] = grid[:, constant] = np.nan
    np.fill_diagonal(grid, np.where(constant, np.nan, 1.0))
    return np.clip(grid, -1, 1)


def _centred(scores: Floats) -> Floats:
    """Return ranks minus their average; tied scores get their average rank."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place] - (len(scores) + 1) / 2


def _all(figure_data: FigureData, one: PlottedResult) -> Floats:
    images = figure_data.read(one)
    return np.concatenate(
        [images[name].scores for name in (one.result.id.dataset, *(s.dataset for s in figure_data.sets))]
    )


def _numbered(cell: float) -> bool:
    """Return whether cells of this many inches have room for their numbers."""
    return cell >= width("-0.00", SMALLEST)


def _map(panel: Axes, grid: Floats, names: list[str], size: tuple[float, float], points: float) -> None:
    """Draw the cells and the colour bar in a panel of a size in inches; the font size of names is in points."""
    (wide, side), count = size, len(names)
    cell = side / count
    low = 0.0 if np.isnan(grid).all() else min(0.9, float(np.floor(10 * np.nanmin(grid)) / 10))
    colours = colormaps["cividis"]
    shades = colours((grid - low) / (1 - low))
    shades[np.isnan(grid)] = (0.85, 0.85, 0.85, 1)
    panel.imshow(
        shades, extent=(-0.5, count - 0.5, count - 0.5, -0.5), interpolation="none", aspect="auto", gid="ranks"
    )
    panel.set_ylim(count - 0.5, -0.5)
    panel.axis("off")
    for i, name in enumerate(names):
        add_text(panel, (-0.65, i), name, fontsize=points, ha="right", va="center_baseline")
        add_text(panel, (i, count - 0.35), name, fontsize=points, ha="center", va="top", rotation=90)
        for j in range(count) if _numbered(cell) else ():
            value = grid[i, j]
            light = np.isnan(value) or (value - low) / (1 - low) > 0.55
            text = "–" if np.isnan(value) else f"{value:.2f}"
            looks = {"fontsize": max(points - 0.5, SMALLEST), "color": "black" if light else "white"}
            add_text(panel, (j, i), text, **looks, ha="center", va="center")
    bar = panel.inset_axes(((side + 0.12) / wide, max(0, 1 - 1.6 / side), _BAR / wide, min(1, 1.6 / side)))
    bar.imshow(colours(np.linspace(1, 0, 128))[:, None], extent=(0, 1, low, 1), aspect="auto", interpolation="none")
    bar.yaxis.tick_right()
    bar.set(xticks=[])
    steps = np.linspace(low, 1, 5 if side > 0.7 else 2)
    bar.set_yticks(steps, [f"{v:.2f}" for v in steps])
    bar.grid(False)
    bar.tick_params(length=2, labelsize=SMALLEST, labelcolor=GREY)
