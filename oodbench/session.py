"""One benchmark run from request to rows and MLflow: what the CLI and `oodbench.run` share."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench.errors import UserError, did_you_mean
from oodbench.plan import make_plan
from oodbench.request import RunRequest
from oodbench.runner import Outcome, Watch, run
from oodbench.values import parse_names

if TYPE_CHECKING:
    from oodbench.tracking import Tracker

log = logging.getLogger(__name__)

_PATHS = ("data", "out", "store")


def request_from(**options: Any) -> RunRequest:
    """A RunRequest from keyword options: strings become paths, a comma-separated string becomes a list of OOD sets."""
    fields = {f.name for f in dataclasses.fields(RunRequest)}
    for name in options:
        if name not in fields:
            raise UserError(f"no option '{name}'{did_you_mean(name, fields)}")
    for name in _PATHS:
        if isinstance(options.get(name), str):
            options[name] = Path(options[name])
    if isinstance(options.get("ood"), str):
        options["ood"] = parse_names(options["ood"])
    if isinstance(options.get("methods"), Sequence) and not isinstance(options["methods"], str):
        options["methods"] = ",".join(options["methods"])
    if isinstance(options.get("settings"), dict):
        options["settings"] = [f"{name}={value!r}" for name, value in options["settings"].items()]
    for name in ("ood", "settings", "plugins"):
        options[name] = tuple(options.get(name) or ())
    options["plugins"] = tuple(Path(plugin) for plugin in options["plugins"])
    return RunRequest(**options)


def carry_out(request: RunRequest, *, tracking_uri: str | None = None, watch: Watch | None = None) -> Outcome:
    """Plan, run and record. `tracking_uri` None: the sqlite file beside the rows; "" or "none": no MLflow."""
    tracker = tracker_of(request.out, tracking_uri)
    outcome = run(make_plan(request), watch)
    why = record(tracker, outcome)
    if why:
        log.warning("%s", why)
    return outcome


def tracker_of(results: Path, tracking_uri: str | None) -> Tracker | None:
    """Where rows are sent. UserError when the URI is none: to be known before hours of work, not after."""
    if tracking_uri in ("", "none"):
        return None
    from oodbench import tracking

    results = results.expanduser()
    return tracking.Tracker(tracking_uri or tracking.default_uri(results), results)


def record(tracker: Tracker | None, outcome: Outcome) -> str:
    """Send the rows to MLflow; why some wait, or "". Never fails a run: the rows are on disk."""
    if tracker is None or not outcome.results:
        return ""
    from oodbench import report, tracking

    table = "\n".join(report.markdown(table) for table in report.tables(outcome.results))
    return tracking.send(tracker, outcome.results, table).reason
