"""Reports: results as tables in LaTeX, Markdown, CSV, HTML and the terminal, and as figures. Imports nothing heavy.

The package can be called: `oodbench.report("results")` is the function `oodbench.report.api.report`. A function of this
name in oodbench/__init__.py would be replaced when this package is imported.
"""

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Unpack

from oodbench.report.formats.csv import csv, parquet
from oodbench.report.formats.latex import latex
from oodbench.report.formats.markdown import markdown
from oodbench.report.formats.terminal import console
from oodbench.report.options import TableOptions
from oodbench.report.tables.build import NotSignificantlyDifferent, tables
from oodbench.report.tables.table import Table, transposed

if TYPE_CHECKING:
    from oodbench.report.api import Report, ReportOptions

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


class _CallablePackage(ModuleType):
    """The type of this package."""

    def __call__(
        self,
        results: str | Path = "results",
        *,
        mlflow: str = "",
        experiment: str = "",
        **options: "Unpack[ReportOptions]",
    ) -> "Report":
        """Read a results folder and return its report: help(oodbench.report.api.report) describes the options."""
        from oodbench.report.api import report

        return report(results, mlflow=mlflow, experiment=experiment, **options)


sys.modules[__name__].__class__ = _CallablePackage
