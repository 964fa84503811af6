"""A benchmark run from request to recorded results, for the command line and `oodbench.run`."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench import results as provenance
from oodbench.distributed.cluster import cluster_address
from oodbench.errors import redact
from oodbench.pipeline import run as local
from oodbench.pipeline.events import Watch
from oodbench.pipeline.plan import Plan, make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.run import RunOutcome, RunState
from oodbench.pipeline.streams import is_stored
from oodbench.results import Result, rows, slug
from oodbench.storage.files import expand

if TYPE_CHECKING:
    from oodbench.report import Table
    from oodbench.tracking import Tracker

log = logging.getLogger(__name__)

# Histograms are left out because each takes seconds, and images because they may be private.
KINDS = ("overview", "shots", "sweep", "stream", "roc", "densities", "ranks")
LARGEST_PAGE = 4_000_000  # bytes; MLflow loads the whole page before it shows anything
_UNDERLINED = re.compile(r"<u>(.*?)</u>")  # in names these characters are escaped


class Attachments:
    """The tables and figures that go to MLflow with results; a figure that cannot be drawn is logged and skipped."""

    def __init__(self, results: Path) -> None:
        self.results = results

    def __call__(self, found: Sequence[Result]) -> Iterator[tuple[str, bytes]]:
        """Yield the name, such as `figures/glyphs-roc.png`, and the content of every file."""
        from oodbench.report import csv, markdown, tables

        built = tables(found)
        # MLflow's Markdown does not show underlined text.
        yield "table.md", _UNDERLINED.sub(r"*\1*", "\n".join(map(markdown, built))).encode()
        yield "table.csv", csv(built).encode()
        yield from self._page(built, found)
        for number, table in enumerate(built, 1):
            folder = "figures" if len(built) == 1 else f"figures/{number}"
            for name, content in self._figures(table.results):
                yield f"{folder}/{name}", content

    def _page(self, tables: list[Table], found: Sequence[Result]) -> Iterator[tuple[str, bytes]]:
        """Yield the HTML page without its figures, which are separate files; skip a page over LARGEST_PAGE."""
        from oodbench.report import TableOptions
        from oodbench.report.html import FigureSource, render

        source = FigureSource(_paths(self.results, found), self.results)
        page = render(tables, source, TableOptions(), figures=False).encode()
        if len(page) <= LARGEST_PAGE:
            yield "table.html", page
        else:
            log.warning("no page is sent to MLflow: that of %d results has %.0f MB", len(found), len(page) / 1e6)

    def _figures(self, found: Sequence[Result]) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the content of every figure of some results."""
        from oodbench.report.figures import plots

        paths = _paths(self.results, found)
        for kind in KINDS:
            try:
                for figure in plots(found, paths, kinds=[kind]):
                    yield f"{figure.name}.png", figure.png()
            except Exception as error:  # results are sent even if a figure fails
                reason = (str(error).splitlines() or [""])[0] or type(error).__name__
                log.warning("no %s figures of %s are sent to MLflow: %s", kind, found[0].benchmark, reason)


def _paths(results: Path, found: Sequence[Result]) -> dict[str, Path]:
    """Return the file of each result by digest, from where runs write it or else from the whole results folder."""
    wanted = {row.digest for row in found}
    encoder = str(found[0].encoder.get("slug", ""))
    default = results / "runs" / slug(found[0].benchmark)[:120] / encoder
    paths: dict[str, Path] = {}
    for folder in (default, results):
        if folder.is_dir() and not wanted <= set(paths):
            paths |= {row.digest: path for path, row in rows(folder) if row.digest in wanted}
    return paths


def run(plan: Plan, watch: Watch | None = None) -> RunOutcome:
    """Compute the missing parts of a plan, in this process or on Ray, and write the results.

    Raises UserError for bad input, and if a store or an image cannot be read.
    """
    state = RunState(plan, watch)
    if state.running or state.streams:
        if cluster_address(plan.request.ray, plan.request.device):
            from oodbench.distributed import run as cluster

            cluster.run(state)
        else:
            local.run(state)
    return state.outcome()


def plugin_problems(plans: Sequence[Plan]) -> list[str]:
    """Return the problems of the user's own methods on the toy dataset, without those whose scores are stored.

    This takes a second, before the images of a run are encoded.
    """
    own = {
        job.label: job
        for plan in plans
        for job in plan.jobs
        if job.info.origin == "plugin" and not is_stored(plan, job)
    }
    if not own:
        return []
    from oodbench.pipeline.contract import quick_problems
    from oodbench.pipeline.task import pick_device

    return quick_problems(list(own.values()), pick_device(plans[0].request.device))


def run_and_record(request: RunRequest, *, tracking_uri: str | None = None) -> RunOutcome:
    """Plan a request, run it, log its notes and warnings, and send the results to MLflow.

    `tracking_uri` None is the SQLite file next to the results; "" or "none" records nothing in MLflow.
    """
    tracker = tracker_of(request.out, tracking_uri)
    plan = make_plan(request)
    for note in (*plan.notes, *plugin_problems([plan])):
        log.warning("%s", note)
    outcome = run(plan)
    for name, reason in outcome.skipped_methods:
        log.warning("skipped: %s: %s", name, reason)
    for result in outcome.results:
        for warning in result.warnings:
            log.warning("%s: %s", result.label, warning)
    for reason in (provenance.elsewhere(request.device, outcome.results), record(tracker, outcome)):
        if reason:
            log.warning("%s", reason)
    return outcome


def tracker_of(results: Path, tracking_uri: str | None) -> Tracker | None:
    """Return the tracker of a URI, or None for no tracking. Raise UserError for a bad URI before hours of work."""
    if tracking_uri in ("", "none"):
        return None
    from oodbench import tracking

    results = expand(results)
    return tracking.tracker_of(results, tracking_uri)


def record(tracker: Tracker | None, outcome: RunOutcome) -> str:
    """Send the results to MLflow and return why some could not be sent, or "". It never fails a run."""
    if tracker is None or not outcome.results:
        return ""
    from oodbench import tracking

    return redact(tracking.send(tracker, outcome.results, Attachments(tracker.results)).reason)
