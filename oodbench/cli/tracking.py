"""oodbench sync."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from oodbench.cli.common import FOLDER, log, say, tell
from oodbench.errors import UserError, redact


@click.command()
@click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option("--tracking-uri", help="Default: $MLFLOW_TRACKING_URI, else the sqlite file beside the results.")
def sync(results: Path, tracking_uri: str | None) -> None:
    """Send the rows that have not reached MLflow."""
    from oodbench import tracking
    from oodbench.api import Attachments

    if not results.is_dir():
        raise UserError(f"no results folder {results}")
    tracker = tracking.tracker_of(results, tracking_uri)
    sent = tracking.sync(tracker, Attachments(results))
    say(f"{sent.arrived} rows sent, {sent.known} were there, {sent.waiting} wait")
    if sent.waiting:
        tell(redact(sent.reason))
        sys.exit(1)


@click.command()
@click.argument("path", type=FOLDER)
@click.option("--name", required=True, help="Name in the model registry; a known one gets a new version.")
@click.option("--classes", default="", help="With weights: class names used unless predict() is given others.")
@click.option("--encoder", default="", help="Where the encoder's weights lie, if elsewhere than before.")
@click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option("--tracking-uri", help="Default: $MLFLOW_TRACKING_URI, else the sqlite file beside the results.")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done; tracebacks of errors.")
def register(
    path: Path, name: str, classes: str, encoder: str, results: Path, tracking_uri: str | None, verbose: bool
) -> None:
    """Put PATH, a saved detector or a file of trained weights, into MLflow's model registry."""
    log(verbose)
    from oodbench import tracking
    from oodbench.detector.registration import model_of
    from oodbench.tracking import models

    tracker = tracking.tracker_of(results, tracking_uri)
    version = models.register(tracker, name, model_of(path.expanduser(), classes, encoder))
    say(f"{version.uri} in {tracker.place}")
