"""The SQLite file of an MLflow store, created under a temporary name and renamed, so that it is always complete."""

from __future__ import annotations

import glob
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from oodbench.storage.files import atomic_write
from oodbench.tracking.connection import Tracker, sqlite_uri

_POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"
# Tables with records of users; in every store `experiments` has MLflow's Default.
_RECORDS = {"runs": "", "experiments": "WHERE experiment_id != 0", "registered_models": "", "logged_models": ""}


def connect(tracker: Tracker) -> Any:
    """Return an MlflowClient of a tracking store, and create its SQLite file if it is absent. Hold `runs.lock`.

    A file that MLflow cannot open and that has no run, experiment or model was left by a process that was killed, or
    ran out of disk space, while it created the tables; it is created again. Errors of MLflow, SQLAlchemy and the system
    are raised unchanged.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    database = tracker.database
    if database is None:
        return MlflowClient(tracking_uri=tracker.uri)
    with _without_pool():
        if not database.is_file() or not database.stat().st_size:
            _create(database)
        try:
            return MlflowClient(tracking_uri=tracker.uri)
        except (MlflowException, SQLAlchemyError):
            if not _is_empty(database):
                raise
            _create(database)
            return MlflowClient(tracking_uri=tracker.uri)


def _create(database: Path) -> None:
    """Let MLflow create its tables in a temporary file, and rename the file."""
    from mlflow import MlflowClient

    try:
        with atomic_write(database) as partial:
            MlflowClient(tracking_uri=sqlite_uri(partial.parent, partial.name))
    finally:
        # The lock is held, so these are journals and files of killed processes.
        for leftover in database.parent.glob(f".{glob.escape(database.name[:40])}.*.tmp*"):
            leftover.unlink(missing_ok=True)


def _is_empty(database: Path) -> bool:
    """Return whether a database has no records of users; False if it cannot be read."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            queries = [f"SELECT 1 FROM {table} {rest} LIMIT 1" for table, rest in _RECORDS.items() if table in tables]
            return not any(connection.execute(query).fetchone() for query in queries)
    except sqlite3.Error:
        return False


@contextmanager
def _without_pool() -> Iterator[None]:
    """While active, MLflow opens the file for every transaction: a pooled connection would write to a renamed file."""
    if _POOL in os.environ:
        yield
        return
    os.environ[_POOL] = "NullPool"
    try:
        yield
    finally:
        os.environ.pop(_POOL, None)
