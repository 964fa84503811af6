"""Streams in MLflow: names, tags, parameters and metrics that distinguish them; the same results are read back."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import oodbench.report as report
from oodbench import api
from oodbench.results import SetRow
from oodbench.tracking import Tracker, default_uri, fields, send
from oodbench.tracking.connection import quiet_mlflow
from oodbench.tracking.reader import collect
from tests.report.stream_rows import on, shifted, stream
from tests.report.test_report_shapes import ood, row

GAP = on("sun", (0.98, 0.1, 0.12), (None, (0.9, 0.3, 0.4)))
OODD = stream("oodd", "id-first", 2, GAP, on("dtd", (0.9, 0.3, 0.36)), base="mcm", protocol={"ratio": "1:4"})


def test_tags_parameters_and_metrics_of_a_stream() -> None:
    tags = {name: value for name, value in fields.row_tags(OODD).items() if name.startswith("stream.")}
    assert tags == {
        "stream.order": "id-first",
        "stream.seed": "2",
        "stream.batch": "256",
        "stream.ratio": "1:4",
        "stream.reset": "pair",
        "stream.sees_itself": "false",
        "stream.base": "mcm",
    }
    assert fields.params(OODD)["stream.order"] == "id-first" and "stream.order" not in fields.params(row("mcm"))
    clash = stream("stream", parameters={"order": 3})
    assert fields.params(clash)["method-stream.order"] == "3" and fields.params(clash)["stream.order"] == "shuffled"
    found = fields.metrics(OODD)
    assert "first/auroc/sun" not in found  # images of one kind only
    assert (found["first/auroc/dtd"], found["rest/fpr95_ood/sun"], found["auroc/mean"]) == (0.9, 0.12, 0.94)
    assert not [name for name in fields.metrics(row("mcm")) if name.startswith(("first/", "rest/"))]


def test_hyper_parameters_of_a_base_have_its_name_before_them() -> None:
    base = {"label": "mcm[temperature=2.0]", "parameters": {"temperature": 2.0}, "source": "s"}
    one = stream("oodd", parameters={"queue": 512}, base="mcm[temperature=2.0]", run={"seed": 0, "base": base})
    found = fields.params(one)
    assert (found["oodd.queue"], found["mcm.temperature"], found["run.base.source"]) == ("512", "2.0", "s")
    assert not [name for name in found if name.startswith("run.base.parameters")]
    assert not [name for name in fields.run_params(one) if name.startswith("run.base")]  # of one method of the run


def both(auroc: float, fpr95: float) -> list[SetRow]:
    return [ood(name, auroc, fpr95) for name in ("sun", "dtd")]


def test_best_and_median_of_a_run() -> None:
    """By hand: the mean AUROC of the seeds of tanl is 0.95, that of mcm 0.9 (0.88 and 0.92); FPR95 0.19 and 0.4."""
    rows = [*(shifted("tanl", "shuffled", seed, seed / 100) for seed in (0, 1, 2)), row("mcm", *both(0.88, 0.3))]
    rows += [row("mcm", *both(0.92, 0.5), seed=1)]
    rows += [row("zoc", status="failed", error="x", ood=()), row("nan", *both(math.nan, math.nan))]
    found = fields.best_and_median(rows)
    shown = {"auroc/mean": (0.95, 0.925), "fpr95/mean": (0.19, 0.295)}
    assert {key: (found[f"best/{key}"], found[f"median/{key}"]) for key in shown} == {
        key: pytest.approx(values) for key, values in shown.items()
    }
    assert {key for key in fields.best_and_median(rows[-1:])} == {"best/id_accuracy", "median/id_accuracy"}


@pytest.mark.parametrize(
    "changes",
    [
        {"run": {"seed": 0, "precision": "fp32", "limit": 20}},
        {"run": {"seed": 0, "precision": "bf16"}},
        {"conventions": {"at95": "nearest"}},
        {"classes": {"name": "dogs"}},
    ],
)
def test_results_of_several_settings_have_no_best(changes: dict[str, Any]) -> None:
    rows = [row("mcm", ood("sun")), row("energy", ood("sun"))]
    assert "best/auroc/mean" in fields.best_and_median(rows)
    assert not fields.best_and_median([*rows, row("mcm", ood("sun"), **changes)])
    failed = row("mcm", status="failed", error="x", ood=(), **changes)
    assert "best/auroc/mean" in fields.best_and_median([*rows, failed])


def test_a_page_that_is_too_large_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [row("mcm"), row("energy")]
    tables = report.tables(rows)
    ((name, page),) = api.Attachments(tmp_path)._page(tables, rows)
    assert name == "table.html" and b"<!doctype html>" in page.lower() and b"MCM" in page and b"<img" not in page
    monkeypatch.setattr(api, "LARGEST_PAGE", len(page) - 1)
    assert not [*api.Attachments(tmp_path)._page(tables, rows)]
    assert "no page is sent to MLflow: that of 2 results" in caplog.text


def test_names_of_runs_distinguish_streams() -> None:
    assert fields.row_name(OODD) == "oodd · ViT-B-16/openai, id-first, batch 256, stream seed 2, ID:OOD 1:4"
    rows = [stream("tanl", order, seed) for order in ("shuffled", "blocks=10") for seed in (0, 1)]
    assert len({fields.row_name(one) for one in rows}) == 4
    assert fields.run_name([row("mcm"), *rows]) == "ViT-B-16/openai on toy: mcm, tanl; shuffled, blocks=10"
    assert fields.run_name([row("mcm")]) == "ViT-B-16/openai on toy: mcm"


@pytest.mark.slow
def test_streams_are_read_back_as_they_were_sent(tmp_path: Path, empty_store: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    shutil.copy(empty_store, results / "mlflow.db")
    tracker = Tracker(default_uri(results), results)
    rows = [row("mcm"), OODD, *(stream("tanl", seed=seed) for seed in (0, 1))]
    assert send(tracker, rows).arrived == 4
    again = {one.digest: one for one in collect(tracker)}
    assert again == {one.digest: one for one in rows}
    with quiet_mlflow():
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=tracker.uri)
        experiment = client.get_experiment_by_name("oodbench/toy")
        (found,) = client.search_runs([experiment.experiment_id], "tags.\"stream.order\" = 'id-first'")
    assert found.data.metrics["rest/auroc/dtd"] == 0.9 and found.data.params["stream.base"] == "mcm"
