"""oodbench sync."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from oodbench.cli.group import FOLDER
from oodbench.errors import UserError
from oodbench.urls import hidden


@click.command()
@click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option("--tracking-uri", help="Default: $MLFLOW_TRACKING_URI, else the sqlite file beside the results.")
def sync(results: Path, tracking_uri: str | None) -> None:
    """Send the rows that have not reached MLflow."""
    from oodbench import tracking
    from oodbench.attachments import Attachments

    if not results.is_dir():
        raise UserError(f"no results folder {results}")
    tracker = tracking.Tracker(tracking_uri or tracking.default_uri(results), results)
    sent = tracking.sync(tracker, Attachments(results))
    click.echo(f"{sent.arrived} rows sent, {sent.known} were there, {sent.waiting} wait")
    if sent.waiting:
        click.echo(f"error: {hidden(sent.reason)}", err=True)
        sys.exit(1)
