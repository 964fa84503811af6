"""oodbench sync."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from oodbench.cli.common import FOLDER, say, tell
from oodbench.errors import UserError
from oodbench.storage.urls import hidden


@click.command()
@click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option("--tracking-uri", help="Default: $MLFLOW_TRACKING_URI, else the sqlite file beside the results.")
def sync(results: Path, tracking_uri: str | None) -> None:
    """Send the rows that have not reached MLflow."""
    from oodbench import tracking
    from oodbench.attachments import Attachments

    if not results.is_dir():
        raise UserError(f"no results folder {results}")
    tracker = tracking.tracker_of(results, tracking_uri)
    sent = tracking.sync(tracker, Attachments(results))
    say(f"{sent.arrived} rows sent, {sent.known} were there, {sent.waiting} wait")
    if sent.waiting:
        tell(hidden(sent.reason))
        sys.exit(1)
