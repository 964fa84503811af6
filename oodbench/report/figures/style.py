"""Style of all figures, independent of the user's matplotlib settings; colours are safe for colour-blind readers."""

from __future__ import annotations

import bisect
import functools
import math
from collections.abc import Sequence, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

CUT = "…"
_LARGE = 144.0


def printable_text(text: str) -> str:
    r"""Escape characters that DejaVu Sans lacks or that are not printable, such as \u4e00."""
    return "".join(c if c.isprintable() and ord(c) in _known() else _escape(c) for c in text)


def width(text: str, points: float) -> float:
    """Return the width in inches of text in a font size, with escapes as it is drawn."""
    font = _font()
    font.set_size(_LARGE, 72)  # small letters are rounded to pixels
    font.set_text(printable_text(text), 0.0)
    return float(font.get_width_height()[0]) / 64 / 72 * points / _LARGE


def shortened(text: str, inches: float, points: float) -> str:
    """Return text of at most this width: the middle of longer text is replaced by an ellipsis."""
    text = printable_text(text)
    if width(text, points) <= inches:
        return text
    kept = bisect.bisect_right(range(len(text)), inches, key=lambda n: width(_without_middle(text, n), points)) - 1
    return _without_middle(text, max(kept, 0))


def wrapped(text: str, inches: float, points: float) -> list[str]:
    """Break text into lines of at most this width, at spaces and inside words that are too long."""
    lines = [""]
    for word in printable_text(text).split(" "):
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


# Okabe & Ito's palette without yellow, which is hard to see on white; further lines repeat it with other dashes.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", (0, (4, 1.2)), (0, (1.2, 1)), (0, (5, 1.2, 1.2, 1.2)))
MARKERS = ("o", "s", "^", "D")
ID_COLOUR, OOD_COLOUR, WRONG = COLOURS[0], COLOURS[4], COLOURS[1]
GREY = "#595959"
SIZE = 7.0  # points of most text
SMALLEST = 6.0  # points of any text, as many journals require
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": SIZE,
    "text.parse_math": False,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
    "axes.labelsize": SIZE,
    "axes.titlesize": SIZE,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.5,
    "xtick.labelsize": SIZE - 0.5,
    "ytick.labelsize": SIZE - 0.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "lines.linewidth": 1.1,
    "pdf.fonttype": 42,  # TrueType, which journals require
}


def plot_style() -> AbstractContextManager[None]:
    """Set matplotlib's defaults and our settings. As they are global, no generator may yield inside this context."""
    plain = {k: v for k, v in matplotlib.rcParamsDefault.items() if not k.startswith("backend")}
    context: AbstractContextManager[None] = matplotlib.rc_context(plain | _SETTINGS)
    return context


def line_style(position: int) -> dict[str, Any]:
    """Return colour and dashes of the method at a position in the table, the same in all figures of it."""
    return {"color": COLOURS[position % len(COLOURS)], "linestyle": DASHES[position // len(COLOURS) % len(DASHES)]}


def marker(position: int) -> str:
    """Return the marker of the method at a position in the table."""
    return MARKERS[position // len(COLOURS) % len(MARKERS)]


def add_text(where: Axes | Figure, at: tuple[float, float], text: str, **looks: Any) -> Text:
    """Add text that is never parsed as mathematics."""
    return where.text(*at, printable_text(text), parse_math=False, **looks)


def pages(items: Sequence[Any], most: int) -> list[Sequence[Any]]:
    """Divide items into the fewest pages with at most `most` items each, of nearly equal size."""
    count = max(1, -(-len(items) // most))
    return [items[len(items) * i // count : len(items) * (i + 1) // count] for i in range(count)]


def spaced(places: Sequence[float], texts: Sequence[str], wide: float) -> list[int]:
    """Return the ticks of an axis whose texts do not overlap, chosen from the last to the first.

    `places` ascend on an axis of `wide` inches, in any unit.
    """
    span = places[-1] - places[0] or 1.0
    kept: list[int] = []
    free = math.inf
    for i in reversed(range(len(places))):
        middle, half = (places[i] - places[0]) / span * wide, width(texts[i], SIZE - 0.5) / 2 + 0.03
        if middle + half <= free:
            kept.insert(0, i)
            free = middle - half
    return kept
