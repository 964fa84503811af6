"""Document: LaTeX tables as a file that compiles as it is."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

from oodbench.report.formats.bibtex import entries
from oodbench.report.formats.latex import escape, latex
from oodbench.report.formats.letters import as_codes, preamble, remark
from oodbench.report.options import Options
from oodbench.report.tables.table import Table

log = logging.getLogger(__name__)

_HEAD = r"""%s\documentclass{article}
%s
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\begin{document}
"""
_ENGINE = "% Compile with lualatex or xelatex: this {remark}, and prints their codes.\n"


def document(tables: Sequence[Table], options: Options) -> str:
    """A whole article for any engine; its first line says when pdflatex lacks letters. With `cite`, its references."""
    body = "\n".join(latex(table) for table in tables)
    references = []
    if options.cite:
        references = [r"\clearpage", r"\begin{thebibliography}{99}"]
        for work in entries(tables):
            said = [work.authors, work.title, f"{work.venue} {work.year}".strip()]
            said += [f"arXiv:{work.arxiv}"] if work.arxiv else []
            references.append(rf"\bibitem{{{work.key}}} {escape('. '.join(filter(None, said)))}.")
        references.append(r"\end{thebibliography}")
    text = "\n".join([body, *references, r"\end{document}"]) + "\n"
    lacking = remark(text)
    if lacking:
        log.warning("the LaTeX %s, and prints their codes: compile it with lualatex or xelatex", lacking)
    text = re.sub(r"^% The table holds .*\n", "", text, flags=re.MULTILINE)  # of a table by itself
    return _HEAD % (_ENGINE.format(remark=lacking) if lacking else "", preamble(text)) + as_codes(text)
