"""What lies behind a URL: http and https, and what else fsspec reads (s3://, gs://, ... with their packages)."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from oodbench.errors import UserError, redact_error, redact_url
from oodbench.storage.download import Download, RetryPolicy, download, opened
from oodbench.storage.files import atomic_write, write_text
from oodbench.storage.fingerprints import fingerprint
from oodbench.storage.store import default_root, file_digest

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT = 60.0  # seconds without a byte
TRIES = 3
PAUSE = 1.0  # seconds before the second try, then doubled
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of a disk, never of the other side


def open_filesystem(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. UserError when there is none, or its package is missing."""
    import fsspec

    try:
        system, path = fsspec.url_to_fs(url)
    except Exception as error:  # every file system has its own
        raise UserError(f"{redact_url(url)} cannot be opened: {redact_error(url, error)}") from error
    return system, str(path).rstrip("/")


def retry(url: str, what: str, call: Callable[[], T], after: str, tries: int = TRIES) -> T:
    """What a call gives, tried again when it fails; FileNotFoundError passes. UserError `what`: why; `after`."""
    for number in range(tries):
        try:
            return call()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # every file system has its own
            reason = redact_error(url, getattr(error, "reason", None) or error)
            if isinstance(error, OSError) and error.errno in FULL:
                raise UserError(f"{what}: {reason} on this machine; make room") from error
            if number == tries - 1:
                raise UserError(f"{what}: {reason}; {after}") from error
            log.warning("%s: %s; trying again", what, reason)
            time.sleep(PAUSE * 2**number)
    raise AssertionError("tries is at least one")


def fetch(url: str, place: Path) -> Path:
    """The content of a URL at `place`, which exists only when it is whole. UserError when it is not to be had."""
    if _over_http(url):
        return download(Download(url), place, RetryPolicy(timeout=TIMEOUT, queue=True))
    system, path = open_filesystem(url)

    def load() -> None:
        system.get_file(path, str(part))
        have, total = part.stat().st_size, system.info(path).get("size")
        if total is not None and have != total:
            raise OSError(f"it ended after {have:,} of {total:,} bytes")

    try:
        with atomic_write(place) as part:
            _asking(url, load)
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}") from error
    return place


def remote_fingerprint(url: str) -> str:
    """What changes when the content behind a URL does: size, ETag, time. UserError when it does not answer."""
    if _over_http(url):
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "oodbench"})

        def ask() -> str:
            with opened(request, TIMEOUT) as answer:
                return ":".join(str(answer.headers.get(name)) for name in ("Content-Length", "ETag", "Last-Modified"))

        return _asking(url, ask)
    system, path = open_filesystem(url)
    system.invalidate_cache()
    info = {
        str(name).lower().replace("_", ""): value for name, value in _asking(url, lambda: system.info(path)).items()
    }
    return ":".join(str(info.get(name)) for name in ("size", "etag", "lastmodified", "updated", "generation", "mtime"))


def _over_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _asking(url: str, call: Callable[[], T]) -> T:
    after = "the same command goes on when it answers"
    try:
        return retry(url, f"cannot fetch {redact_url(url)}", call, after)
    except FileNotFoundError as error:
        raise UserError(f"cannot fetch {redact_url(url)}: it is not there; {after}") from error


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
    state = fingerprint(place).replace("\n", " ")
    known = note.read_text(encoding="utf-8").split("\n") if note.is_file() else []
    if known[:1] != [state]:
        known = [state, file_digest(place)]
        with contextlib.suppress(OSError):  # a cache that this user may only read
            write_text(note, "\n".join(known))
    return known[1]
