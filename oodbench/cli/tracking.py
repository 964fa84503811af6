"""oodbench sync and oodbench register: send results and models to MLflow."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from oodbench.cli import options as shared
from oodbench.cli.help import Command, examples
from oodbench.cli.options import FOLDER
from oodbench.cli.output import configure_logging, note, print_errors, say
from oodbench.errors import UserError, redact

if TYPE_CHECKING:
    from oodbench.results import Result
    from oodbench.tracking import Tracker


def mlflow_steps(tracker: Tracker, rows: Iterable[Result]) -> list[str]:
    """Return the commands that show results in MLflow, sorted by average AUROC."""
    from oodbench import tracking

    if tracker.databricks:
        return []
    start = [] if tracker.served else [shlex.join(["mlflow", "ui", "--backend-store-uri", tracker.place])]
    found = tracking.links(tracker, rows) or ([tracker.place] if tracker.served else [])
    return [*start, *(shlex.join(["open", link]) for link in found)]


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
    from oodbench.results import rows

    if not results.is_dir():
        raise UserError(f"no results folder {results}")
    tracker = tracking.tracker_of(results, tracking_uri)
    report = tracking.sync(tracker, Attachments(results))
    say(f"{report.arrived} results sent, {report.known} already there, {report.waiting} waiting")
    for step in mlflow_steps(tracker, (row for _, row in rows(results))) if report.arrived else ():
        note(f"next: {step}")
    if report.waiting:
        print_errors(redact(report.reason))
        sys.exit(1)


@click.command(
    cls=Command,
    epilog=examples("oodbench register detector --name pets-detector"),
)
@click.argument("path", type=FOLDER)
@click.option("--name", required=True, help="Name in the model registry; an existing name gets a new version.")
@click.option("--classes", default="", help="With weights: class names that predict() uses by default.")
@click.option("--encoder", default="", help="Encoder with its file of weights, if the file was moved.")
@shared.RESULTS
@shared.TRACKING_URI
@shared.VERBOSE
def register(
    path: Path, name: str, classes: str, encoder: str, results: Path, tracking_uri: str | None, verbose: bool
) -> None:
    """Register a detector or weights in MLflow's model registry.

    PATH is a saved detector, or a file of trained weights.
    """
    configure_logging(verbose)
    from oodbench import tracking
    from oodbench.detector.registration import model_of
    from oodbench.tracking import models

    tracker = tracking.tracker_of(results, tracking_uri)
    version = models.register(tracker, name, model_of(path.expanduser(), classes, encoder))
    say(f"{version.uri} in {tracker.place}")
