"""Page: tables -> one self-contained HTML file that sorts, filters and tells where each cell comes from."""

from oodbench.report.html.figures import FigureSource
from oodbench.report.html.page import render

__all__ = ["FigureSource", "render"]
