"""Does anything answer at a tracking URI? Asked first, because MLflow itself would retry for minutes."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

from oodbench.tracking.connection import Tracker

_SECONDS = 3


def silence(tracker: Tracker) -> str:
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
