"""oodbench.report() in Python: the report of a results folder as text, notebook tables, files and figures."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args, get_type_hints

from oodbench.errors import UserError, did_you_mean, raise_all
from oodbench.report.options import TableOptions, is_comparison, names, parse
from oodbench.report.output import (
    FIGURE_OPTIONS,
    OutputOptions,
    build_tables,
    check_request,
    figure_tables,
    render_text,
    write,
)
from oodbench.report.tables.grouping import LoadedResults, from_folder, ordered
from oodbench.report.tables.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from oodbench.report.figures import FigureOptions, Plot

Texts = str | Sequence[str]


class ReportOptions(TypedDict, total=False):
    """Options of oodbench.report(): those of `oodbench report`, with underscores."""

    methods: Texts
    ood: Texts
    encoder: Texts
    id: Texts
    metrics: Texts
    sort: str
    top: int | None
    style: Literal["full", "paper"]
    ours: Texts
    rename: Mapping[str, str] | Sequence[str]
    decimals: int | None
    percent: bool
    group: Literal["access", "trained", "none"]
    transpose: bool
    intervals: Literal["", "half", "range"]
    seeds: bool
    stream_parts: bool
    tests: bool | None
    compare: Literal["", "published"]
    quote: Texts
    standalone: bool
    caption: Literal["", "short", "full"]
    label: str
    cite: bool
    long: bool


_SPELLED = {"ood": "sets", "encoder": "encoders", "id": "ids", "quote": "quotes"}  # option -> field
_OF_TABLES = frozenset(f.name for f in dataclasses.fields(TableOptions))
_ALONE = {  # options of some formats, which other formats ignore if they were given to `report`
    **dict.fromkeys(("standalone", "caption", "label", "cite"), ("latex",)),
    "long": ("csv", "parquet"),
    **dict.fromkeys(("compare", "transpose", "stream_parts"), ("terminal", "latex", "markdown")),
}
_SUFFIXES = {
    ".tex": "latex",
    ".md": "markdown",
    ".html": "html",
    ".csv": "csv",
    ".parquet": "parquet",
    ".txt": "terminal",
}


def report(
    results: str | Path = "results", *, mlflow: str = "", experiment: str = "", **options: Unpack[ReportOptions]
) -> Report:
    """Read a results folder and return its report, which a notebook shows as tables.

    Arguments:
        results     the folder that `oodbench.run` or `oodbench run` wrote
        mlflow      address of an MLflow store to read the results from, instead of the folder
        experiment  with `mlflow`: the experiment of one benchmark; by default all are read
        options     options of `oodbench report` with underscores: methods, ood, encoder, id, metrics, sort, top, style,
                    decimals, intervals, seeds, compare, quote and so on; lists may be given in place of
                    comma-separated names

    Returns:
        A Report. `print(report)` prints the tables of the terminal; `to_frame`, `to_latex`, `to_markdown`, `to_csv`,
        `figures` and `save` take the same options, which replace those given here.

    Raises:
        UserError  for a folder without results, unknown options and bad values; it lists all problems
    """
    return Report(gather(Path(results), mlflow, experiment), None if mlflow else Path(results), options)


def gather(results: Path, uri: str, experiment: str) -> LoadedResults:
    """Read the results of a folder, or of an MLflow store. Raise UserError if there are none."""
    if not uri:
        if experiment:
            raise UserError("--experiment selects an experiment in MLflow: give the address with --mlflow URI")
        return from_folder(results)
    from oodbench.tracking import Tracker
    from oodbench.tracking.reader import collect

    return LoadedResults(ordered(collect(Tracker(uri, results, "--mlflow"), experiment)), {})


def _wrong(name: str, value: object) -> str:
    """Return what an option must be if a value has another type, else ""."""
    hint = get_type_hints(ReportOptions)[name]
    if value is None and NoneType in get_args(hint):
        return ""
    if bool in (hint, *get_args(hint)):
        return "" if isinstance(value, bool) else "True or False"
    if int in get_args(hint):
        return "" if isinstance(value, int) and not isinstance(value, bool) else "a whole number"
    if name == "rename" and isinstance(value, Mapping):
        return "" if _texts([*value, *value.values()]) else "texts by name"
    if hint == Texts or name == "rename":
        return "" if isinstance(value, str) or _texts(value) else "a text, or a list of texts"
    return "" if isinstance(value, str) else "a text"


def _texts(value: object) -> bool:
    return isinstance(value, Collection) and all(isinstance(one, str) for one in value)


class Report:
    """The report of some results: tables, in the formats of `oodbench report`. Files are read only once.

    A notebook shows the tables, with the best number of each column in bold and the second underlined.

    Arguments:
        found    the results
        results  their folder, None for results from MLflow
        options  the options of all formats
    """

    def __init__(self, found: LoadedResults, results: Path | None, options: ReportOptions) -> None:
        self._found, self._results, self._given = found, results, options
        for form in ("latex", "csv"):  # whose own options the terminal passes over
            self._request(form, {})
        self._build("terminal", {})

    def __repr__(self) -> str:
        return self._text("terminal", {}).rstrip("\n")

    def _repr_html_(self) -> str:
        """Return the tables as HTML for a notebook, without scripts."""
        from oodbench.report.formats.notebook import html

        return html(self.tables)

    @property
    def tables(self) -> list[Table]:
        """The tables, one for each set of comparable results."""
        return self._build("terminal", {})[0]

    def to_frame(self, **options: Unpack[ReportOptions]) -> pd.DataFrame:
        """Return the numbers in full precision as a DataFrame, with the columns of `oodbench report --format csv`.

        There is one row per result, and with `long=True` one per number, which has the columns set, group, metric,
        value, low, high and n.

        Arguments:
            options  options of `oodbench.report`

        Returns:
            A DataFrame; metrics are fractions, and unknown values are missing.
        """
        import pandas as pd

        from oodbench.report.formats.csv import columns_of, records_of

        tables, table_options, request = self._build("csv", options)
        return pd.DataFrame(columns_of(records_of(tables, table_options, long=request.long)))

    def to_latex(self, **options: Unpack[ReportOptions]) -> str:
        """Return the tables in LaTeX; the options are those of `oodbench.report`, such as style and label."""
        return self._text("latex", options)

    def to_markdown(self, **options: Unpack[ReportOptions]) -> str:
        """Return the tables in Markdown; the options are those of `oodbench.report`."""
        return self._text("markdown", options)

    def to_csv(self, **options: Unpack[ReportOptions]) -> str:
        """Return the numbers as CSV, one line per result, or one per number with `long`."""
        return self._text("csv", options)

    def save(self, path: str | Path, *, data: str | Path | None = None, **options: Unpack[ReportOptions]) -> Path:
        """Write the report to a file, in the format of its suffix.

        Arguments:
            path     NAME.html (a page with figures and the provenance of every number), .tex, .md, .csv, .parquet or
                     .txt
            data     for a page: folder of the datasets with the images for its figures
            options  options of `oodbench.report`

        Returns:
            The path.

        Raises:
            UserError  for another suffix, and if the file cannot be written
        """
        path = Path(path)
        if path.suffix not in _SUFFIXES:
            raise UserError(f"cannot save {path.name}: its suffix must be one of {', '.join(_SUFFIXES)}")
        from oodbench.report.html import FigureSource, render

        tables, table_options, request = self._build(_SUFFIXES[path.suffix], options, path)
        source = FigureSource(self._found.paths, self._results, Path(data) if data else None)
        write(tables, table_options, request, lambda: render(tables, source, table_options))
        return path

    def figures(
        self,
        kinds: Texts = (),
        *,
        width: str | float = "",
        data: str | Path | None = None,
        **options: Unpack[ReportOptions],
    ) -> Iterator[Plot]:
        """Yield the figures, each drawn when it is requested; `plot.png()` and `plot.pdf()` are their files.

        Arguments:
            kinds    some kinds of figures, such as "roc,overview", in this order; () for all (docs/figures.md)
            width    for a paper: "column", "page", inches, or a length such as "84mm"; "" for screens
            data     folder of the datasets, for the figures of mistakes
            options  options of `oodbench.report` that select results: methods, ood, encoder, id, sort, top;
                     and rename

        Raises:
            UserError  for an unknown kind or width, and for options of tables that figures do not use
        """
        from oodbench.report.figures import KINDS, FigureOptions
        from oodbench.report.figures.options import parse_width

        others = [name for name in ReportOptions.__annotations__ if _SPELLED.get(name, name) not in FIGURE_OPTIONS]
        if ignored := [name for name in others if name in options]:
            raise UserError(f"figures() only draws figures; use {', '.join(ignored)} in a separate call")
        table_options, _ = self._request("figures", options)
        size, folder = parse_width(str(width)), Path(data) if data else None
        return self._drawn(
            table_options, FigureOptions(folder, names(kinds) or KINDS, table_options.sets, size, table_options.rename)
        )

    def _drawn(self, options: TableOptions, chosen: FigureOptions) -> Iterator[Plot]:
        from oodbench.report.figures import encoder_plots, table_plots

        results = [table.results for table in figure_tables(self._found.results, options)]
        for rows in results:
            yield from table_plots(rows, self._found.paths, chosen)
        if "encoders" in chosen.kinds:
            yield from encoder_plots(results, chosen)

    def _text(self, form: str, options: Mapping[str, Any]) -> str:
        return render_text(*self._build(form, options))

    def _build(
        self, form: str, options: Mapping[str, Any], output: Path | None = None
    ) -> tuple[list[Table], TableOptions, OutputOptions]:
        """Return the tables of a format with its options. Raise UserError with all problems of these."""
        table_options, request = self._request(form, options, output)
        return build_tables(self._found.results, self._found.paths, table_options, request), table_options, request

    def _request(
        self, form: str, options: Mapping[str, Any], output: Path | None = None
    ) -> tuple[TableOptions, OutputOptions]:
        """Return the options of a format. Raise UserError with all their problems."""
        kept = {name: value for name, value in self._given.items() if form in _ALONE.get(name, (form,))}
        given: dict[str, Any] = {**kept, **options}
        known = list(ReportOptions.__annotations__)
        raise_all([f"no option '{name}'{did_you_mean(name, known)}" for name in given if name not in known])
        wrong = {name: kind for name, value in given.items() if (kind := _wrong(name, value))}
        problems = [f"{name} must be {kind}, not {given.pop(name)!r}" for name, kind in wrong.items()]
        spelled = {_SPELLED.get(name, name): value for name, value in given.items()}
        try:
            table_options = parse({name: value for name, value in spelled.items() if name in _OF_TABLES})
            others = {name: value for name, value in spelled.items() if name not in _OF_TABLES}
            others |= {"quotes": names(others.get("quotes", ())), "compare": is_comparison(others.get("compare", ""))}
            request = OutputOptions(form=form, output=output, **others)
            check_request(request, table_options, self._found.results)
        except UserError as error:
            problems += error.problems
        raise_all(problems)
        return table_options, request
