"""oodbench report."""

from __future__ import annotations

from pathlib import Path

import click

from oodbench.cli.group import FOLDER, print_tables
from oodbench.errors import UserError, did_you_mean


@click.command()
@click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option("--format", "form", default="", help="latex, markdown or csv. Default: a table for the terminal.")
def report(results: Path, form: str) -> None:
    """Print the tables of the rows in a results folder."""
    from oodbench import report as tables_of
    from oodbench.result import rows

    forms = {"latex": tables_of.latex, "markdown": tables_of.markdown, "csv": None, "": None}
    if form not in forms:
        raise UserError(f"no format '{form}'{did_you_mean(form, [f for f in forms if f])}")
    if not results.is_dir():
        raise UserError(f"no results folder {results}; make one with: oodbench run --out {results}")
    found = [result for _, result in rows(results)]
    if not found:
        raise UserError(f"{results} holds no rows; make some with: oodbench run --out {results}")
    writer = forms[form]
    tables = tables_of.tables(found)
    if form == "csv":
        click.echo(tables_of.csv(tables), nl=False)
    elif writer:
        click.echo("\n".join(writer(table) for table in tables))
    else:
        print_tables(found)
