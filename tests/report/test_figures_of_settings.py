"""Densities side by side, metrics by encoder and by hyper-parameter: their numbers by independent formulas."""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from sklearn.metrics import roc_curve

from oodbench.report import tables
from oodbench.report.figures import FigureOptions, Plot, encoder_plots, plots
from oodbench.report.figures.densities import scaled
from oodbench.report.figures.encoders import encoder_names, operations
from oodbench.report.html import FigureSource
from oodbench.report.html.figures import gallery
from oodbench.report.options import TableOptions
from oodbench.report.tables.grouping import from_folder
from oodbench.results import Result
from tests.report import stream_rows
from tests.report.test_figures import artists, drawn, lay, scores_of, toy
from tests.report.test_report_shapes import ood, row

# Image GFLOPs (two for a multiply-add) that open_clip states: docs/model_profile.csv.
GFLOPS = {
    "RN50": 12.22, "RN101": 19.54, "RN50x4": 42.56, "RN50x16": 149.39, "RN50x64": 529.11, "ViT-B-32": 8.82,
    "ViT-B-16": 35.13, "ViT-L-14": 162.03, "ViT-L-14-336": 381.92, "ViT-H-14": 334.59, "ViT-g-14": 534.06,
    "ViT-bigG-14": 967.5,
}  # fmt: skip


def card(name: str, tag: str = "openai", weights: str = "1") -> dict[str, Any]:
    """The card of an encoder of open_clip, from its config file."""
    found = importlib.util.find_spec("open_clip")
    assert found and found.submodule_search_locations
    config = json.loads(Path(found.submodule_search_locations[0], "model_configs", f"{name}.json").read_text())
    pixels = config["vision_cfg"]["image_size"]
    return {
        "name": f"{name}/{tag}",
        "slug": f"{name}-{tag}",
        "weights": weights,
        "config": config,
        "size": [pixels] * 2,
    }


def line(panel: Axes, name: str) -> np.ndarray:
    (found,) = [one for one in panel.lines if one.get_gid() == name]
    return np.array(found.get_xydata())


# Densities


def test_densities_are_on_a_scale_of_threshold_and_median(tmp_path: Path) -> None:
    all_scores = toy(tmp_path, n=1000)
    (plot,) = drawn(tmp_path, kinds=["densities"])
    panels = [axes for axes in plot.figure.axes if axes.get_label() != "legend"]
    assert [panel.texts[0].get_text() for panel in panels] == ["m00", "m01", "m02"]
    for panel, scores in zip(panels, all_scores, strict=True):
        threshold = np.sort(scores["cats"])[50]  # 950 of 1,000 images reach it
        unit = np.median(scores["cats"]) - threshold
        for gid, name in (("ID", "cats"), ("sun", "sun"), ("dtd", "dtd")):
            found: Any
            (found,) = [one for one in panel.patches if one.get_gid() == gid]
            values, edges, _ = found.get_data()
            counts = np.histogram((scores[name] - threshold) / unit, edges)[0] / len(scores[name])
            np.testing.assert_allclose(values, counts, atol=1e-12)
            assert values.sum() > 0.97
    assert len({panel.get_xlim() for panel in panels}) == 1, "methods have the same axis"


@pytest.mark.parametrize("factor", [1.0, 1e-8, 250.0])
def test_scaled_scores_right_of_0_are_fpr95(factor: float) -> None:
    random = np.random.default_rng(1)
    scores = {"id": factor * random.gamma(2, 1, 777), "ood": factor * random.normal(0.7, 1, 500)}
    found = scaled(scores, "id")
    fpr, tpr, _ = roc_curve(
        np.r_[np.ones(777), np.zeros(500)], np.r_[scores["id"], scores["ood"]], drop_intermediate=False
    )
    assert (found["ood"] >= 0).mean() == pytest.approx(fpr[(tpr >= 0.95).argmax()])
    assert np.median(found["id"]) == pytest.approx(1) and (found["id"] >= 0).mean() >= 0.95


