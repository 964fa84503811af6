"""Tracker: which MLflow store, for which rows. Sent: what became of them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from oodbench.errors import UserError


@dataclass(frozen=True)
class Tracker:
    """An MLflow store (`sqlite:///abs/path/mlflow.db`, `http://host:port`, ...) for the rows of one results folder."""

    uri: str
    results: Path

    def __post_init__(self) -> None:
        # MLflow takes anything else for a folder, and makes it.
        if "://" not in self.uri and self.uri != "databricks":
            examples = f"http://localhost:5000 or {beside(self.results)}"
            raise UserError(f"tracking URI {self.uri!r} has no scheme; write for example {examples}")

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
        return Path(self.uri.removeprefix("sqlite:///")) if self.uri.startswith("sqlite:///") else None

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


def default_uri(results: Path) -> str:
    """$MLFLOW_TRACKING_URI, as MLflow itself reads it; else a sqlite file beside the rows."""
    return os.environ.get("MLFLOW_TRACKING_URI") or beside(results)


def beside(results: Path) -> str:
    """A sqlite file beside the rows."""
    return f"sqlite:///{(results.absolute() / 'mlflow.db').as_posix()}"
