"""The MLflow store of a results folder: its URI, whether it can be reached, and how MLflow's messages are silenced."""

from __future__ import annotations

import functools
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from oodbench.errors import UserError, redact

UI = "http://127.0.0.1:5000"  # address of `mlflow ui`
_VARIABLE = "MLFLOW_TRACKING_URI"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks")
_REGISTRIES = ("databricks-uc", "uc")  # Unity Catalog holds models, and no runs
_OPTIONS = (
    "uri",
    "timeout",
    "isolation_level",
    "detect_types",
    "check_same_thread",
    "cached_statements",
)  # of pysqlite


@dataclass(frozen=True)
class Tracker:
    """An MLflow store for the results of one folder.

    uri      such as sqlite:////absolute/path/mlflow.db or http://host:port
    results  folder of the results
    given    the option or variable that the URI comes from, for messages
    """

    uri: str
    results: Path
    given: str = field(default="tracking URI", compare=False)

    def __post_init__(self) -> None:
        try:
            reason = _unusable_reason(self.uri)
        except ValueError as error:  # of urlsplit
            raise UserError(f"{self.given} cannot be read as a URL ({error})") from error
        if reason:
            default = self.results.absolute() / "mlflow.db"
            raise UserError(
                f"{self.given} {self.place!r} {reason}; write for example http://localhost:5000, "
                f"postgresql://host/mlflow or sqlite:///{default}"
            )

    @property
    def place(self) -> str:
        """The URI without user, password and token, as it is shown and stored."""
        uri = self.uri.rstrip("/")
        return redact(uri.replace(f"{self.secret}@", "", 1) if self.secret else uri)

    @property
    def secret(self) -> str:
        """The `user:password` of the URI, or ""."""
        return urlsplit(self.uri).netloc.rpartition("@")[0]

    @property
    def scheme(self) -> str:
        return urlsplit(self.uri).scheme.lower()

    @property
    def database(self) -> Path | None:
        """The file of a SQLite store, None for any other store."""
        path, _, options = self.uri.partition("?")
        if not path.startswith("sqlite:///") or "uri" in dict(parse_qsl(options)):  # SQLite's own URIs are not parsed
            return None
        path = path.removeprefix("sqlite:///")
        return Path(unquote(path) if _decodes() else path)

    @property
    def served(self) -> bool:
        """Whether the store is a server with MLflow's web interface; other stores need `mlflow ui`."""
        return self.scheme in ("http", "https")

    @property
    def databricks(self) -> bool:
        """Whether the store is Databricks, which has its own web interface."""
        return "databricks" in (self.uri, self.scheme)

    def link(self, experiment: str) -> str:
        """Return the URL of an experiment's runs in MLflow's web interface, sorted by average AUROC, best first."""
        order = urlencode({"orderByKey": "metrics.`auroc/mean`", "orderByAsc": "false"})
        where = self.place if self.served else UI
        return f"{where}/#/experiments/{experiment}/runs?{order}&workflowType=machine_learning"

    def without_secret(self, error: object) -> str:
        """Return the text of an error without user and password; the name of its type if it has no text."""
        text = str(error).strip() or type(error).__name__
        return text.replace(f"{self.secret}@", "") if self.secret else text

    def reason(self, problem: str, error: object) -> str:
        """Return a message: why results could not be sent, where they are, and how to send them later."""
        cause = first_line(self.without_secret(error))
        later = f"results are kept in {self.results}, send them later with: oodbench sync --tracking-uri {self.place}"
        kind = "server" if self.served else "store"
        return f"tracking {kind} {self.place} {problem} ({cause}); {later}"