def test_scores_without_a_scale() -> None:
    assert (scaled({"id": np.zeros(9), "ood": np.ones(9)}, "id")["ood"] == 1).all()
    infinite = scaled({"id": np.array([-np.inf] * 5 + [1.0]), "ood": np.array([0.0])}, "id")
    assert not np.isnan(infinite["ood"]).any() or infinite["ood"].shape == (1,)


# Encoders


@pytest.mark.parametrize("name", GFLOPS)
def test_operations_are_those_that_open_clip_states(name: str) -> None:
    assert 2e-9 * (operations(card(name)) or 0) == pytest.approx(GFLOPS[name], rel=0.025)


@pytest.mark.parametrize("rule", ["first", "nearest", "interpolate"])
def test_the_caption_of_densities_has_the_rule_of_fpr95(rule: str, tmp_path: Path) -> None:
    scores = scores_of(0, 40, ("sun", "dtd"))
    for name in ("m0", "m1"):
        lay(tmp_path, name, scores, conventions={"at95": rule, "aupr": "average_precision"})
    densities, roc = sorted(drawn(tmp_path, kinds=["densities", "roc"]), key=lambda plot: plot.kind)
    assert ("(rule: first; that above a panel has the rule" in densities.caption) == (rule != "first")
    assert "numbers above a panel are averages over the OOD sets." in densities.caption
    assert "Equal curves coincide; the one higher in the table is on top." in roc.caption
    assert [one.get_gid() for one in roc.figure.axes[0].lines if one.get_gid() in ("m0", "m1")] == ["m1", "m0"]


def test_encoders_are_in_the_order_of_their_operations() -> None:
    order = ["ViT-B-32", "ViT-B-16", "ViT-L-14"]
    tables: list[list[Result]] = []
    for number, name in enumerate(("ViT-L-14", "ViT-B-32", "ViT-B-16")):
        sets = (ood("sun", 0.9 - number / 100, 0.3), ood("dtd", 0.8, 0.4 + number / 100))
        intervals = {"": {"auroc": (0.7, 0.8), "fpr95": (0.3, 0.4)}}
        both = [
            row("mcm", *sets, encoder=card(name), mean_intervals=intervals),
            row("energy", *sets, encoder=card(name)),
        ]
        tables.append(both[: 1 if number == 2 else 2])
    tables[0].append(row("alone", *tables[0][0].ood, encoder=card("ViT-L-14")))
    (plot,) = encoder_plots(tables, FigureOptions(kinds=("encoders",)))
    auroc, fpr95 = plot.figure.axes[:2]
    assert [text.get_text() for text in auroc.get_xticklabels()] == order and auroc.get_xlabel().endswith(": openai)")
    np.testing.assert_allclose(line(auroc, "MCM"), np.array([[0, 84.5], [1, 84], [2, 85]]))
    np.testing.assert_allclose(line(fpr95, "ENERGY"), np.array([[0, 35.5], [2, 35]]))
    assert "ALONE" not in [one.get_gid() for one in auroc.lines]
    spans = [one.get_xydata()[:, 1] for one in artists(plot.figure, "fpr95 interval")]
    assert len(spans) == 3
    np.testing.assert_allclose(spans, [[30, 40]] * 3)
    assert plot.name == "toy-encoders" and "ascending order of the multiply-adds" in plot.caption


def test_tables_must_differ_only_in_the_encoder() -> None:
    one, other = ([row(encoder=card(name))] for name in ("ViT-B-32", "ViT-B-16"))
    halved = [row(encoder=card("ViT-B-16"), run={"seed": 0, "precision": "fp16", "limit": None, "device": "cpu"})]
    assert len(list(encoder_plots([one, other], FigureOptions()))) == 1
    assert not list(encoder_plots([one, halved], FigureOptions()))


def test_names_of_encoders_differ() -> None:
    same = [card("RN50"), card("RN50", weights="2" * 64)]
    assert encoder_names(same) == (["RN50 1", "RN50 22222222"], "openai", ["weights"])
    assert encoder_names([card("RN50"), card("RN50", "yfcc15m")]) == (["RN50/openai", "RN50/yfcc15m"], "", [])
    last = {"name": "mine:tower.py", "size": [224, 224]}
    assert operations(last) is None and encoder_names([last, card("RN50")])[0] == ["mine:tower.py", "RN50/openai"]


