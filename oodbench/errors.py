"""The one error a user sees as a message instead of a traceback."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
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


T = TypeVar("T")
_SHOWN = 12  # names that an error lists


class UserError(Exception):
    """Bad input: what was given, what exists, what to do. The CLI prints it without a traceback and exits 2.

    Several arguments are several problems, a line each; a line of one that begins with two blanks goes on with it.
    Passwords, tokens and signatures of URLs are left out of the message.
    """

    def __init__(self, *problems: object) -> None:
        super().__init__(*(hidden(str(one)) for one in problems))

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong, one by one."""
        return self.args

    def __str__(self) -> str:
        return "\n".join(self.problems)


class Missing(UserError):
    """A dataset, or a part of it, that is not there. `--skip-missing` goes on without it when it is an OOD set."""


def did_you_mean(name: str, options: Iterable[str]) -> str:
    """A clause `; did you mean 'x'?` naming the option closest to `name`, or what exists when none is close."""
    known = sorted(options)
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return f"; known: {', '.join(known[:_SHOWN])}{more}" if known else ""


class Unlabelled(UserError):
    """A set whose images have no classes: good enough for an OOD set, and nothing is wrong with it."""


class Collected:
    """Problems of several steps, to be told at once."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def attempt(self, step: Callable[..., T], *arguments: Any) -> T | None:
        """What a step gives; None, and its problems are kept, when it raises UserError."""
        try:
            return step(*arguments)
        except UserError as error:
            self.problems += error.problems
            return None


def raise_all(problems: Sequence[str]) -> None:
    """Raise every problem of one request at once, so that a user mends them in one go."""
    if problems:
        raise UserError(*dict.fromkeys(problems))


def printable(text: str) -> str:
    r"""The text on one line, with characters that are not to be seen as escapes: `\n`, `\x1b`, `\u202e`.

    These are control characters (with tabs and line breaks), format characters (bidirectional marks and overrides,
    zero-width ones), line and paragraph separators, lone surrogates (bytes of a file name that are no text), and code
    points for private use or without a character. Letters of all scripts, marks, digits, signs and spaces stay.
    """
    return text if text.isprintable() else "".join(c if _seen(c) else _escaped(c) for c in text)


def _seen(c: str) -> bool:
    return c.isprintable() or unicodedata.category(c) == "Zs"  # isprintable() refuses spaces other than " "


def _escaped(c: str) -> str:
    return c.encode("unicode_escape").decode("ascii")
