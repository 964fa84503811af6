"""Picture: a figure with its name and its words, and its bytes as PNG and PDF."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from oodbench.results import slug

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Heading:
    """How a table's pictures are headed: `stem` begins their file names, `title` is the table's."""

    stem: str
    title: str


@dataclass(frozen=True)
class Picture:
    """One picture of a table. `title` and `caption` are plain text, whatever the names in them hold."""

    name: str  # file name without suffix, safe on every system, unique within one call: "glyphs-histogram-mcm"
    kind: str  # one of KINDS
    title: str
    caption: str  # what it shows, how to read it, what was left out and why
    figure: Figure  # of matplotlib's object API: dropped when the picture is

    def png(self, dpi: int = 150) -> bytes:
        """The picture as PNG, `dpi` pixels per inch."""
        from oodbench.report.figures.style import house

        out = io.BytesIO()
        with house():
            said = {"Software": "oodbench", "Title": _sound(self.title), "Description": _sound(self.caption)}
            self.figure.savefig(out, format="png", dpi=dpi, metadata=said)
        return out.getvalue()

    def pdf(self) -> bytes:
        """The picture as PDF: no date, so that the same rows give the same bytes; fonts embedded as TrueType."""
        from oodbench.report.figures.style import house

        said = {"Title": _sound(self.title), "Subject": _sound(self.caption), "Creator": "oodbench"}
        out = io.BytesIO()
        with house():
            self.figure.savefig(out, format="pdf", metadata={**said, "Producer": "oodbench", "CreationDate": None})
        return out.getvalue()


def stem(*words: str) -> str:
    """Words as the beginning of a file name that every system takes."""
    return "-".join(slug(word)[:60] for word in words if word)


def unique(name: str, taken: set[str]) -> str:
    """The name, with a number where one that differs in case alone is taken; it is taken from now on."""
    number, found = 1, name
    while found.casefold() in taken:
        number += 1
        found = f"{name}-{number}"
    taken.add(found.casefold())
    return found


def _sound(text: str) -> str:
    """Text that UTF-8 can hold."""
    return text.encode("utf-8", "backslashreplace").decode()
