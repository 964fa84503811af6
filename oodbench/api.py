"""One benchmark run from request to rows and MLflow: what the CLI and `oodbench.run` share."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from oodbench import results as provenance
from oodbench.errors import did_you_mean, raise_all, redact
from oodbench.method.parameters import conform, parse_names, written
from oodbench.pipeline.plan import make_plan
from oodbench.pipeline.request import RunRequest
from oodbench.pipeline.run import RunOutcome, run
from oodbench.results import Result, rows, slug
from oodbench.storage.files import expand

if TYPE_CHECKING:
    from oodbench.tracking import Tracker

KINDS = ("overview", "roc", "ranks")  # a histogram of each method takes seconds; images themselves may be private
_SECOND = re.compile(r"<u>(.*?)</u>")  # a name's own is escaped


class Attachments:
    """The files that go with rows of one results folder; a picture that cannot be drawn is logged and left out."""

    def __init__(self, results: Path) -> None:
        self.results = results

    def __call__(self, found: Sequence[Result]) -> Iterator[tuple[str, bytes]]:
        """Names, as in `pictures/glyphs-roc.png`, and contents."""
        from oodbench import report

        tables = report.tables(found)
        # MLflow's Markdown shows no underlining.
        yield "table.md", _SECOND.sub(r"*\1*", "\n".join(map(report.markdown, tables))).encode()
        yield "table.csv", report.csv(tables).encode()
        for number, table in enumerate(tables, 1):
            folder = "pictures" if len(tables) == 1 else f"pictures/{number}"
            for name, content in self._pictures([row for line in table.lines for row in line.rows]):
                yield f"{folder}/{name}", content

    def _pictures(self, found: Sequence[Result]) -> Iterator[tuple[str, bytes]]:
        from oodbench.report.figures import pictures

        paths = _paths(self.results, found)
        for kind in KINDS:
            try:
                for picture in pictures(found, paths, kinds=[kind]):
                    yield f"{picture.name}.png", picture.png()
            except Exception as error:  # whatever it is, the rows shall arrive
                why = (str(error).splitlines() or [""])[0] or type(error).__name__
                log.warning("MLflow gets no %s pictures of %s: %s", kind, found[0].benchmark, why)


def _paths(results: Path, found: Sequence[Result]) -> dict[str, Path]:
    """The rows' files by digest; looked for where a run writes them, else everywhere."""
    wanted = {row.digest for row in found}
    encoder = str(found[0].encoder.get("slug", ""))
    usual = results / "runs" / slug(found[0].benchmark)[:120] / encoder
    paths: dict[str, Path] = {}
    for folder in (usual, results):
        if folder.is_dir() and not wanted <= set(paths):
            paths |= {row.digest: path for path, row in rows(folder) if row.digest in wanted}
    return paths


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


def carry_out(request: RunRequest, *, tracking_uri: str | None = None) -> RunOutcome:
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


def record(tracker: Tracker | None, outcome: RunOutcome) -> str:
    """Send the rows to MLflow; why some wait, or "". Never fails a run: the rows are on disk."""
    if tracker is None or not outcome.results:
        return ""
    from oodbench import tracking

    pass

    return redact(tracking.send(tracker, outcome.results, Attachments(tracker.results)).reason)
