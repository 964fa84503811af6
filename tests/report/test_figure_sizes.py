"""Figures of a given width: exactly as wide, text of at least 6 points, and no text that is cut off or covers another."""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from click.testing import CliRunner
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from oodbench.cli import main
from oodbench.errors import UserError
from oodbench.report.figures import Plot
from oodbench.report.figures.options import KINDS, parse_width
from tests.report.test_figures import drawn, lay, scores_of, toy


def drawn_texts(plot: Plot) -> list[tuple[Text, Any]]:
    """Texts that matplotlib draws, with their boxes in pixels of a figure of 300 dpi."""
    found: list[Text] = []
    original = Text.draw

    def draw(self: Text, renderer: Any) -> None:
        found.append(self)
        original(self, renderer)

    plot.figure.set_dpi(300)
    renderer = FigureCanvasAgg(plot.figure).get_renderer()
    with patch.object(Text, "draw", draw):
        plot.figure.draw(renderer)
    return [(text, text.get_window_extent(renderer)) for text in found if text.get_visible() and text.get_text().strip()]


def problems(plot: Plot) -> list[str]:
    """Texts that are smaller than 6 points, cut off at the edge of the figure, or cover each other."""
    texts = drawn_texts(plot)
    wide, high = plot.figure.get_size_inches() * 300
    out = [f"{text.get_text()}: {text.get_fontsize()} points" for text, _ in texts if text.get_fontsize() < 6]
    for text, box in texts:
        if box.x0 < -0.5 or box.y0 < -0.5 or box.x1 > wide + 0.5 or box.y1 > high + 0.5:
            out.append(f"{text.get_text()!r} is cut off: {box}")
    for (one, box), (other, another) in itertools.combinations(texts, 2):
        if box.padded(-1.5).overlaps(another.padded(-1.5)):
            out.append(f"{one.get_text()!r} covers {other.get_text()!r}")
    return [f"{plot.name}: {line}" for line in out]


def font_sizes(pdf: bytes) -> Iterator[float]:
    """Font sizes of a PDF's content; matplotlib writes them in points, and scales no text by a matrix."""
    for stream in re.findall(rb"stream\r?\n(.*?)\r?\nendstream", pdf, re.DOTALL):
        try:
            content = zlib.decompress(stream)
        except zlib.error:
            continue
        for size in re.findall(rb"/F\S+ ([\d.]+) Tf", content):
            yield float(size)


def media_box(pdf: bytes) -> list[float]:
    found = re.search(rb"/MediaBox \[([^\]]*)\]", pdf)
    assert found
    return [float(number) for number in found[1].split()]


if __name__ == "__main__":
    import sys
    from oodbench.report import TableOptions, tables
    from oodbench.report.figures.write import _plots
    from oodbench.report.figures.options import FigureOptions
    from oodbench.report.tables.grouping import from_folder

    folder, kinds, *rest = sys.argv[1:]
    found = from_folder(Path(folder))
    methods = tuple(rest[0].split(",")) if rest and rest[0] else ()
    sets = tuple(rest[1].split(",")) if len(rest) > 1 else ()
    for w in (2.0, 2.4, 3.25, 5.0, 6.875):
        o = FigureOptions(None, tuple(kinds.split(",")), sets, w)
        for plot in _plots(tables(found.results, TableOptions(methods=methods, sets=sets)), found.paths, o):
            sizes = list(font_sizes(plot.pdf()))
            bad = problems(plot)
            print(w, plot.name, plot.figure.get_size_inches(), min(sizes), media_box(plot.pdf())[2] / 72, len(bad))
            print("\n".join("   " + b for b in bad[:6]))
