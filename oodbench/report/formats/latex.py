"""Tables in LaTeX with booktabs.

pdflatex has letters of the Latin alphabet and mathematical signs; other scripts need LuaLaTeX or XeLaTeX and a font.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from oodbench.errors import printable
from oodbench.report.tables.table import EXCEEDS, Cell, Column, Table, TableLine, panels

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
_SELECTORS = re.compile("[\ufe00-\ufe0f]")  # of a sign's variant; they are invisible

# What pdflatex has in the encodings T1 and TS1.
_LACKING = "ĦħĸĿŀŉŦŧſ"
_LATIN = {chr(code) for code in (*range(0xA0, 0x180), *range(0x218, 0x21C))} - set(_LACKING)
BASIC = _LATIN | set("‐‑‒–—‖‘’‚“”„†‡•…‰‱‹›€™№")
_UNSUPPORTED = re.compile(f"[^\\x00-\\x7f{''.join(sorted(BASIC))}]+")

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
% Codes in the first font that has them all, the text's own or another; printed as codes if there is none.
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
    """Return characters with their accents, composed if possible, without variation selectors."""
    composed = _SELECTORS.sub("", unicodedata.normalize("NFC", text))
    return [found[0] for found in _CLUSTER.finditer(composed)]


def as_command(letter: str) -> str:
    """Return LaTeX of a letter that needs commands (a combined accent, Greek, a sign), or "" for others."""
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


def unsupported(latex: str) -> str:
    """Return the characters of LaTeX text that pdflatex cannot print, once each."""
    return "".join(dict.fromkeys("".join(_UNSUPPORTED.findall(latex))))


def as_codes(latex: str) -> str:
    r"""Return LaTeX of ASCII and `BASIC`: other characters become codes in `\oodrun`, which `preamble` defines."""
    return _UNSUPPORTED.sub(lambda run: rf"\oodrun{{{','.join(f'{ord(c):04X}' for c in run[0])}}}", latex)


def preamble(latex: str) -> str:
    """Return the packages that a document needs for the letters of some LaTeX, with every engine."""
    if latex.isascii():
        return r"\usepackage[utf8]{inputenc}"
    codes, fonts = unsupported(latex), "\n".join(rf"\oodfont{{{font}}}" for font in _FONTS)
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
    """Return a clause on the letters that pdflatex cannot print, or "" if it can print all."""
    found = unsupported(latex)
    if not found:
        return ""
    return f"holds {len(found)} letters that pdflatex lacks ({found[:12]}{'...' if len(found) > 12 else ''})"


# In points at \footnotesize. 490 is the width of text in a two-column paper, and fits on the paper in `article`.
_PAGE, _NAME, _LETTER, _SMALL_LETTER, _GAP = 490.0, 130.0, 4.3, 4.6, 5.0
_HEIGHT = 600  # points: of a page, with some room for notes
_BETWEEN = 9.0  # between column groups
_ARROWS = {1: r"$\uparrow$", -1: r"$\downarrow$", 0: ""}
_MARKS = {"best": r"\textbf{%s}", "second": r"\underline{%s}", "exceeds": r"\textbf{%s}\rlap{$^{!}$}", "": "%s"}
_DAGGER = r"\rlap{$^{\dagger}$}"
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


CAPTIONS = ("short", "full")
LABEL = re.compile(r"[^\s\\{}%#~^$&,]+")  # what \label can hold


def unique(labels: Sequence[str]) -> list[str]:
    """Return labels for `\\label`, of which equal ones are numbered: tab:ood, tab:ood-2; "" for none stays."""
    used: Counter[str] = Counter()
    out = []
    for label in labels:
        used[label] += 1
        out.append(f"{label}-{used[label]}" if label and used[label] > 1 else label)
    return out


def latex(table: Table, *, caption: str = "full", label: str = "") -> str:
    r"""Return a `table*` for the packages of its first comment; tables wider than a page are cut into panels.

    caption  "full", or "short": one line, with the full one and the notes as comments
    label    the argument of `\label`, "" for none
    """
    longest = max(len(line.name) + 3 * len(line.cites) for line in table.lines) * _LETTER
    widths = [_width(table, b) for b in range(len(table.column_groups))]
    cuts = panels(table.column_groups, widths, _PAGE - min(longest, _NAME))
    first = f"p{{{_NAME:g}pt}}" if longest > _NAME else "l"
    said = described(table, caption, label)
    style = [r"\centering", r"\footnotesize", r"\setlength{\tabcolsep}{2.5pt}"]
    out = [*said.comments, r"\begin{table*}[tbp]", style[0], *said.caption, *style[1:]]
    height = len(said.caption[1]) / 8  # points: 96 letters a line of 12
    tall = sum(10 * math.ceil((len(line.name) + 3 * len(line.cites)) * _LETTER / _NAME) for line in table.lines) + 70
    tall += 14 * (
        len({(line.encoder, line.section) for line in table.lines}) + len({x.encoder for x in table.lines}) - 2
    )
    for i, cut in enumerate(cuts):
        height += tall
        if i and height > _HEIGHT:  # what does not fit on a page is not printed
            out += [r"\end{table*}", r"\begin{table*}[tbp]", *style]
            height = tall
        elif i:
            out += [r"\par\medskip"]
        # The box centres a table that is wider than the text instead of pushing it over the right edge.
        out += [r"\makebox[\textwidth][c]{%", *tabular(table, cut, first, between=_BETWEEN), "}"]
    text = "\n".join([*out, *said.notes, r"\end{table*}"]) + "\n"
    return with_remark(text)


def with_remark(text: str) -> str:
    """Return LaTeX of a table after a comment on the letters that pdflatex lacks, if there are any."""
    lacking = remark(text)
    return f"% The table {lacking}: lualatex or xelatex, and a font that has them.\n{text}" if lacking else text


@dataclass(frozen=True)
class Description:
    r"""Lines of LaTeX around a table: comments before it, `\caption` and `\label`, and notes below it."""

    comments: tuple[str, ...]
    caption: tuple[str, ...]
    notes: tuple[str, ...]


def described(table: Table, caption: str, label: str) -> Description:
    """Return caption and notes, in full, or short with the full ones as comments."""
    # No line of a caption breaks between a number and its sign.
    sentences = (escape(part).replace(r" \%", r"~\%").replace(" = ", "~=~") for part in table.caption)
    full = " ".join([rf"\textbf{{{escape(table.title)}.}}", *sentences, *_remarks(table)])
    notes = [escape(note) for note in (*table.notes, *table.footnotes)]
    packages = "booktabs,colortbl" if any(line.ours for line in table.lines) else "booktabs"
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


def _short(table: Table) -> str:
    """Return a caption of one line: benchmark and encoder, the unit, and what the marks mean."""
    percent = any(sentence.endswith(" in %.") for sentence in table.caption[:1])
    marks = rf" Best{table.within} in \textbf{{bold}}, second \underline{{underlined}}." if table.marked else ""
    unit = r" (\%)" if percent else ""
    title = table.title.replace(f", encoder {table.encoder}", f", {table.encoder}", 1)
    return rf"\textbf{{{escape(title)}}}{unit}.{marks}"


def _brief(table: Table) -> list[str]:
    """Return notes in a few words: what signs mean, which methods failed, and whose scores are imported."""
    failed = [line.name for line in table.lines if line.result and line.result.status != "ok"]
    imported = [line.name for line in table.lines if line.result and line.result.imported]
    where = "group and column" if table.within else "column"
    return [
        *([rf"$^{{\dagger}}$~Not significantly different from the best of its {where}."] * table.any_not_significant),
        *([rf"$^{{!}}$~{EXCEEDS.capitalize()}"] * table.any_exceeds),
        *(escape(part) for part in table.brief),
        *([f"Failed: {escape(', '.join(failed))}."] if failed else []),
        *([f"Imported scores: {escape(', '.join(imported))}."] if imported else []),
    ]


def _remarks(table: Table) -> list[str]:
    """Return what the marks mean, and the references of the data if they are cited."""
    cited = ", ".join(f"{escape(title)}{_cite(keys)}" for title, keys in table.cites)
    return [
        *([rf"Best in \textbf{{bold}}, second \underline{{underlined}}{table.within}."] if table.marked else []),
        *([rf"$^{{\dagger}}$~{table.not_significant}"] if table.any_not_significant else []),
        *([rf"$^{{!}}$~{EXCEEDS}"] if table.any_exceeds else []),
        *([f"Data: {cited}."] if cited else []),
    ]


def _cite(keys: Sequence[str]) -> str:
    return rf"~\cite{{{','.join(keys)}}}" if keys else ""


def escape(text: str) -> str:
    """Escape text for LaTeX, on one line."""
    words = " ".join(printable(text).split())
    escaped = (as_command(letter) or letter.translate(_ESCAPES) for letter in letters(words))
    return _LIGATURE.sub(r"\g<0>{}", "".join(escaped))


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
    # colortbl leaves what @{} puts between columns white.
    gap = (
        ""
        if not between
        else ">{{\\hspace{{{:g}pt}}}}"
        if any(x.ours for x in table.lines)
        else "@{{\\hspace{{{:g}pt}}}}"
    )
    space = gap.format(between - _GAP if gap[:1] == ">" else between)
    columns = "".join(f"{space}{'r' * len(b.columns)}" for b in column_groups)
    out = [rf"\begin{{tabular}}{{{first}{columns}}}", r"\toprule"]
    if table.grouped:
        runs = groupby(column_groups, key=lambda b: table.heading(b.group))
        out += _heading((escape(name), sum(len(b.columns) for b in run)) for name, run in runs)
    if table.first and any(b.title for b in column_groups):
        out += _heading((escape(b.title), len(b.columns)) for b in column_groups)
    if any(b.partial for b in column_groups):
        partial = (rf"\scriptsize {escape(b.partial)}" if b.partial else "" for b in column_groups)
        out.insert(-1, _spans(zip(partial, (len(b.columns) for b in column_groups), strict=True)))
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


def _heading(spans: Iterable[tuple[str, int]]) -> list[str]:
    """Return a line of headings, and the rules below those that span columns."""
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
    """Return a number and what follows it, in a box as wide as the column's longest, so that numbers align."""
    text = _MARKS[cell.mark] % (cell.text.replace("-", "$-$") if cell.value is not None else "--")
    sign = _DAGGER if cell.not_significantly_different else ""
    if cell.extra:
        return rf"{text}{{\scriptsize\,{_extra(cell.extra, len(longest))}}}{sign}"
    return rf"{text}{sign}\phantom{{{{\scriptsize\,{_extra(longest, 0)}}}}}" if longest else text + sign


def _extra(text: str, length: int) -> str:
    room = rf"\phantom{{{'0' * (length - len(text))}}}" if length > len(text) else ""
    return text.replace("± ", rf"$\pm${room}").replace(", ", r",\,") + ("" if "± " in text else room)
