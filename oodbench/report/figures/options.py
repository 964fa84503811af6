"""Kinds and width of figures."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from oodbench.errors import UserError, did_you_mean, raise_all

# What each kind of figure needs, in the order in which a table's figures are drawn.
NEEDS = {
    "overview": "finished results",
    "encoders": "results of two encoders with the same settings: oodbench run --encoder ENCODER",
    "shots": "results with two numbers of labelled images per class: oodbench run --shots K",
    "sweep": "results of two values of a hyper-parameter: oodbench run --methods 'energy[scale=1],energy[scale=10]'",
    "stream": "results of a method that learns from the test stream",
    "roc": "results with scores per image",
    "densities": "results with scores per image",
    "histogram": "results with scores per image",
    "ranks": "results of two methods with scores per image",
    "mistakes": "results with scores per image, and the images: --data DIR",
}
KINDS = tuple(NEEDS)
WIDTHS = {"column": 3.25, "page": 6.875}  # inches
_INCHES = {"": 1.0, "in": 1.0, "cm": 1 / 2.54, "mm": 1 / 25.4, "pt": 1 / 72.27}  # pt: TeX's points, as \the\columnwidth
_LENGTH = re.compile(r"(\d+(?:\.\d*)?|\.\d+) ?([a-z]*)")
NARROWEST, WIDEST = 2.0, 30.0


@dataclass(frozen=True)
class FigureOptions:
    """Options of figures.

    data   folder of the datasets, as in `oodbench run --data`
    kinds  some of KINDS, in this order
    sets   names of the OOD sets to show; all when empty
    width  of every figure in inches, with text of at least 6 points and no heading; None: as wide as needed
    rename (name or title, text to show), as in TableOptions
    """

    data: Path | None = None
    kinds: tuple[str, ...] = KINDS
    sets: tuple[str, ...] = ()
    width: float | None = None
    rename: tuple[tuple[str, str], ...] = ()

    def __post_init__(self) -> None:
        problems = [f"no figure '{kind}'{did_you_mean(kind, KINDS)}" for kind in self.kinds if kind not in KINDS]
        if self.width is not None and not NARROWEST <= self.width <= WIDEST:
            problems.append(f"a figure is {NARROWEST:g} to {WIDEST:g} inches wide, not {self.width:g}")
        raise_all(problems)


def parse_width(text: str) -> float | None:
    """Return the width `column`, `page`, a number of inches, or `84mm`, `8.4cm`, `237pt` in inches; None for ""."""
    if not text:
        return None
    if text in WIDTHS:
        return WIDTHS[text]
    match = _LENGTH.fullmatch(text.strip().lower())
    if not match or match[2] not in _INCHES:
        known = ", ".join(f"{name} ({inches:g} inches)" for name, inches in WIDTHS.items())
        raise UserError(
            f"--width '{text}' is not a width; known: {known}, and lengths such as 3.25, 84mm, 8.4cm and 237pt"
        )
    inches = float(match[1]) * _INCHES[match[2]]
    if not NARROWEST <= inches <= WIDEST:
        raise UserError(f"--width {text} is {inches:.3g} inches; figures are {NARROWEST:g} to {WIDEST:g} inches wide")
    return inches
