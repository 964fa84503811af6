"""Downloads: one URL into one file, resumed where it stopped, checked, and moved into place when it is whole."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oodbench.errors import UserError, has_user, redact_error, redact_url

_BLOCK = 1 << 18  # bytes
_PROGRESS = 1 << 16  # bytes that a try must bring so that the tries are counted anew
_AGAIN = frozenset((408, 425, 429, 500, 502, 503, 504))  # HTTP states that may pass
_DIGITS = 20  # fewer than of any length of a file
_TROUBLE = (OSError, http.client.HTTPException)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait: seconds without a byte, tries without progress, seconds before the second (then doubled).

    queue: whether to wait for another process that fetches the same, which is an error otherwise.
    """

    timeout: float = 30.0
    tries: int = 5
    pause: float = 1.0
    queue: bool = False


@dataclass(frozen=True)
class Download:
    """What to fetch: a URL, and the checksum of its content as hex digits ("": none known)."""

    url: str
    sha256: str = ""
    md5: str = ""


def download(
    wanted: Download,
    place: Path,
    patience: RetryPolicy | None = None,
    watch: Callable[[str, int], Callable[[int], None]] = lambda what, total: lambda n: None,
) -> Path:
    """The content of a URL at `place`, which exists only when it is whole and has the checksum.

    What was received lies beside it as .NAME.part and the next call goes on from there. UserError when the server fails
    or stalls, when the checksum is wrong (the part is then removed), or when another process fetches the same and is
    not to be waited for.
    """
    if not wanted.url.lower().startswith(("http://", "https://")):
        raise UserError(f"cannot fetch '{redact_url(wanted.url)}': only http:// and https:// addresses")
    patience = patience or RetryPolicy()
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        part = place.with_name(f".{place.name}.part")
        with _locked(part, patience.queue):
            if place.is_file():
                return place
            resumed = part.stat().st_size > 0
            _receive(wanted, part, patience, watch)
            if (wrong := _wrong(wanted, part)) and resumed:  # what lay there was perhaps of another version
                os.truncate(part, 0)
                _receive(wanted, part, patience, watch)
                wrong = _wrong(wanted, part)
            if wrong:
                _forget(part)
                raise UserError(f"{redact_url(wanted.url)} is not what was expected: {wrong}; it was thrown away")
            os.replace(part, place)
            _about(part).unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {place}: {error.strerror or error}") from error
    return place


def _receive(
    wanted: Download, part: Path, patience: RetryPolicy, watch: Callable[[str, int], Callable[[int], None]]
) -> None:
    """Fill `part` until the server says that it is whole."""
    tries, done = 0, None
    while True:
        before = part.stat().st_size
        try:
            for got, total in _stream(wanted.url, part, patience.timeout):
                if done is None:
                    done = watch(f"fetch {redact_url(wanted.url).rpartition('/')[2]}", total)
                    done(part.stat().st_size)
                else:
                    done(got)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code not in _AGAIN:
                raise UserError(f"cannot fetch {redact_url(wanted.url)}: {error.code} {error.reason}") from error
            problem = f"{error.code} {error.reason}"
        except _Disk as error:
            raise UserError(f"cannot write {part}: {error}; what was received is kept") from error
        except ValueError as error:
            raise UserError(f"cannot fetch {redact_url(wanted.url)}: {redact_error(wanted.url, error)}") from error
        except _TROUBLE as error:
            reason = getattr(error, "reason", None) or error
            stalled = isinstance(reason, TimeoutError)
            problem = f"nothing came for {patience.timeout:g} s" if stalled else redact_error(wanted.url, reason)
        now = part.stat().st_size
        tries = 1 if now - before >= _PROGRESS else tries + 1
        if tries >= patience.tries:
            raise UserError(
                f"gave up on {redact_url(wanted.url)} after {tries} tries: {problem}; "
                f"the {now:,} bytes received are kept, and the same command goes on from there"
            )
        time.sleep(patience.pause * 2 ** (tries - 1))


