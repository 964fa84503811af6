"""Lettering: names of any kind as literal text in a figure, measured, cut and wrapped."""

from __future__ import annotations

import bisect
import functools
from collections.abc import Set
from pathlib import Path
from typing import Any

CUT = "…"
_LARGE = 144.0


def literal(text: str) -> str:
    r"""The text with every character that DejaVu Sans lacks, or that prints nothing, as an escape such as \u4e00."""
    return "".join(c if c.isprintable() and ord(c) in _known() else _escape(c) for c in text)


def width(text: str, points: float) -> float:
    """Inches that literal text of a size takes."""
    font = _font()
    font.set_size(_LARGE, 72)  # small letters are rounded to pixels
    font.set_text(text, 0.0)
    return float(font.get_width_height()[0]) / 64 / 72 * points / _LARGE


def fitted(text: str, inches: float, points: float) -> str:
    """Literal text no wider than this: the middle of what is too long becomes an ellipsis."""
    text = literal(text)
    if width(text, points) <= inches:
        return text
    kept = bisect.bisect_right(range(len(text)), inches, key=lambda n: width(_without_middle(text, n), points)) - 1
    return _without_middle(text, max(kept, 0))


def wrapped(text: str, inches: float, points: float) -> list[str]:
    """Literal text in lines no wider than this, broken at blanks, and in words that are too long."""
    lines = [""]
    for word in literal(text).split(" "):
        joined = f"{lines[-1]} {word}" if lines[-1] else word
        if width(joined, points) <= inches:
            lines[-1] = joined
            continue
        lines += [""] if lines[-1] else []
        for character in word:
            if width(lines[-1] + character, points) > inches and lines[-1]:
                lines.append("")
            lines[-1] += character
    return lines


def _without_middle(text: str, kept: int) -> str:
    tail = kept // 2
    return text[: kept - tail] + CUT + (text[-tail:] if tail else "")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


@functools.cache
def _font() -> Any:
    import matplotlib
    from matplotlib.font_manager import get_font

    return get_font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")))


@functools.cache
def _known() -> Set[int]:
    return frozenset(_font().get_charmap())
