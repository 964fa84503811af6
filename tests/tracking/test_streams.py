"""Streams in MLflow: names, tags, parameters and metrics that tell them apart, and the same results read back."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from oodbench.tracking import Tracker, default_uri, fields, send
from oodbench.tracking.connection import quiet_mlflow
from oodbench.tracking.reader import collect
from tests.report.stream_rows import on, stream
from tests.report.test_report_shapes import row

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


def test_names_of_runs_tell_streams_apart() -> None:
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
