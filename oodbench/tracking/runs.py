"""Upload results to an MLflow store one by one, and record which were sent. mlflow is imported inside functions."""

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
from oodbench.tracking import fields
from oodbench.tracking.connection import SyncReport, Tracker, unreachable_reason
from oodbench.tracking.database import connect
from oodbench.tracking.fields import RUNS

log = logging.getLogger(__name__)

TRAINING, MODELS = "oodbench/train", "oodbench/models"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow may show its interface for chat bots
_NOTE_TAG = "mlflow.note.content"
_NOTES = {
    RUNS: """\
One run per `oodbench run`, with its table, page and figures as artifacts; below it, one run per method.

- Sort by `auroc/mean`: the methods of all runs in order, which the chart view shows as bars.
- Search `tags.method = 'clipn'`, `tags.encoder = 'ViT-B-16/openai'`, `tags.status = 'failed'`.
- Search `tags.method LIKE '%' AND metrics."fpr95/mean" < 0.3`: methods alone, without the runs above them.
""",
    TRAINING: "One run per `oodbench train`: chart `loss`. `tags.method`, `tags.encoder`, and `tags.weights` (sha256).",
    MODELS: "What `oodbench register` logged; versions are in the model registry.",
}


def experiment_id(client: Any, tracker: Tracker, name: str) -> str:
    """Return the id of an experiment. It is created if it is absent, and restored if it was deleted."""
    from mlflow.exceptions import MlflowException

    about = {**_KIND, _NOTE_TAG: _NOTES.get(name, _NOTES[RUNS])}
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
            log.warning("the experiment %s was deleted in %s; it is restored, with its runs", name, tracker.place)
        for key in about if not set(_KIND) & set(found.tags) else ():  # created by an earlier version
            client.set_experiment_tag(found.experiment_id, key, about[key])
        return str(found.experiment_id)
    # A server has its own place for artifacts; without one they would go to ./mlruns.
    location = None if tracker.served or tracker.databricks else (tracker.results.absolute() / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=about))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was faster
            return str(found.experiment_id)
        raise


SENT_FILE = "sent.jsonl"  # in the results folder: store and digest of each result that was sent, and its experiment
_LOCK_SECONDS = 60


def sent_experiments(tracker: Tracker) -> dict[str, str]:
    """Return the results that were sent to this store, by digest, with the id of their experiment.

    There are none if its SQLite file was removed; an id is "" if an earlier version sent the result.
    """
    file, database = tracker.results / SENT_FILE, tracker.database
    if not file.is_file() or (database and not (database.is_file() and database.stat().st_size)):
        return {}
    found = {}
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(json.JSONDecodeError, AttributeError):  # an incomplete line: the store is asked instead
            entry = json.loads(line)
            if entry.get("uri") == tracker.place:
                found[str(entry.get("digest"))] = str(entry.get("experiment", ""))
    return found


def sent_digests(tracker: Tracker) -> set[str]:
    """Return the digests of the results that were sent to this store."""
    return {*sent_experiments(tracker)}


def record_sent(tracker: Tracker, digests: Iterable[str], experiment: str = "") -> None:
    """Append results that were sent, on a new line even after an incomplete one."""
    tracker.results.mkdir(parents=True, exist_ok=True)
    common = {"uri": tracker.place} | ({"experiment": experiment} if experiment else {})
    lines = "".join(json.dumps({**common, "digest": digest}) + "\n" for digest in sorted(digests))
    with (tracker.results / SENT_FILE).open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        incomplete = file.read(1) not in (b"\n", b"")
        file.write(("\n" if incomplete else "").encode() + lines.encode())


@contextmanager
def lock(tracker: Tracker) -> Iterator[str]:
    """Let only this process send from the results folder. Raise OSError if another does not finish in time.

    It yields the permanent name of the folder as a sender, a tag by which its unfinished runs are found.
    """
    import sqlite3

    # Two processes at once would both set up a new store, which fails, and would send results twice.
    tracker.results.mkdir(parents=True, exist_ok=True)
    try:
        # SQLite's lock works on every system and is released when the process ends.
        connection = sqlite3.connect(tracker.results / ".sending", timeout=_LOCK_SECONDS, isolation_level=None)
        with closing(connection):
            connection.execute("BEGIN EXCLUSIVE")
            connection.execute("CREATE TABLE IF NOT EXISTS sender (name TEXT)")
            if connection.execute("SELECT name FROM sender").fetchone() is None:
                connection.execute("INSERT INTO sender VALUES (?)", (secrets.token_hex(16),))
                connection.execute("COMMIT")
                connection.execute("BEGIN EXCLUSIVE")
            yield str(connection.execute("SELECT name FROM sender").fetchone()[0])
    except sqlite3.Error as error:
        raise OSError(f"{tracker.results / '.sending'}: {error}") from error


