"""Fixtures of the tracking tests: a database that MLflow has set up, and a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from oodbench.tracking import Tracker, default_uri
from oodbench.tracking.connection import quiet_mlflow
from tests.servers import Server, serving, unused_port


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database created by MLflow, which takes seconds, so most tests start from a copy."""
    folder = tmp_path_factory.mktemp("empty")
    with quiet_mlflow():
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=Tracker(default_uri(folder), folder).uri).search_experiments()
    return folder / "mlflow.db"


@pytest.fixture(scope="session")
def running_server(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Server]:
    """A server for all tests: each uses a benchmark of its own, which is an experiment."""
    with serving(tmp_path_factory.mktemp("server"), unused_port(), empty_store) as running:
        yield running


@pytest.fixture(scope="session")
def server(running_server: Server) -> str:
    """Its address."""
    return running_server.uri
