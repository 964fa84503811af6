"""Draw the figures of tables and write them to a folder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from oodbench.errors import UserError, printable
from oodbench.report.figures import FigureOptions, Heading, Plot, encoder_plots, table_plots
from oodbench.report.figures.figure import stem, stem_words, unique
from oodbench.report.tables.table import Table
from oodbench.storage.files import atomic_write, expand

CAPTIONS = "captions.txt"


def write(tables: Sequence[Table], paths: Mapping[str, Path], folder: Path, options: FigureOptions) -> Counter[str]:
    """Write NAME.png and NAME.pdf of every figure, and all captions to one text file; return counts of each kind.

    Raises UserError if the folder cannot be written to.
    """
    folder = expand(folder)
    captions: list[str] = []
    taken: set[str] = set()
    counts: Counter[str] = Counter()
    for plot in _plots(tables, paths, options):
        plot = replace(plot, name=unique(plot.name, taken))
        _write_files(
            folder, {f"{plot.name}.png": plot.png(300 if options.width else 150), f"{plot.name}.pdf": plot.pdf()}
        )
        captions.append("\n".join(map(printable, (plot.name, plot.title, plot.caption))) + "\n")
        counts[plot.kind] += 1
        del plot  # one figure in memory at a time
    if captions:
        _write_files(folder, {CAPTIONS: "\n".join(captions).encode("utf-8", "backslashreplace")})
    return counts


def _plots(tables: Sequence[Table], paths: Mapping[str, Path], options: FigureOptions) -> Iterator[Plot]:
    """Yield the figures of every table, then those that compare tables."""
    for table, heading in zip(tables, headings(tables), strict=True):
        yield from table_plots(table.results, paths, options, heading)
    if "encoders" in options.kinds:
        yield from encoder_plots([table.results for table in tables], options)


def headings(tables: Sequence[Table]) -> list[Heading]:
    """Return the headings of tables: titles, and unique starts of file names."""
    first = [next((line.result for line in table.lines if line.result), None) for table in tables]
    counts = Counter(stem(*stem_words(row)) for row in first if row)
    taken: set[str] = set()
    out = []
    for table, row in zip(tables, first, strict=True):
        words = stem_words(row) if row else ["quoted"]
        if row and counts[stem(*words)] > 1:
            words.append(str(row.encoder.get("slug", "")))
        out.append(Heading(unique(stem(*words), taken), table.title))
    return out


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    try:
        for name, content in files.items():
            with atomic_write(folder / name) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise UserError(f"cannot write figures to {folder}: {error.strerror or error}; name another folder") from error
