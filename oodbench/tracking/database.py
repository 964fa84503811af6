"""The sqlite file of an MLflow store: made under another name and moved into place, so that a kill leaves no half."""

from __future__ import annotations

import glob
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from oodbench.storage.files import atomic_write
from oodbench.tracking.connection import Tracker, beside

_POOL = "MLFLOW_SQLALCHEMYSTORE_POOLCLASS"
# Where MLflow keeps what a user would miss; `experiments` has its own Default in every store.
_RECORDS = {"runs": "", "experiments": "WHERE experiment_id != 0", "registered_models": "", "logged_models": ""}


def connect(tracker: Tracker) -> Any:
    """An MlflowClient of a tracking store, whose sqlite file is made when it is absent. The ledger must be locked.

    A file without a run, experiment or model that MLflow cannot open was left by a process that was killed, or ran out
    of disk, while it made the tables: it is made anew. Raises what MLflow, SQLAlchemy and the system raise.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    database = tracker.database
    if database is None:
        return MlflowClient(tracking_uri=tracker.uri)
    with _unpooled():
        if not database.is_file() or not database.stat().st_size:
            _make(database)
        try:
            return MlflowClient(tracking_uri=tracker.uri)
        except (MlflowException, SQLAlchemyError):
            if not _blank(database):
                raise
            _make(database)
            return MlflowClient(tracking_uri=tracker.uri)


def _make(database: Path) -> None:
    """Have MLflow set up its tables in a new file, and move it into place."""
    from mlflow import MlflowClient

    try:
        with atomic_write(database) as partial:
            MlflowClient(tracking_uri=beside(partial.parent, partial.name))
    finally:
        # Nobody else makes one meanwhile: these are journals, and what a killed process left.
        for leftover in database.parent.glob(f".{glob.escape(database.name[:40])}.*.tmp*"):
            leftover.unlink(missing_ok=True)


def _blank(database: Path) -> bool:
    """Whether a database holds nothing of a user's; False when it cannot be read."""
    try:
        with closing(sqlite3.connect(database)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            asked = [f"SELECT 1 FROM {table} {rest} LIMIT 1" for table, rest in _RECORDS.items() if table in tables]
            return not any(connection.execute(one).fetchone() for one in asked)
    except sqlite3.Error:
        return False


@contextmanager
def _unpooled() -> Iterator[None]:
    """MLflow opens the file for every transaction: a connection that it keeps would write to a file that was moved."""
    if _POOL in os.environ:
        yield
        return
    os.environ[_POOL] = "NullPool"
    try:
        yield
    finally:
        os.environ.pop(_POOL, None)
