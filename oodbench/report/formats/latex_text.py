"""Text in LaTeX: special characters, and letters that pdflatex supports or lacks.

pdflatex supports the Latin alphabet and mathematical signs; other scripts need LuaLaTeX or XeLaTeX and a font.
"""

from __future__ import annotations

import re
import unicodedata

from oodbench.errors import printable

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

# Characters that pdflatex has in the encodings T1 and TS1.
_LACKING = "ĦħĸĿŀŉŦŧſ"
_LATIN = {chr(code) for code in (*range(0xA0, 0x180), *range(0x218, 0x21C))} - set(_LACKING)
BASIC = _LATIN | set("‐‑‒–—‖‘’‚“”„†‡•…‰‱‹›€™№")
T1 = frozenset("«»ÐÞðþĄąĐđĘęĮįŊŋŲų‚„‹›")  # those of BASIC that pdflatex prints only with fontenc's T1
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


def is_printed(letter: str) -> bool:
    """Return whether pdflatex prints a letter, by itself or by a command."""
    return letter.isascii() or letter in BASIC or bool(as_command(letter))


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
    return f"contains {len(found)} letters that pdflatex lacks ({found[:12]}{'...' if len(found) > 12 else ''})"


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


def escape(text: str) -> str:
    """Escape text for LaTeX, on one line."""
    words = " ".join(printable(text).split())
    escaped = (as_command(letter) or letter.translate(_ESCAPES) for letter in letters(words))
    return _LIGATURE.sub(r"\g<0>{}", "".join(escaped))
