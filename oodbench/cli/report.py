"""oodbench report."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from oodbench.cli import options as shared
from oodbench.cli.help import Command, Names, OneOf, examples, set_names
from oodbench.cli.options import FOLDER
from oodbench.cli.output import note, print_tables
from oodbench.errors import UserError, printable
from oodbench.report.options import CHOICES, SECTIONS, SHOWN, STYLES, TableOptions

if TYPE_CHECKING:
    from oodbench.report.output import OutputOptions
    from oodbench.report.tables.grouping import LoadedResults

_TABLE = (
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


@click.command(
    cls=Command,
    epilog=examples(
        "oodbench report",
        "oodbench report --format latex --output table.tex",
        "oodbench report --format html --output page.html",
        "oodbench report --compare published",
        "oodbench report --explain clipn textures",
    ),
)
@shared.RESULTS
@click.option(
    "--format",
    "form",
    default="",
    help="latex, markdown, html, csv, parquet or figures (PNG and PDF: docs/figures.md). Default: for the terminal.",
)
@click.option("-o", "--output", type=FOLDER, help="Write to this file; figures, to this folder. Default: stdout.")
@click.option("--encoder", "encoders", default="", help="Encoders to show: ViT-B-16/openai.")
@click.option(
    "--id", "ids", default="", type=Names(set_names), help="Benchmarks or ID sets to show: imagenet1k,glyphs."
)
@click.option("--sort", default="", type=OneOf(*CHOICES), help="Sort each group by this metric, the best first.")
@click.option("--top", type=click.IntRange(min=1), help="Of each group, only the best by --sort.")
@click.option("--style", default="full", show_default=True, type=OneOf(*STYLES), help="paper: docs/paper-tables.md.")
@click.option("--ours", default="", help="Methods or labels that come last, shaded in LaTeX: clipn.")
@click.option("--rename", multiple=True, metavar="NAME=TEXT", help="Print another text for a name. Repeatable.")
@click.option("--caption", default="", type=OneOf("short", "full"), help="LaTeX. Default: full; of papers, short.")
@click.option("--label", default="", help="LaTeX: the \\label of the table, such as tab:ood.")
@click.option("--long", "long", is_flag=True, help="CSV and parquet: one number a line.")
@click.option("--width", default="", help="Figures: column, page, or inches. Default: as large as is legible.")
@click.option("--standalone", is_flag=True, help="LaTeX: a document that compiles by itself.")
@click.option(
    "--methods", default="", help="Methods or labels to show, in this order within a group: mcm,energy[scale=1]."
)
@click.option("--ood", "sets", default="", help="OOD sets to show, in this order: sun,textures.")
@click.option("--metrics", default=",".join(SHOWN), show_default=True, help="Also fpr95_ood, aupr_in, aupr_out.")
@click.option("--decimals", type=int, help="Default: 2 in percent, 4 as fractions.")
@click.option("--percent/--fraction", default=True, help="Default: percent.")
@click.option("--transpose", is_flag=True, help="One row per OOD set and one column per method.")
@click.option(
    "--group",
    default="access",
    show_default=True,
    help="access: groups of methods that see the same data; trained: training-free and trained; none: one block. "
    "Best and second are marked among methods that see the same data.",
)
@click.option("--intervals", default="", help="half: ± half the width; range: [low, high].")
@click.option("--seeds", is_flag=True, help="Mean ± standard deviation of results that differ in the seed only.")
@click.option("--stream-parts", is_flag=True, help="Test-time adaptation: also the first 1,000 images, and the rest.")
@click.option(
    "--tests/--no-tests",
    default=None,
    help="Mark methods that do not differ significantly from the best. Default: tests; in the terminal, if quick.",
)
@click.option(
    "--with-figures/--no-figures",
    "with_figures",
    default=None,
    help="HTML: with figures. Default: for up to 12 tables.",
)
@click.option("--bib", is_flag=True, help="BibTeX of the methods and datasets instead of the tables.")
@click.option("--cite", is_flag=True, help="LaTeX: cite the keys that --bib writes.")
@click.option(
    "--compare", default="", help="`published`: published numbers next to measured ones, with the difference."
)
@click.option("--quote", "quotes", multiple=True, help="Add a published result, such as clipn:paper. Repeatable.")
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

    figures = options["form"] == "figures"
    if figures and not options["output"]:
        raise UserError("--format figures writes PNG and PDF files: name their folder with --output DIR")
    if data and not figures and (options["form"] != "html" or options["with_figures"] is False):
        raise UserError("--data is where figures find their images: it goes with --format figures or --format html")
    if figures:
        _check_options_of_figures()
    if check:
        sys.exit(_verify(results, uri))
    table_options, output_options = _parse(options)
    if experiment and not uri:
        raise UserError("--experiment names one of an MLflow store: give its address with --mlflow URI")
    gathered = _gather(results, uri, experiment)
    if explain:
        from oodbench.report.explain import explanation

        rows = [(gathered.paths.get(row.digest), row) for row in gathered.results]
        click.echo(explanation(rows, *explain), nl=False)
        return
    formats.check_request(output_options, table_options, gathered.results)
    if figures:
        _write_figures(gathered, table_options, options["output"], data)
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
    """Parse the options of the tables and of their format. Raise UserError for words that an option does not take."""
    from oodbench.method.parameters import parse_names, split
    from oodbench.report.output import OutputOptions

    if options["compare"] not in ("", "published"):
        raise UserError(f"--compare '{options['compare']}' does not exist; known: published")
    if options["group"] not in SECTIONS:
        raise UserError(f"--group '{options['group']}' does not exist; known: {', '.join(SECTIONS)}")
    table_options = TableOptions(
        methods=tuple(filter(None, (method.strip() for method in split(options["methods"], ",")))),
        ours=tuple(filter(None, (method.strip() for method in split(options["ours"], ",")))),
        encoders=tuple(parse_names(options["encoders"])),
        ids=tuple(parse_names(options["ids"])),
        rename=tuple(_renamed(text) for text in options["rename"]),
        sets=tuple(parse_names(options["sets"])),
        metrics=tuple(dict.fromkeys(name.strip() for name in options["metrics"].split(",") if name.strip())),
        **{name: options[name] for name in _TABLE},
    )
    same = {
        name: options[name]
        for name in ("standalone", "bib", "quotes", "tests", "output", "caption", "label", "long", "width")
    }
    same["figures"] = options["with_figures"]
    return table_options, OutputOptions(form=options["form"] or "terminal", compare=bool(options["compare"]), **same)


def _renamed(text: str) -> tuple[str, str]:
    """Parse NAME=TEXT. Raise UserError if there is no name."""
    found = re.match(r"((?:\[[^\]]*\]|[^\[=])+)=(.*)", text, re.DOTALL)  # a label has signs: energy[scale=1]=Energy
    if not found or not found[1].strip():
        raise UserError(f"--rename '{text}' is not NAME=TEXT, such as --rename iNaturalist=iNat")
    return found[1].strip(), found[2].strip()


def _check_options_of_figures() -> None:
    """Raise UserError for options that figures would ignore."""
    context = click.get_current_context()
    used = {"results", "methods", "sets", "form", "output", "data", "uri", "experiment"}
    given = [
        option.opts[0]
        for option in context.command.params
        if option.name not in used and context.get_parameter_source(option.name or "") == ParameterSource.COMMANDLINE
    ]
    if given:
        raise UserError(f"--format figures draws figures and nothing else: run {', '.join(given)} by itself")


def _write_figures(gathered: LoadedResults, options: TableOptions, folder: Path, data: Path | None) -> None:
    """Write the figures of the tables of some methods and sets."""
    from oodbench.report import tables
    from oodbench.report.figures.write import write

    chosen = tables(gathered.results, TableOptions(methods=options.methods, sets=options.sets))
    count = write(chosen, gathered.paths, folder, data=data, sets=options.sets)
    note(f"wrote {count} figures to {folder}")


def _gather(results: Path, uri: str, experiment: str) -> LoadedResults:
    """Read the results of a folder, or of an MLflow store."""
    from oodbench.report.tables.grouping import LoadedResults, from_folder, ordered

    if not uri:
        return from_folder(results)
    from oodbench.tracking import Tracker
    from oodbench.tracking.reader import collect

    return LoadedResults(ordered(collect(Tracker(uri, results, "--mlflow"), experiment)), {})


def _verify(results: Path, uri: str) -> int:
    """Recompute the numbers of every result. Return exit code 1 if one differs or cannot be recomputed."""
    from oodbench.report.verify import verify

    if uri:
        raise UserError("--verify reads the scores per image, which are in the results folder: leave --mlflow out")
    if not results.is_dir():
        raise UserError(f"no results folder {results}; make one with: oodbench run --results {results}")
    checks = list(verify(results))
    wrong = [check for check in checks if check.problems]
    for check in checks:
        passed = "failed method, no numbers" if check.failed else f"OK, {check.cells} numbers"
        state = "DIFFERS" if check.problems else passed
        click.echo(printable(f"{check.path.relative_to(results)}: {check.label}: {state}"))
        for problem in check.problems:
            click.echo(f"  {printable(problem)}")
    if not checks:
        raise UserError(f"{results} holds no results; make some with: oodbench run --results {results}")
    click.echo(f"{len(checks) - len(wrong)} of {len(checks)} results OK")
    return 1 if wrong else 0
