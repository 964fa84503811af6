"""Files behind URLs, fetched once into the user's cache and read from there."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from oodbench.errors import UserError
from oodbench.store import default_root
from oodbench.urls import fetch


def fetched(url: str, what: str) -> Path:
    """The local copy of a URL, fetched when it is not there. UserError when the server fails or sends too little."""
    name = Path(unquote(urlsplit(url).path)).name or "file"
    place = default_root() / "fetched" / hashlib.sha256(url.encode()).hexdigest()[:16] / name
    if place.is_file():
        return place
    try:
        return fetch(url, place)
    except UserError as error:
        raise UserError(f"dataset '{what}': {error}") from error
