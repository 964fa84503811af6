"""Files behind URLs: http, https, and the file systems of fsspec (s3://, gs://, ... with their packages)."""

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
from oodbench.storage.download import Download, RetryPolicy, download, open_request
from oodbench.storage.files import atomic_write, write_text
from oodbench.storage.fingerprints import file_fingerprint
from oodbench.storage.store import default_root, file_digest

log = logging.getLogger(__name__)
T = TypeVar("T")

TIMEOUT = 60.0  # seconds to wait for a byte
TRIES = 3
PAUSE = 1.0  # seconds before the second try, doubled for each further one
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of the local disk, never of the server


def open_filesystem(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raise UserError if there is none or its package is not installed.
    """
    import fsspec

    try:
        system, path = fsspec.url_to_fs(url)
    except Exception as error:  # each file system has exceptions of its own
        raise UserError(f"{redact_url(url)} cannot be opened: {redact_error(url, error)}") from error
    return system, str(path).rstrip("/")


def retry(url: str, what: str, call: Callable[[], T], advice: str, tries: int = TRIES) -> T:
    """Return the result of a call, retried if it fails; FileNotFoundError is raised at once.

    Raise UserError after the last try; its message is `what`, the reason and `advice`.
    """
    for number in range(tries):
        try:
            return call()
        except (FileNotFoundError, UserError):
            raise
        except Exception as error:  # each file system has exceptions of its own
            reason = redact_error(url, getattr(error, "reason", None) or error)
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise UserError(f"{what}: {reason} on this machine; make room") from error
            if number == tries - 1:
                raise UserError(f"{what}: {reason}; {advice}") from error
            log.warning("%s: %s; trying again", what, reason)
            time.sleep(PAUSE * 2**number)
    raise AssertionError("tries is at least one")


def fetch(url: str, path: Path) -> Path:
    """Download a URL to `path`, which exists only when it is complete. Raise UserError if it cannot be downloaded."""
    if _over_http(url):
        return download(Download(url), path, RetryPolicy(timeout=TIMEOUT, queue=True))
    system, remote_path = open_filesystem(url)

    def load() -> None:
        system.get_file(remote_path, str(part))
        have, total = part.stat().st_size, system.info(remote_path).get("size")
        if total is not None and have != total:
            raise OSError(f"it ended after {have:,} of {total:,} bytes")

    try:
        with atomic_write(path) as part:
            _retry_fetch(url, load)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def remote_fingerprint(url: str) -> str:
    """Return a string that changes when the content of a URL changes: size, ETag, time.

    Raise UserError if the server does not answer.
    """
    if _over_http(url):
        request = urllib.request.Request(url, method="HEAD", headers={"User-Agent": "oodbench"})

        def ask() -> str:
            with open_request(request, TIMEOUT) as answer:
                return ":".join(str(answer.headers.get(name)) for name in ("Content-Length", "ETag", "Last-Modified"))

        return _retry_fetch(url, ask)
    system, path = open_filesystem(url)
    system.invalidate_cache()
    info = {
        str(name).lower().replace("_", ""): value
        for name, value in _retry_fetch(url, lambda: system.info(path)).items()
    }
    return ":".join(str(info.get(name)) for name in ("size", "etag", "lastmodified", "updated", "generation", "mtime"))


def _over_http(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _retry_fetch(url: str, call: Callable[[], T]) -> T:
    advice = "run the same command again when it answers"
    try:
        return retry(url, f"cannot fetch {redact_url(url)}", call, advice)
    except FileNotFoundError as error:
        raise UserError(f"cannot fetch {redact_url(url)}: it does not exist; {advice}") from error


def cached_path(url: str) -> Path:
    """Return the path of the local copy of a URL, which may not exist."""
    name = Path(unquote(urlsplit(url).path)).name or "file"
    return default_root() / "fetched" / hashlib.sha256(url.encode()).hexdigest()[:16] / name


def fetch_cached(url: str, dataset: str) -> Path:
    """Return the local copy of a URL, downloaded if necessary. Raise UserError if that fails."""
    path = cached_path(url)
    if path.is_file():
        return path
    try:
        return fetch(url, path)
    except UserError as error:
        raise UserError(f"dataset '{dataset}': {error}") from error


def copy_digest(path: Path) -> str:
    """Return the sha256 of a local copy, and cache it in a file next to the copy.

    Unlike size and time, it is equal on all machines.
    """
    cache = path.with_name(f".{path.name}.sha256")
    state = file_fingerprint(path).replace("\n", " ")
    lines = cache.read_text(encoding="utf-8").split("\n") if cache.is_file() else []
    if lines[:1] != [state]:
        lines = [state, file_digest(path)]
        with contextlib.suppress(OSError):  # a cache that this user may only read
            write_text(cache, "\n".join(lines))
    return lines[1]
