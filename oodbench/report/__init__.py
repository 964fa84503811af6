"""Report: rows -> tables in LaTeX, Markdown, CSV and the terminal. Reads rows only; loads nothing heavy."""

from oodbench.report.booktabs import latex
from oodbench.report.github import markdown
from oodbench.report.spreadsheet import csv
from oodbench.report.table import Table, tables
from oodbench.report.terminal import console

__all__ = ["Table", "console", "csv", "latex", "markdown", "tables"]
