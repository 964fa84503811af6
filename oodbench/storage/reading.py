"""Files behind URLs, fetched once into the user's cache and read from there."""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from urllib.parse import unquote, urlsplit

from oodbench.data.prints import print_of
from oodbench.errors import UserError
from oodbench.storage.entry import file_digest
from oodbench.storage.files import write_text
from oodbench.storage.remote import fetch
from oodbench.storage.store import default_root


def copy_of(url: str) -> Path:
    """Where the local copy of a URL lies, or would."""
    name = Path(unquote(urlsplit(url).path)).name or "file"
    return default_root() / "fetched" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def fetched(url: str, what: str) -> Path:
    """The local copy of a URL, fetched when it is not there. UserError when the server fails or sends too little."""
    place = copy_of(url)
    if place.is_file():
        return place
    try:
        return fetch(url, place)
    except UserError as error:
        raise UserError(f"dataset '{what}': {error}") from error


def print_of_copy(place: Path) -> str:
    """The sha256 of a copy, kept beside it: unlike size and time, the same wherever it was fetched."""
    note = place.with_name(f".{place.name}.sha256")
    state = print_of(place).replace("\n", " ")
    known = note.read_text(encoding="utf-8").split("\n") if note.is_file() else []
    if known[:1] != [state]:
        known = [state, file_digest(place)]
        with contextlib.suppress(OSError):  # a cache that this user may only read
            write_text(note, "\n".join(known))
    return known[1]
