"""LaTeX with booktabs."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from oodbench.errors import printable
from oodbench.report.tables.table import EXCEEDS, NOT_SIGNIFICANT, Cell, Column, Line, Table, panels

_GREEK = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi o pi rho varsigma sigma tau upsilon phi"
    " chi psi omega"
).split()
_CAPITAL = {"Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma"}
_CAPITAL |= {"Υ": "Upsilon", "Φ": "Phi", "Ψ": "Psi", "Ω": "Omega"}
_LIKE_LATIN = dict(zip("ΑΒΕΖΗΙΚΜΝΟΡΤΧ", "ABEZHIKMNOPTX", strict=True))
_SIGNS = {
    **dict(zip("≥≤≠≈≡∼≃∝", "geq leq neq approx equiv sim simeq propto".split(), strict=True)),
    **dict(
        zip(
            "→←↔⇒⇐⇔↦",
            "rightarrow leftarrow leftrightarrow Rightarrow Leftarrow Leftrightarrow mapsto".split(),
            strict=True,
        )
    ),
    **dict(zip("∈∉∪∩⊂⊆∅∀∃", "in notin cup cap subset subseteq emptyset forall exists".split(), strict=True)),
    **dict(
        zip("∞√∑∏∫∂∇∘⋅⊕⊗ℓ", "infty surd sum prod int partial nabla circ cdot oplus otimes ell".split(), strict=True)
    ),
    "∗": "ast",
    "∣": "mid",
    "∥": "parallel",
    "⟨": "langle",
    "⟩": "rangle",
    "ϵ": "epsilon",
    "ϕ": "phi",
    "ϑ": "vartheta",
    "″": "prime\\prime",
    "′": "prime",
}
MATH = {
    **{chr(0x3B1 + i): "o" if name == "o" else f"\\{name}" for i, name in enumerate(_GREEK)},
    **{sign: f"\\{name}" for sign, name in (_SIGNS | _CAPITAL).items()},
    **{letter: rf"\mathrm{{{latin}}}" for letter, latin in _LIKE_LATIN.items()},
    **{chr(0x2080 + digit): f"_{digit}" for digit in range(10)},
    **{chr(0x2070 + digit): f"^{digit}" for digit in (0, *range(4, 10))},
}
_ACCENTS = {"\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": "."}
_ACCENTS |= {"\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0323": "d", "\u0327": "c", "\u0331": "b"}
_IN_MATH = {"\u0301": "acute", "\u0300": "grave", "\u0308": "ddot", "\u0302": "hat", "\u0303": "tilde", "\u0304": "bar"}
_CLUSTER = re.compile("(.)([\u0300-\u036f]*)", re.DOTALL)
_SELECTORS = re.compile("[\ufe00-\ufe0f]")  # of a sign's variant; they print nothing

# What pdflatex has in the encodings T1 and TS1.
_LACKING = "ĦħĸĿŀŉŦŧſ"
_LATIN = {chr(code) for code in (*range(0xA0, 0x180), *range(0x218, 0x21C))} - set(_LACKING)
BASIC = _LATIN | set("‐‑‒–—‖‘’‚“”„†‡•…‰‱‹›€™№")
_BEYOND = re.compile(f"[^\\x00-\\x7f{''.join(sorted(BASIC))}]+")

_FONTS = (
    "DejaVu Serif",
    "FreeSerif",
    "Noto Serif",
    "Noto Serif CJK SC",
    "Noto Sans CJK SC",
    "Source Han Serif SC",
    "WenQuanYi Zen Hei",
    "DejaVu Sans",
    "Noto Sans",
    "Symbola",
    "Noto Emoji",
)
_UNICODE = r"""\makeatletter
\newcount\oodcount
\def\oodfonts{}
\newcommand\oodfont[1]{\IfFontExistsTF{#1}{\advance\oodcount by 1
  \expandafter\newfontfamily\csname oodface\romannumeral\oodcount\endcsname{#1}%
  \edef\oodfonts{\oodfonts,\romannumeral\oodcount}}{}}
FONTS
\def\oodtest#1{\def\oodall{1}\@for\oodcode:=#1\do{\iffontchar\font"\oodcode\relax\else\def\oodall{0}\fi}}
% Codes in the first font that has them all, the text's own or another; as codes where there is none.
\DeclareRobustCommand\oodrun[1]{\begingroup\def\oodfound{}%
  \@for\oodname:=\oodfonts\do{\ifx\oodfound\@empty
    {\csname oodface\oodname\endcsname\oodtest{#1}%
      \if1\oodall\global\let\oodthis\oodname\else\global\let\oodthis\relax\fi}%
    \ifx\oodthis\relax\else\def\oodfound{x}\let\oodchosen\oodthis\fi\fi}%
  \ifx\oodfound\@empty\@for\oodcode:=#1\do{\texttt{U+\oodcode}\hspace{0pt}}%
  \else\csname oodface\oodchosen\endcsname\@for\oodcode:=#1\do{\char"\oodcode\relax}\fi\endgroup}
\makeatother"""
_CODES = (
    r"\makeatletter\DeclareRobustCommand\oodrun[1]{\@for\oodcode:=#1\do{\texttt{U+\oodcode}\hspace{0pt}}}\makeatother"
)


def letters(text: str) -> list[str]:
    """Characters with the accents that stand on them, in one character where there is one; no variation selectors."""
    composed = _SELECTORS.sub("", unicodedata.normalize("NFC", text))
    return [found[0] for found in _CLUSTER.finditer(composed)]


def commanded(letter: str) -> str:
    """LaTeX of a letter that needs commands: accents that have no character, Greek, a sign; "" for others."""
    if letter.isascii() or letter in BASIC:
        return ""
    if letter in MATH:
        return rf"\ensuremath{{{MATH[letter]}}}"
    base, *marks = list(unicodedata.normalize("NFD", letter))
    if base in MATH and len(marks) == 1 and marks[0] in _IN_MATH:  # as in modern Greek
        return rf"\ensuremath{{\{_IN_MATH[marks[0]]}{{{MATH[base]}}}}}"
    if base.isascii() and base.isalpha() and set(marks) <= set(_ACCENTS):
        for mark in marks:
            base = rf"\{_ACCENTS[mark]}{{{base}}}"
        return base
    return ""


def beyond(latex: str) -> str:
    """The characters of some LaTeX that pdflatex has no letters for, once each."""
    return "".join(dict.fromkeys("".join(_BEYOND.findall(latex))))


def as_codes(latex: str) -> str:
    r"""LaTeX of ASCII and `BASIC` alone: other characters are codes in an `\oodrun`, which `preamble` defines."""
    return _BEYOND.sub(lambda run: rf"\oodrun{{{','.join(f'{ord(c):04X}' for c in run[0])}}}", latex)


def preamble(latex: str) -> str:
    """What a document that holds some LaTeX loads for its letters, with every engine."""
    if latex.isascii():
        return r"\usepackage[utf8]{inputenc}"
    codes, fonts = beyond(latex), "\n".join(rf"\oodfont{{{font}}}" for font in _FONTS)
    return "\n".join(
        [
            r"\usepackage{iftex}",
            r"\iftutex",
            r"\usepackage{fontspec}",
            *([_UNICODE.replace("FONTS", fonts)] if codes else []),
            r"\else",
            r"\usepackage[utf8]{inputenc}",
            r"\usepackage[T1]{fontenc}",
            r"\usepackage{textcomp}",
            r"\IfFileExists{lmodern.sty}{\usepackage{lmodern}}{}",
            *([_CODES] if codes else []),
            r"\fi",
        ]
    )


def remark(latex: str) -> str:
    """One sentence on what pdflatex cannot set of some LaTeX, "" when it can all."""
    found = beyond(latex)
    if not found:
        return ""
    return f"holds {len(found)} letters that pdflatex lacks ({found[:12]}{'...' if len(found) > 12 else ''})"


# In points at \footnotesize. 490 is the text of a two-column paper, and lies within the paper's edges in `article`.
_PAGE, _NAME, _LETTER, _SMALL_LETTER, _GAP = 490.0, 130.0, 4.3, 4.6, 5.0
_BETWEEN = 9.0  # between blocks
_ARROWS = {1: r"$\uparrow$", -1: r"$\downarrow$", 0: ""}
_MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "beyond": r"\textbf{%s}\rlap{$^{!}$}", "": "%s"}
_ALIKE = r"\rlap{$^{\dagger}$}"
_ESCAPES = str.maketrans(
    {
        **{c: f"\\{c}" for c in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        "↑": r"$\uparrow$",
        "↓": r"$\downarrow$",
        "±": r"$\pm$",
        "−": "$-$",
        "†": r"$^{\dagger}$",
        # A row that starts with one of these would be read as the option of the line break before it.
        **{c: f"{{{c}}}" for c in "[]*"},
    }
)
_LIGATURE = re.compile(r"-(?=-)|'(?=')|`(?=`)|[?!](?=`)")


def latex(table: Table) -> str:
    r"""A `table*` that compiles with \usepackage{booktabs}; what is too wide for a page is cut into panels."""
    longest = max(len(line.name) + 3 * len(line.cites) for line in table.lines) * _LETTER
    widths = [_width(table, b) for b in range(len(table.blocks))]
    cuts = panels(table.blocks, widths, _PAGE - min(longest, _NAME))
    first = f"p{{{_NAME:g}pt}}" if longest > _NAME else "l"
    # No line of a caption ends between a number and its sign.
    said = (escape(part).replace(r" \%", r"~\%").replace(" = ", "~=~") for part in table.caption)
    caption = " ".join([rf"\textbf{{{escape(table.title)}.}}", *said, *_remarks(table)])
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
    text = "\n".join([*out, r"\end{table*}"]) + "\n"
    lacking = remark(text)
    return f"% The table {lacking}: lualatex or xelatex, and a font that has them.\n{text}" if lacking else text


def _remarks(table: Table) -> list[str]:
    """What the marks mean, and where the data come from when names are cited."""
    cited = ", ".join(f"{escape(title)}{_cite(keys)}" for title, keys in table.cites)
    return [
        *(["Best in \\textbf{bold}, second \\underline{underlined}."] if table.marked else []),
        *([rf"$^{{\dagger}}$~{NOT_SIGNIFICANT}"] if table.alike else []),
        *([rf"$^{{!}}$~{EXCEEDS}"] if table.beyond else []),
        *([f"Data: {cited}."] if cited else []),
    ]


def _cite(keys: Sequence[str]) -> str:
    return rf"~\cite{{{','.join(keys)}}}" if keys else ""


def escape(text: str) -> str:
    """Text that LaTeX prints as it is, on one line."""
    words = " ".join(printable(text).split())
    escaped = (commanded(letter) or letter.translate(_ESCAPES) for letter in letters(words))
    return _LIGATURE.sub(r"\g<0>{}", "".join(escaped))


def _width(table: Table, b: int) -> float:
    block = table.blocks[b]
    longest = [max((len(line.cells[b][c].plain) for line in table.lines), default=0) for c in range(len(block.columns))]
    columns = sum(
        max(len(column.title) * _SMALL_LETTER + 4, cell * _LETTER if cell > 6 else 20) + _GAP
        for column, cell in zip(block.columns, longest, strict=True)
    )
    return max(columns - _GAP, len(block.title) * _LETTER, len(block.stamp) * _LETTER * 0.9) + _BETWEEN


def _panel(table: Table, cut: Sequence[int], first: str) -> list[str]:
    blocks = [table.blocks[i] for i in cut]
    columns = "".join(rf"@{{\hspace{{{_BETWEEN:g}pt}}}}{'r' * len(b.columns)}" for b in blocks)
    out = [rf"\begin{{tabular}}{{{first}{columns}}}", r"\toprule"]
    if table.grouped:
        kind = " OOD" if table.first else ""  # across a transposed table stand methods
        runs = [(name, sum(len(b.columns) for b in run)) for name, run in groupby(blocks, key=lambda b: b.group)]
        out += _heading((f"{escape(name.capitalize())}{kind}" if name else "", span) for name, span in runs)
    if table.first and any(b.title for b in blocks):
        out += _heading((escape(b.title), len(b.columns)) for b in blocks)
    if any(b.stamp for b in blocks):
        stamps = (rf"\scriptsize {escape(b.stamp)}" if b.stamp else "" for b in blocks)
        out.insert(-1, _spans(zip(stamps, (len(b.columns) for b in blocks), strict=True)))
    heads = [rf"\scriptsize {_head(column)}" for b in blocks for column in b.columns]
    out += [" & ".join([table.first, *heads]) + r" \\"]
    width = 1 + sum(len(b.columns) for b in blocks)
    extras = _extras(table)
    for section, lines in groupby(table.lines, key=lambda line: line.section):
        out.append(r"\midrule")
        if section:
            out.append(rf"\multicolumn{{{width}}}{{l}}{{\textit{{{escape(section)}}}}} \\")
        out += [_row(line, cut, first, extras) for line in lines]
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


def _extras(table: Table) -> dict[tuple[int, int], str]:
    """The longest of what follows the numbers of each column, by block and place."""
    return {
        (b, c): max((line.cells[b][c].extra for line in table.lines), key=len)
        for b, block in enumerate(table.blocks)
        for c in range(len(block.columns))
    }


def _row(line: Line, cut: Sequence[int], first: str, extras: Mapping[tuple[int, int], str]) -> str:
    name = escape(line.name) + _cite(line.cites)
    named = name if first == "l" else rf"\raggedright {name}"
    cells = (_cell(cell, extras[i, c]) for i in cut for c, cell in enumerate(line.cells[i]))
    return " & ".join([named, *cells]) + r" \\"


def _cell(cell: Cell, longest: str) -> str:
    """A number, and what follows it in a box as wide as the column's longest, so that numbers align."""
    text = _MARKS[cell.mark] % (cell.text.replace("-", "$-$") if cell.value is not None else "--")
    sign = _ALIKE if cell.alike else ""
    if cell.extra:
        return rf"{text}{{\scriptsize\,{_extra(cell.extra, len(longest))}}}{sign}"
    return rf"{text}{sign}\phantom{{{{\scriptsize\,{_extra(longest, 0)}}}}}" if longest else text + sign


def _extra(text: str, length: int) -> str:
    room = rf"\phantom{{{'0' * (length - len(text))}}}" if length > len(text) else ""
    return text.replace("± ", rf"$\pm${room}").replace(", ", r",\,")