def _stream(url: str, part: Path, timeout: float) -> Iterator[tuple[int, int]]:
    """One request. Yields (bytes written, bytes of the whole or 0) and ends when the content is whole."""
    have = part.stat().st_size
    about = _read_about(part)
    request = urllib.request.Request(url, headers={"User-Agent": "oodbench", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if about.get("version"):
            request.add_header("If-Range", about["version"])
    try:
        answer = opened(request, timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        error.close()
        whole = (error.headers.get("Content-Range") or "").rpartition("/")[2]
        if whole == str(have):  # whole already
            return
        _forget(part, keep=True)
        raise ConnectionError("the server has less than was received before; starting again") from error
    with answer:
        start = _start(answer)
        if start not in (0, have):
            raise ConnectionError(f"the server went on at byte {start:,} instead of {have:,}")
        encoding = answer.headers.get("Content-Encoding", "identity")
        if encoding.strip().lower() not in ("", "identity"):  # it packs what it sends, unasked
            raise ConnectionError(f"the server sends it encoded as {encoding[:40]!r}")
        length = answer.headers.get("Content-Length")
        if length is not None and not (length.isascii() and length.isdecimal() and len(length) < _DIGITS):
            raise ConnectionError(f"the server's Content-Length is no number: {length[:40]!r}")
        total = start + int(length) if length is not None else 0
        tag = answer.headers.get("ETag") or ""  # a weak one may not be asked for
        version = tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified") or ""
        with _disk():
            _about(part).write_text(json.dumps({"version": version}), encoding="utf-8")
            file = part.open("r+b", buffering=0)
        with file:
            with _disk():
                file.truncate(start)
                file.seek(start)
            yield 0, total
            while block := answer.read1(_BLOCK):
                with _disk():
                    _write(file, block)
                yield len(block), total
            with _disk():
                os.fsync(file.fileno())
            size = file.tell()
        if total and size != total:
            raise ConnectionError(f"the connection ended after {size:,} of {total:,} bytes")


class _Disk(Exception):
    """The file, not the server, is the problem."""


@contextlib.contextmanager
def _disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Disk(error.strerror or str(error)) from error


def _write(file: io.FileIO, block: bytes) -> None:
    view = memoryview(block)
    while view:  # a nearly full disk takes a part
        view = view[file.write(view) :]


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https alone: urllib's own goes on to ftp."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if not newurl.lower().startswith(("http://", "https://")) or has_user(newurl):
            fp.close()
            raise UserError(
                f"cannot fetch {redact_url(req.full_url)}: it is redirected to {redact_url(newurl)}, and only http:// "
                "and https:// addresses without a user are followed"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def opened(request: urllib.request.Request, timeout: float) -> Any:
    """The answer to a request over http or https. UserError for an address with a user, or a redirect elsewhere."""
    if has_user(request.full_url):
        raise UserError(f"cannot fetch {redact_url(request.full_url)}: an address may not hold a user or password")
    return urllib.request.build_opener(_Redirects).open(request, timeout=timeout)


def _start(answer: Any) -> int:
    """The position of an answer's first byte: 0 when the server ignores ranges."""
    if answer.status != 206:
        return 0
    text = (answer.headers.get("Content-Range") or "").removeprefix("bytes ").partition("-")[0]
    return int(text) if text.isdecimal() else -1


def _wrong(wanted: Download, part: Path) -> str:
    """How the content differs from the checksum, "" when it does not."""
    for kind, expected in (("sha256", wanted.sha256), ("md5", wanted.md5)):
        if expected:
            with part.open("rb") as file:
                found = hashlib.file_digest(file, kind).hexdigest()
            return "" if found == expected.lower() else f"{kind} {found}, not {expected.lower()}"
    return ""


@contextlib.contextmanager
def _locked(part: Path, queue: bool) -> Iterator[None]:
    """Hold a part for this process; it exists afterwards, unless it was moved."""
    with part.with_name(f"{part.name}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if queue else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(f"another process is fetching {part.parent / part.name[1:-5]}; wait for it") from error
        part.touch()
        try:
            yield
        finally:
            if part.is_file() and not part.stat().st_size:
                _forget(part)


def _about(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _read_about(part: Path) -> dict[str, str]:
    try:
        found = json.loads(_about(part).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _forget(part: Path, keep: bool = False) -> None:
    """Throw away what was received; `keep` leaves an empty file."""
    _about(part).unlink(missing_ok=True)
    if keep:
        os.truncate(part, 0)
    else:
        part.unlink(missing_ok=True)