def few_shot(encoder: str, auroc: float, labels: int = 1, **run: Any) -> Result:
    calibration = {"dataset": "cats", "n": 2 * labels, "labels": labels}
    settings = {"seed": 0, "precision": "fp32", "calibration": calibration} | run
    return row("tip", ood("sun", auroc), encoder=card(encoder), run=settings)


@pytest.mark.parametrize(
    ("other", "remarks"),
    [
        ({"labels": 16}, ["calibration labels 1", "calibration labels 16"]),
        ({"seed": 1}, ["seed 0", "seed 1"]),
        ({"imported": {"from": "scores.csv"}}, ["scores measured", "scores imported"]),
        ({"calibration": None}, ["calibration labels 1", "calibration labels none"]),
    ],
)
def test_a_line_has_results_of_one_setting(other: dict[str, Any], remarks: list[str]) -> None:
    first = [[few_shot("ViT-B-32", 0.8)], [few_shot("ViT-B-16", 0.9)]]
    others = [[few_shot("RN50", 0.5, **other)], [few_shot("RN101", 0.6, **other)]]
    assert not list(encoder_plots([first[0], others[0]], FigureOptions()))
    (plot,) = encoder_plots([*first, *others], FigureOptions())
    for remark, values in zip(remarks, ([80, 90], [50, 60]), strict=True):
        np.testing.assert_allclose(line(plot.figure.axes[0], f"TIP ({remark})")[:, 1], values)
    assert "coincide" not in plot.caption


def test_what_the_caption_of_encoders_tells() -> None:
    """Failed methods, seeds, equal lines, and what distinguishes encoders of one name."""
    cards = [card("ViT-B-16") | {"interpolation": name} for name in ("bicubic", "bilinear")]
    spans = {"": {"auroc": (0.7, 0.8), "fpr95": (0.3, 0.4)}}
    plain = [[row("mcm", encoder=one), row("energy", encoder=one)] for one in cards]
    plain[1].append(row("odin", encoder=cards[1], status="failed", error="x", ood=()))
    streams = [[stream_rows.stream("tanl", encoder=one, seed=i, mean_intervals=spans) for i in (0, 1)] for one in cards]
    plot, of_streams = encoder_plots([*plain, *streams], FigureOptions())
    ticks = [text.get_text() for text in plot.figure.axes[0].get_xticklabels()]
    assert ticks == ["ViT-B-16 bicubic", "ViT-B-16 bilinear"] and "equal names: interpolation." in plot.caption
    (narrow,) = encoder_plots(plain, FigureOptions(width=3.25))
    assert narrow.figure.axes[0].get_xlabel() == "Encoder" and "Weights of all: openai." in narrow.caption
    assert "Failed, so not shown: ODIN on ViT-B-16 bilinear." in plot.caption
    assert "Equal lines coincide; the one higher in the table is on top." in plot.caption
    assert [one.get_gid() for one in plot.figure.axes[0].lines] == ["ENERGY", "MCM"], "the first is on top"
    assert "intervals over images of the first stream seed," in of_streams.caption


# Hyper-parameters


def swept(value: object, auroc: float, seed: int = 0, default: object = 1.0, **changes: Any) -> Result:
    label = "knn" if value == default else f"knn[k={value}]"
    sets = (ood("sun", auroc, 1 - auroc), ood("dtd", auroc - 0.2, 1.2 - auroc))
    return row("knn", *sets, seed=seed, **({"label": label, "parameters": {"k": value, "rule": "max"}} | changes))


def sweep_plots(rows: list[Result], **options: Any) -> list[Plot]:
    return list(plots(rows, {}, kinds=["sweep"], **options))


