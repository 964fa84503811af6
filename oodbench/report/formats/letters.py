"""Letters: what LaTeX sets of names in any script, and what it takes for the rest.

pdflatex has letters of the Latin alphabet and signs of mathematics, among them Greek letters. Others need LuaLaTeX or
XeLaTeX and a font that has them; without, they are left out with no more than a line in the log.
"""

from __future__ import annotations

import re
import unicodedata

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
