"""Delivery: one conversation with an MLflow store, row by row. Imports mlflow only inside functions."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oodbench.results import Result
from oodbench.tracking import fields as entries
from oodbench.tracking import ledger
from oodbench.tracking.connection import Sent, Tracker
from oodbench.tracking.database import connect
from oodbench.tracking.experiment import experiment_id
from oodbench.tracking.probe import silence

# Files beside the rows of a run, by name: `table.md`, `pictures/roc.png`. Asked for when there is a row to send.
Attach = Callable[[Sequence[Result]], Iterable[tuple[str, bytes]]]


@dataclass(frozen=True)
class Parcel:
    """What becomes one parent run: rows of one benchmark and encoder, and the files that go with them."""

    rows: tuple[Result, ...]
    attach: Attach


@dataclass
class Delivery:
    """Sends parcels, and remembers which rows arrived now and which were known (both: digests)."""

    client: Any
    tracker: Tracker
    known: set[str]
    sender: str  # marks the runs that this results folder made
    arrived: set[str] = field(default_factory=set)
    unfinished: list[str] = field(default_factory=list)  # run ids, the parent first

    def send(self, parcel: Parcel) -> None:
        """Make a parent run for those rows of a parcel that the store lacks."""
        missing = {row.digest: row for row in parcel.rows if row.digest not in self.known | self.arrived}
        if not missing:
            return
        experiment = experiment_id(self.client, self.tracker, entries.experiment(parcel.rows[0].benchmark))
        self._end_killed(experiment)
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

    def _end_killed(self, experiment: str) -> None:
        """Mark KILLED what an earlier process of this results folder began and did not end: parents, cut-off children.

        Parents last: whatever ends this process meanwhile, the next one finds them again.
        """
        ours = f"tags.\"{entries.SENDER}\" = '{self.sender}' AND attributes.status = 'RUNNING'"
        for parent in runs_of(self.client, experiment, ours):
            run = parent.info.run_id
            for child in runs_of(self.client, experiment, f"tags.mlflow.parentRunId = '{run}'"):
                if entries.DIGEST not in child.data.tags:
                    self.client.set_terminated(child.info.run_id, "KILLED")
            self.client.set_terminated(run, "KILLED")

    def _record(self, experiment: str, parcel: Parcel, missing: Mapping[str, Result]) -> None:
        """Log the whole run on a parent, and a child for each missing row."""
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        with TemporaryDirectory() as folder:
            table = _laid(parcel, Path(folder))
            start, end = entries.span(parcel.rows)
            tags = entries.cut(entries.run_tags(parcel.rows), MAX_TAG_VAL_LENGTH)
            tags[entries.SENDER] = self.sender
            tags |= {"mlflow.note.content": table} if 0 < len(table) <= MAX_TAG_VAL_LENGTH else {}
            parent = self.client.create_run(experiment, start, tags, entries.run_name(parcel.rows)).info.run_id
            self.unfinished = [parent]
            # Before the children: should this fail, no row has arrived, and the next parent gets the files.
            self.client.log_artifacts(parent, folder)
        plain = entries.cut(entries.run_params(parcel.rows[0]), MAX_PARAM_VAL_LENGTH)
        self._describe(parent, plain, parcel.rows[0])
        for digest, row in missing.items():
            self._child(experiment, parent, row)
            self.arrived.add(digest)
        self.client.set_terminated(parent, end_time=end)
        self.unfinished = []
        ledger.note(self.tracker, missing)  # last: once all rows are noted, nobody looks for a parent left open

    def _describe(self, run: str, params: Mapping[str, str], row: Result, metrics: Sequence[Any] = ()) -> None:
        """Parameters, metrics, and the data sets that a row reads."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        plain = [Param(key, value) for key, value in params.items()]
        self.client.log_batch(run, list(metrics), plain, synchronous=True)  # splits at the limits of the API
        inputs = []
        for name, digest, n, what in entries.data_sets(row):
            profile = json.dumps({"num_rows": n})
            one = Dataset(name, digest[:36], "oodbench", json.dumps({"list": digest}), profile=profile)
            inputs.append(DatasetInput(one, [InputTag("mlflow.data.context", what)]))
        self.client.log_inputs(run, inputs)

    def _child(self, experiment: str, parent: str, row: Result) -> None:
        """Log one row; its digest comes last, so that a child that was cut off does not count."""
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        end = entries.milliseconds(row.created)
        start = end - int(1000 * (row.seconds.get("fit", 0) + row.seconds.get("score", 0)))
        tags = {**entries.cut(entries.row_tags(row), MAX_TAG_VAL_LENGTH), "mlflow.parentRunId": parent}
        run = self.client.create_run(experiment, start, tags, entries.row_name(row)).info.run_id
        self.unfinished.append(run)
        metrics = [Metric(key, value, end, 0) for key, value in entries.metrics(row).items()]
        self._describe(run, entries.cut(entries.params(row), MAX_PARAM_VAL_LENGTH), row, metrics)
        self.client.log_text(run, row.to_json(), "row.json")
        self.client.set_terminated(run, "FAILED" if row.status == "failed" else "FINISHED", end)
        self.client.set_tag(run, entries.DIGEST, row.digest, synchronous=True)
        self.unfinished.pop()

    def _found(self, experiment: str, first: Result, wanted: set[str]) -> set[str]:
        """Those of the wanted digests that the store has, whoever sent them."""
        # Tags know no IN: ask for all rows of this encoder, newest first.
        condition = (
            f"tags.\"{entries.DIGEST}\" LIKE '%' AND tags.\"{entries.ENCODER}\" = '{entries.encoder_slug(first)}'"
        )
        found: set[str] = set()
        for run in runs_of(self.client, experiment, condition):
            found.add(run.data.tags[entries.DIGEST])
            if wanted <= found:
                break
        return found & wanted


def runs_of(client: Any, experiment: str, condition: str = "") -> Iterator[Any]:
    """The runs of an experiment, newest first, page by page."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _laid(parcel: Parcel, folder: Path) -> str:
    """Write the files of a parcel below a folder; the table in Markdown, "" when it has none."""
    files = {**dict(parcel.attach(parcel.rows)), "rows.json": _together(parcel.rows).encode()}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files.get("table.md", b"").decode()


def _together(rows: Sequence[Result]) -> str:
    return f"[{','.join(row.to_json() for row in rows)}]\n"


def converse(tracker: Tracker, parcels: Sequence[Parcel], known: set[str], sender: str) -> Sent:
    """Send parcels one by one; what the store or the way to it cannot take waits. The ledger must be locked."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    wanted = {row.digest for parcel in parcels for row in parcel.rows}
    failures = (MlflowException, SQLAlchemyError, OSError)  # those of requests are OSErrors
    try:
        delivery = Delivery(connect(tracker), tracker, known, sender)
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
