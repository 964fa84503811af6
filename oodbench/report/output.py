"""Output of tables as text or a file in a requested format."""

from __future__ import annotations

import dataclasses
import io
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.report.figures.options import FigureOptions, parse_width
from oodbench.report.formats.bibtex import bibtex, entries
from oodbench.report.formats.csv import csv, parquet
from oodbench.report.formats.latex import CAPTIONS, LABEL, latex, unique
from oodbench.report.formats.latex_text import as_codes, preamble, remark
from oodbench.report.formats.markdown import markdown
from oodbench.report.formats.paper import paper
from oodbench.report.options import TableOptions, check
from oodbench.report.tables.build import tables, tester
from oodbench.report.tables.published import compare_with_published, quote, quotes, with_quotes
from oodbench.report.tables.rename import check as check_names
from oodbench.report.tables.rename import names, renamed
from oodbench.report.tables.table import Table, transposed
from oodbench.results import Result, seedless_label
from oodbench.storage.files import atomic_write, real_path

_HEAD = r"""{engine}\documentclass[{shape}]{{article}}
{letters}
\usepackage[{margins}]{{geometry}}
\usepackage{{{packages}}}
\begin{{document}}
"""
# Columns as in CVPR's style.
_PAPER = {
    "shape": "10pt,twocolumn,letterpaper",
    "margins": "textwidth=6.875in,textheight=8.875in,columnsep=0.3125in",
}
_ARTICLE = {"shape": "10pt", "margins": "margin=2cm"}
_ENGINE = "% Compile with lualatex or xelatex: this {remark}, and prints their codes.\n"


def document(tables: Sequence[Table], options: TableOptions, request: OutputOptions) -> str:
    """Return a complete article, with references if `cite`; the first line reports letters that pdflatex lacks."""
    body = _latex(tables, options, request)
    references = []
    if options.cite:
        references = [r"\clearpage", r"\begin{thebibliography}{99}"]
        references += [rf"\bibitem{{{entry.key}}} {entry.latex()}" for entry in entries(tables)]
        references.append(r"\end{thebibliography}")
    render_text = "\n".join([body, *references, r"\end{document}"]) + "\n"
    lacking = remark(render_text)
    if lacking:
        log.warning("the LaTeX %s, and prints their codes: compile it with lualatex or xelatex", lacking)
    render_text = re.sub(r"^% The table contains .*\n", "", render_text, flags=re.MULTILINE)  # only for single tables
    head = _HEAD.format(
        engine=_ENGINE.format(remark=lacking) if lacking else "",
        letters=preamble(render_text),
        packages="booktabs,colortbl" if "color[gray]" in render_text else "booktabs",
        **(_PAPER if options.style == "paper" else _ARTICLE),
    )
    return head + as_codes(render_text)


def _latex(tables: Sequence[Table], options: TableOptions, request: OutputOptions) -> str:
    if options.style == "paper":
        return paper(tables, caption=request.caption or "short", label=request.label)
    found = zip(tables, unique([request.label] * len(tables)), strict=True)
    return "\n".join(latex(table, caption=request.caption or "full", label=label) for table, label in found)


log = logging.getLogger(__name__)

FORMATS = ("latex", "markdown", "html", "csv", "parquet", "figures", "terminal")
_FILES = ("html", "parquet")  # formats that cannot be printed
_DATA = ("csv", "parquet")  # formats with every result in full


@dataclass(frozen=True)
class OutputOptions:
    """The options of `oodbench report` that do not change the tables; "" for none."""

    form: str = "terminal"
    standalone: bool = False
    bib: bool = False
    compare: bool = False
    quotes: tuple[str, ...] = ()
    tests: bool | None = None  # None: in LaTeX, Markdown and HTML, and in the terminal if they are quick
    output: Path | None = None
    figures: bool | None = None  # in HTML; None: if there are few tables
    caption: str = ""  # of LaTeX, "short" or "full"; "": short in the style "paper"
    label: str = ""  # \label of LaTeX
    long: bool = False  # CSV and parquet with one number per line
    width: str = ""  # of figures: "column", "page" or a length
    kinds: tuple[str, ...] = ()  # of figures; all when empty


def check_request(request: OutputOptions, options: TableOptions, rows: Sequence[Result]) -> None:
    """Raise UserError with all problems of a request."""
    problems = []
    if request.form not in FORMATS:
        problems.append(f"no format '{request.form}'{did_you_mean(request.form, FORMATS)}")
    if request.standalone and request.form != "latex":
        problems.append("--standalone requires --format latex")
    if options.cite and request.form != "latex":
        problems.append("--cite requires --format latex")
    if options.cite and options.transpose:
        problems.append("--cite cannot be combined with --transpose, whose columns are the methods")
    if request.form in _FILES and not (request.output or request.bib):
        problems.append(f"--format {request.form} writes a file: name it with --output FILE")
    if request.form == "html" and options.transpose:
        problems.append("--transpose cannot be combined with --format html, because its lines can be sorted")
    if options.stream_parts and request.form in ("html", *_DATA):
        problems.append(
            f"--stream-parts cannot be combined with --format {request.form}, which always includes the parts"
        )
    if options.stream_parts and not any(row.stream for row in rows if options.chooses(row)):
        problems.append("--stream-parts: no result is from a method that learns from the test stream")
    if request.figures is not None and request.form != "html":
        problems.append(f"--{'with' if request.figures else 'no'}-figures requires --format html")
    for name, given in (("width", request.width), ("kind", request.kinds)):
        if given and request.form != "figures":
            problems.append(f"--{name} requires --format figures")
    if request.bib and request.form == "html":
        problems.append("--bib writes BibTeX and cannot be combined with --format html")
    if request.compare and request.quotes:
        problems.append("--compare and --quote each add published results; choose one of them")
    if request.form in _DATA and request.compare:
        problems.append(
            f"--compare cannot be combined with --format {request.form}; add published results with --quote"
        )
    problems += _problems_of_latex(request)
    problems += _problems_of_ours(options, rows, [row for row in rows if options.chooses(row)])
    if request.long and request.form not in _DATA:
        problems.append("--long requires --format csv or --format parquet")
    for job in (
        lambda: FigureOptions(kinds=request.kinds, width=parse_width(request.width)),
        lambda: check(options, rows),
        lambda: [quote(key) for key in request.quotes],
        lambda: check_names(options.rename, _names(rows, request)) if options.rename else None,
    ):
        try:
            job()
        except UserError as error:
            problems += error.problems
    raise_all(problems)


