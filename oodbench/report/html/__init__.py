"""A self-contained HTML page of tables that can be sorted and filtered, with the provenance of every number."""

from oodbench.report.html.figures import FigureSource
from oodbench.report.html.page import render

__all__ = ["FigureSource", "render"]
