"""What goes to MLflow beside the rows of a run: their table as Markdown and CSV, and its pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from oodbench.results import Result, rows, slug

log = logging.getLogger(__name__)

KINDS = ("overview", "roc", "ranks")  # a histogram of each method takes seconds; images themselves may be private
_SECOND = re.compile(r"<u>(.*?)</u>")  # a name's own is escaped


class Attachments:
    """The files that go with rows of one results folder; a picture that cannot be drawn is logged and left out."""

    def __init__(self, results: Path) -> None:
        self.results = results

    def __call__(self, found: Sequence[Result]) -> Iterator[tuple[str, bytes]]:
        """Names, as in `pictures/glyphs-roc.png`, and contents."""
        from oodbench import report

        tables = report.tables(found)
        # MLflow's Markdown shows no underlining.
        yield "table.md", _SECOND.sub(r"*\1*", "\n".join(map(report.markdown, tables))).encode()
        yield "table.csv", report.csv(tables).encode()
        for number, table in enumerate(tables, 1):
            folder = "pictures" if len(tables) == 1 else f"pictures/{number}"
            for name, content in self._pictures([row for line in table.lines for row in line.rows]):
                yield f"{folder}/{name}", content

    def _pictures(self, found: Sequence[Result]) -> Iterator[tuple[str, bytes]]:
        from oodbench.report.figures import pictures

        paths = _paths(self.results, found)
        for kind in KINDS:
            try:
                for picture in pictures(found, paths, kinds=[kind]):
                    yield f"{picture.name}.png", picture.png()
            except Exception as error:  # whatever it is, the rows shall arrive
                why = (str(error).splitlines() or [""])[0] or type(error).__name__
                log.warning("MLflow gets no %s pictures of %s: %s", kind, found[0].benchmark, why)


def _paths(results: Path, found: Sequence[Result]) -> dict[str, Path]:
    """The rows' files by digest; looked for where a run writes them, else everywhere."""
    wanted = {row.digest for row in found}
    encoder = str(found[0].encoder.get("slug", ""))
    usual = results / "runs" / slug(found[0].benchmark)[:120] / encoder
    paths: dict[str, Path] = {}
    for folder in (usual, results):
        if folder.is_dir() and not wanted <= set(paths):
            paths |= {row.digest: path for path, row in rows(folder) if row.digest in wanted}
    return paths
