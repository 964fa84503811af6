"""MLflow without its chatter, and without the retries that would take minutes."""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

# In force while rows are sent, where the user set nothing. MLflow reads each at every request, telemetry on import.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # by itself it tries eight times, for four minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # compute nodes are often offline
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model has nothing of the folder it is registered from
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # when rows are read back
}


@contextmanager
def quiet(seconds: int = 10) -> Iterator[None]:
    """MLflow without chatter and long retries; environment, log levels and warning filters are put back.

    seconds  how long one request may take, where the user set nothing
    """
    wanted = {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    try:
        Path.home()
    except RuntimeError:  # a user whom the system does not know: MLflow asks for a home when it is imported
        wanted["HOME"] = tempfile.gettempdir()
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    # What MLflow logs as an error it raises as well, and we tell it.
    levels = {logging.getLogger("mlflow"): logging.CRITICAL, logging.getLogger("urllib3.connectionpool"): logging.ERROR}
    try:
        with warnings.catch_warnings():
            # MLflow 3.17's own tables use a loader that SQLAlchemy 2.1 deprecates.
            warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
            # A model's signature is written out: an example would have to be an image.
            warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
            import mlflow  # noqa: F401  (importing it sets its log level, so it comes first)

            before = {logger: logger.level for logger in levels}
            for logger, level in levels.items():
                logger.setLevel(max(level, logger.level))
            try:
                yield
            finally:
                for logger, level in before.items():
                    logger.setLevel(level)
    finally:
        for name in added:
            os.environ.pop(name, None)
