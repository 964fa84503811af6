"""Shape: tables as one text or file, in the format that was asked for."""

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
from oodbench.report.formats.bibtex import bibtex, entries
from oodbench.report.formats.csv import csv, parquet
from oodbench.report.formats.latex import as_codes, latex, preamble, remark
from oodbench.report.formats.markdown import markdown
from oodbench.report.options import TableOptions, check
from oodbench.report.tables.build import tables, tester
from oodbench.report.tables.published import compared, quote, quoted
from oodbench.report.tables.table import Table, transposed
from oodbench.results import Result
from oodbench.storage.files import atomic_write, real_path

_HEAD = r"""%s\documentclass{article}
%s
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\begin{document}
"""
_ENGINE = "% Compile with lualatex or xelatex: this {remark}, and prints their codes.\n"


def document(tables: Sequence[Table], options: TableOptions) -> str:
    """A whole article for any engine; its first line says when pdflatex lacks letters. With `cite`, its references."""
    body = "\n".join(latex(table) for table in tables)
    references = []
    if options.cite:
        references = [r"\clearpage", r"\begin{thebibliography}{99}"]
        references += [rf"\bibitem{{{entry.key}}} {entry.latex()}" for entry in entries(tables)]
        references.append(r"\end{thebibliography}")
    text = "\n".join([body, *references, r"\end{document}"]) + "\n"
    lacking = remark(text)
    if lacking:
        log.warning("the LaTeX %s, and prints their codes: compile it with lualatex or xelatex", lacking)
    text = re.sub(r"^% The table holds .*\n", "", text, flags=re.MULTILINE)  # of a table by itself
    return _HEAD % (_ENGINE.format(remark=lacking) if lacking else "", preamble(text)) + as_codes(text)


log = logging.getLogger(__name__)

FORMATS = ("latex", "markdown", "html", "csv", "parquet", "figures", "terminal")
_FILES = ("html", "parquet")  # no text for a terminal
_DATA = ("csv", "parquet")  # every row in full, whatever the shape


@dataclass(frozen=True)
class OutputOptions:
    """What `oodbench report` was asked for besides the options of the table; "" for none."""

    form: str = "terminal"
    standalone: bool = False
    bib: bool = False
    compare: bool = False
    quotes: tuple[str, ...] = ()
    tests: bool | None = None  # None: in LaTeX, Markdown and HTML, and in the terminal where it takes a moment
    output: Path | None = None
    pictures: bool | None = None  # in HTML; None: where there are few tables


def check_request(request: OutputOptions, options: TableOptions, rows: Sequence[Result]) -> None:
    """UserError with all that is wrong with a request."""
    problems = []
    if request.form not in FORMATS:
        problems.append(f"no format '{request.form}'{did_you_mean(request.form, FORMATS)}")
    if request.standalone and request.form != "latex":
        problems.append("--standalone goes with --format latex")
    if options.cite and request.form != "latex":
        problems.append("--cite goes with --format latex")
    if request.form in _FILES and not (request.output or request.bib):
        problems.append(f"--format {request.form} writes a file: name it with --output FILE")
    if request.form == "html" and options.transpose:
        problems.append("--transpose leaves nothing to sort by: leave it out with --format html")
    if request.pictures is not None and request.form != "html":
        problems.append(f"--{'with' if request.pictures else 'no'}-figures goes with --format html")
    if request.bib and request.form == "html":
        problems.append("--bib is BibTeX and no page: leave out --format html")
    if request.compare and request.quotes:
        problems.append("--compare and --quote each add published rows; choose one of them")
    if request.form in _DATA and request.compare:
        problems.append(f"--compare is for reading; with --format {request.form}, add published rows by --quote")
    names = {name for row in rows for name in (row.method, row.label)}
    sets = {s.dataset for row in rows for s in row.ood}
    for job in (lambda: check(options, sorted(names), sorted(sets)), lambda: [quote(key) for key in request.quotes]):
        try:
            job()
        except UserError as error:
            problems += error.problems
    raise_all(problems)


def shaped(
    rows: Sequence[Result], paths: Mapping[str, Path], options: TableOptions, request: OutputOptions
) -> list[Table]:
    """The tables of rows as the request wants them; `paths` are the rows' files by digest."""
    if request.form in _DATA or request.bib:
        options = dataclasses.replace(options, seeds=False, transpose=False)
    wanted = request.tests is not False and request.form not in _DATA and not request.bib
    quick = request.tests is None and request.form == "terminal"
    test = tester(paths, options, quick=quick) if wanted else None
    out = tables(rows, options, test)
    if request.compare:
        out = compared(out, options)
    elif request.quotes:
        out = quoted(out, [quote(key) for key in request.quotes], options)
    return [transposed(table) for table in out] if options.transpose else out


def text(tables: Sequence[Table], options: TableOptions, request: OutputOptions) -> str:
    """All but the terminal's format; parquet is written to the request's file, and is no text; for HTML see `write`."""
    if request.bib:
        return bibtex(tables)
    if request.form == "csv":
        return csv(tables, options)
    if request.form == "latex" and request.standalone:
        return document(tables, options)
    if request.form == "terminal":
        return _plain(tables)
    if request.form == "latex":
        found = "\n".join(map(latex, tables))
        if said := remark(found):
            log.warning("the LaTeX %s: compile it with lualatex or xelatex, and a font that has them", said)
        return found
    return "\n".join(map(markdown, tables))


def write(
    tables: Sequence[Table], options: TableOptions, request: OutputOptions, page: Callable[[], str] | None = None
) -> None:
    """Write the request's file, whole or not at all. UserError when it cannot be written. `page` gives the HTML."""
    assert request.output
    path = real_path(request.output)  # what a link leads to is written, and the link stays
    html = page() if page and request.form == "html" and not request.bib else ""
    try:
        with (
            nullcontext(path) if path.exists() and not path.is_file() else atomic_write(path) as partial
        ):  # /dev/stdout
            if request.form == "parquet" and not request.bib:
                parquet(tables, partial, options)
            else:
                partial.write_text(html or text(tables, options, request), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write --output {path}: {error.strerror or error}") from error


def _plain(tables: Sequence[Table]) -> str:
    from rich.console import Console

    from oodbench.report.formats.terminal import console

    out = io.StringIO()
    screen = Console(width=160, file=out, color_system=None)
    for table in tables:
        screen.print(console(table))
    return out.getvalue()
