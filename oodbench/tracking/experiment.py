"""Experiments: made when there is none, with a description that says how to find things in them."""

from __future__ import annotations

import logging
from typing import Any

from oodbench.tracking.connection import Tracker
from oodbench.tracking.fields import RUNS

log = logging.getLogger(__name__)

TRAINING, MODELS = "oodbench/train", "oodbench/models"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else MLflow takes its interface for chat bots
_NOTE = "mlflow.note.content"
_NOTES = {
    RUNS: """\
One run per `oodbench run`, with its table and pictures as artifacts; below it, one run per method.

- Sort by `auroc/mean`: the methods of all runs in order, which the chart view shows as bars.
- Search `tags.method = 'clipn'`, `tags.encoder = 'ViT-B-16/openai'`, `tags.status = 'failed'`.
- Search `tags.method LIKE '%' AND metrics."fpr95/mean" < 0.3`: methods alone, without the runs above them.
""",
    TRAINING: "One run per `oodbench train`: chart `loss`. `tags.method`, `tags.encoder`, and `tags.weights` (sha256).",
    MODELS: "What `oodbench register` logged; versions lie in the model registry.",
}


def experiment_id(client: Any, tracker: Tracker, name: str) -> str:
    """The id of an experiment, made when there is none; one that was deleted keeps its name, and is restored."""
    from mlflow.exceptions import MlflowException

    about = {**_KIND, _NOTE: _NOTES.get(name, _NOTES[RUNS])}
    if found := client.get_experiment_by_name(name):
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
            log.warning("the experiment %s was deleted in %s; it is restored, with its runs", name, tracker.place)
        for key in about if not set(_KIND) & set(found.tags) else ():  # one of before
            client.set_experiment_tag(found.experiment_id, key, about[key])
        return str(found.experiment_id)
    served = tracker.scheme in ("http", "https", "databricks", "")
    # Without a server that has a place for artifacts, they would go to ./mlruns.
    location = None if served else (tracker.results.absolute() / "mlartifacts").as_uri()
    try:
        return str(client.create_experiment(name, artifact_location=location, tags=about))
    except MlflowException:
        if found := client.get_experiment_by_name(name):  # another process was faster
            return str(found.experiment_id)
        raise
