"""Tracker: which MLflow store, for which rows. Sent: what became of them."""

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
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from oodbench.errors import UserError

_VARIABLE = "MLFLOW_TRACKING_URI"
_SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql", "databricks", "databricks-uc", "uc")
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
    """An MLflow store (`sqlite:////abs/path/mlflow.db`, `http://host:port`, ...) for the rows of one results folder.

    given  the flag or the variable that the URI comes from, for messages
    """

    uri: str
    results: Path
    given: str = field(default="tracking URI", compare=False)

    def __post_init__(self) -> None:
        try:
            why = _refusal(self.uri)
        except ValueError as error:  # of urlsplit
            raise UserError(f"{self.given} cannot be read as a URL ({error})") from error
        if why:
            default = self.results.absolute() / "mlflow.db"
            raise UserError(
                f"{self.given} {self.place!r} {why}; write for example http://localhost:5000, postgresql://host/mlflow "
                f"or sqlite:///{default}"
            )

    @property
    def place(self) -> str:
        """The URI as it may be shown and stored: without user and password."""
        uri = self.uri.rstrip("/")
        return uri.replace(f"{self.secret}@", "", 1) if self.secret else uri

    @property
    def secret(self) -> str:
        """`user:password` of the URI, or ""."""
        return urlsplit(self.uri).netloc.rpartition("@")[0]

    @property
    def scheme(self) -> str:
        return urlsplit(self.uri).scheme.lower()

    @property
    def database(self) -> Path | None:
        """The file of a sqlite store, None for any other."""
        path, _, options = self.uri.partition("?")
        if not path.startswith("sqlite:///") or "uri" in dict(parse_qsl(options)):  # SQLite's own URIs are not read
            return None
        path = path.removeprefix("sqlite:///")
        return Path(unquote(path) if _decodes() else path)

    def reason(self, what: str, why: object) -> str:
        """Why rows wait, where they are, and how to send them."""
        text = str(why).replace(f"{self.secret}@", "") if self.secret else str(why)
        cause = (text.strip().splitlines() or [type(why).__name__])[0][:500]
        later = f"rows are kept in {self.results}, send them later with: oodbench sync --tracking-uri {self.place}"
        kind = "server" if self.scheme in ("http", "https") else "store"
        return f"tracking {kind} {self.place} {what} ({cause}); {later}"


@dataclass(frozen=True)
class SyncReport:
    """How many rows arrived now, were there before, still wait, and why (`reason`, "" when all went well)."""

    arrived: int
    known: int
    waiting: int
    reason: str


def tracker_of(results: Path, uri: str | None, flag: str = "--tracking-uri") -> Tracker:
    """The store that a flag names, else $MLFLOW_TRACKING_URI, else the sqlite file beside the rows.

    UserError, which says whether the flag or the variable is at fault, when MLflow could not use it.
    """
    if uri:
        return Tracker(uri, results, flag)
    named = f"${_VARIABLE}" if os.environ.get(_VARIABLE) else "tracking URI"
    return Tracker(default_uri(results), results, named)


def default_uri(results: Path) -> str:
    """$MLFLOW_TRACKING_URI, as MLflow itself reads it; else a sqlite file beside the rows."""
    return os.environ.get(_VARIABLE) or beside(results)


def beside(results: Path, name: str = "mlflow.db") -> str:
    """A sqlite file beside the rows. UserError for a path that the URI of a sqlite file cannot hold."""
    path = (results.absolute() / name).as_posix()
    elsewhere = "name another folder, another store with --tracking-uri, or --tracking-uri none for no MLflow"
    try:
        path.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the path of the results folder {results} is not UTF-8, as MLflow needs it; {elsewhere}"
        ) from error
    if "?" in path and not _decodes():
        raise UserError(f"the path of the results folder {results} has a `?`, after which MLflow ends it; {elsewhere}")
    # Slashes, too: MLflow makes the folder that stands in the URI, which is not the one that is meant.
    return f"sqlite:///{quote(path, safe='') if _decodes() and set('?%') & set(path) else path}"


@functools.cache
def _decodes() -> bool:
    """Whether SQLAlchemy takes `%3F` in the path of a URI for `?`: it does since 2.1."""
    major, minor = metadata.version("sqlalchemy").split(".")[:2]
    return (int(major), int(minor)) >= (2, 1)


def _refusal(uri: str) -> str:
    """Why MLflow cannot use a URI, to be known before hours of work; "" when it may."""
    if uri == "databricks":
        return ""
    scheme = urlsplit(uri).scheme.lower().partition("+")[0]
    if scheme == "file" or "://" not in uri:  # MLflow takes anything without `://` for a folder, and makes it
        if os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() in ("true", "1") and scheme == "file":
            return ""
        what = "names a folder of files, which MLflow writes no more" if scheme == "file" else "has no scheme"
        return what
    if scheme not in _SCHEMES and scheme not in {
        one.name for one in metadata.entry_points(group="mlflow.tracking_store")
    }:
        return f"has the scheme {scheme}, which MLflow does not know"
    if scheme == "sqlite":
        path, _, options = uri.partition("?")
        if path.partition("://")[2] in ("", "/", "/:memory:"):
            return "is a database in memory, which ends with this command"
        unknown = [name for name, _ in parse_qsl(options, keep_blank_values=True) if name not in _OPTIONS]
        if unknown and "uri" not in dict(parse_qsl(options)):
            return f"has the option '{unknown[0]}' that sqlite does not know (a `?` in a path is written %3F)"
    return ""


_SECONDS = 3


def unreachable_reason(tracker: Tracker) -> str:
    """Why nothing answers, or "" when something does; stores that are neither a server nor sqlite are not asked."""
    if tracker.database:
        return _sqlite_silence(tracker.database)
    if tracker.scheme not in ("http", "https"):
        return ""
    if _http_silence(f"{tracker.place}/health"):
        time.sleep(0.5)
        return _http_silence(f"{tracker.place}/health")
    return ""


def _http_silence(url: str) -> str:
    import http.client
    import ssl
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(url, timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        # Below 500 something is there; whether it lets us in, MLflow finds out with the user's credentials.
        return str(error) if error.code >= 500 else ""
    except (OSError, http.client.HTTPException, ValueError) as error:  # ValueError: a host name that is none
        # Likewise for certificates, for which MLflow has settings of its own.
        return "" if isinstance(getattr(error, "reason", None), ssl.SSLError) else str(error) or type(error).__name__
    return ""


def _sqlite_silence(database: Path) -> str:
    import sqlite3

    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(database, timeout=_SECONDS)) as connection:
            connection.execute("BEGIN IMMEDIATE")  # what cannot be locked cannot be written
            connection.execute("SELECT count(*) FROM sqlite_master")  # MLflow would try for minutes to read it
    except sqlite3.DatabaseError as error:
        damaged = type(error) is sqlite3.DatabaseError  # not one of its kinds, such as a lock
        return f"{error}; move {database} away, and the rows are sent to a new one" if damaged else str(error)
    except OSError as error:
        return str(error)
    return ""


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
def quiet_mlflow(seconds: int = 10) -> Iterator[None]:
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
