"""Rank correlation: Spearman's, between the scores of every two methods over all images of the table."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from numpy.typing import NDArray

from oodbench.report.figures.figure import FigureData, Plot, PlottedResult
from oodbench.report.figures.style import GREY, SIZE, FigureLayout, add_text, new_figure, plot_style, shortened, width

Floats = NDArray[np.float64]
log = logging.getLogger(__name__)

METHODS = 40  # in one figure; of more, those with the highest average AUROC


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield one figure if two or more methods have scores."""
    if len(figure_data.scored) < 2:
        log.info("no rank correlations of %s: two methods with scores are needed", figure_data.heading.title)
        return
    best = sorted(figure_data.scored, key=lambda one: -one.result.mean("auroc"))[:METHODS]
    shown = [one for one in figure_data.scored if one in best]
    grid = spearman([_all(figure_data, one) for one in shown])
    names = [shortened(one.name, 1.6, SIZE) for one in shown]
    wide = max(width(name, SIZE) for name in names) + 0.1
    cell = 0.42 if len(shown) <= 12 else 0.34
    side = cell * len(shown)
    with plot_style():
        layout = FigureLayout(
            (max(side, 1.2), side), columns=1, left=wide + 0.15, right=0.75, bottom=wide + 0.1, head=0.1
        )
        figure, (panel,) = new_figure(["Rank correlation", figure_data.heading.title], 1, layout)
        panel.set_xlim(-0.5, max(side, 1.2) / cell - 0.5)
        _map(panel, grid, names, side)
    n = shown[0].result.id.n + sum(s.n for s in figure_data.sets)
    sentences = [
        f"Spearman's rank correlation between the methods' scores over all {n:,} ID and OOD images "
        f"({', '.join([shown[0].result.id.title, *(s.title for s in figure_data.sets)])}), equal scores at their "
        "average rank; 1: the same order of images. Methods in the order of the table.",
        "–: all scores of a method are equal, so it has no ranks." if np.isnan(grid).any() else "",
        f"Shown: the {METHODS} methods with the highest average AUROC." if len(figure_data.scored) > METHODS else "",
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
    """Return ranks minus their average; equal scores have the average of their ranks."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[place] - (len(scores) + 1) / 2


def _all(figure_data: FigureData, one: PlottedResult) -> Floats:
    images = figure_data.read(one)
    return np.concatenate(
        [images[name].scores for name in (one.result.id.dataset, *(s.dataset for s in figure_data.sets))]
    )


def _map(panel: Axes, grid: Floats, names: list[str], side: float) -> None:
    count = len(names)
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
        add_text(panel, (-0.65, i), name, fontsize=SIZE, ha="right", va="center_baseline")
        add_text(panel, (i, count - 0.35), name, fontsize=SIZE, ha="center", va="top", rotation=90)
        for j in range(count):
            value = grid[i, j]
            light = np.isnan(value) or (value - low) / (1 - low) > 0.55
            text = "–" if np.isnan(value) else f"{value:.2f}"
            add_text(
                panel, (j, i), text, fontsize=SIZE - 0.5, color="black" if light else "white", ha="center", va="center"
            )
    bar = panel.inset_axes(((side + 0.12) / _wide(side), max(0, 1 - 1.6 / side), 0.1 / _wide(side), min(1, 1.6 / side)))
    bar.imshow(colours(np.linspace(1, 0, 128))[:, None], extent=(0, 1, low, 1), aspect="auto", interpolation="none")
    bar.yaxis.tick_right()
    bar.set(xticks=[], yticks=np.linspace(low, 1, 5))
    bar.set_yticks(np.linspace(low, 1, 5), [f"{v:.2f}" for v in np.linspace(low, 1, 5)])
    bar.grid(False)
    bar.tick_params(length=2, labelsize=SIZE - 1, labelcolor=GREY)


def _wide(side: float) -> float:
    return max(side, 1.2)
