"""Read results back from an MLflow store."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oodbench.errors import UserError, did_you_mean
from oodbench.results import Result, from_json
from oodbench.tracking import fields
from oodbench.tracking.connection import Tracker, first_line, quiet_mlflow, unreachable_reason
from oodbench.tracking.runs import runs_of

log = logging.getLogger(__name__)


def collect(tracker: Tracker, experiment: str = "") -> list[Result]:
    """Return the results of an experiment (`oodbench/mos`, or `mos`), or of all of oodbench's; each digest once.

    Raises UserError if the store does not answer, or has no such experiment or no results in it. A run whose result is
    missing or damaged is skipped with a warning.
    """
    database = tracker.database
    if database and not database.is_file():  # MLflow would create it
        raise UserError(
            f"tracking store {tracker.place} does not exist; oodbench run and oodbench sync send results there"
        )
    if reason := unreachable_reason(tracker):
        raise UserError(f"tracking store {tracker.place} does not answer ({reason}); give another with --mlflow URI")
    with quiet_mlflow(), TemporaryDirectory() as folder:
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return _collect(MlflowClient(tracking_uri=tracker.uri), tracker, experiment, Path(folder))
        except (MlflowException, SQLAlchemyError, OSError) as error:
            raise UserError(f"tracking store {tracker.place} cannot be read ({first_line(error)})") from error


def _collect(client: Any, tracker: Tracker, experiment: str, folder: Path) -> list[Result]:
    experiments = {found.name: found.experiment_id for found in client.search_experiments()}
    names = [name for name in experiments if name.startswith(fields.RUNS)]
    if experiment:
        named = [name for name in (experiment, fields.experiment(experiment)) if name in experiments]
        if not named:
            raise UserError(f"{tracker.place} has no experiment '{experiment}'{did_you_mean(experiment, names)}")
        names = named[:1]
    rows: dict[str, Result] = {}
    for name in names:
        runs = list(runs_of(client, experiments[name]))
        wanted = {run.data.tags[fields.DIGEST]: run.info.run_id for run in runs if fields.DIGEST in run.data.tags}
        parents = dict.fromkeys(run.data.tags.get("mlflow.parentRunId", "") for run in runs)
        for parent in filter(None, parents):  # one file with all results of a run
            rows |= {d: row for d, row in _read_artifact(client, parent, "rows.json", folder).items() if d in wanted}
        for digest, run in wanted.items():
            if digest not in rows:
                rows |= {d: row for d, row in _read_artifact(client, run, "row.json", folder).items() if d == digest}
            if digest not in rows:
                log.warning("skipped: run %s of %s has no result of digest %s", run, name, digest[:12])
    if not rows:
        raise UserError(f"{tracker.place} holds no results{f' of {experiment}' if experiment else ''}")
    return list(rows.values())


def _read_artifact(client: Any, run: str, name: str, folder: Path) -> dict[str, Result]:
    """Return the results in an artifact by digest; none, with a warning, if it is missing or damaged."""
    from mlflow.exceptions import MlflowException

    target = folder / run
    target.mkdir(exist_ok=True)
    try:
        text = Path(client.download_artifacts(run, name, str(target))).read_text(encoding="utf-8")
        raw = json.loads(text)
        items = raw if isinstance(raw, list) else [raw]
        results = [from_json(json.dumps(item), f"{name} of run {run}") for item in items]
    except (MlflowException, OSError, ValueError, UserError) as error:
        log.warning("%s of run %s cannot be read: %s", name, run, str(error).splitlines()[0])
        return {}
    return {row.digest: row for row in results}
