"""URLs as texts: what is one, and what of one may be shown. Imports nothing heavy."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

_SIGNED = re.compile(r"(?:^|&)(?:x-amz-|x-goog-|sig=|signature=|\w*token=|\w*key=)", re.IGNORECASE)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)


def is_url(text: str) -> bool:
    """Whether a text names something by scheme, not a path."""
    return _SCHEME.match(text) is not None


def shown(url: str) -> str:
    """A URL as it may be shown and kept: without user, password, and query (which may be a signature)."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")) if is_url(url) else url


def is_secret(url: str) -> bool:
    """Whether a URL holds a user, or a query that looks like a signature."""
    parts = urlsplit(url)
    return "@" in parts.netloc or _SIGNED.search(parts.query) is not None


def censored(url: str, error: object) -> str:
    """The first line of an error, without what a URL says of users and signatures."""
    parts = urlsplit(url)
    text = (str(error).strip() or type(error).__name__).partition("\n")[0]
    for secret in (url, parts.netloc.rpartition("@")[0], parts.query):
        text = text.replace(secret, shown(url) if secret == url else "...") if secret else text
    return text
