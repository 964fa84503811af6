"""What lies behind a URL: http and https, and what else fsspec reads (s3://, gs://, ... with their packages)."""

from __future__ import annotations

import logging
import re
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from oodbench.downloading import Patience, Wanted, download
from oodbench.errors import UserError

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT = 60.0  # seconds without a byte
TRIES = 3
PAUSE = 1.0  # seconds before the second try, then doubled
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Whether a text names something by scheme, not a path."""
    return _SCHEME.match(text) is not None


def reach(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. UserError when there is none, or its package is missing."""
    import fsspec

    try:
        system, path = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ImportError, ValueError, OSError) as error:
        raise UserError(f"{url} cannot be opened: {error}") from error
    return system, str(path).rstrip("/")


def insisting(what: str, call: Callable[[], T], after: str, tries: int = TRIES) -> T:
    """What a call gives, tried again when it fails; FileNotFoundError passes. UserError `what` (why); `after`."""
    for number in range(tries):
        try:
            return call()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # every file system has its own
            if number == tries - 1:
                reason = getattr(error, "reason", None) or str(error).strip().partition("\n")[0]
                raise UserError(f"{what}: {reason or type(error).__name__}; {after}") from error
            log.warning("%s: %s; trying again", what, error)
            time.sleep(PAUSE * 2**number)
    raise AssertionError("tries is at least one")


def fetch(url: str, place: Path) -> Path:
    """The content of a URL at `place`, which exists only when it is whole. UserError when it is not to be had."""
    if _over_http(url):
        return download(Wanted(url), place, Patience(timeout=TIMEOUT))
    system, path = reach(url)
    part = place.with_name(f".{place.name}.part")
    place.parent.mkdir(parents=True, exist_ok=True)

    def load() -> None:
        system.get_file(path, str(part))
        have, whole = part.stat().st_size, system.info(path).get("size")
        if whole is not None and have != whole:
            raise OSError(f"it ended after {have:,} of {whole:,} bytes")

    try:
        _asking(url, load)
        part.replace(place)
    finally:
        part.unlink(missing_ok=True)
    return place


def stamp(url: str) -> str:
    """What changes when the content behind a URL does: size, ETag, time. UserError when it does not answer."""
    if _over_http(url):
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "oodbench"})

        def ask() -> str:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                return ":".join(str(answer.headers.get(name)) for name in ("Content-Length", "ETag", "Last-Modified"))

        return _asking(url, ask)
    system, path = reach(url)
    info = _asking(url, lambda: system.info(path))
    return ":".join(str(info.get(name)) for name in ("size", "ETag", "LastModified", "mtime"))


def _over_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _asking(url: str, call: Callable[[], T]) -> T:
    after = "the same command goes on when it answers"
    try:
        return insisting(f"cannot fetch {url}", call, after)
    except FileNotFoundError as error:
        raise UserError(f"cannot fetch {url}: it is not there; {after}") from error
