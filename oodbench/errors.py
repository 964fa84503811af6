"""Exceptions, helpers for their messages, and the removal of credentials from messages and logs.

UserError is bad input: the command line prints its message without a traceback and exits with status 2.
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit, urlunsplit

T = TypeVar("T")
_MAX_OPTIONS = 12  # names that a message lists


class UserError(Exception):
    """Bad input: the message says what was given, what exists and what to do.

    Each argument is one problem. It is one line of the message, perhaps followed by lines that begin with two spaces.
    Passwords, tokens and signatures in URLs are removed.
    """

    def __init__(self, *problems: object) -> None:
        super().__init__(*(redact(str(problem)) for problem in problems))

    @property
    def problems(self) -> tuple[str, ...]:
        """The problems, one string each."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Missing(UserError):
    """A dataset, or a part of it, does not exist. With `--skip-missing` a run continues without a missing OOD set."""


class Unlabelled(UserError):
    """A dataset has no class labels, so it can only be an OOD set."""


class Damaged(UserError):
    """An archive is truncated, corrupt, or not an archive."""


class InputMutated(UserError):
    """A method modified in place a tensor that other methods also read."""


class InvalidParameter(UserError, ValueError):
    """A constructor argument of a detector has the wrong type or is out of range."""


class NotFitted(UserError, ValueError, AttributeError):
    """A detector was used before fit() was called."""


class Diverged(Exception):
    """The training loss or its gradient is NaN or infinite."""


class Undeclared(RuntimeError):
    """A method read something that its `needs` does not declare."""


class Unpackable(TypeError):
    """A value to be saved is not plain data, a tensor or a dataclass of the method's module."""


class ProblemList:
    """Collects the problems of several steps, which are reported together."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """Return step(*arguments). If it raises UserError, keep its problems and return None."""
        try:
            return step(*arguments)
        except UserError as error:
            self.problems += error.problems
            return None


def raise_all(problems: Sequence[str]) -> None:
    """Raise one UserError with all problems, each once; do nothing if there are none."""
    if problems:
        raise UserError(*dict.fromkeys(problems))


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the option closest to `name`, or the existing options if none is close."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = f" and {len(known) - _MAX_OPTIONS} more" if len(known) > _MAX_OPTIONS else ""
    return f"; known: {', '.join(known[:_MAX_OPTIONS])}{more}" if known else ""


def printable(text: str) -> str:
    r"""Return the text on one line, with invisible characters escaped: `\n`, `\x1b`, `\u202e`.

    It escapes control characters (including tabs and line breaks), format characters (bidirectional marks and
    overrides, zero-width characters), line and paragraph separators, lone surrogates (undecodable bytes of a file
    name), and private or unassigned code points. Letters of all scripts, marks, digits, symbols and spaces stay.
    """
    return text if text.isprintable() else "".join(c if _is_visible(c) else _escape(c) for c in text)


def _is_visible(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"  # isprintable() is False for spaces other than " "


def _escape(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")


_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
# User and password of a URL: everything up to the `@` before the host, even if the password has an unescaped `/`.
_USER = re.compile(
    r"(?<=://)(?:[^\s/?#'\"<>@]*@(?:[^\s/?#'\"<>]*@)?"
    r"|[^\s/?#'\"<>@:]*:(?!\d*(?:[/?#\s'\"]|$))[^\s'\"<>]*@)"
)
_PARAMETER = re.compile(r"(?P<name>(?<=[?&;#])[^\s?&;#='\"<>]+)=(?P<value>[^\s&;#'\"<>]+)")
# Names of parameters that grant access: passwords, tokens, keys, signatures of S3, Google, Azure and CloudFront.
_SECRET = re.compile(
    r"^pass|passw|^pw$|^pwd$|auth|token|key$|^key|secret|^sig|signature|credential|^x-amz-|^x-goog-|^awsaccess|^policy$"
    r"|^sas$|jwt|session|^user|^login$|cookie|^code$",
    re.IGNORECASE,
)


def is_url(text: str) -> bool:
    """Return whether a text begins with a scheme such as `s3://`, so that it is not a path."""
    return _SCHEME.match(text) is not None


def has_user(url: str) -> bool:
    """Return whether a URL names a user, perhaps with a password."""
    return _USER.search(url) is not None


def has_credentials(url: str) -> bool:
    """Return whether a URL names a user, or has a parameter that looks like a password, a token or a signature."""
    return has_user(url) or any(_is_secret(match["name"]) for match in _PARAMETER.finditer(url))


def redact_url(url: str) -> str:
    """Return a URL without user, password, query (which may be a signature) and fragment."""
    if not is_url(url):
        return url
    without_user = _USER.sub("", url)
    try:
        parts = urlsplit(without_user)
    except ValueError:  # for example a bracket that is not closed
        return re.split(r"[?#]", without_user)[0]
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def redact(text: str) -> str:
    """Remove users, passwords, tokens and signatures from all URLs in a text.

    It is applied to error messages and log lines.
    """
    if "://" not in text:
        return text
    return _PARAMETER.sub(
        lambda match: f"{match['name']}=..." if _is_secret(match["name"]) else match[0], _USER.sub("", text)
    )


def redact_error(url: str, error: object) -> str:
    """Return the first line of an error about a URL, without any of the credentials in that URL."""
    text = (str(error).strip() or type(error).__name__).partition("\n")[0].replace(url, redact_url(url))
    user = _USER.search(url)
    name, _, password = user[0].rstrip("@").partition(":") if user else ("", "", "")
    secrets = [f"{name}:{password}", password, *(match["value"] for match in _PARAMETER.finditer(url))]
    for secret in sorted((secret for secret in secrets if len(secret) > 1), key=len, reverse=True):
        text = text.replace(secret, "...").replace(unquote(secret), "...")
    return redact(text)


def _is_secret(name: str) -> bool:
    return _SECRET.search(unquote(name)) is not None
