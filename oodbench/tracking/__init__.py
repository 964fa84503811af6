"""Tracking: rows on disk -> MLflow, each row once. Imports no mlflow before there is a row to send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oodbench.results import Result
from oodbench.results import rows as rows_below
from oodbench.tracking import runs
from oodbench.tracking.connection import SyncReport, Tracker, default_uri, quiet_mlflow, tracker_of, unreachable_reason
from oodbench.tracking.fields import encoder_slug
from oodbench.tracking.runs import Attach, RunUpload, upload

__all__ = ["Attach", "SyncReport", "Tracker", "default_uri", "send", "sync", "tracker_of"]


def nothing(rows: Sequence[Result]) -> Iterable[tuple[str, bytes]]:
    """No files beside the rows."""
    return ()


def send(tracker: Tracker, rows: Sequence[Result], attach: Attach = nothing) -> SyncReport:
    """Send the rows of one benchmark run, same benchmark and encoder, with the files that `attach` makes of them."""
    return _deliver(tracker, [RunUpload(tuple(rows), attach)])


def sync(tracker: Tracker, attach: Attach = nothing) -> SyncReport:
    """Send every row below the results folder that has not arrived yet: one parent run per benchmark and encoder."""
    groups: dict[tuple[str, str], list[Result]] = {}
    # Without runs/, rows_below would take the artifacts of the default store for rows.
    if (tracker.results / "runs").is_dir():
        for _, row in rows_below(tracker.results):
            groups.setdefault((row.benchmark, encoder_slug(row)), []).append(row)
    return _deliver(tracker, [RunUpload(tuple(group), attach) for group in groups.values()])


def _deliver(tracker: Tracker, parcels: Sequence[RunUpload]) -> SyncReport:
    wanted = {row.digest for parcel in parcels for row in parcel.rows}
    known = runs.arrived(tracker) & wanted
    if known == wanted:
        return SyncReport(0, len(known), 0, "")
    if why := unreachable_reason(tracker):
        return SyncReport(0, len(known), len(wanted - known), tracker.reason("does not answer", why))
    try:
        with runs.locked(tracker) as sender, quiet_mlflow():
            return upload(tracker, parcels, known, sender)
    except OSError as error:
        return SyncReport(0, len(known), len(wanted - known), tracker.reason("was not asked", error))
