"""oodbench sync and oodbench register: results and models to MLflow."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from oodbench.cli import options as shared
from oodbench.cli.help import Command, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import configure_logging, print_errors, say
from oodbench.errors import UserError, redact


@click.command(
    cls=Command,
    epilog=examples("oodbench sync --tracking-uri http://mlflow.example.org:5000"),
)
@shared.RESULTS
@shared.TRACKING_URI
def sync(results: Path, tracking_uri: str | None) -> None:
    """Send the results that have not reached MLflow yet."""
    from oodbench import tracking
    from oodbench.api import Attachments

    if not results.is_dir():
        raise UserError(f"no results folder {results}")
    report = tracking.sync(tracking.tracker_of(results, tracking_uri), Attachments(results))
    say(f"{report.arrived} results sent, {report.known} already there, {report.waiting} waiting")
    if report.waiting:
        print_errors(redact(report.reason))
        sys.exit(1)


@click.command(
    cls=Command,
    epilog=examples("oodbench register detector --name pets-detector"),
)
@click.argument("path", type=FOLDER)
@click.option("--name", required=True, help="Name in the model registry; a known name gets a new version.")
@click.option("--classes", default="", help="With weights: class names that predict() uses by default.")
@click.option("--encoder", default="", help="The encoder with the file of its weights, if that was moved.")
@shared.RESULTS
@shared.TRACKING_URI
@shared.VERBOSE
def register(
    path: Path, name: str, classes: str, encoder: str, results: Path, tracking_uri: str | None, verbose: bool
) -> None:
    """Put a detector or weights into MLflow's registry.

    PATH is a saved detector, or a file of trained weights.
    """
    configure_logging(verbose)
    from oodbench import tracking
    from oodbench.detector.registration import model_of
    from oodbench.tracking import models

    tracker = tracking.tracker_of(results, tracking_uri)
    version = models.register(tracker, name, model_of(path.expanduser(), classes, encoder))
    say(f"{version.uri} in {tracker.place}")
