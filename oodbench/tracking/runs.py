"""Delivery: one conversation with an MLflow store, row by row. Imports mlflow only inside functions."""

from __future__ import annotations

import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oodbench.results import Result
from oodbench.tracking import fields as entries
from oodbench.tracking.connection import SyncReport, Tracker, unreachable_reason
from oodbench.tracking.database import connect
from oodbench.tracking.fields import RUNS

log = logging.getLogger(__name__)

TRAINING, MODELS = "oodbench/train", "oodbench/models"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow takes its interface for chat bots
_NOTE = "mlflow.note.content"
_NOTES = {
    RUNS: """\
One run per `oodbench run`, with its table and pictures as artifacts; below it, one run per method.

- Sort by `auroc/mean`: the methods of all runs in order, which the chart view shows as bars.
- Search `tags.method = 'clipn'`, `tags.encoder = 'ViT-B-16/openai'`, `tags.status = 'failed'`.
- Search `tags.method LIKE '%' AND metrics."fpr95/mean" < 0.3`: methods alone, without the runs above them.
""",
    TRAINING: "One run per `oodbench train`: chart `loss`. `tags.method`, `tags.encoder`, and `tags.weights` (sha256).",
    MODELS: "What `oodbench register` logged; versions lie in the model registry.",
}


def experiment_id(client: Any, tracker: Tracker, name: str) -> str:
    """The id of an experiment, made when there is none; one that was deleted keeps its name, and is restored."""
    from mlflow.exceptions import MlflowException

    about = {**_KIND, _NOTE: _NOTES.get(name, _NOTES[RUNS])}
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
            log.warning("the experiment %s was deleted in %s; it is restored, with its runs", name, tracker.place)
        for key in about if not set(_KIND) & set(found.tags) else ():  # one of before
            client.set_experiment_tag(found.experiment_id, key, about[key])
        return str(found.experiment_id)
    served = tracker.scheme in ("http", "https", "databricks", "")
    # Without a server that has a place for artifacts, they would go to ./mlruns.
    location = None if served else (tracker.results.absolute() / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=about))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was faster
            return str(found.experiment_id)
        raise


NAME = "sent.jsonl"
_LOCK_SECONDS = 60


def arrived(tracker: Tracker) -> set[str]:
    """Digests of the rows noted for this store; none when its sqlite file was removed."""
    file, database = tracker.results / NAME, tracker.database
    if not file.is_file() or (database and not (database.is_file() and database.stat().st_size)):
        return set()
    digests = set()
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(json.JSONDecodeError, AttributeError):  # a torn line: the store is asked instead
            entry = json.loads(line)
            if entry.get("uri") == tracker.place:
                digests.add(str(entry.get("digest")))
    return digests


def note(tracker: Tracker, digests: Iterable[str]) -> None:
    """Append rows that arrived, on a new line even after a torn one."""
    tracker.results.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"uri": tracker.place, "digest": digest}) + "\n" for digest in sorted(digests))
    with (tracker.results / NAME).open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = file.read(1) not in (b"\n", b"")
        file.write(("\n" if torn else "").encode() + lines.encode())


@contextmanager
def locked(tracker: Tracker) -> Iterator[str]:
    """One process at a time sends from a results folder; raises OSError when another does not come to an end.

    Gives a name for the folder, the same at every time: what it left unfinished in MLflow is found by it.
    """
    import sqlite3

    # Two at once would both set up a new store (one fails, or both), and both send the row they share.
    tracker.results.mkdir(parents=True, exist_ok=True)
    try:
        # sqlite's lock works on every system and goes with the process.
        lock = sqlite3.connect(tracker.results / ".sending", timeout=_LOCK_SECONDS, isolation_level=None)
        with closing(lock):
            lock.execute("BEGIN EXCLUSIVE")
            lock.execute("CREATE TABLE IF NOT EXISTS sender (name TEXT)")
            if lock.execute("SELECT name FROM sender").fetchone() is None:
                lock.execute("INSERT INTO sender VALUES (?)", (secrets.token_hex(16),))
                lock.execute("COMMIT")
                lock.execute("BEGIN EXCLUSIVE")
            yield str(lock.execute("SELECT name FROM sender").fetchone()[0])
    except sqlite3.Error as error:
        raise OSError(f"{tracker.results / '.sending'}: {error}") from error


# Files beside the rows of a run, by name: `table.md`, `pictures/roc.png`. Asked for when there is a row to send.
Attach = Callable[[Sequence[Result]], Iterable[tuple[str, bytes]]]


@dataclass(frozen=True)
class RunUpload:
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

    def send(self, parcel: RunUpload) -> None:
        """Make a parent run for those rows of a parcel that the store lacks."""
        missing = {row.digest: row for row in parcel.rows if row.digest not in self.known | self.arrived}
        if not missing:
            return
        experiment = experiment_id(self.client, self.tracker, entries.experiment(parcel.rows[0].benchmark))
        self._end_killed(experiment)
        if found := self._found(experiment, parcel.rows[0], set(missing)):
            note(self.tracker, found)
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

    def _record(self, experiment: str, parcel: RunUpload, missing: Mapping[str, Result]) -> None:
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
        note(self.tracker, missing)  # last: once all rows are noted, nobody looks for a parent left open

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


def _laid(parcel: RunUpload, folder: Path) -> str:
    """Write the files of a parcel below a folder; the table in Markdown, "" when it has none."""
    files = {**dict(parcel.attach(parcel.rows)), "rows.json": _together(parcel.rows).encode()}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files.get("table.md", b"").decode()


def _together(rows: Sequence[Result]) -> str:
    return f"[{','.join(row.to_json() for row in rows)}]\n"


def upload(tracker: Tracker, parcels: Sequence[RunUpload], known: set[str], sender: str) -> SyncReport:
    """Send parcels one by one; what the store or the way to it cannot take waits. The ledger must be locked."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    wanted = {row.digest for parcel in parcels for row in parcel.rows}
    failures = (MlflowException, SQLAlchemyError, OSError)  # those of requests are OSErrors
    try:
        delivery = Delivery(connect(tracker), tracker, known, sender)
    except failures as error:
        return SyncReport(0, len(known), len(wanted - known), tracker.reason("cannot be used", error))
    reason = ""
    for parcel in parcels:
        try:
            delivery.send(parcel)
        except failures as error:
            reason = reason or tracker.reason("failed in the middle", error)
            if unreachable_reason(tracker):
                break
            with suppress(*failures):  # the first error is the one to tell
                delivery.abandon()
    waiting = wanted - delivery.known - delivery.arrived
    return SyncReport(len(delivery.arrived), len(delivery.known), len(waiting), reason)
