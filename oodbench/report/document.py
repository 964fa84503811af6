"""Document: LaTeX tables as a file that compiles as it is."""

from __future__ import annotations

from collections.abc import Sequence

from oodbench.report.bibliography import entries
from oodbench.report.booktabs import escape, latex
from oodbench.report.options import Options
from oodbench.report.table import Table

_HEAD = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs}
\begin{document}
"""


def document(tables: Sequence[Table], options: Options) -> str:
    """A whole article; with `cite`, its references are in it."""
    body = "\n".join(latex(table) for table in tables)
    references = []
    if options.cite:
        references = [r"\clearpage", r"\begin{thebibliography}{99}"]
        for work in entries(tables):
            said = [work.authors, work.title, f"{work.venue} {work.year}".strip()]
            said += [f"arXiv:{work.arxiv}"] if work.arxiv else []
            references.append(rf"\bibitem{{{work.key}}} {escape('. '.join(filter(None, said)))}.")
        references.append(r"\end{thebibliography}")
    return "\n".join([_HEAD + body, *references, r"\end{document}"]) + "\n"
