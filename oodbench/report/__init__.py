"""Report: rows -> tables in LaTeX, Markdown, CSV and the terminal. Reads rows only; loads nothing heavy."""

from oodbench.report.assembly import Alike, tables
from oodbench.report.booktabs import latex
from oodbench.report.github import markdown
from oodbench.report.options import Options
from oodbench.report.spreadsheet import csv, parquet
from oodbench.report.table import Table
from oodbench.report.terminal import console
from oodbench.report.transposition import transposed

__all__ = ["Alike", "Options", "Table", "console", "csv", "latex", "markdown", "parquet", "tables", "transposed"]
