"""Scores as a table, CSV or parquet, written part by part."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from oodbench.detector.engine import Scored
from oodbench.errors import UserError
from oodbench.report.formats.csvtext import csv_text
from oodbench.storage.files import whole

SUFFIXES = (".csv", ".parquet")


@dataclass
class Written:
    """What a table holds: images, how many of them are in-distribution, those that could not be read, the range."""

    images: int = 0
    accepted: int = 0
    skipped: tuple[str, ...] = ()
    least: float = math.inf
    most: float = -math.inf


def check(out: Path | None) -> None:
    """Raise UserError for a file that is neither CSV nor parquet, or cannot be written."""
    if out is None:
        return
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {out}: the name must end in .csv or .parquet")
    if out.is_dir():
        raise UserError(f"--out {out}: that is a folder; name a file")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.absolute().parent}")


def write(parts: Iterable[Scored], classes: Sequence[str], threshold: float | None, out: Path | None) -> Written:
    """Columns image, score, class, and with a threshold decision ("id" or "ood"); None writes CSV to stdout.

    A file appears when it is whole. An image that could not be read is left out. In CSV texts are made safe by
    `csv_text`; parquet has them as they are, but for bytes of file names that are not UTF-8, which become escapes.
    """
    names = ["image", "score", "class", *(["decision"] if threshold is not None else [])]
    found = Written()
    with _writer(out, names) as put:
        for part in parts:
            read = np.flatnonzero(~np.isnan(part.scores))
            columns: list[list[Any]] = [
                [part.names[i] for i in read],
                part.scores[read].tolist(),
                [classes[k] if k >= 0 else "" for k in part.predictions[read]],
            ]
            if threshold is not None:
                accepted = part.scores[read] >= threshold
                columns.append(["id" if one else "ood" for one in accepted])
                found.accepted += int(accepted.sum())
            found.images += len(read)
            found.least = float(part.scores[read].min(initial=found.least))
            found.most = float(part.scores[read].max(initial=found.most))
            found.skipped += part.skipped
            put(columns)
    return found


@contextmanager
def _writer(out: Path | None, names: list[str]) -> Iterator[Any]:
    """Takes columns, as often as there are some."""
    if out is None:
        try:
            yield _rows(sys.stdout, names)
            sys.stdout.flush()
        except BrokenPipeError:  # of `| head`, which click ends quietly
            raise
        except OSError as error:
            raise UserError(f"the table cannot be written to standard output: {error.strerror or error}") from error
        return
    try:
        with whole(out) as partial:
            if out.suffix.lower() == ".csv":
                with partial.open("w", encoding="utf-8", newline="") as file:
                    yield _rows(file, names)
            else:
                import pyarrow as pa
                from pyarrow import parquet

                kinds = {"score": pa.float64()}
                schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
                with parquet.ParquetWriter(partial, schema) as file:
                    yield lambda columns: file.write_table(_table(dict(zip(names, columns, strict=True)), schema))
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror or error}") from error


def _rows(file: Any, names: list[str]) -> Any:
    table = csv.writer(file, lineterminator="\n")
    table.writerow(names)
    return lambda columns: table.writerows(map(csv_text, row) for row in zip(*columns, strict=True))


def _table(columns: dict[str, list[Any]], schema: Any) -> Any:
    import pyarrow as pa

    columns["image"] = [name.encode("utf-8", "backslashreplace").decode() for name in columns["image"]]
    return pa.table(columns, schema)