def _problems_of_latex(request: OutputOptions) -> list[str]:
    problems = [
        f"--{name} requires --format latex"
        for name in ("caption", "label")
        if getattr(request, name) and (request.form != "latex" or request.bib)
    ]
    if request.caption not in ("", *CAPTIONS):
        problems.append(f"no caption '{request.caption}'{did_you_mean(request.caption, CAPTIONS)}")
    if request.label and not LABEL.fullmatch(request.label):
        problems.append(f"--label '{request.label}' is not a valid LaTeX label; write one such as tab:ood")
    return problems


def _problems_of_ours(options: TableOptions, rows: Sequence[Result], chosen: Sequence[Result]) -> list[str]:
    known, shown = (
        {name for row in some for name in (row.method, row.label, seedless_label(row))} for some in (rows, chosen)
    )
    return [
        f"--ours {name} is not shown: --methods, --encoder or --id excludes it"
        if name in known
        else f"--ours: no results of method '{name}'{did_you_mean(name, sorted(known))}"
        for name in options.ours
        if name not in shown
    ]


def _names(rows: Sequence[Result], request: OutputOptions) -> Mapping[str, tuple[str, ...]]:
    """Return everything that can be renamed, including the published results that may be shown."""
    quoted = [one for key, one in quotes().items() if request.compare or key in request.quotes]
    return names(rows, [one.name for one in quoted])


def build_tables(
    rows: Sequence[Result], paths: Mapping[str, Path], options: TableOptions, request: OutputOptions
) -> list[Table]:
    """Build the requested tables; `paths` are the results' files by digest."""
    if request.form in _DATA or request.bib:
        # Rows are results; those of several seeds are sorted together.
        options = dataclasses.replace(options, seeds=options.seeds and bool(options.sort_metric), transpose=False)
    wanted = request.tests is not False and request.form not in _DATA and not request.bib
    quick = request.tests is None and request.form == "terminal"
    test = tester(paths, options, quick=quick) if wanted else None
    out = tables(rows, options, test)
    if request.compare:
        out = compare_with_published(out, options)
    elif request.quotes:
        out = with_quotes(out, [quote(key) for key in request.quotes], options)
    if options.rename:
        known = _names(rows, request)
        out = [renamed(table, options.rename, known) for table in out]
    return [transposed(table) for table in out] if options.transpose else out


FIGURE_OPTIONS = ("methods", "sets", "encoders", "ids", "sort", "top", "rename")  # of TableOptions


def figure_tables(rows: Sequence[Result], options: TableOptions) -> list[Table]:
    """Build the tables whose figures are drawn, which only FIGURE_OPTIONS change."""
    chosen = TableOptions(**{name: getattr(options, name) for name in FIGURE_OPTIONS})
    return build_tables(rows, {}, chosen, OutputOptions(form="figures", tests=False))


def render_text(tables: Sequence[Table], options: TableOptions, request: OutputOptions) -> str:
    """Return the tables as text in the request's format, except parquet and HTML, which `write` writes."""
    if request.bib:
        return bibtex(tables)
    if request.form == "csv":
        return csv(tables, options, long=request.long)
    if request.form == "latex" and request.standalone:
        return document(tables, options, request)
    if request.form == "terminal":
        return _plain(tables)
    if request.form == "latex":
        found = _latex(tables, options, request)
        if lacking := remark(found):
            log.warning("the LaTeX %s: compile it with lualatex or xelatex, and a font that has them", lacking)
        return found
    return "\n".join(map(markdown, tables))


def write(
    tables: Sequence[Table], options: TableOptions, request: OutputOptions, page: Callable[[], str] | None = None
) -> None:
    """Write the request's file atomically; `page` returns the HTML. Raise UserError if it cannot be written."""
    assert request.output
    path = real_path(request.output)  # writes to the target of a link, and keeps the link
    html = page() if page and request.form == "html" and not request.bib else ""
    try:
        with (
            nullcontext(path) if path.exists() and not path.is_file() else atomic_write(path) as partial
        ):  # /dev/stdout
            if request.form == "parquet" and not request.bib:
                parquet(tables, partial, options, long=request.long)
            else:
                partial.write_text(html or render_text(tables, options, request), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write --output {path}: {error.strerror or error}") from error


def _plain(tables: Sequence[Table]) -> str:
    from rich.console import Console

    from oodbench.report.formats.terminal import console

    out = io.StringIO()
    screen = Console(width=160, file=out, color_system=None, force_jupyter=False)  # text, not an output of the cell
    for table in tables:
        screen.print(console(table))
    return out.getvalue()
