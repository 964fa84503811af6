"""The ledger `sent.jsonl` beside the rows: what arrived where, so that a warm run needs no MLflow to know."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress

from oodbench.tracking.connection import Tracker

NAME = "sent.jsonl"
_LOCK_SECONDS = 60


def arrived(tracker: Tracker) -> set[str]:
    """Digests of the rows noted for this store; none when its sqlite file was removed."""
    file, database = tracker.results / NAME, tracker.database
    if not file.is_file() or (database and not (database.is_file() and database.stat().st_size)):
        return set()
    digests = set()
    for line in file.read_text(encoding="utf-8", errors="replace").split("\n"):
        with suppress(json.JSONDecodeError, AttributeError):  # a torn line: the store is asked instead
            entry = json.loads(line)
            if entry.get("uri") == tracker.place:
                digests.add(str(entry.get("digest")))
    return digests


def note(tracker: Tracker, digests: Iterable[str]) -> None:
    """Append rows that arrived, on a new line even after a torn one."""
    tracker.results.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"uri": tracker.place, "digest": digest}) + "\n" for digest in sorted(digests))
    with (tracker.results / NAME).open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        torn = file.read(1) not in (b"\n", b"")
        file.write(("\n" if torn else "").encode() + lines.encode())


@contextmanager
def locked(tracker: Tracker) -> Iterator[str]:
    """One process at a time sends from a results folder; raises OSError when another does not come to an end.

    Gives a name for the folder, the same at every time: what it left unfinished in MLflow is found by it.
    """
    import sqlite3

    # Two at once would both set up a new store (one fails, or both), and both send the row they share.
    tracker.results.mkdir(parents=True, exist_ok=True)
    try:
        # sqlite's lock works on every system and goes with the process.
        lock = sqlite3.connect(tracker.results / ".sending", timeout=_LOCK_SECONDS, isolation_level=None)
        with closing(lock):
            lock.execute("BEGIN EXCLUSIVE")
            lock.execute("CREATE TABLE IF NOT EXISTS sender (name TEXT)")
            if lock.execute("SELECT name FROM sender").fetchone() is None:
                lock.execute("INSERT INTO sender VALUES (?)", (secrets.token_hex(16),))
                lock.execute("COMMIT")
                lock.execute("BEGIN EXCLUSIVE")
            yield str(lock.execute("SELECT name FROM sender").fetchone()[0])
    except sqlite3.Error as error:
        raise OSError(f"{tracker.results / '.sending'}: {error}") from error
