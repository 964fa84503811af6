"""Tracker: which MLflow store, for which rows. Sent: what became of them."""

from __future__ import annotations

import functools
import os
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
class Sent:
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
