"""The model registry: a folder or file becomes a version of a registered model of MLflow's pyfunc flavour."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from oodbench.errors import UserError
from oodbench.tracking import fields
from oodbench.tracking.connection import Tracker, first_line, quiet_mlflow, unreachable_reason
from oodbench.tracking.database import connect
from oodbench.tracking.runs import MODELS, TRAINING, experiment_id, lock

_SECONDS = 120  # timeout of one request: weights are large
_URI = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Model:
    """A model to be registered.

    data          file or folder that `loader`, a module with `_load_pyfunc(path, config)`, reads
    method        name of the method
    requirements  requirements in pip's format
    config        defaults of the parameters of `mlflow.pyfunc.load_model(..., model_config=...)`
    inputs        columns and their types, string or binary; a caller gives one of them
    outputs       columns and their types
    classes       default of predict()'s parameter `classes`; None if it has no such parameter
    weights       sha256 of trained weights, which identifies their training; "" for none
    note          function from the URI of the version to its description in Markdown
    """

    data: Path
    loader: str
    method: str
    requirements: tuple[str, ...]
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    classes: Sequence[str] | None = None
    weights: str = ""
    note: Callable[[str], str] = lambda uri: ""
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Version:
    """A version of a registered model; `run` is the MLflow run of its training, "" if the store has none."""

    name: str
    number: str
    run: str

    @property
    def uri(self) -> str:
        """The URI for mlflow.pyfunc.load_model."""
        return f"models:/{self.name}/{self.number}"


def register(tracker: Tracker, name: str, model: Model) -> Version:
    """Log a model as the newest version of a name. Raise UserError for an invalid name or if the store fails."""
    with quiet_mlflow(_SECONDS), _environment_uri(tracker.uri):
        from mlflow.exceptions import MlflowException
        from mlflow.utils.validation import _validate_model_name
        from sqlalchemy.exc import SQLAlchemyError

        try:
            _validate_model_name(name)
        except MlflowException as error:
            raise UserError(f"--name {name!r}: {first_line(error)}") from error
        if reason := unreachable_reason(tracker):
            raise UserError(
                f"tracking store {tracker.place} does not answer ({reason}); give another with --tracking-uri"
            )
        try:
            with lock(tracker):
                client = connect(tracker)
            return _register(client, tracker, name, model)
        except (MlflowException, SQLAlchemyError, OSError) as error:
            text = first_line(tracker.without_secret(error))
            raise UserError(f"tracking store {tracker.place} rejected the model ({text})") from error


@contextmanager
def _environment_uri(uri: str) -> Iterator[None]:
    """While active, set $MLFLOW_TRACKING_URI to this URI, because MLflow's SQLite registry reads it."""
    before = os.environ.get(_URI)
    os.environ[_URI] = uri
    try:
        yield
    finally:
        os.environ.pop(_URI)
        os.environ.update({_URI: before} if before is not None else {})


def _register(client: Any, tracker: Tracker, name: str, model: Model) -> Version:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.validation import MAX_PARAM_VAL_LENGTH, MAX_TAG_VAL_LENGTH

    run = _training_run(client, model.weights)
    params = fields.truncated(model.params, MAX_PARAM_VAL_LENGTH)
    experiment = experiment_id(client, tracker, MODELS)
    logged = client.create_logged_model(
        experiment, model.method, run or None, fields.truncated(model.tags, MAX_TAG_VAL_LENGTH), params, "oodbench"
    )
    try:
        with TemporaryDirectory() as folder:
            _save(model, Path(folder) / "model", logged.model_id)
            client.log_model_artifacts(logged.model_id, str(Path(folder) / "model"))
        client.finalize_logged_model(logged.model_id, "READY")
        try:
            client.get_registered_model(name)
        except MlflowException:
            with suppress(MlflowException):  # another process was faster; the next call raises any other error
                client.create_registered_model(name)
        about = {"tags": dict(model.tags), "model_id": logged.model_id}
        created = client.create_model_version(name, logged.artifact_location, run or None, **about)
    except BaseException:
        with suppress(Exception):
            client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    version = Version(name, str(created.version), run)
    client.update_model_version(name, version.number, model.note(version.uri))
    return version


def _save(model: Model, path: Path, model_id: str) -> None:
    """Write the model in MLflow's layout, without code and without pickles."""
    from mlflow import pyfunc
    from mlflow.models import Model as Layout
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        Schema([ColSpec(kind, name, required=False) for name, kind in model.inputs.items()]),
        Schema([ColSpec(kind, name, required=kind == "double") for name, kind in model.outputs.items()]),
        None
        if model.classes is None
        else ParamSchema([ParamSpec("classes", DataType.string, list(model.classes), (-1,))]),
    )
    pyfunc.save_model(
        path,
        loader_module=model.loader,
        data_path=str(model.data),
        mlflow_model=Layout(model_uuid=model_id, model_id=model_id),
        signature=signature,
        pip_requirements=list(model.requirements),
        model_config=dict(model.config),
    )


def _training_run(client: Any, weights: str) -> str:
    """Return the run that trained these weights, "" if there is none."""
    experiment = client.get_experiment_by_name(TRAINING) if weights else None
    if experiment is None:
        return ""
    runs = client.search_runs([experiment.experiment_id], f"tags.weights = '{weights}'", max_results=1)
    return str(runs[0].info.run_id) if runs else ""
