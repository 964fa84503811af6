"""oodbench report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from oodbench.cli import options as shared
from oodbench.cli.help import Command, EncoderNames, Names, OneOf, examples, method_names, set_names
from oodbench.cli.options import FOLDER
from oodbench.cli.output import note, print_tables
from oodbench.errors import UserError, printable, raise_all
from oodbench.report.options import (
    CHOICES,
    INTERVALS,
    SECTIONS,
    SHOWN,
    STYLES,
    TableOptions,
    check_choice,
    is_comparison,
    names,
    parse,
)

if TYPE_CHECKING:
    from oodbench.report.output import OutputOptions
    from oodbench.report.tables.grouping import LoadedResults

_TABLE = (
    "methods",
    "sets",
    "metrics",
    "encoders",
    "ids",
    "ours",
    "rename",
    "decimals",
    "percent",
    "group",
    "transpose",
    "intervals",
    "seeds",
    "stream_parts",
    "cite",
    "sort",
    "top",
    "style",
)

_CHOSEN = ("methods", "sets", "encoders", "ids")


def _figure_kinds() -> tuple[str, ...]:
    """Return the kinds of figures."""
    from oodbench.report.figures.options import KINDS

    return KINDS


def _metrics() -> tuple[str, ...]:
    return CHOICES


def _published() -> list[str]:
    """Return the keys of published results."""
    from oodbench.report.tables.published import quotes

    return [*quotes()]


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench report",
        "oodbench report --format latex --output table.tex",
        "oodbench report --format latex --style paper --ours clipn",
        "oodbench report --format html --output page.html",
        "oodbench report --compare published",
        "oodbench report --id glyphs --sort fpr95 --top 5",
        "oodbench report --format csv --long --output numbers.csv",
        "oodbench report --explain clipn textures",
    ),
)
@shared.RESULTS
@click.option(
    "--format",
    "form",
    default="",
    type=OneOf("terminal", "latex", "markdown", "html", "csv", "parquet", "figures"),
    help="Default: terminal. Figures are PNG and PDF files (docs/figures.md).",
)
@click.option("-o", "--output", type=FOLDER, help="Write to this file; figures, to this folder. Default: stdout.")
@click.option(
    "--encoder", "encoders", default="", type=EncoderNames(), help="Encoders or architectures to show: ViT-B-16/openai."
)
@click.option(
    "--id", "ids", default="", type=Names(set_names), help="Benchmarks or ID sets to show: imagenet1k,glyphs."
)
@click.option("--sort", default="", type=OneOf(*CHOICES), help="Sort each group by this metric, the best first.")
@click.option("--top", type=click.IntRange(min=1), help="Only the best N of each group by --sort.")
@click.option(
    "--style",
    default="full",
    show_default=True,
    type=OneOf(*STYLES),
    help="Style of tables; for paper, see docs/paper-tables.md.",
)
@click.option("--ours", default="", help="Methods or labels to put last, shaded in LaTeX: clipn.")
@click.option("--rename", multiple=True, metavar="NAME=TEXT", help="Print TEXT instead of NAME: fpr95=FPR. Repeatable.")
@click.option(
    "--caption",
    default="",
    type=OneOf("short", "full"),
    help="LaTeX: length of the caption. Default: full; with --style paper, short.",
)
@click.option("--label", default="", help="LaTeX: the \\label of the table, such as tab:ood.")
@click.option("--long", "long", is_flag=True, help="CSV and parquet: one number per line.")
@click.option("--kind", "kinds", default="", type=Names(_figure_kinds), help="Figures: only these kinds: roc,overview.")
@click.option(
    "--width",
    default="",
    help="Figures for a paper: column (3.25 in), page (6.875 in), or a length: 3.3, 84mm, 237pt. Default: for screens.",
)
@click.option("--standalone", is_flag=True, help="LaTeX: write a document that compiles by itself.")
@click.option(
    "--methods",
    default="",
    type=Names(lambda: method_names(groups=False)),
    help="Methods or labels to show, in this order within a group: mcm,energy[scale=1].",
)
@click.option("--ood", "sets", default="", type=Names(set_names), help="OOD sets to show, in this order: sun,textures.")
@click.option(
    "--metrics",
    default=",".join(SHOWN),
    show_default=True,
    type=Names(_metrics),
    help="Metrics to show; also fpr95_ood, aupr_in, aupr_out.",
)
@click.option("--decimals", type=int, help="Decimal places. Default: 2 in percent, 4 as fractions.")
@click.option("--percent/--fraction", default=True, help="Unit of the metrics. Default: percent.")
@click.option("--transpose", is_flag=True, help="One row per OOD set and one column per method.")
@click.option(
    "--group",
    default="access",
    show_default=True,
    type=OneOf(*SECTIONS),
    help="access: group methods that see the same data; trained: training-free and trained methods; none: no groups. "
    "The best and second-best numbers are marked among methods that see the same data.",
)
@click.option(
    "--intervals",
    default="",
    type=OneOf(*INTERVALS),
    help="Show confidence intervals: half as ± half the width, range as [low, high].",
)
@click.option(
    "--seeds", is_flag=True, help="Show the mean ± standard deviation of results that differ only in the seed."
)
@click.option(
    "--stream-parts", is_flag=True, help="Test-time adaptation: also show the first 1,000 images and the rest."
)
@click.option(
    "--tests/--no-tests",
    default=None,
    help="Mark methods that do not differ significantly from the best. Default: tests; in the terminal, only if quick.",
)
@click.option(
    "--with-figures/--no-figures",
    "with_figures",
    default=None,
    help="HTML: add figures. Default: for up to 12 tables.",
)
@click.option("--bib", is_flag=True, help="Print the BibTeX of the methods and datasets instead of the tables.")
@click.option("--cite", is_flag=True, help="LaTeX: cite the keys that --bib writes.")
@click.option(
    "--compare",
    default="",
    type=OneOf("published"),
    help="Show published numbers next to measured ones, with the difference.",
)
@click.option(
    "--quote",
    "quotes",
    multiple=True,
    type=Names(_published, several=False),
    help="Add a published result, such as clipn:paper. Repeatable.",
)
@click.option("--explain", nargs=2, metavar="METHOD OODSET", help="Show everything that one cell depends on.")
@click.option(
    "--data",
    type=FOLDER,
    help="With figures: folder of the datasets. Default: $OODBENCH_DATA, else ./data.",
)
@click.option("--verify", "check", is_flag=True, help="Recompute every number from the scores per image.")
@click.option("--mlflow", "uri", default="", metavar="URI", help="Read the results from MLflow instead of the folder.")
@click.option("--experiment", default="", help="With --mlflow: the experiment of one benchmark. Default: all.")
def report(
    results: Path,
    explain: tuple[str, str] | None,
    check: bool,
    uri: str,
    experiment: str,
    data: Path | None,
    **options: Any,
) -> None:
    """Print the tables of a results folder.

    docs/reading-the-table.md explains them.
    """
    from oodbench.report import output as formats
    from oodbench.report.api import gather
    from oodbench.report.tables.grouping import check_folder

    if not uri:
        check_folder(results)
    figures = options["form"] == "figures"
    if figures and not options["output"]:
        raise UserError("--format figures writes PNG and PDF files: name their folder with --output DIR")
    if data and not figures and (options["form"] != "html" or options["with_figures"] is False):
        raise UserError("--data has the images for figures: use it with --format figures or --format html")
    if figures:
        used = (*formats.FIGURE_OPTIONS, "form", "output", "data", "kinds", "width")
        _refuse_others(used, "--format figures only draws figures; use {} in a separate command")
    if check:
        _refuse_others((*_CHOSEN, "check"), "--verify only recomputes the numbers: leave out {}")
    if explain:
        _refuse_others((*_CHOSEN, "explain"), "--explain only prints what a cell depends on: leave out {}")
    table_options, output_options = _parse(options)
    if check:
        sys.exit(_verify(results, uri, table_options))
    gathered = gather(results, uri, experiment)
    if explain:
        from oodbench.report.explain import explanation

        check_choice(table_options, gathered.results)
        rows = [(gathered.paths.get(row.digest), row) for row in gathered.results if table_options.chooses(row)]
        click.echo(explanation(rows, *explain), nl=False)
        return
    formats.check_request(output_options, table_options, gathered.results)
    if figures:
        _write_figures(gathered, table_options, output_options, data)
        return
    tables = formats.build_tables(gathered.results, gathered.paths, table_options, output_options)
    if output_options.output:
        from oodbench.report.html import FigureSource, render

        source = FigureSource(gathered.paths, None if uri else results, data)
        page = lambda: render(tables, source, table_options, output_options.figures)  # noqa: E731
        formats.write(tables, table_options, output_options, page)
        note(f"wrote {output_options.output}")
    elif output_options.form == "terminal" and not output_options.bib:
        print_tables(tables)
    else:
        click.echo(formats.render_text(tables, table_options, output_options), nl=False)


def _parse(options: dict[str, Any]) -> tuple[TableOptions, OutputOptions]:
    """Parse the options of the tables and of their format. Raise UserError for invalid values."""
    from oodbench.report.output import OutputOptions

    if options["group"] not in SECTIONS:
        raise UserError(f"--group '{options['group']}' does not exist; known: {', '.join(SECTIONS)}")
    table_options = parse({name: options[name] for name in _TABLE})
    same = {
        name: options[name]
        for name in ("standalone", "bib", "quotes", "tests", "output", "caption", "label", "long", "width")
    }
    same["kinds"] = names(options["kinds"])
    same["figures"] = options["with_figures"]
    return table_options, OutputOptions(
        form=options["form"] or "terminal", compare=is_comparison(options["compare"]), **same
    )


def _refuse_others(used: Sequence[str], message: str) -> None:
    """Raise UserError for options that would be ignored; those that name the results are always used."""
    context = click.get_current_context()
    used = (*used, "results", "uri", "experiment")
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name not in used and context.get_parameter_source(option.name or "") == ParameterSource.COMMANDLINE
    ]
    if given:
        raise UserError(message.format(", ".join(given)))


def _write_figures(gathered: LoadedResults, options: TableOptions, request: OutputOptions, data: Path | None) -> None:
    """Write the figures of the selected results. Raise UserError if none of the given kinds can be drawn."""
    from oodbench.report.figures.options import KINDS, NEEDS, FigureOptions, parse_width
    from oodbench.report.figures.write import write
    from oodbench.report.output import figure_tables

    assert request.output
    figures = FigureOptions(data, request.kinds or KINDS, options.sets, parse_width(request.width), options.rename)
    counts = write(figure_tables(gathered.results, options), gathered.paths, request.output, figures)
    missing = [f"no figure '{kind}': it needs {NEEDS[kind]}" for kind in request.kinds if not counts[kind]]
    if missing and not counts:
        raise_all(missing)
    for reason in missing:
        note(reason)
    note(f"wrote {counts.total()} figures to {request.output}")


def _verify(results: Path, uri: str, options: TableOptions) -> int:
    """Recompute the numbers of the selected results. Return exit code 1 if one differs or cannot be recomputed."""
    from oodbench.report.verify import verify
    from oodbench.results import rows

    if uri:
        raise UserError("--verify reads the scores per image, which are in the results folder: leave out --mlflow")
    if options.methods or options.encoders or options.ids or options.sets:
        check_choice(options, [row for _, row in rows(results)])
    checks = list(verify(results, options.chooses))
    wrong = [check for check in checks if check.problems]
    for check in checks:
        passed = "failed method, no numbers" if check.failed else f"OK, {check.cells} numbers"
        state = "DIFFERS" if check.problems else passed
        click.echo(printable(f"{check.path.relative_to(results)}: {check.label}: {state}"))
        for problem in check.problems:
            click.echo(f"  {printable(problem)}")
    if not checks:
        raise UserError(f"{results} has no results; create some with: oodbench run --results {results}")
    click.echo(f"{len(checks) - len(wrong)} of {len(checks)} results OK")
    return 1 if wrong else 0
