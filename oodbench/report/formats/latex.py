"""Tables in LaTeX with booktabs."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product

from oodbench.report.formats.latex_text import T1, escape, remark
from oodbench.report.tables.table import EXCEEDS, Cell, Column, Table, TableLine, exceptions, panels

# In points at \footnotesize. 490 is the text width of a two-column paper, and fits on a page of `article`.
_PAGE, _NAME, _LETTER, _SMALL_LETTER, _GAP = 490.0, 130.0, 4.3, 4.6, 5.0
_HEIGHT = 600  # points of a page, with some room for notes
_BETWEEN = 9.0  # between column groups
_ARROWS = {1: r"$\uparrow$", -1: r"$\downarrow$", 0: ""}
_MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "exceeds": r"\textbf{%s}\rlap{$^{!}$}", "": "%s"}
_DAGGER = r"\rlap{$^{\dagger}$}"
CAPTIONS = ("short", "full")
LABEL = re.compile(r"[^\s\\{}%#~^$&,]+")  # valid arguments of \label


def unique(labels: Sequence[str]) -> list[str]:
    """Return unique labels for `\\label`: equal ones are numbered as tab:ood, tab:ood-2; "" is kept."""
    used: Counter[str] = Counter()
    out = []
    for label in labels:
        used[label] += 1
        out.append(f"{label}-{used[label]}" if label and used[label] > 1 else label)
    return out


def latex(table: Table, *, caption: str = "full", label: str = "", even: bool = False) -> str:
    r"""Return a `table*` for the packages of its first comment; tables wider than a page are cut into panels.

    caption  "full", or "short": one line, with the full one and the notes as comments
    label    the argument of `\label`, "" for none
    even     make panels as equal as possible, instead of dividing between near and far
    """
    longest = max(len(line.name) + 3 * len(line.cites) for line in table.lines) * _LETTER
    widths = [_width(table, b) for b in range(len(table.column_groups))]
    cuts = panels(table.column_groups, widths, _PAGE - min(longest, _NAME), even=even)
    first = f"p{{{_NAME:g}pt}}" if longest > _NAME else "l"
    said = described(table, caption, label)
    style = [r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{2.5pt}"]
    out = [*said.comments, r"\begin{table*}[tbp]", style[0], *said.caption, *style[1:]]
    height = above = len(said.caption[1]) / 8  # points: 96 letters a line of 12
    for i, (part, cut) in enumerate(product(_pages(table, _HEIGHT - min(above, _HEIGHT / 2)), cuts)):
        tall = _tall(part.lines)
        height += tall
        if i and height > _HEIGHT:  # LaTeX does not print the part of a float beyond the page
            out += [r"\end{table*}", r"\begin{table*}[tbp]", *style]
            height = tall
        elif i:
            out += [r"\par\medskip"]
        # The box centres a table that is wider than the text instead of pushing it over the right edge.
        out += [r"\makebox[\textwidth][c]{%", *tabular(part, cut, first, between=_BETWEEN), "}"]
    text = "\n".join([*out, *said.notes, r"\end{table*}"]) + "\n"
    return with_remark(text)


def _tall(lines: Sequence[TableLine]) -> float:
    """Return the height of a panel in points."""
    rows = sum(math.ceil((len(line.name) + 3 * len(line.cites)) * _LETTER / _NAME) for line in lines)
    headings = len({(line.encoder, line.section) for line in lines}) + len({line.encoder for line in lines}) - 2
    return 10 * rows + 14 * headings + 70


def _pages(table: Table, height: float) -> list[Table]:
    """Divide a table into parts that are no taller than a page."""
    parts: list[list[TableLine]] = [[]]
    for line in table.lines:
        if parts[-1] and _tall([*parts[-1], line]) > height:
            parts.append([])
        parts[-1].append(line)
    return [replace(table, lines=tuple(part)) for part in parts]


def with_remark(text: str) -> str:
    """Return LaTeX of a table after a comment on the letters that pdflatex lacks, if there are any."""
    text = f"% \\usepackage[T1]{{fontenc}}\n{text}" if T1 & set(text) else text
    lacking = remark(text)
    return f"% The table {lacking}: lualatex or xelatex, and a font that has them.\n{text}" if lacking else text


@dataclass(frozen=True)
class Description:
    r"""Lines of LaTeX around a table: comments before it, `\caption` and `\label`, and notes below it."""

    comments: tuple[str, ...]
    caption: tuple[str, ...]
    notes: tuple[str, ...]


def described(table: Table, caption: str, label: str) -> Description:
    """Return caption and notes, either full or short with the full ones as comments."""
    # No line of a caption breaks between a number and its sign.
    sentences = (escape(part).replace(r" \%", r"~\%").replace(" = ", "~=~") for part in table.caption)
    full = " ".join([rf"\textbf{{{escape(table.title)}.}}", *sentences, *_remarks(table)])
    notes = [escape(note) for note in (*table.notes, *table.footnotes)]
    packages = "booktabs,colortbl" if _shaded(table) else "booktabs"
    comments = [rf"% \usepackage{{{packages}}}"]
    if caption == "short":
        comments += [rf"% \caption{{{full}}}", *(f"% {note}" for note in notes)]
        full, notes = _short(table), [" ".join(brief)] if (brief := _brief(table)) else []
    set_label = [rf"\label{{{label}}}"] if label else []
    return Description(
        tuple(comments),
        (r"\setlength{\belowcaptionskip}{6pt}", rf"\caption{{{full}}}", *set_label),
        tuple(rf"\par\smallskip\parbox{{\linewidth}}{{\raggedright {note}}}" for note in notes),
    )


def _shaded(table: Table) -> bool:
    return any(x.ours for x in table.lines) or any(c.ours for b in table.column_groups for c in b.columns)


def _short(table: Table) -> str:
    """Return a caption of one line: benchmark, encoder, unit, missing OOD sets, and the meaning of the marks."""
    percent = any(sentence.endswith(" in %.") for sentence in table.caption[:1])
    marks = rf" Best{table.within} in \textbf{{bold}}, second \underline{{underlined}}." if table.marked else ""
    unit = r" (\%)" if percent else ""
    title = table.title.replace(f", encoder {table.encoder}", f", {table.encoder}", 1)
    without = f" Without {escape(table.missing)}." if table.missing else ""
    return rf"\textbf{{{escape(title)}}}{unit}.{without}{marks}"


def _brief(table: Table) -> list[str]:
    """Return short notes: the meaning of signs, failed methods, and methods with imported scores."""
    where = "group and column" if table.within else "column"
    return [
        *([rf"$^{{\dagger}}$~Not significantly different from the best of its {where}."] * table.any_not_significant),
        *([rf"$^{{!}}$~{EXCEEDS.capitalize()}"] * table.any_exceeds),
        *(escape(part) for part in (*table.brief, *exceptions(table))),
    ]


def _remarks(table: Table) -> list[str]:
    """Return the meaning of the marks, and the references of the data if they are cited."""
    cited = ", ".join(f"{escape(title)}{_cite(keys)}" for title, keys in table.cites)
    return [
        *([rf"Best in \textbf{{bold}}, second \underline{{underlined}}{table.within}."] if table.marked else []),
        *([rf"$^{{\dagger}}$~{table.not_significant}"] if table.any_not_significant else []),
        *([rf"$^{{!}}$~{EXCEEDS}"] if table.any_exceeds else []),
        *([f"Data: {cited}."] if cited else []),
    ]


def _cite(keys: Sequence[str]) -> str:
    return rf"~\cite{{{','.join(keys)}}}" if keys else ""


def _width(table: Table, b: int) -> float:
    group = table.column_groups[b]
    longest = [max((len(line.cells[b][c].plain) for line in table.lines), default=0) for c in range(len(group.columns))]
    columns = sum(
        max(len(column.title) * _SMALL_LETTER + 4, cell * _LETTER if cell > 6 else 20) + _GAP
        for column, cell in zip(group.columns, longest, strict=True)
    )
    return max(columns - _GAP, len(group.title) * _LETTER, len(group.partial) * _LETTER * 0.9) + _BETWEEN


def tabular(
    table: Table, cut: Sequence[int], first: str, *, between: float = 0, heads: str = r"\scriptsize "
) -> list[str]:
    """Return a `tabular` of some column groups.

    cut      positions of the column groups
    first    the column specification of the names
    between  points between column groups, 0 for as much as between columns
    heads    the font of the metrics' names
    """
    column_groups = [table.column_groups[i] for i in cut]
    # colortbl does not shade the space from @{} between columns.
    gap = "" if not between else ">{{\\hspace{{{:g}pt}}}}" if _shaded(table) else "@{{\\hspace{{{:g}pt}}}}"
    space = gap.format(between - _GAP if gap[:1] == ">" else between)
    shade = r">{\columncolor[gray]{.92}}r"
    columns = "".join(f"{space}{''.join(shade if c.ours else 'r' for c in b.columns)}" for b in column_groups)
    out = [rf"\begin{{tabular}}{{{first}{columns}}}", r"\toprule"]
    if table.grouped:
        runs = groupby(column_groups, key=lambda b: table.heading(b.group))
        out += _heading((escape(name), sum(len(b.columns) for b in run)) for name, run in runs)
    if table.first and any(b.title for b in column_groups):
        partial = [rf"\scriptsize {escape(b.partial)}" if b.partial else "" for b in column_groups]
        below = [_spans((text, len(b.columns)) for text, b in zip(partial, column_groups, strict=True))]
        titles = ((escape(b.title), len(b.columns)) for b in column_groups)
        out += _heading(titles, below if any(partial) else [])
    metrics = [f"{heads}{_head(column)}" for b in column_groups for column in b.columns]
    out += [" & ".join([escape(table.first), *metrics]) + r" \\"]
    width = 1 + sum(len(b.columns) for b in column_groups)
    extras = _extras(table)
    for encoder, lines in groupby(table.lines, key=lambda line: line.encoder):
        if encoder:
            out += [r"\midrule", rf"\multicolumn{{{width}}}{{c}}{{\textbf{{{escape(encoder)}}}}} \\"]
        for section, members in groupby(lines, key=lambda line: line.section):
            out.append(r"\midrule")
            if section:
                out.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape(section)}}}}} \\")
            out += [_row(line, cut, first, extras) for line in members]
    return [*out, r"\bottomrule", r"\end{tabular}%"]


def _heading(spans: Iterable[tuple[str, int]], below: Sequence[str] = ()) -> list[str]:
    """Return a line of headings, lines below it, and the rules below those that span columns."""
    known = list(spans)
    rules, start = [], 2
    for text, span in known:
        if text and span > 1:
            rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    return [_spans(known), *below, *(["".join(rules)] if rules else [])]


def _spans(spans: Iterable[tuple[str, int]]) -> str:
    cells = [rf"\multicolumn{{{span}}}{{{'c' if span > 1 else 'r'}}}{{{text}}}" for text, span in spans]
    return " & ".join(["", *cells]) + r" \\"


def _head(column: Column) -> str:
    return escape(column.title) + _ARROWS[column.better]


def _extras(table: Table) -> dict[tuple[int, int], str]:
    """Return the longest text after a number in each column, by column group and position."""
    return {
        (b, c): max((line.cells[b][c].extra for line in table.lines), key=len)
        for b, group in enumerate(table.column_groups)
        for c in range(len(group.columns))
    }


def _row(line: TableLine, cut: Sequence[int], first: str, extras: Mapping[tuple[int, int], str]) -> str:
    name = escape(line.name) + _cite(line.cites)
    named = name if first == "l" else rf"\raggedright {name}"
    shade = r"\rowcolor[gray]{.92} " if line.ours else ""
    cells = (_cell(cell, extras[i, c]) for i in cut for c, cell in enumerate(line.cells[i]))
    return shade + " & ".join([named, *cells]) + r" \\"


def _cell(cell: Cell, longest: str) -> str:
    """Return a number and its extra text in a box as wide as the column's longest, so that numbers align."""
    text = _MARKS[cell.mark] % (cell.text.replace("-", "$-$") if cell.value is not None else "--")
    sign = _DAGGER if cell.not_significantly_different else ""
    if cell.extra:
        return rf"{text}{{\scriptsize\,{_extra(cell.extra, len(longest))}}}{sign}"
    return rf"{text}{sign}\phantom{{{{\scriptsize\,{_extra(longest, 0)}}}}}" if longest else text + sign


def _extra(text: str, length: int) -> str:
    room = rf"\phantom{{{'0' * (length - len(text))}}}" if length > len(text) else ""
    return text.replace("± ", rf"$\pm${room}").replace(", ", r",\,") + ("" if "± " in text else room)
