"""The commands that show results in MLflow: of each kind of store, and without anything secret."""

from __future__ import annotations

from pathlib import Path

import pytest

from oodbench.cli.tracking import mlflow_steps
from oodbench.errors import UserError
from oodbench.tracking import Tracker


@pytest.mark.parametrize(
    ("uri", "steps"),
    [
        ("http://host/mlflow?token=abc", ["open 'http://host/mlflow?token=...'"]),
        ("https://me:abc@host/", ["open https://host"]),
        ("postgresql://me:abc@host/db", ["mlflow ui --backend-store-uri postgresql://host/db"]),
        ("postgresql://host/db?password=abc", ["mlflow ui --backend-store-uri 'postgresql://host/db?password=...'"]),
        ("databricks", []),
        ("databricks://work", []),
    ],
)
def test_the_steps_after_a_run(uri: str, steps: list[str], tmp_path: Path) -> None:
    tracker = Tracker(uri, tmp_path)
    assert mlflow_steps(tracker, []) == steps
    assert "abc" not in tracker.place + tracker.reason("does not answer", "x")


@pytest.mark.parametrize("uri", ["databricks-uc", "databricks-uc://work", "uc", "uc:work", "uc://work"])
def test_registries_hold_no_runs(uri: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is a registry of models, which holds no runs \(.* databricks://PROFILE\)"):
        Tracker(uri, tmp_path)
