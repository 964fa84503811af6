"""URLs as texts: what is one, and what of one may be shown. Imports nothing heavy."""

from __future__ import annotations

import re
from urllib.parse import unquote, urlsplit, urlunsplit

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# User and password of a URL: all up to the `@` of its host, also where a password has a `/` that should be escaped.
_USER = re.compile(
    r"(?<=://)(?:[^\s/?#'\"<>@]*@(?:[^\s/?#'\"<>]*@)?"
    r"|[^\s/?#'\"<>@:]*:(?!\d*(?:[/?#\s'\"]|$))[^\s'\"<>]*@)"
)
_PARAMETER = re.compile(r"(?P<name>(?<=[?&;#])[^\s?&;#='\"<>]+)=(?P<value>[^\s&;#'\"<>]+)")
# Names of parameters that let somebody in: passwords, tokens, keys, signatures of S3, Google, Azure and CloudFront.
_SECRET = re.compile(
    r"^pass|passw|^pw$|^pwd$|auth|token|key$|^key|secret|^sig|signature|credential|^x-amz-|^x-goog-|^awsaccess|^policy$"
    r"|^sas$|jwt|session|^user|^login$|cookie|^code$",
    re.IGNORECASE,
)


def is_url(text: str) -> bool:
    """Whether a text names something by scheme, not a path."""
    return _SCHEME.match(text) is not None


def shown(url: str) -> str:
    """A URL as it may be shown and kept: without user, password, and query (which may be a signature)."""
    if not is_url(url):
        return url
    bare = _USER.sub("", url)
    try:
        parts = urlsplit(bare)
    except ValueError:  # a bracket that is not closed, say
        return re.split(r"[?#]", bare)[0]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def is_secret(url: str) -> bool:
    """Whether a URL holds a user, or a parameter that looks like a password, a token or a signature."""
    return has_user(url) or any(_is_secret(found["name"]) for found in _PARAMETER.finditer(url))


def has_user(url: str) -> bool:
    """Whether a URL names a user, perhaps with a password."""
    return _USER.search(url) is not None


def hidden(text: str) -> str:
    """A text as it may leave this process: users, passwords, tokens and signatures of the URLs in it are left out.

    What an error says, and every line that is logged, goes through it.
    """
    if "://" not in text:
        return text
    return _PARAMETER.sub(
        lambda found: f"{found['name']}=..." if _is_secret(found["name"]) else found[0], _USER.sub("", text)
    )


def censored(url: str, error: object) -> str:
    """The first line of an error, without what a URL says of users and signatures, in whatever part it cites."""
    text = (str(error).strip() or type(error).__name__).partition("\n")[0].replace(url, shown(url))
    user = _USER.search(url)
    name, _, password = user[0].rstrip("@").partition(":") if user else ("", "", "")
    secrets = [f"{name}:{password}", password, *(found["value"] for found in _PARAMETER.finditer(url))]
    for secret in sorted(filter(lambda one: len(one) > 1, secrets), key=len, reverse=True):
        text = text.replace(secret, "...").replace(unquote(secret), "...")
    return hidden(text)


def _is_secret(name: str) -> bool:
    return _SECRET.search(unquote(name)) is not None
