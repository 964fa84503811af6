"""Lines of text files: they end at \\n, \\r\\n or \\r, and nowhere else."""

from __future__ import annotations

import re


def lines(text: str) -> list[str]:
    """The lines of a text, without their ends; str.splitlines also splits at form feeds, U+0085 and U+2028."""
    found = re.split(r"\r\n|\n|\r", text)
    return found[:-1] if found[-1] == "" else found
