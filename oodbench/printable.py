"""Printable text: names from folders and files cannot move a cursor, break a line or turn the reading direction."""

from __future__ import annotations

import unicodedata


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
