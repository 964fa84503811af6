"""Rendering: tables, pictures and rows -> the text of the page. The only file that imports jinja2."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from oodbench.printable import printable
from oodbench.report.html.figures import Gallery, Source, gallery
from oodbench.report.html.record import Records
from oodbench.report.html.view import View, view
from oodbench.report.options import Options
from oodbench.report.tables.table import Line, Table

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

HERE = Path(__file__).parent


def render(tables: Sequence[Table], source: Source, options: Options, pictures: bool | None = None) -> str:
    """The page. It asks for nothing from a network, and every name in it is text.

    Pictures are of rows with their scores per image beside them; None: where there are few tables (`gallery.MOST`).
    """
    records = Records(source.paths, source.results, options.sets)
    views = [view(number, table, records) for number, table in enumerate(tables, 1)]
    shown = gallery(tables, source, options.sets, pictures)
    return _text(_page(views, shown, records, tables))


def _page(views: Sequence[View], pictures: Gallery, records: Records, tables: Sequence[Table]) -> str:
    style, *scripts = ((HERE / name).read_text(encoding="utf-8") for name in ("page.css", "table.js", "panel.js"))
    benchmarks, encoders = _distinct(v.benchmark for v in views), _distinct(v.encoder for v in views)
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_allowed, scripts))}; style-src {_allowed(style)}; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=benchmarks[0] if len(benchmarks) == 1 else f"{len(benchmarks)} benchmarks",
            policy=policy,
            style=style,
            scripts=scripts,
            views=views,
            benchmarks=benchmarks,
            encoders=encoders,
            sets=_sets(views),
            gallery=pictures,
            records=records,
            created=_span(line for table in tables for line in table.lines),
        )
    )


def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_printable,
    )
    found.filters["size"] = lambda size: f"{size / 1e6:.1f} MB" if size > 950_000 else f"{size / 1e3:.0f} kB"
    found.filters["literal"] = _literal
    return found


def _printable(value: object) -> object:
    """Every name in the page; the page's own parts and the records' JSON are markup, and stay."""
    return printable(value) if type(value) is str else value


def _literal(text: str) -> Markup:
    """Text for an element, with its quotation marks as they are: JSON would be half as long again without."""
    from markupsafe import Markup

    return Markup(text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;"))


def _allowed(text: str) -> str:
    """The one script or style that may run, by its hash."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _distinct(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _sets(views: Iterable[View]) -> dict[str, str]:
    """OOD sets of all tables by name, with their titles."""
    return {head.name: head.title for v in views for head in v.heads if head.is_set}


def _span(lines: Iterable[Line]) -> str:
    """First and last day on which rows were made; "" when rows do not say."""
    days = sorted({row.created[:10] for line in lines for row in line.rows if row.created})
    return " to ".join(dict.fromkeys((days[0], days[-1]))) if days else ""


def _text(html: str) -> str:
    """Fit for a file: bytes of a file name that are not UTF-8 become escapes."""
    return html.encode("utf-8", "backslashreplace").decode()
