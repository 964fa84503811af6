"""Send each result to MLflow exactly once. mlflow is imported only if there is a result to send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oodbench.results import Result
from oodbench.results import rows as read_rows
from oodbench.tracking import runs
from oodbench.tracking.connection import SyncReport, Tracker, default_uri, quiet_mlflow, tracker_of, unreachable_reason
from oodbench.tracking.fields import encoder_slug
from oodbench.tracking.runs import Attach, RunUpload, upload

__all__ = ["Attach", "SyncReport", "Tracker", "default_uri", "links", "send", "sync", "tracker_of"]


def no_files(rows: Sequence[Result]) -> Iterable[tuple[str, bytes]]:
    """Return no files."""
    return ()


def send(tracker: Tracker, rows: Sequence[Result], attach: Attach = no_files) -> SyncReport:
    """Send the results of one run, of one benchmark and encoder, with the files that `attach` returns for them."""
    return _send_missing(tracker, [RunUpload(tuple(rows), attach)])


def sync(tracker: Tracker, attach: Attach = no_files) -> SyncReport:
    """Send every result in the results folder that was not sent yet: one parent run per benchmark and encoder."""
    groups: dict[tuple[str, str], list[Result]] = {}
    # Without runs/, read_rows would read the artifacts of the default store as results.
    if (tracker.results / "runs").is_dir():
        for _, row in read_rows(tracker.results):
            groups.setdefault((row.benchmark, encoder_slug(row)), []).append(row)
    return _send_missing(tracker, [RunUpload(tuple(group), attach) for group in groups.values()])


def links(tracker: Tracker, rows: Iterable[Result]) -> list[str]:
    """Return the URLs of the experiments that these results were sent to, in MLflow's web interface."""
    if tracker.databricks:
        return []
    sent = runs.sent_experiments(tracker)
    experiments = dict.fromkeys(sent.get(row.digest, "") for row in rows)
    return [tracker.link(experiment) for experiment in experiments if experiment]


def _send_missing(tracker: Tracker, uploads: Sequence[RunUpload]) -> SyncReport:
    """Send the results that were not sent before, if the store answers."""
    wanted = {row.digest for run in uploads for row in run.rows}
    known = runs.sent_digests(tracker) & wanted
    if known == wanted:
        return SyncReport(0, len(known), 0, "")
    if reason := unreachable_reason(tracker):
        return SyncReport(0, len(known), len(wanted - known), tracker.reason("does not answer", reason))
    try:
        with runs.lock(tracker) as sender, quiet_mlflow():
            return upload(tracker, uploads, known, sender)
    except OSError as error:
        return SyncReport(0, len(known), len(wanted - known), tracker.reason("was not used", error))