# Files of a run by name: `table.md`, `figures/roc.png`. Called only if there is a result to send.
Attach = Callable[[Sequence[Result]], Iterable[tuple[str, bytes]]]


@dataclass(frozen=True)
class RunUpload:
    """The content of one parent run: results of one benchmark and encoder, and their files."""

    rows: tuple[Result, ...]
    attach: Attach


@dataclass
class Uploader:
    """Sends runs with their results.

    known       digests of the results that the store had before
    sender      name of the results folder, a tag of the runs that it created
    arrived     digests of the results that were sent now
    unfinished  ids of the runs being sent, the parent first
    """

    client: Any
    tracker: Tracker
    known: set[str]
    sender: str
    arrived: set[str] = field(default_factory=set)
    unfinished: list[str] = field(default_factory=list)

    def send(self, upload: RunUpload) -> None:
        """Create a parent run for the results that the store lacks."""
        missing = {row.digest: row for row in upload.rows if row.digest not in self.known | self.arrived}
        if not missing:
            return
        experiment = experiment_id(self.client, self.tracker, fields.experiment(upload.rows[0].benchmark))
        self._mark_killed(experiment)
        if found := self._find(experiment, upload.rows[0], set(missing)):
            record_sent(self.tracker, found, experiment)
            self.known |= found
            missing = {digest: row for digest, row in missing.items() if digest not in found}
        if missing:
            self._create_run(experiment, upload, missing)

    def mark_failed(self) -> None:
        """Mark the runs being sent: the parent FAILED, its incomplete child KILLED."""
        runs, self.unfinished = self.unfinished, []
        for run, status in zip(runs, ("FAILED", "KILLED"), strict=False):
            self.client.set_terminated(run, status)

    def _mark_killed(self, experiment: str) -> None:
        """Mark KILLED the parents, and their incomplete children, that a process of this results folder left running.

        Each parent is marked after its children, so that the next process finds it again if this one is killed, too.
        """
        ours = f"tags.\"{fields.SENDER}\" = '{self.sender}' AND attributes.status = 'RUNNING'"
        for parent in runs_of(self.client, experiment, ours):
            run = parent.info.run_id
            for child in runs_of(self.client, experiment, f"tags.mlflow.parentRunId = '{run}'"):
                if fields.DIGEST not in child.data.tags:
                    self.client.set_terminated(child.info.run_id, "KILLED")
            self.client.set_terminated(run, "KILLED")

    def _create_run(self, experiment: str, upload: RunUpload, missing: Mapping[str, Result]) -> None:
        """Create a parent with the files of the run, and a child for each missing result."""
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        with TemporaryDirectory() as folder:
            table = _write_files(upload, Path(folder))
            start, end = fields.start_and_end(upload.rows)
            tags = fields.truncated(fields.run_tags(upload.rows), MAX_TAG_VAL_LENGTH)
            tags[fields.SENDER] = self.sender
            tags |= {"mlflow.note.content": table} if 0 < len(table) <= MAX_TAG_VAL_LENGTH else {}
            parent = self.client.create_run(experiment, start, tags, fields.run_name(upload.rows)).info.run_id
            self.unfinished = [parent]
            # Before the children: if this fails, no result was sent, and the next parent gets the files.
            self.client.log_artifacts(parent, folder)
        params = fields.truncated(fields.run_params(upload.rows[0]), MAX_PARAM_VAL_LENGTH)
        metrics = [Metric(key, value, end, 0) for key, value in fields.best_and_median(upload.rows).items()]
        self._log_batch(parent, params, upload.rows[0], metrics)
        for digest, row in missing.items():
            self._create_child(experiment, parent, row)
            self.arrived.add(digest)
        self.client.set_terminated(parent, end_time=end)
        self.unfinished = []
        record_sent(
            self.tracker, missing, experiment
        )  # last, because open parents are not looked for once all results are recorded

    def _log_batch(self, run: str, params: Mapping[str, str], row: Result, metrics: Sequence[Any] = ()) -> None:
        """Log parameters, metrics, and the data sets that a result was computed on."""
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        logged = [Param(key, value) for key, value in params.items()]
        self.client.log_batch(run, list(metrics), logged, synchronous=True)  # splits at the limits of the API
        inputs = []
        for name, digest, n, role in fields.data_sets(row):
            profile = json.dumps({"num_rows": n})
            dataset = Dataset(name, digest[:36], "oodbench", json.dumps({"list": digest}), profile=profile)
            inputs.append(DatasetInput(dataset, [InputTag("mlflow.data.context", role)]))
        self.client.log_inputs(run, inputs)

    def _create_child(self, experiment: str, parent: str, row: Result) -> None:
        """Log one result. Its digest is set last, so that an incomplete child does not count."""
        from mlflow.entities import Metric
        from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

        end = fields.milliseconds(row.created)
        start = end - int(1000 * (row.seconds.get("fit", 0) + row.seconds.get("score", 0)))
        tags = {**fields.truncated(fields.row_tags(row), MAX_TAG_VAL_LENGTH), "mlflow.parentRunId": parent}
        run = self.client.create_run(experiment, start, tags, fields.row_name(row)).info.run_id
        self.unfinished.append(run)
        metrics = [Metric(key, value, end, 0) for key, value in fields.metrics(row).items()]
        self._log_batch(run, fields.truncated(fields.params(row), MAX_PARAM_VAL_LENGTH), row, metrics)
        self.client.log_text(run, row.to_json(), "row.json")
        self.client.set_terminated(run, "FAILED" if row.status == "failed" else "FINISHED", end)
        self.client.set_tag(run, fields.DIGEST, row.digest, synchronous=True)
        self.unfinished.pop()

    def _find(self, experiment: str, first: Result, wanted: set[str]) -> set[str]:
        """Return the wanted digests that the store has, from any sender."""
        # MLflow's search has no IN for tags: ask for all results of this encoder, newest first.
        condition = f"tags.\"{fields.DIGEST}\" LIKE '%' AND tags.\"{fields.ENCODER}\" = '{fields.encoder_slug(first)}'"
        found: set[str] = set()
        for run in runs_of(self.client, experiment, condition):
            found.add(run.data.tags[fields.DIGEST])
            if wanted <= found:
                break
        return found & wanted


