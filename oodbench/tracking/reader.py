"""Collection: rows back out of an MLflow store, as they were sent."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oodbench.errors import UserError, did_you_mean
from oodbench.results import Result, from_json
from oodbench.tracking import fields as entries
from oodbench.tracking.connection import Tracker, quiet_mlflow, unreachable_reason
from oodbench.tracking.runs import runs_of

log = logging.getLogger(__name__)


def collect(tracker: Tracker, experiment: str = "") -> list[Result]:
    """The rows of an experiment (`oodbench/mos`, or `mos`), "" for all of oodbench's; each digest once.

    UserError when the store does not answer, has no such experiment, or no rows in it. Runs without a whole row are
    logged and left out.
    """
    database = tracker.database
    if database and not database.is_file():  # asking would make it
        raise UserError(f"tracking store {tracker.place} does not exist; rows are sent there by oodbench run and sync")
    if why := unreachable_reason(tracker):
        raise UserError(f"tracking store {tracker.place} does not answer ({why}); give another with --mlflow URI")
    with quiet_mlflow(), TemporaryDirectory() as folder:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return _collect(MlflowClient(tracking_uri=tracker.uri), tracker, experiment, Path(folder))
        except (MlflowException, SQLAlchemyError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"tracking store {tracker.place} cannot be read ({reason})") from error


def _collect(client: Any, tracker: Tracker, experiment: str, folder: Path) -> list[Result]:
    there = {one.name: one.experiment_id for one in client.search_experiments()}
    names = [name for name in there if name.startswith(entries.RUNS)]
    if experiment:
        named = [name for name in (experiment, entries.experiment(experiment)) if name in there]
        if not named:
            raise UserError(f"{tracker.place} has no experiment '{experiment}'{did_you_mean(experiment, names)}")
        names = named[:1]
    rows: dict[str, Result] = {}
    for name in names:
        runs = list(runs_of(client, there[name]))
        wanted = {run.data.tags[entries.DIGEST]: run.info.run_id for run in runs if entries.DIGEST in run.data.tags}
        parents = dict.fromkeys(run.data.tags.get("mlflow.parentRunId", "") for run in runs)
        for parent in filter(None, parents):  # one file with all rows of a run, instead of one for each
            rows |= {d: row for d, row in _file(client, parent, "rows.json", folder).items() if d in wanted}
        for digest, run in wanted.items():
            if digest not in rows:
                rows |= {d: row for d, row in _file(client, run, "row.json", folder).items() if d == digest}
            if digest not in rows:
                log.warning("left out: run %s of %s has no row of digest %s", run, name, digest[:12])
    if not rows:
        raise UserError(f"{tracker.place} holds no rows{f' of {experiment}' if experiment else ''}")
    return list(rows.values())


def _file(client: Any, run: str, name: str, folder: Path) -> dict[str, Result]:
    """Rows of an artifact by digest; none when it is missing or damaged."""
    from mlflow.exceptions import MlflowException

    place = folder / run
    place.mkdir(exist_ok=True)
    try:
        text = Path(client.download_artifacts(run, name, str(place))).read_text(encoding="utf-8")
        raw = json.loads(text)
        found = [
            from_json(json.dumps(one), f"{name} of run {run}") for one in (raw if isinstance(raw, list) else [raw])
        ]
    except (MlflowException, OSError, ValueError, UserError) as error:
        log.warning("%s of run %s cannot be read: %s", name, run, str(error).splitlines()[0])
        return {}
    return {row.digest: row for row in found}
