"""Reports: results as tables in LaTeX, Markdown, CSV, HTML and the terminal, and as figures. Imports nothing heavy."""

from oodbench.report.formats.csv import csv, parquet
from oodbench.report.formats.latex import latex
from oodbench.report.formats.markdown import markdown
from oodbench.report.formats.terminal import console
from oodbench.report.options import TableOptions
from oodbench.report.tables.build import NotSignificantlyDifferent, tables
from oodbench.report.tables.table import Table, transposed

__all__ = [
    "NotSignificantlyDifferent",
    "Table",
    "TableOptions",
    "console",
    "csv",
    "latex",
    "markdown",
    "parquet",
    "tables",
    "transposed",
]