def runs_of(client: Any, experiment: str, condition: str = "") -> Iterator[Any]:
    """Iterate over the runs of an experiment, newest first, page by page."""
    token: str | None = None
    while True:
        page = client.search_runs([experiment], condition, max_results=1000, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _write_files(upload: RunUpload, folder: Path) -> str:
    """Write the files of a run to a folder. Return its table in Markdown, "" if there is none."""
    rows = f"[{','.join(row.to_json() for row in upload.rows)}]\n"
    files = {**dict(upload.attach(upload.rows)), "rows.json": rows.encode()}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return files.get("table.md", b"").decode()


def upload(tracker: Tracker, uploads: Sequence[RunUpload], known: set[str], sender: str) -> SyncReport:
    """Send runs one by one; runs that the store refuses wait for the next time. Hold `lock`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    wanted = {row.digest for run in uploads for row in run.rows}
    failures = (MlflowException, SQLAlchemyError, OSError)  # the errors of requests are OSErrors
    try:
        uploader = Uploader(connect(tracker), tracker, known, sender)
    except failures as error:
        return SyncReport(0, len(known), len(wanted - known), tracker.reason("cannot be used", error))
    reason = ""
    for run in uploads:
        try:
            uploader.send(run)
        except failures as error:
            reason = reason or tracker.reason("failed in the middle", error)
            if unreachable_reason(tracker):
                break
            with suppress(*failures):  # the first error is reported
                uploader.mark_failed()
    waiting = wanted - uploader.known - uploader.arrived
    return SyncReport(len(uploader.arrived), len(uploader.known), len(waiting), reason)