def test_metrics_by_hyper_parameter() -> None:
    rows = [swept(1.0, 0.8), swept(0.01, 0.7), swept(10.0, 0.9, 1), swept(10.0, 0.94, 2), row("mcm")]
    auroc, fpr95 = sweep_plots(rows)
    assert (auroc.name, fpr95.name) == ("toy-sweep-auroc", "toy-sweep-fpr95")
    panel = auroc.figure.axes[0]
    np.testing.assert_allclose(line(panel, "Average"), np.array([[0.01, 60], [1, 70], [10, 82]]))
    np.testing.assert_allclose(line(panel, "DTD"), np.array([[0.01, 50], [1, 60], [10, 72]]))
    np.testing.assert_allclose(line(fpr95.figure.axes[0], "SUN"), np.array([[0.01, 30], [1, 20], [10, 8]]))
    bars = [np.ptp(segment[:, 1]) / 2 for bar in panel.collections for segment in bar.get_segments()]  # type: ignore[attr-defined]
    assert max(bars) == pytest.approx(statistics.stdev([90, 94]))
    assert panel.get_xscale() == "log" and panel.get_xlabel() == "k"
    assert line(panel, "default")[0, 0] == 1
    assert [text.get_text() for text in panel.get_xticklabels()] == ["0.01", "1", "10"]


def test_other_differences_are_other_panels_and_a_default_need_not_be_a_number() -> None:
    other = {"rule": "mean"}
    rows = [
        *(swept(k, 0.5 + k / 100, default=None) for k in (None, 5, 10) if k),
        swept(None, 0.9, default=None),
        *(swept(k, 0.6, label=f"knn[k={k},rule=mean]", parameters={"k": k} | other) for k in (5, 10)),
        swept(7, 0.6, label="knn[k=7,rule=min]", parameters={"k": 7, "rule": "min"}),
        row("flag", parameters={"on": True}),
        row("flag", label="flag[on=False]", parameters={"on": False}),
    ]
    panels = [
        axes for axes in sweep_plots(rows, sets=["sun"], width=6.875)[0].figure.axes if axes.get_label() != "legend"
    ]
    assert [panel.texts[0].get_text() for panel in panels] == ["KNN", "KNN (rule=mean)"]
    np.testing.assert_allclose(line(panels[0], "SUN"), np.array([[5, 55], [10, 60]]))
    assert panels[0].get_xscale() == "linear"
    np.testing.assert_allclose(line(panels[0], "default of SUN")[:, 1], 90)
    assert not [one for one in panels[1].lines if str(one.get_gid()).startswith("default")]


@pytest.mark.parametrize("default", [None, "auto", math.inf])
def test_a_default_that_is_no_number_is_the_mean_of_its_seeds(default: object) -> None:
    rows = [swept(k, 0.5 + k / 100, default=default) for k in (5, 10)]
    rows += [swept(default, auroc, seed, default=default) for seed, auroc in enumerate((0.6, 0.8))]
    rows += [swept(value, 0.9, default=default) for value in ("max", math.nan)]
    plot = sweep_plots(rows, sets=["sun"])[0]
    np.testing.assert_allclose(line(plot.figure.axes[0], "SUN"), np.array([[5, 55], [10, 60]]))
    np.testing.assert_allclose(line(plot.figure.axes[0], "default of SUN")[:, 1], 70)
    assert "Mean over seeds" in plot.caption and "Other values that are not numbers are not shown." in plot.caption


def test_one_value_is_no_figure() -> None:
    assert not sweep_plots([swept(1.0, 0.8), swept(1.0, 0.7, 1), row("mcm")])
    assert not sweep_plots([swept(1.0, 0.8), swept(2.0, 0.7, source="other")]), "other code is another method"


def test_the_page_has_the_figure_by_encoder_below_the_first_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i, name in enumerate(("ViT-B-32", "ViT-B-16")):
        lay(tmp_path, "m", scores_of(i, 30, ("sun",)), encoder=card(name))
    found = from_folder(tmp_path)
    monkeypatch.setattr("oodbench.report.figures.table_plots", lambda *_: iter(()))  # the others take seconds
    page = gallery(tables(found.results), FigureSource(found.paths), TableOptions(rename=(("sun", "Places"),)), None)
    ((number, (section,)),) = page.sections.items()
    assert (number, section.title, page.count) == (1, "Encoders", 1)
    assert gallery([], FigureSource({}), TableOptions(), False).reason == "figures were left out"
    assert "over OOD sets (Places), by encoder" in section.figures[0].caption
