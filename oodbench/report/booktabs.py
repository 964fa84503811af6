"""LaTeX with booktabs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import groupby

from oodbench.report.panels import panels
from oodbench.report.table import Block, Cell, Column, Line, Table

# In points at \footnotesize. 490 is the text of a two-column paper, and lies within the paper's edges in `article`.
_PAGE, _NAME, _LETTER, _SMALL_LETTER, _GAP = 490.0, 130.0, 4.3, 4.6, 5.0
_BETWEEN = 9.0  # between blocks
_ARROWS = {1: r"$\uparrow$", -1: r"$\downarrow$", 0: ""}
_MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "": "%s"}
_ESCAPES = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        # A row that starts with one of these would be read as the option of the line break before it.
        **{c: f"{{{c}}}" for c in "[]*"},
    }
)
_LIGATURE = re.compile(r"-(?=-)|'(?=')|`(?=`)|[?!](?=`)")


def latex(table: Table) -> str:
    r"""A `table*` that compiles with \usepackage{booktabs}; what is too wide for a page is cut into panels."""
    longest = max(len(line.name) for line in table.lines) * _LETTER
    cuts = panels(table.blocks, _width, _PAGE - min(longest, _NAME))
    first = f"p{{{_NAME:g}pt}}" if longest > _NAME else "l"
    remarks = ["Best in \\textbf{bold}, second \\underline{underlined}."] if table.marked else []
    # No line of a caption ends between a number and its sign.
    said = (escape(part).replace(r" \%", r"~\%").replace(" = ", "~=~") for part in table.caption)
    caption = " ".join([rf"\textbf{{{escape(table.title)}.}}", *said, *remarks])
    out = [
        r"% \usepackage{booktabs}",
        r"\begin{table*}[tbp]",
        r"\centering",
        r"\setlength{\belowcaptionskip}{6pt}",
        rf"\caption{{{caption}}}",
        r"\footnotesize",
        r"\setlength{\tabcolsep}{2.5pt}",
    ]
    for i, cut in enumerate(cuts):
        out += [r"\par\medskip"] if i else []
        # The box centres a table that is wider than the text instead of pushing it over the right edge.
        out += [r"\makebox[\textwidth][c]{%", *_panel(table, cut, first), "}"]
    for note in table.notes:
        out.append(rf"\par\smallskip\parbox{{\textwidth}}{{\raggedright {escape(note)}}}")
    return "\n".join([*out, r"\end{table*}"]) + "\n"


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    return _LIGATURE.sub(r"\g<0>{}", " ".join(text.split()).translate(_ESCAPES))


def _width(block: Block) -> float:
    columns = sum(max(len(c.title) * _SMALL_LETTER + 4, 20) + _GAP for c in block.columns)
    return max(columns - _GAP, len(block.title) * _LETTER, len(block.stamp) * _LETTER * 0.9) + _BETWEEN


def _panel(table: Table, cut: Sequence[int], first: str) -> list[str]:
    blocks = [table.blocks[i] for i in cut]
    columns = "".join(rf"@{{\hspace{{{_BETWEEN:g}pt}}}}{'r' * len(b.columns)}" for b in blocks)
    out = [rf"\begin{{tabular}}{{{first}{columns}}}", r"\toprule"]
    if table.grouped:
        runs = [(name, sum(len(b.columns) for b in run)) for name, run in groupby(blocks, key=lambda b: b.group)]
        out += _heading((f"{escape(name.capitalize())} OOD" if name else "", span) for name, span in runs)
    out += _heading((escape(b.title), len(b.columns)) for b in blocks)
    if any(b.stamp for b in blocks):
        stamps = (rf"\scriptsize {escape(b.stamp)}" if b.stamp else "" for b in blocks)
        out.insert(-1, _spans(zip(stamps, (len(b.columns) for b in blocks), strict=True)))
    heads = [rf"\scriptsize {_head(column)}" for b in blocks for column in b.columns]
    out += [" & ".join(["Method", *heads]) + r" \\", r"\midrule"]
    out += [_row(line, cut, first) for line in table.lines]
    return [*out, r"\bottomrule", r"\end{tabular}%"]


def _heading(spans: Iterable[tuple[str, int]]) -> list[str]:
    """A line of headings, and the rules below those that span columns."""
    known = list(spans)
    rules, start = [], 2
    for text, span in known:
        if text and span > 1:
            rules.append(rf"\cmidrule(lr){{{start}-{start + span - 1}}}")
        start += span
    return [_spans(known), "".join(rules)]


def _spans(spans: Iterable[tuple[str, int]]) -> str:
    cells = [rf"\multicolumn{{{span}}}{{{'c' if span > 1 else 'r'}}}{{{text}}}" for text, span in spans]
    return " & ".join(["", *cells]) + r" \\"


def _head(column: Column) -> str:
    return escape(column.title) + _ARROWS[column.better]


def _row(line: Line, cut: Sequence[int], first: str) -> str:
    name = escape(line.name) if first == "l" else rf"\raggedright {escape(line.name)}"
    return " & ".join([name, *(_cell(cell) for i in cut for cell in line.cells[i])]) + r" \\"


def _cell(cell: Cell) -> str:
    return _MARKS[cell.mark] % (cell.text if cell.value is not None else "--")