def first_line(error: object, limit: int = 500) -> str:
    """Return at most `limit` characters of the first line of an error; the name of its type if it has no text."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:limit]


@dataclass(frozen=True)
class SyncReport:
    """The outcome of sending results.

    arrived  number of results that were sent now
    known    number that the store already had
    waiting  number that could not be sent
    reason   why not; "" if all were sent
    """

    arrived: int
    known: int
    waiting: int
    reason: str


def tracker_of(results: Path, uri: str | None, option: str = "--tracking-uri") -> Tracker:
    """Return the store of an option, else of $MLFLOW_TRACKING_URI, else the SQLite file in the results folder.

    Raises UserError, with the name of the option or variable, if MLflow cannot use the URI.
    """
    if uri:
        return Tracker(uri, results, option)
    given = f"${_VARIABLE}" if os.environ.get(_VARIABLE) else "tracking URI"
    return Tracker(default_uri(results), results, given)


def default_uri(results: Path) -> str:
    """Return $MLFLOW_TRACKING_URI, which MLflow reads itself, else the URI of a SQLite file in the results folder."""
    return os.environ.get(_VARIABLE) or sqlite_uri(results)


def sqlite_uri(results: Path, name: str = "mlflow.db") -> str:
    """Return the URI of a SQLite file in a folder. Raise UserError for a path that such a URI cannot hold."""
    path = (results.absolute() / name).as_posix()
    advice = "name another folder, another store with --tracking-uri, or --tracking-uri none for no MLflow"
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path of the results folder {results} is not UTF-8, as MLflow needs it; {advice}"
        ) from error
    if "?" in path and not _decodes():
        raise UserError(f"the path of the results folder {results} has a `?`, where MLflow cuts it off; {advice}")
    # Slashes are quoted, too: MLflow would create the parent folder of the path that it reads in the undecoded URI.
    return f"sqlite:///{quote(path, safe='') if _decodes() and set('?%') & set(path) else path}"


@functools.cache
def _decodes() -> bool:
    """Return whether SQLAlchemy decodes `%3F` in the path of a URI, which it does since 2.1."""
    major, minor = metadata.version("sqlalchemy").split(".")[:2]
    return (int(major), int(minor)) >= (2, 1)


def _unusable_reason(uri: str) -> str:
    """Return why MLflow cannot use a URI, or ""; a run must not fail after hours because of it."""
    if uri == "databricks":
        return ""
    scheme = urlsplit(uri).scheme.lower().partition("+")[0]
    if {uri, scheme} & {*_REGISTRIES}:
        return "is a registry of models, which holds no runs (those of Databricks are in databricks://PROFILE)"
    if scheme == "file" or "://" not in uri:  # MLflow would create a folder of that name
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1") and scheme == "file":
            return ""
        return "names a file store, which MLflow no longer writes" if scheme == "file" else "has no scheme"
    plugins = {entry.name for entry in metadata.entry_points(group="mlflow.tracking_store")}
    if scheme not in _SCHEMES and scheme not in plugins:
        return f"has the scheme {scheme}, which MLflow does not know"
    if scheme == "sqlite":
        path, _, options = uri.partition("?")
        if path.partition("://")[2] in ("", "/", "/:memory:"):
            return "is a database in memory, which ends with this command"
        unknown = [name for name, _ in parse_qsl(options, keep_blank_values=True) if name not in _OPTIONS]
        if unknown and "uri" not in dict(parse_qsl(options)):
            return f"has the option '{unknown[0]}' that SQLite does not know (a `?` in a path is written %3F)"
    return ""


_SECONDS = 3


def unreachable_reason(tracker: Tracker) -> str:
    """Return why a server or a SQLite file cannot be reached, or ""; other stores are not contacted."""
    if tracker.database:
        return _sqlite_problem(tracker.database)
    if not tracker.served:
        return ""
    if _http_problem(f"{tracker.place}/health"):
        time.sleep(0.5)
        return _http_problem(f"{tracker.place}/health")
    return ""


def _http_problem(url: str) -> str:
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(url, timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        # Below 500 the server works; whether it grants access depends on the user's credentials, which MLflow sends.
        return str(error) if error.code >= 500 else ""
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: an invalid host name
        # MLflow has its own settings for certificates.
        return "" if isinstance(getattr(error, "reason", None), ssl.SSLError) else str(error) or type(error).__name__
    return ""


def _sqlite_problem(database: Path) -> str:
    import sqlite3

    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # fails if the file cannot be written
            connection.execute("SELECT count(*) FROM sqlite_master")  # MLflow would try for minutes to read it
    except sqlite3.DatabaseError as error:
        damaged = type(error) is sqlite3.DatabaseError  # not a subclass, such as OperationalError for a lock
        return f"{error}; move {database} away, and the results are sent to a new one" if damaged else str(error)
    except OSError as error:
        return str(error)
    return ""


# Set while results are sent, unless the user set them. MLflow reads them at every request, except telemetry on import.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # the default of eight takes four minutes
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",  # compute nodes are often offline
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_UV_AUTO_DETECT": "false",  # a model must not depend on the current folder
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",  # when results are read back
}


@contextmanager
def quiet_mlflow(seconds: int = 10) -> Iterator[None]:
    """While active, MLflow prints nothing and does not retry for long; the environment and log levels are restored.

    seconds  timeout of one request, unless the user set one
    """
    wanted = {**_ENVIRONMENT, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(seconds)}
    try:
        Path.home()
    except RuntimeError:  # of a user id without an account: MLflow reads the home folder when it is imported
        wanted["HOME"] = tempfile.gettempdir()
    added = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(added)
    # MLflow also raises the errors that it logs, and callers report them.
    levels = {logging.getLogger("mlflow"): logging.CRITICAL, logging.getLogger("urllib3.connectionpool"): logging.ERROR}
    try:
        with warnings.catch_warnings():
            # The tables of MLflow 3.17 use a loader that SQLAlchemy 2.1 deprecates.
            warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=DeprecationWarning)
            # The signature of a model is given; an input example would have to be an image.
            warnings.filterwarnings("ignore", message=".*input example was not provided", category=UserWarning)
            import mlflow  # noqa: F401  (importing it sets its log level, so import it first)

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
