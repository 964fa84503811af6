"""The figure of metrics by labelled images per class: reference means over draws, names, separate curves."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes

from oodbench.method import Access
from oodbench.report.figures import Plot, plots
from oodbench.results import Result
from tests.report.test_report_shapes import ood, row


def labelled(method: str, shots: int, seed: int, auroc: float, **changes: Any) -> Result:
    """A row of a method that reads labels, as `run --shots K --shot-seed S` writes it; 0.2 lower on the other set."""
    drawn = {"dataset": "train", "labels": shots, "shot_seed": seed, "n": 2 * shots, "list": f"list {shots} {seed}"}
    run = {"seed": 0, "precision": "fp32", "limit": None, "device": "cpu", "calibration": drawn}
    sets = (ood("sun", auroc, 1 - auroc), ood("dtd", auroc - 0.2, 1.2 - auroc))
    return row(method, *sets, **({"run": run, "access": Access(id_labels=shots, id_images=True).plain()} | changes))


def trained(shots: int, seed: int, auroc: float, settings: str = "", **changes: Any) -> Result:
    """A row of weights in a folder, as `train coop --shots K --seed SEED` and `run --weights coop=DIR` write it."""
    weights = {
        "digest": f"{shots} {seed}",
        "recipe": {
            "method": "coop", "seed": seed, "id": {"set": "cats", "shots": shots, "images": 2 * shots, "list": "l"},
            "optimiser": {"lr": 2e-3, "batch": min(32, 2 * shots)}, "batch": min(32, 2 * shots), "steps": 10 * shots,
            "training": {"seed": seed, "steps": 10 * shots},
        },
    }  # fmt: skip
    run = {"seed": 0, "precision": "fp32", "limit": None, "device": "cpu", "calibration": None}
    label = f"coop[{settings}K={shots},seed={seed}]"
    return labelled("coop", shots, seed, auroc, **({"label": label, "weights": weights, "run": run} | changes))


def line(panel: Axes, name: str) -> np.ndarray:
    (found,) = [one for one in panel.lines if one.get_gid() == name]
    return np.array(found.get_xydata())


ROWS = [
    row("mcm", ood("sun", 0.9, 0.3), ood("dtd", 0.8, 0.5)),
    labelled("knn", 1, 0, 0.7, access=Access(id_images=True).plain()),
    *(labelled("probe", shots, seed, auroc) for shots, seed, auroc in ((1, 1, 0.6), (4, 1, 0.7), (4, 2, 0.76))),
    *(trained(shots, seed, auroc) for shots, seed, auroc in ((16, 1, 0.9), (16, 2, 0.94), (2, 1, 0.8))),
    trained(2, 1, 0.5, "rule=mcm,"),
]


def drawn(rows: list[Result], **options: Any) -> dict[str, Plot]:
    return {plot.name: plot for plot in plots(rows, {}, kinds=["shots"], **options)}


def test_means_over_draws_with_their_deviation() -> None:
    found = drawn(ROWS)
    assert list(found) == ["toy-shots-auroc", "toy-shots-fpr95"]
    average, sun, dtd = found["toy-shots-auroc"].figure.axes[:3]
    np.testing.assert_allclose(line(average, "PROBE"), [[1, 50], [4, 63]])
    np.testing.assert_allclose(line(sun, "PROBE"), [[1, 60], [4, 73]])
    np.testing.assert_allclose(line(dtd, "COOP"), [[2, 60], [16, 72]])
    np.testing.assert_allclose(line(dtd, "COOP (rule=mcm)"), [[2, 30]])
    bars = {round(float(segment[:, 1].mean()), 6): float(np.ptp(segment[:, 1])) / 2
            for bar in dtd.collections for segment in bar.get_segments()}  # type: ignore[attr-defined]  # fmt: skip
    assert bars == pytest.approx({40: 0, 53: 3 * 2**0.5, 60: 0, 72: 2 * 2**0.5, 30: 0})
    np.testing.assert_allclose(line(average, "MCM")[:, 1], 85)
    np.testing.assert_allclose(line(dtd, "MCM")[:, 1], 80)
    panel = found["toy-shots-fpr95"].figure.axes[0]
    np.testing.assert_allclose(line(panel, "PROBE"), [[1, 50], [4, 37]])
    assert [one.get_text() for one in panel.get_xticklabels()] == ["1", "2", "4", "16"]
    assert not [one for one in panel.lines if one.get_gid() in ("KNN", "COOP (K=2, seed=1)")]
    caption = found["toy-shots-auroc"].caption
    assert (
        "Mean over 1 to 2 seeds (draws of images) per point; bars: ± sample standard deviation. Horizontal" in caption
    )


def test_other_code_and_other_sets_have_separate_curves() -> None:
    other = [labelled("probe", 1, 1, 0.4, source="t"), labelled("probe", 8, 1, 0.5, source="t")]
    panel = drawn([*ROWS, *other], sets=["sun"])["toy-shots-auroc"].figure.axes[0]
    np.testing.assert_allclose(line(panel, "PROBE (source s)"), [[1, 60], [4, 73]])
    np.testing.assert_allclose(line(panel, "PROBE (source t)"), [[1, 40], [8, 50]])


def test_many_methods_are_split_over_several_figures() -> None:
    zero_shot = [row(f"zero{i}", ood("sun", 0.5 + i / 100), ood("dtd", 0.5)) for i in range(9)]
    some = [labelled(f"m{i}", shots, 0, 0.6) for i in range(8) for shots in (1, 2)]
    found = drawn([*zero_shot, *some], sets=["sun"])
    assert list(found) == ["toy-shots-auroc-1", "toy-shots-auroc-2", "toy-shots-fpr95-1", "toy-shots-fpr95-2"]
    horizontal = {one.get_gid() for one in found["toy-shots-auroc-2"].figure.axes[0].lines}
    assert {"ZERO8", "ZERO2", "M7"} <= horizontal and not {"ZERO0", "ZERO1", "M0"} & horizontal
    assert "the 7 best of 9" in found["toy-shots-auroc-2"].caption


def test_one_number_of_images_gives_no_figure(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "oodbench")
    assert not drawn([ROWS[0], labelled("probe", 4, 1, 0.7), labelled("probe", 4, 2, 0.7)])
    assert "no results with two numbers of them" in caplog.text
