"""Delivery: one conversation with an MLflow store. The only file that imports mlflow, and only inside functions."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from oodbench.result import Result
from oodbench.tracking import entries, ledger
from oodbench.tracking.probe import silence
from oodbench.tracking.tracker import Sent, Tracker

# In force while rows are sent, where the user set nothing. MLflow reads each at every request, telemetry on import.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by itself it tries eight times, for four minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # compute nodes are often offline
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # when rows are read back
}


@dataclass(frozen=True)
class Parcel:
    """What becomes one parent run: rows of one benchmark and encoder, and their table in Markdown."""

    rows: tuple[Result, ...]
    table: str


@dataclass
class Delivery:
    """Sends parcels, and remembers which rows arrived now and which were known (both: digests)."""

    client: Any
    tracker: Tracker
    known: set[str]
    arrived: set[str] = field(default_factory=set)
    unfinished: list[str] = field(default_factory=list)  # run ids, the parent first

    def send(self, parcel: Parcel) -> None:
        """Make a parent run for those rows of a parcel that the store lacks."""
        missing = {row.digest: row for row in parcel.rows if row.digest not in self.known | self.arrived}
        if not missing:
            return
        experiment = experiment_id(self.client, self.tracker, f"oodbench/{parcel.rows[0].benchmark}")
        if found := self._found(experiment, parcel.rows[0], set(missing)):
            ledger.note(self.tracker, found)
            self.known |= found
            missing = {digest: row for digest, row in missing.items() if digest not in found}
        if missing:
            self._record(experiment, parcel, missing)

    def abandon(self) -> None:
        """Mark what was cut off: the parent FAILED, its half-sent child KILLED."""
        runs, self.unfinished = self.unfinished, []
        for run, status in zip(runs, ("FAILED", "KILLED"), strict=False):
            self.client.set_terminated(run, status)

    def _record(self, experiment: str, parcel: Parcel, missing: Mapping[str, Result]) -> None:
        """Log the whole table on a parent run, and a child for each missing row."""
        from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

        first = parcel.rows[0]
        name = f"{first.benchmark} / {first.encoder.get('name') or entries.encoder_slug(first)}"
        tags = entries.cut(entries.run_tags(first), MAX_TAG_VAL_LENGTH)
        parent = self.client.create_run(experiment, tags=tags, run_name=name).info.run_id
        self.unfinished = [parent]
        # Before the children: should this fail, no row has arrived, and the next parent gets the table.
        self.client.log_text(parent, parcel.table, "table.md")
        self.client.log_text(parent, f"[{','.join(row.to_json() for row in parcel.rows)}]\n", "rows.json")
        for digest, row in missing.items():
            self._child(experiment, parent, row)
            ledger.note(self.tracker, [digest])
            self.arrived.add(digest)
        self.client.set_terminated(parent)
        self.unfinished = []

    def _child(self, experiment: str, parent: str, row: Result) -> None:
        """Log one row; its digest comes last, so that a child that was cut off does not count."""
        from mlflow.entities import Metric, Param
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        end = entries.milliseconds(row.created)
        start = end - int(1000 * (row.seconds.get("fit", 0) + row.seconds.get("score", 0)))
        tags = {**entries.cut(entries.row_tags(row), MAX_TAG_VAL_LENGTH), "mlflow.parentRunId": parent}
        run = self.client.create_run(experiment, start, tags, row.label).info.run_id
        self.unfinished.append(run)
        metrics = [Metric(key, value, end, 0) for key, value in entries.metrics(row).items()]
        params = [Param(key, value) for key, value in entries.cut(entries.params(row), MAX_PARAM_VAL_LENGTH).items()]
        self.client.log_batch(run, metrics, params, synchronous=True)  # splits at the limits of the API
        self.client.log_text(run, row.to_json(), "row.json")
        self.client.set_terminated(run, "FAILED" if row.status == "failed" else "FINISHED", end)
        self.client.set_tag(run, entries.DIGEST, row.digest, synchronous=True)
        self.unfinished.pop()

    def _found(self, experiment: str, first: Result, wanted: set[str]) -> set[str]:
        """Those of the wanted digests that the store has, whoever sent them."""
        # Tags know no IN: ask for all rows of this encoder, newest first.
        condition = (
            f"tags.\"{entries.DIGEST}\" LIKE '%' AND tags.\"oodbench.encoder\" = '{entries.encoder_slug(first)}'"
        )
        found: set[str] = set()
        token: str | None = None
        while True:
            page = self.client.search_runs([experiment], condition, max_results=1000, page_token=token)
            found.update(run.data.tags[entries.DIGEST] for run in page)
            token = page.token
            if not token or wanted <= found:
                return found & wanted


def experiment_id(client: Any, tracker: Tracker, name: str) -> str:
    """The id of an experiment, made when there is none."""
    from mlflow.exceptions import MlflowException

    if found := client.get_experiment_by_name(name):
        return str(found.experiment_id)
    served = tracker.scheme in ("http", "https", "databricks", "")
    # Without a server that has a place for artifacts, they would go to ./mlruns.
    location = None if served else (tracker.results.absolute() / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was faster
            return str(found.experiment_id)
        raise


def converse(tracker: Tracker, parcels: Sequence[Parcel], known: set[str]) -> Sent:
    """Send parcels one by one; what the store or the way to it cannot take waits."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    wanted = {row.digest for parcel in parcels for row in parcel.rows}
    failures = (MlflowException, SQLAlchemyError, OSError)  # those of requests are OSErrors
    try:
        delivery = Delivery(MlflowClient(tracking_uri=tracker.uri), tracker, known)
    except failures as error:
        return Sent(0, len(known), len(wanted - known), tracker.reason("cannot be used", error))
    reason = ""
    for parcel in parcels:
        try:
            delivery.send(parcel)
        except failures as error:
            reason = reason or tracker.reason("failed in the middle", error)
            if silence(tracker):
                break
            with suppress(*failures):  # the first error is the one to tell
                delivery.abandon()
    waiting = wanted - delivery.known - delivery.arrived
    return Sent(len(delivery.arrived), len(delivery.known), len(waiting), reason)


@contextmanager
def quiet() -> Iterator[None]:
    """MLflow without chatter and long retries; environment, log levels and warning filters are put back."""
    added = {name: value for name, value in _ENVIRONMENT.items() if name not in os.environ}
    os.environ.update(added)
    levels = {logging.getLogger("mlflow"): logging.WARNING, logging.getLogger("urllib3.connectionpool"): logging.ERROR}
    try:
        with warnings.catch_warnings():
            # MLflow 3.17's own tables use a loader that SQLAlchemy 2.1 deprecates.
            warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
            import mlflow  # noqa: F401  (importing it sets its log level, so it comes first)

            before = {logger: logger.level for logger in levels}
            for logger, level in levels.items():
                logger.setLevel(max(level, logger.level))
            try:
                yield
            finally:
                for logger, level in before.items():
                    logger.setLevel(level)
    finally:
        for name in added:
            os.environ.pop(name, None)
