"""ROC curves: a panel per OOD set with a curve per method; ID is positive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from oodbench.metrics import detection as metrics
from oodbench.report.figures.figure import FigureData, Plot, PlottedResult, coincidence
from oodbench.report.figures.layout import Entry, FigureLayout, add_title, new_figure
from oodbench.report.figures.style import GREY, SIZE, add_text, line_style, marker, pages, plot_style, shortened
from oodbench.results import SetRow

Floats = NDArray[np.float64]

METHODS, PANELS = 19, 6  # in one figure
_SIDE, _KEY = 2.5, 2.1  # inches: side of a panel, width of its key


def draw(figure_data: FigureData, _: Path | None = None) -> Iterator[Plot]:
    """Yield figures with at most METHODS curves in at most PANELS panels."""
    most = PANELS
    if figure_data.width:
        layout = _layout(figure_data, min(PANELS, len(figure_data.sets)))
        most = layout.most(PANELS, _legend(figure_data.scored[:METHODS]))
    many = len(figure_data.scored) > METHODS or len(figure_data.sets) > most
    number = 0
    for methods in pages(figure_data.scored, METHODS) if figure_data.scored else ():
        curves = [_curves(figure_data, one) for one in methods]
        for sets in pages(figure_data.sets, most):
            number += 1
            yield _page(figure_data, list(zip(methods, curves, strict=True)), sets, number if many else 0)


def vertices(id_scores: Floats, ood_scores: Floats) -> tuple[Floats, Floats]:
    """Return FPR and TPR at the corners of the ROC curve, from (0, 0) to (1, 1); ID is positive.

    Equal scores are accepted together. Points on the straight line between two others are omitted, decided by integer
    counts without rounding.
    """
    both = np.concatenate([id_scores, ood_scores])
    order = np.argsort(-both, kind="stable")
    ends = np.flatnonzero(_last_of_level(both[order]))
    is_id = order < len(id_scores)
    accepted = np.concatenate([[0], np.cumsum(is_id)[ends]])
    false = np.concatenate([[0], np.cumsum(~is_id)[ends]])
    rise, run = np.diff(accepted), np.diff(false)
    turns = np.concatenate([[True], rise[1:] * run[:-1] != rise[:-1] * run[1:], [True]])
    return false[turns] / len(ood_scores), accepted[turns] / len(id_scores)


def _last_of_level(descending: Floats) -> NDArray[np.bool_]:
    return np.concatenate([descending[1:] != descending[:-1], [True]])


def _curves(figure_data: FigureData, one: PlottedResult) -> dict[str, tuple[Floats, Floats]]:
    images = figure_data.read(one)
    on_id = images[one.result.id.dataset].scores
    return {s.dataset: vertices(on_id, images[s.dataset].scores) for s in figure_data.sets}


def _page(
    figure_data: FigureData,
    methods: Sequence[tuple[PlottedResult, dict[str, tuple[Floats, Floats]]]],
    sets: Sequence[SetRow],
    number: int,
) -> Plot:
    layout, wide = _layout(figure_data, len(sets)), figure_data.width
    model = methods[0][0].result
    title = "ROC curves" + (f" ({number})" if number else "")
    columns = layout.columns_of(len(sets))
    legend = _legend([one for one, _ in methods])
    with plot_style():
        figure, axes = new_figure(figure_data.above(title), len(sets), layout, legend if wide else ())
        for place, (panel, one) in enumerate(zip(axes, sets, strict=True)):
            _frame(panel, one, layout.panel[0] + (0 if wide else _KEY))
            panel.set_xlabel("FPR: OOD accepted, %" if len(sets) - place <= columns else "")
            panel.set_ylabel("TPR: ID accepted, %" if not wide or place % columns == 0 else "")
            panel.tick_params(labelleft=not wide or place % columns == 0)
            lines = sorted(methods, key=lambda pair: -figure_data.of(pair[0], one.dataset).auroc)
            for result, curves in reversed(lines):
                _curve(panel, result, curves[one.dataset], figure_data.of(result, one.dataset).fpr95)
            if not wide:
                _key(panel, [(result, figure_data.of(result, one.dataset)) for result, _ in lines])
    equal = [coincidence([tuple(map(bytes, curves[one.dataset])) for _, curves in methods]) for one in sets]
    rule = model.conventions.get("at95", "first")
    caption = (
        f"ROC curves on {_listed([s.title for s in sets])}: fraction of ID images ({model.id.title}) accepted "
        "against fraction of OOD images accepted, at every threshold; up and left is better. Markers: FPR95, where "
        f"95 % of ID images are accepted{'' if rule == 'first' else f' (rule: {rule})'}. "
        f"{'' if wide else 'Methods by AUROC, both numbers in %. '}{_part(figure_data, len(methods))}"
        f"{' '.join(filter(None, (max(equal), figure_data.missing())))}"
    )
    name = f"{figure_data.heading.stem}-roc" + (f"-{number}" if number else "")
    return Plot(name, "roc", f"{title}: {figure_data.heading.title}", caption.strip(), figure)


def _layout(figure_data: FigureData, panels: int) -> FigureLayout:
    layout = FigureLayout((_SIDE, _SIDE), gap=(_KEY + 0.75, 0.6), right=_KEY + 0.27, head=0.3)
    if not figure_data.width:
        return layout
    return layout.fitted(panels, figure_data.width, 1.2, gap=(0.2, 0.42), right=0.1, head=0.2, left=0.5)


def _legend(methods: Sequence[PlottedResult]) -> list[Entry]:
    return [(one.short, line_style(one.position) | {"marker": marker(one.position)}) for one in methods]


def _frame(panel: Axes, one: SetRow, wide: float) -> None:
    panel.set(xlim=(-0.01, 1.0), ylim=(0.0, 1.01))
    panel.set_xticks(np.linspace(0, 1, 6), [f"{v:.0f}" for v in np.linspace(0, 100, 6)])
    panel.set_yticks(np.linspace(0, 1, 6), [f"{v:.0f}" for v in np.linspace(0, 100, 6)])
    panel.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=0.6, gid="chance")
    panel.axhline(0.95, color="#bbbbbb", linewidth=0.6, linestyle=(0, (2, 2)), gid="tpr95")
    add_title(panel, one.title if wide < 2 else f"{one.title}, n = {one.n:,}", wide)


def _curve(panel: Axes, one: PlottedResult, curve: tuple[Floats, Floats], fpr95: float) -> None:
    fpr, tpr = curve
    panel.plot(fpr, tpr, **line_style(one.position), gid=one.name)
    there = tpr[np.isclose(fpr, fpr95, rtol=0, atol=1e-12)]
    kept = metrics.min_accepted(one.result.id.n, 0.95) / one.result.id.n
    height = float(np.clip(kept, there.min(), there.max())) if there.size else 0.95
    looks = {"color": line_style(one.position)["color"], "marker": marker(one.position), "markersize": 3.6}
    panel.plot([fpr95], [height], **looks, markeredgecolor="white", markeredgewidth=0.4, zorder=3, gid="fpr95")


def _key(panel: Axes, lines: Sequence[tuple[PlottedResult, SetRow]]) -> None:
    """List the methods next to a panel, the best on top."""
    inset = panel.inset_axes((1 + 0.12 / _SIDE, 0, _KEY / _SIDE, 1))
    inset.set(xlim=(0, _KEY), ylim=(-_SIDE, 0))
    inset.axis("off")
    small = SIZE - 0.5
    for x, head in ((_KEY - 0.38, "AUROC"), (_KEY, "FPR95")):
        add_text(inset, (x, -0.06), head, fontsize=small - 1, color=GREY, ha="right", va="center")
    for line, (one, numbers) in enumerate(lines, start=1):
        y = -0.06 - 0.128 * line
        inset.plot([0, 0.24], [y, y], **line_style(one.position))
        looks = {"color": line_style(one.position)["color"], "marker": marker(one.position), "markersize": 3}
        inset.plot([0.12], [y], **looks, linestyle="none")
        add_text(inset, (0.29, y), shortened(one.short, _KEY - 1.12, small), fontsize=small, va="center")
        for x, value in ((_KEY - 0.38, numbers.auroc), (_KEY, numbers.fpr95)):
            add_text(inset, (x, y), f"{100 * value:.2f}", fontsize=small, ha="right", va="center")


def _part(figure_data: FigureData, count: int) -> str:
    return "" if count == len(figure_data.scored) else f"Here: {count} of the {len(figure_data.scored)} methods. "


def _listed(words: Sequence[str]) -> str:
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
