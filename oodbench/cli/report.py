"""oodbench report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from oodbench.cli.common import FOLDER, note
from oodbench.errors import UserError, printable
from oodbench.report.options import SHOWN, TableOptions

if TYPE_CHECKING:
    from oodbench.report.output import OutputOptions
    from oodbench.report.tables.grouping import LoadedResults
    from oodbench.report.tables.table import Table


@click.command()
@click.option("--results", type=FOLDER, default="results", help="Folder of the results.", show_default=True)
@click.option(
    "--format",
    "form",
    default="",
    help="latex, markdown, html, csv, parquet or figures (PNG and PDF: docs/pictures.md). Default: for the terminal.",
)
@click.option("-o", "--output", type=FOLDER, help="Write to this file; the figures, to this folder.")
@click.option("--standalone", is_flag=True, help="LaTeX that compiles as it is.")
@click.option("--methods", default="", help="Methods or labels to keep, in this order: mcm,energy[scale=1].")
@click.option("--ood", "sets", default="", help="OOD sets to keep, in this order, by name: sun,textures.")
@click.option("--metrics", default=",".join(SHOWN), show_default=True, help="Also fpr95_ood, aupr_in, aupr_out.")
@click.option("--decimals", type=int, help="Default: 2 in percent, 4 as fractions.")
@click.option("--percent/--fraction", default=True, help="Default: percent.")
@click.option("--transpose", is_flag=True, help="OOD sets down the side, methods across.")
@click.option("--group", default="", help="`trained`: training-free and trained methods in column_groups of their own.")
@click.option("--intervals", default="", help="half: ± half the width; range: [low, high].")
@click.option("--seeds", is_flag=True, help="Mean ± standard deviation of rows that differ in the seed alone.")
@click.option(
    "--tests/--no-tests",
    default=None,
    help="Mark what cannot be told from the best. Default: tests, in the terminal if quick.",
)
@click.option(
    "--with-figures/--no-figures",
    "with_figures",
    default=None,
    help="Figures in the HTML page. Default: for up to 12 tables.",
)
@click.option("--bib", is_flag=True, help="BibTeX of the methods and datasets instead of the tables.")
@click.option("--cite", is_flag=True, help="LaTeX: cite the keys that --bib writes.")
@click.option("--compare", default="", help="`published`: measured beside published numbers, with the difference.")
@click.option("--quote", "quotes", multiple=True, help="Add a published row, such as clipn:paper. Repeatable.")
@click.option("--explain", nargs=2, metavar="METHOD OODSET", help="All that lies behind one cell.")
@click.option("--data", type=FOLDER, help="With figures: folder of the datasets. Default: $OODBENCH_DATA, else ./data.")
@click.option("--verify", "check", is_flag=True, help="Compute every number again from the scores per image.")
@click.option("--mlflow", "uri", default="", metavar="URI", help="Rows from an MLflow store instead of the folder.")
@click.option("--experiment", default="", help="With --mlflow: the benchmark's. Default: all.")
def report(
    results: Path,
    explain: tuple[str, str] | None,
    check: bool,
    uri: str,
    experiment: str,
    data: Path | None,
    **flags: Any,
) -> None:
    """Print the tables of the rows in a results folder: docs/reading-the-table.md says how to read them."""
    from oodbench.report import output as shape

    figures = flags["output"] if flags["form"] == "figures" else None
    if flags["form"] == "figures" and not figures:
        raise UserError("--format figures writes PNG and PDF files: name their folder with --output DIR")
    if data and not figures and (flags["form"] != "html" or flags["with_figures"] is False):
        raise UserError("--data is where figures find their images: it goes with --format figures or --format html")
    if figures:
        _alone()
    if check:
        sys.exit(_verify(results, uri))
    options, request = _read(flags)
    if experiment and not uri:
        raise UserError("--experiment names one of an MLflow store: give its address with --mlflow URI")
    found = _gather(results, uri, experiment)
    if explain:
        from oodbench.report.explain import explanation

        click.echo(explanation([(found.paths.get(row.digest), row) for row in found.results], *explain), nl=False)
        return
    shape.check_request(request, options, found.results)
    if figures:
        _draw(found, options, figures, data)
        return
    tables = shape.build_tables(found.results, found.paths, options, request)
    if request.output:
        from oodbench.report.html import FigureSource, render

        source = FigureSource(found.paths, None if uri else results, data)
        shape.write(tables, options, request, lambda: render(tables, source, options, request.figures))
        note(f"wrote {request.output}")
    elif request.form == "terminal" and not request.bib:
        _show(tables)
    else:
        click.echo(shape.render_text(tables, options, request), nl=False)


def _read(flags: dict[str, Any]) -> tuple[TableOptions, OutputOptions]:
    """Options and request from the flags; UserError for words that a flag does not take."""
    from oodbench.method.parameters import parse_names, split
    from oodbench.report.output import OutputOptions

    for flag, word in (("group", "trained"), ("compare", "published")):
        if flags[flag] not in ("", word):
            raise UserError(f"--{flag} '{flags[flag]}' does not exist; known: {word}")
    options = TableOptions(
        methods=tuple(filter(None, (m.strip() for m in split(flags["methods"], ",")))),
        sets=tuple(parse_names(flags["sets"])),
        metrics=tuple(dict.fromkeys(m.strip() for m in flags["metrics"].split(",") if m.strip())),
        trained=bool(flags["group"]),
        **{name: flags[name] for name in ("decimals", "percent", "transpose", "intervals", "seeds", "cite")},
    )
    names = ("standalone", "bib", "quotes", "tests", "output")
    form = flags["form"] or "terminal"
    return options, OutputOptions(
        form=form,
        compare=bool(flags["compare"]),
        figures=flags["with_figures"],
        **{name: flags[name] for name in names},
    )


def _alone() -> None:
    """UserError for flags that figures do not use."""
    context = click.get_current_context()
    heeded = {"results", "methods", "sets", "form", "output", "data", "uri", "experiment"}
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name not in heeded and context.get_parameter_source(option.name or "") == ParameterSource.COMMANDLINE
    ]
    if given:
        raise UserError(f"--format figures draws figures and nothing else: run {', '.join(given)} by itself")


def _draw(found: LoadedResults, options: TableOptions, folder: Path, data: Path | None) -> None:
    """Write the figures of the tables of some methods and sets."""
    from oodbench.report import tables
    from oodbench.report.figures.write import write

    chosen = tables(found.results, TableOptions(methods=options.methods, sets=options.sets))
    count = write(chosen, found.paths, folder, data=data, sets=options.sets)
    note(f"wrote {count} figures to {folder}")


def _gather(results: Path, uri: str, experiment: str) -> LoadedResults:
    from oodbench.report.tables.grouping import LoadedResults, from_folder, ordered

    if not uri:
        return from_folder(results)
    from oodbench.tracking import Tracker
    from oodbench.tracking.reader import collect

    return LoadedResults(ordered(collect(Tracker(uri, results, "--mlflow"), experiment)), {})


def _show(tables: Sequence[Table]) -> None:
    from rich.console import Console

    from oodbench.report import console

    screen = Console() if sys.stdout.isatty() else Console(width=160)
    for table in tables:
        screen.print(console(table))


def _verify(results: Path, uri: str) -> int:
    """Print what --verify finds; 1 when a number differs or cannot be computed again."""
    from oodbench.report.verify import verify

    if uri:
        raise UserError("--verify reads the scores per image, which lie in the results folder: leave --mlflow out")
    if not results.is_dir():
        raise UserError(f"no results folder {results}; make one with: oodbench run --results {results}")
    findings = list(verify(results))
    wrong = [one for one in findings if one.problems]
    for one in findings:
        state = "DIFFERS" if one.problems else "failed row, no numbers" if one.failed else f"OK, {one.cells} numbers"
        click.echo(printable(f"{one.path.relative_to(results)}: {one.label}: {state}"))
        for problem in one.problems:
            click.echo(f"  {printable(problem)}")
    if not findings:
        raise UserError(f"{results} holds no rows; make some with: oodbench run --results {results}")
    click.echo(f"{len(findings) - len(wrong)} of {len(findings)} rows OK")
    return 1 if wrong else 0
