"""One benchmark run from request to rows and MLflow: what the CLI and `oodbench.run` share."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench import provenance
from oodbench.data.paths import expand
from oodbench.errors import did_you_mean, raise_all
from oodbench.method.parameters import conform, parse_names, written
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.run import Outcome, run
from oodbench.storage.urls import hidden

if TYPE_CHECKING:
    from oodbench.tracking import Tracker

log = logging.getLogger(__name__)


def request_from(**options: Any) -> RunRequest:
    """A RunRequest from keyword options. UserError names every option that does not exist or has a wrong type.

    Paths may be strings; lists of one may be that one; `ood` may be comma-separated; `settings` may be a dictionary
    such as {"mcm.temperature": 0.01}.
    """
    fields = {f.name: str(f.type) for f in dataclasses.fields(RunRequest)}
    values: dict[str, Any] = {}
    problems = []
    for name, value in options.items():
        if name not in fields:
            problems.append(f"no option '{name}'{did_you_mean(name, fields)}")
            continue
        try:
            values[name] = _option(name, fields[name], value)
        except (ValueError, TypeError):
            problems.append(f"option '{name}' takes {fields[name]}, not {value!r}")
    raise_all(problems)
    return RunRequest(**values)


def _option(name: str, kind: str, value: Any) -> Any:
    if name == "ood" and isinstance(value, str):
        value = parse_names(value)
    if name == "methods" and isinstance(value, list | tuple):
        value = ",".join(value)
    if name == "settings" and isinstance(value, dict):
        value = [f"{key}={written(one)}" for key, one in value.items()]
    if kind.startswith("tuple"):
        one_kind = kind.removeprefix("tuple[").partition(",")[0]
        several = [value] if isinstance(value, str | Path) else value or ()
        return tuple(_option("", one_kind, one) for one in several)
    if kind.startswith("Path") and value is not None:
        return Path(value)
    return None if value is None and kind.endswith("| None") else conform(value, kind)


def carry_out(request: RunRequest, *, tracking_uri: str | None = None) -> Outcome:
    """Plan, run and record. `tracking_uri` None: the sqlite file beside the rows; "" or "none": no MLflow."""
    tracker = tracker_of(request.out, tracking_uri)
    plan = make_plan(request)
    for note in plan.notes:
        log.warning("%s", note)
    outcome = run(plan)
    for name, reason in outcome.left_out:
        log.warning("left out: %s: %s", name, reason)
    for result in outcome.results:
        for warning in result.warnings:
            log.warning("%s: %s", result.label, warning)
    for why in (provenance.elsewhere(request.device, outcome.results), record(tracker, outcome)):
        if why:
            log.warning("%s", why)
    return outcome


def tracker_of(results: Path, tracking_uri: str | None) -> Tracker | None:
    """Where rows are sent. UserError when the URI is none: to be known before hours of work, not after."""
    if tracking_uri in ("", "none"):
        return None
    from oodbench import tracking

    results = expand(results)
    return tracking.tracker_of(results, tracking_uri)


def record(tracker: Tracker | None, outcome: Outcome) -> str:
    """Send the rows to MLflow; why some wait, or "". Never fails a run: the rows are on disk."""
    if tracker is None or not outcome.results:
        return ""
    from oodbench import tracking
    from oodbench.attachments import Attachments

    return hidden(tracking.send(tracker, outcome.results, Attachments(tracker.results)).reason)
