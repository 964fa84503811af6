"""Writing: the pictures of tables as files in a folder, each whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oodbench.errors import UserError, printable
from oodbench.report.figures import Heading, Plot, plots
from oodbench.report.figures.figure import stem, unique
from oodbench.report.tables.table import Table
from oodbench.storage.files import atomic_write, expand

CAPTIONS = "captions.txt"


def write(
    tables: Sequence[Table], paths: Mapping[str, Path], folder: Path, *, data: Path | None, sets: Sequence[str] = ()
) -> int:
    """Write NAME.png and NAME.pdf of every picture, and all captions in one text file; how many pictures there are.

    UserError when the folder cannot be written to.
    """
    folder = expand(folder)
    captions: list[str] = []
    taken: set[str] = set()
    for table, heading in zip(tables, headings(tables), strict=True):
        rows = [line.result for line in table.lines if line.result]
        for picture in plots(rows, paths, data=data, sets=sets, heading=heading):
            picture = replace(picture, name=unique(picture.name, taken))
            _write(folder, picture)
            captions.append("\n".join(map(printable, (picture.name, picture.title, picture.caption))) + "\n")
            del picture  # one figure in memory at a time
    if captions:
        _whole(folder, {CAPTIONS: "\n".join(captions).encode("utf-8", "backslashreplace")})
    return len(captions)


def headings(tables: Sequence[Table]) -> list[Heading]:
    """Of each table: its title, and a beginning of file names that differs from the others'."""
    first = [next((line.result for line in table.lines if line.result), None) for table in tables]
    benchmarks = Counter(stem(row.benchmark) for row in first if row)
    taken: set[str] = set()
    out = []
    for table, row in zip(tables, first, strict=True):
        words = [row.benchmark] if row else ["quoted"]
        if row and benchmarks[stem(row.benchmark)] > 1:
            words.append(str(row.encoder.get("slug", "")))
        out.append(Heading(unique(stem(*words), taken), table.title))
    return out


def _write(folder: Path, picture: Plot) -> None:
    _whole(folder, {f"{picture.name}.png": picture.png(), f"{picture.name}.pdf": picture.pdf()})


def _whole(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        for name, content in files.items():
            with atomic_write(folder / name) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write pictures to {folder}: {error.strerror or error}; name another folder") from error
