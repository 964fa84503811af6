"""Download one URL to one file: resume after an interruption, verify the checksum, rename when complete."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import io
import json
import os
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from oodbench.errors import UserError, has_user, redact_error, redact_url
from oodbench.storage.files import locked

_BLOCK = 1 << 18  # bytes
_PROGRESS = 1 << 16  # bytes after which a try counts as progress and resets the number of tries
_TRANSIENT = frozenset((408, 425, 429, 500, 502, 503, 504))  # HTTP status codes after which a retry may succeed
_MAX_DIGITS = 20  # of a Content-Length
_NETWORK_ERRORS = (OSError, http.client.HTTPException)
_DRIVE_HOSTS = ("drive.google.com", "docs.google.com", "drive.usercontent.google.com")


@dataclass(frozen=True)
class RetryPolicy:
    """When to retry and when to give up.

    timeout  seconds to wait for a byte
    tries    number of consecutive tries without progress
    pause    seconds before the second try, doubled for each further one
    queue    whether to wait for another process that downloads the same file, instead of raising an error
    """

    timeout: float = 30.0
    tries: int = 5
    pause: float = 1.0
    queue: bool = False


@dataclass(frozen=True)
class Download:
    """A URL, the hexadecimal checksum of its content ("" if unknown) and its size in bytes (None if unknown)."""

    url: str
    sha256: str = ""
    md5: str = ""
    size: int | None = None


def download(
    source: Download,
    path: Path,
    policy: RetryPolicy | None = None,
    watch: Callable[[str, int], Callable[[int], None]] = lambda what, total: lambda n: None,
) -> Path:
    """Download a URL to `path`, which exists only when it is complete and has the checksum, and return `path`.

    gdown fetches files from Google Drive. A partial download is kept in the same folder as .NAME.part, and the next
    call resumes it. Raise UserError if the server fails or stalls, if the checksum is wrong (the part is then removed),
    or if another process downloads the same file and the policy does not wait for it. `watch` takes a description and
    the total size in bytes (0 if unknown), and returns a function that is called with the size of each block.
    """
    if not source.url.lower().startswith(("http://", "https://")):
        raise UserError(f"cannot fetch '{redact_url(source.url)}': only http:// and https:// addresses")
    policy = policy or RetryPolicy()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.part")
        with _locked(part, policy.queue):
            if path.is_file():
                return path
            receive = _receive_drive if drive_id(source.url) else _receive
            resumed = part.stat().st_size > 0
            receive(source, part, policy, watch)
            if (mismatch := find_mismatch(source, part)) and resumed:  # the part may be of another version
                os.truncate(part, 0)
                receive(source, part, policy, watch)
                mismatch = find_mismatch(source, part)
            if mismatch:
                _discard(part)
                raise UserError(f"{redact_url(source.url)} is not what was expected: {mismatch}; it was deleted")
            os.replace(part, path)
            _metadata_path(part).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def _receive(
    source: Download, part: Path, policy: RetryPolicy, watch: Callable[[str, int], Callable[[int], None]]
) -> None:
    """Download `part` until it is complete, with retries."""
    tries, advance = 0, None
    while True:
        before = part.stat().st_size
        try:
            for received, total in _stream(source.url, part, policy.timeout):
                if advance is None:
                    advance = watch(f"fetch {redact_url(source.url).rpartition('/')[2]}", total)
                    advance(part.stat().st_size)
                else:
                    advance(received)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _TRANSIENT:
                raise UserError(f"cannot fetch {redact_url(source.url)}: {error.code} {error.reason}") from error
            problem = f"{error.code} {error.reason}"
        except _DiskError as error:
            raise UserError(f"cannot write {part}: {error}; the bytes received are kept") from error
        except ValueError as error:
            raise UserError(f"cannot fetch {redact_url(source.url)}: {redact_error(source.url, error)}") from error
        except _NETWORK_ERRORS as error:
            reason = getattr(error, "reason", None) or error
            stalled = isinstance(reason, TimeoutError)
            problem = f"nothing was received for {policy.timeout:g} s" if stalled else redact_error(source.url, reason)
        now = part.stat().st_size
        tries = 1 if now - before >= _PROGRESS else tries + 1
        if tries >= policy.tries:
            raise UserError(
                f"gave up on {redact_url(source.url)} after {tries} tries: {problem}; "
                f"the {now:,} bytes received are kept; rerun the same command to resume"
            )
        time.sleep(policy.pause * 2 ** (tries - 1))


def _stream(url: str, part: Path, timeout: float) -> Iterator[tuple[int, int]]:
    """Send one request and write the response. Yield (bytes written, total bytes or 0); return when it is complete."""
    have = part.stat().st_size
    metadata = _read_metadata(part)
    request = urllib.request.Request(url, headers={"User-Agent": "oodbench", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if metadata.get("version"):
            request.add_header("If-Range", metadata["version"])
    try:
        answer = open_request(request, timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        remote_size = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if remote_size == str(have):  # already complete
            return
        _discard(part, keep_empty=True)
        raise ConnectionError("the server's file is shorter than the part received before; starting again") from error
    with answer:
        start = _start(answer)
        if start not in (0, have):
            raise ConnectionError(f"the server resumed at byte {start:,} instead of {have:,}")
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):  # although identity was requested
            raise ConnectionError(f"the server sends it encoded as {encoding[:40]!r}")
        length = answer.headers.get("Content-Length")
        if length is not None and not (length.isascii() and length.isdecimal() and len(length) < _MAX_DIGITS):
            raise ConnectionError(f"the server's Content-Length is not a number: {length[:40]!r}")
        total = start + int(length) if length is not None else 0
        tag = answer.headers.get("ETag") or ""  # a weak one must not be used in If-Range
        version = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified") or ""
        with _disk_errors():
            _metadata_path(part).write_text(json.dumps({"version": version}), encoding="utf-8")
            file = part.open("r+b", buffering=0)
        with file:
            with _disk_errors():
                file.truncate(start)
                file.seek(start)
            yield 0, total
            while block := answer.read1(_BLOCK):
                with _disk_errors():
                    _write(file, block)
                yield len(block), total
            with _disk_errors():
                os.fsync(file.fileno())
            size = file.tell()
        if total and size != total:
            raise ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")


class _DiskError(Exception):
    """The local file cannot be written."""


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _DiskError(error.strerror or str(error)) from error


def _write(file: io.FileIO, block: bytes) -> None:
    view = memoryview(block)
    while view:  # on a nearly full disk, write() may write less
        view = view[file.write(view) :]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects to http and https only; urllib also follows those to ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith(("http://", "https://")) or has_user(newurl):
            fp.close()
            raise UserError(
                f"cannot fetch {redact_url(req.full_url)}: it is redirected to {redact_url(newurl)}, and only http:// "
                "and https:// addresses without a user are followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def open_request(request: urllib.request.Request, timeout: float) -> Any:
    """Open an http or https request. Raise UserError for a URL with a user, or for a redirect to another scheme."""
    if has_user(request.full_url):
        raise UserError(f"cannot fetch {redact_url(request.full_url)}: an address may not hold a user or password")
    return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)


def _start(answer: Any) -> int:
    """Return the position of the first byte of an answer: 0 if the server ignores ranges."""
    if answer.status != 206:
        return 0
    text = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isdecimal() else -1


def find_mismatch(source: Download, path: Path) -> str:
    """Return how a file differs from the declared size or checksum, "" if it does not."""
    size = path.stat().st_size
    if source.size not in (None, size):
        return f"{size:,} bytes, not {source.size:,}"
    for kind, expected in (("sha256", source.sha256), ("md5", source.md5)):
        if expected:
            with path.open("rb") as file:
                actual = hashlib.file_digest(file, kind).hexdigest()
            return "" if actual == expected.lower() else f"{kind} {actual}, not {expected.lower()}"
    return ""


def drive_id(url: str) -> str:
    """Return the ID of the Google Drive file in a URL; "" for any other URL."""
    try:
        parts = urlsplit(url)
    except ValueError:  # such as a bracket that is not closed
        return ""
    if parts.hostname not in _DRIVE_HOSTS:
        return ""
    in_path = re.search(r"/d/([\w-]+)", parts.path)
    return in_path[1] if in_path else parse_qs(parts.query).get("id", [""])[0]


def gdown_progress(watch: Callable[[str, int], Callable[[int], None]], what: str) -> Callable[[int, int | None], None]:
    """Return a progress callback for gdown (bytes received, total bytes); `watch` is as in download()."""
    done, advance = 0, None

    def progress(now: int, total: int | None) -> None:
        nonlocal done, advance
        advance = advance or watch(what, total or 0)
        advance(now - done)
        done = now

    return progress


def _receive_drive(
    source: Download, part: Path, policy: RetryPolicy, watch: Callable[[str, int], Callable[[int], None]]
) -> None:
    """Download a file from Google Drive with gdown, which skips the warning page of large files.

    gdown keeps a partial download in its own file, in a folder next to the part.
    """
    try:
        import gdown
    except ImportError as error:
        raise UserError(f"cannot fetch {source.url}: files in Google Drive need gdown: pip install gdown") from error
    folder = part.with_name(f"{part.name}.drive")
    folder.mkdir(exist_ok=True)
    progress = gdown_progress(watch, f"fetch {part.name[1:-5]}")
    try:
        gdown.download(
            id=drive_id(source.url), output=str(folder / "file"), quiet=True, resume=True, use_cookies=False,
            progress=progress,
        )  # fmt: skip
        os.replace(folder / "file", part)
    except (gdown.exceptions.FileURLRetrievalError, gdown.exceptions.DownloadError, *_NETWORK_ERRORS) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"cannot fetch {source.url}: {reason}; the bytes received are kept; rerun the same command to resume, or "
            "open the address in a browser, where Google may ask for a login"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(part: Path, queue: bool) -> Iterator[None]:
    """Create and lock a part for this process; remove it afterwards if it is empty."""
    busy = f"another process is fetching {part.parent / part.name[1:-5]}; wait for it"
    with locked(part.with_name(f"{part.name}.lock"), busy, wait=queue):
        part.touch()
        try:
            yield
        finally:
            if part.is_file() and not part.stat().st_size:
                _discard(part)


def _metadata_path(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_metadata(part: Path) -> dict[str, str]:
    try:
        metadata = json.loads(_metadata_path(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return metadata if isinstance(metadata, dict) else {}


def _discard(part: Path, keep_empty: bool = False) -> None:
    """Remove a partial download; with `keep_empty`, leave an empty file."""
    _metadata_path(part).unlink(missing_ok=True)
    if keep_empty:
        os.truncate(part, 0)
    else:
        part.unlink(missing_ok=True)
